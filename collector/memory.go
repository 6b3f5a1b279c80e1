package collector

import (
	"bytes"
	"context"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// memory is one reading of the machine's memory, as far as it tells of a refused
// allocation or an OOM kill to come.
type memory struct {
	meminfo
	zones []zone
	slabs []slab
	// low is what the kernel could not give back of low memory, lowLimit what
	// there may be of it; bytes.
	low, lowLimit              Number
	overcommit                 Number // vm.overcommit_memory
	oomKills                   Number
	pressureSome, pressureFull Number // seconds
	pageSize                   float64
	top                        int
}

func memorySpec() Spec {
	return define(Definition[memory]{
		Name:      "memory",
		Help:      "Memory as far as it ends in a refused allocation or an OOM kill, low memory of 32-bit kernels included, from /proc/meminfo, /proc/zoneinfo, /proc/vmstat, /proc/pressure/memory and /sys/kernel/slab.",
		Privilege: "memory_slab_bytes needs root: the kernel shows its caches to no one else.",
		Open:      openMemory,
		Metrics: []Metric[memory]{
			{
				Name:  "memory_total_bytes",
				Help:  "Memory of the machine. From /proc/meminfo, MemTotal.",
				Value: func(s *memory) Number { return s.total },
			},
			{
				Name:  "memory_available_bytes",
				Help:  "Memory that programs could get without swapping, as the kernel estimates it. From /proc/meminfo, MemAvailable.",
				Value: func(s *memory) Number { return s.available },
			},
			{
				Name:  "memory_low_total_bytes",
				Help:  "Memory that a 32-bit kernel can use for its own data, sockets among it. From /proc/meminfo, LowTotal; 32-bit kernels with CONFIG_HIGHMEM only.",
				Value: func(s *memory) Number { return s.lowTotal },
			},
			{
				Name:  "memory_low_free_bytes",
				Help:  "Free low memory. It also falls because of page cache, which is given back when needed: saturation_ratio{resource=\"low_memory\"} takes that out. From /proc/meminfo, LowFree; 32-bit kernels with CONFIG_HIGHMEM only.",
				Value: func(s *memory) Number { return s.lowFree },
			},
			{
				Name:  "memory_high_total_bytes",
				Help:  "Memory that a 32-bit kernel can give to programs but not use for its own data. From /proc/meminfo, HighTotal; 32-bit kernels with CONFIG_HIGHMEM only.",
				Value: func(s *memory) Number { return s.highTotal },
			},
			{
				Name:  "memory_high_free_bytes",
				Help:  "Free high memory. From /proc/meminfo, HighFree; 32-bit kernels with CONFIG_HIGHMEM only.",
				Value: func(s *memory) Number { return s.highFree },
			},
			{
				Name:  "memory_committed_bytes",
				Help:  "Memory that programs were promised. From /proc/meminfo, Committed_AS.",
				Value: func(s *memory) Number { return s.committed },
			},
			{
				Name:  "memory_commit_limit_bytes",
				Help:  "Memory that programs may be promised while vm.overcommit_memory is 2. From /proc/meminfo, CommitLimit.",
				Value: func(s *memory) Number { return s.commitLimit },
			},
			{
				Name:   "memory_kernel_bytes",
				Help:   "Memory in the kernel's own use, by kind; kernel_stack may be a part of vmalloc. From /proc/meminfo.",
				Labels: []string{"kind"},
				Values: func(s *memory, emit Emit) {
					emit(s.slabReclaimable, "slab_reclaimable")
					emit(s.slabUnreclaimable, "slab_unreclaimable")
					emit(s.kernelStack, "kernel_stack")
					emit(s.pageTables, "page_tables")
					emit(s.secPageTables, "secondary_page_tables")
					emit(s.percpu, "percpu")
					emit(s.vmalloc, "vmalloc")
				},
			},
			{
				Name:   "memory_zone_free_bytes",
				Help:   "Free memory of a zone, of the zones nearest to their reserves. From /proc/zoneinfo.",
				Labels: []string{"node", "zone"},
				Values: func(s *memory, emit Emit) {
					for _, z := range neediest(s.zones, s.top) {
						emit(z.free.times(s.pageSize), z.node, z.name)
					}
				},
			},
			{
				Name:   "memory_zone_watermark_bytes",
				Help:   "Reserves of a zone: below low the kernel reclaims in the background until high, below min it makes the program wait, or kills. From /proc/zoneinfo.",
				Labels: []string{"node", "zone", "watermark"},
				Values: func(s *memory, emit Emit) {
					for _, z := range neediest(s.zones, s.top) {
						emit(z.min.times(s.pageSize), z.node, z.name, "min")
						emit(z.low.times(s.pageSize), z.node, z.name, "low")
						emit(z.high.times(s.pageSize), z.node, z.name, "high")
					}
				},
			},
			{
				Name:   "memory_slab_bytes",
				Help:   "Memory of the kernel's caches of sockets and connection tracking, the largest ones. From /sys/kernel/slab or /proc/slabinfo.",
				Labels: []string{"cache"},
				Values: func(s *memory, emit Emit) {
					for _, c := range largestSlabs(s.slabs, s.top) {
						emit(number(c.size), c.cache)
					}
				},
			},
			{
				Name:  "oom_kills_total",
				Help:  "Processes killed because there was no memory, those of a memory cgroup at its limit included. From /proc/vmstat, oom_kill.",
				Value: func(s *memory) Number { return s.oomKills },
			},
			{
				Name:   "memory_pressure_seconds_total",
				Help:   "Time in which some, or all, tasks waited for memory. From /proc/pressure/memory.",
				Labels: []string{"kind"},
				Values: func(s *memory, emit Emit) {
					emit(s.pressureSome, "some")
					emit(s.pressureFull, "full")
				},
			},
		},
		Limits: []Limit[memory]{
			{
				LimitInfo: LimitInfo{
					Resource: "memory", Unit: Bytes, Sysctl: "the machine's memory", Warning: 0.9, Critical: 0.97,
					Effect: "The OOM killer ends a process: \"Out of memory: Killed process\".",
				},
				Usage: func(s *memory) Number { return s.total.minus(s.available) },
				Limit: func(s *memory) Number { return s.total },
			},
			{
				LimitInfo: LimitInfo{
					Resource: "low_memory", Unit: Bytes, Sysctl: "a 64-bit kernel; vm.min_free_kbytes", Warning: 0.8, Critical: 0.9,
					Effect: "The OOM killer ends a process, often a bystander, while high memory is free.",
				},
				Usage: func(s *memory) Number { return s.low },
				Limit: func(s *memory) Number { return s.lowLimit },
			},
			{
				LimitInfo: LimitInfo{
					Resource: "committed_memory", Unit: Bytes, Sysctl: "vm.overcommit_ratio, vm.overcommit_kbytes", Warning: 0.85, Critical: 0.92,
					Effect: "fork, mmap and malloc fail with ENOMEM; without CAP_SYS_ADMIN some percent earlier (vm.admin_reserve_kbytes, vm.user_reserve_kbytes). Enforced while vm.overcommit_memory is 2.",
				},
				Usage: func(s *memory) Number { return s.committed },
				Limit: func(s *memory) Number {
					if s.overcommit.Value != overcommitNever {
						return Number{}
					}
					return s.commitLimit
				},
			},
		},
	})
}

// overcommitNever is the value of vm.overcommit_memory at which the kernel
// enforces the commit limit.
const overcommitNever = 2

func openMemory(k *Kernel) func(context.Context, *memory) error {
	info, zoneinfo, vmstat := k.proc("meminfo"), k.proc("zoneinfo"), k.proc("vmstat")
	pressure, overcommit := k.proc("pressure/memory"), k.proc("sys/vm/overcommit_memory")
	slabs := newSlabReader(k)
	stat := k.net("sockstat")

	return func(_ context.Context, s *memory) error {
		s.pageSize, s.top = k.pageSize, k.top
		b, err := required(info, "/proc/meminfo")
		if err != nil {
			return err
		}
		if err := parseMeminfo(b, info.Path(), &s.meminfo); err != nil {
			return err
		}
		if b, err = optional(zoneinfo); err != nil {
			return err
		}
		if b != nil {
			if s.zones, err = parseZoneinfo(b, zoneinfo.Path()); err != nil {
				return err
			}
		}
		if s.lowTotal.Present {
			if b, err = optional(stat); err != nil {
				return err
			}
			var sockets sockstat
			if b != nil {
				if err := parseSockstat(b, stat.Path(), k.memoryUnit, &sockets); err != nil {
					return err
				}
			}
			s.setLow(sockets.alloc)
		}
		if b, err = optional(vmstat); err != nil {
			return err
		}
		if s.oomKills, err = parseOOMKills(b, vmstat.Path()); err != nil {
			return err
		}
		if b, err = optional(pressure); err != nil {
			return err
		}
		if err := parsePressure(b, pressure.Path(), s); err != nil {
			return err
		}
		if s.overcommit, err = sysctlNumber(overcommit); err != nil {
			return err
		}
		s.slabs, err = slabs.read()
		return err
	}
}

// pinnedBySocket is what a TCP socket holds, in bytes, of slab that the kernel
// counts as reclaimable and cannot reclaim while the socket is open: its inode and
// its dentry (sock_inode_cache 683, dentry 179 on average, Linux 6.1 686-pae).
const pinnedBySocket = 860

// setLow finds how much low memory the kernel could not give back, and how much
// there may be of it until an allocation fails and the OOM killer comes. Page
// cache and reclaimable slab fill low memory on any busy host, and go when
// asked; the min watermark of a zone is kept for emergencies.
func (s *memory) setLow(sockets Number) {
	if len(s.zones) == 0 {
		return
	}
	reclaimable := s.slabReclaimable
	if sockets.Present {
		reclaimable.Value = max(reclaimable.Value-sockets.Value*pinnedBySocket, 0)
	}
	s.low = s.lowTotal.minus(s.lowFree, reclaimable)
	s.lowLimit = s.lowTotal
	for _, z := range s.zones {
		if z.isLow() {
			s.low = s.low.minus(z.activeFile.times(s.pageSize), z.inactiveFile.times(s.pageSize))
			s.lowLimit = s.lowLimit.minus(z.min.times(s.pageSize))
		}
	}
	// The counts are not of one instant.
	s.low.Value = max(s.low.Value, 0)
}

// parseOOMKills reads oom_kill of /proc/vmstat (Linux 4.13).
func parseOOMKills(b []byte, path string) (Number, error) {
	for line, b, ok := procfile.NextLine(b); ok; line, b, ok = procfile.NextLine(b) {
		value, ok := bytes.CutPrefix(line, []byte("oom_kill "))
		if !ok {
			continue
		}
		v, err := procfile.Uint(value, 10)
		if err != nil {
			return Number{}, fieldError(path, "oom_kill", err)
		}
		return number(v), nil
	}
	return Number{}, nil
}

// parsePressure reads /proc/pressure/memory (kernel/sched/psi.c, Linux 4.20),
// whose totals are microseconds.
func parsePressure(b []byte, path string, s *memory) error {
	for line, b, ok := procfile.NextLine(b); ok; line, b, ok = procfile.NextLine(b) {
		kind, line, _ := procfile.NextField(line)
		into := &s.pressureSome
		switch string(kind) {
		case "some":
		case "full":
			into = &s.pressureFull
		default:
			return fieldError(path, "kind of pressure", errMissing)
		}
		_, value, ok := bytes.Cut(line, []byte("total="))
		if !ok {
			return fieldError(path, string(kind)+" total", errMissing)
		}
		v, err := procfile.Uint(value, 10)
		if err != nil {
			return fieldError(path, string(kind)+" total", err)
		}
		*into = number(v).times(1e-6)
	}
	return nil
}
