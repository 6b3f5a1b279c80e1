package collector

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
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
	arc, arcMin                Number // bytes; of ZFS
	overcommit                 Number // vm.overcommit_memory
	oomKills                   Number
	pressureSome, pressureFull Number // seconds
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
				Name:  "memory_hugetlb_bytes",
				Help:  "Memory set aside for huge pages, used or not: nothing else can have it, so saturation_ratio{resource=\"memory\"} counts it neither as used nor as there. From /proc/meminfo, Hugetlb, or HugePages_Total and Hugepagesize before Linux 4.19.",
				Value: func(s *memory) Number { return s.hugetlb },
			},
			{
				Name:  "memory_zfs_arc_bytes",
				Help:  "The cache of ZFS, which shrinks when memory is needed, to a minimum: what is above that counts as free in saturation_ratio{resource=\"memory\"}, as page cache does. From /proc/spl/kstat/zfs/arcstats, size.",
				Value: func(s *memory) Number { return s.arc },
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
		Lists: []Lister[memory]{
			List[memory, zone]{
				Items:  (*memory).sized,
				Before: func(a, b zone) bool { return a.need() > b.need() },
				Labels: []string{"node", "zone"},
				Key:    func(z zone) []string { return []string{z.node, z.name} },
				Columns: []Metric[zone]{
					{
						Name:  "memory_zone_free_bytes",
						Help:  "Free memory of a zone, of the zones nearest to their reserves. From /proc/zoneinfo.",
						Value: func(z *zone) Number { return z.free },
					},
					{
						Name:   "memory_zone_watermark_bytes",
						Help:   "Reserves of a zone: below low the kernel reclaims in the background until high, below min it makes the program wait, or kills. From /proc/zoneinfo.",
						Labels: []string{"watermark"},
						Values: func(z *zone, emit Emit) {
							emit(z.min, "min")
							emit(z.low, "low")
							emit(z.high, "high")
						},
					},
				},
			},
			List[memory, slab]{
				Items:  func(s *memory) iter.Seq[slab] { return slices.Values(s.slabs) },
				Before: slab.before,
				Labels: []string{"cache"},
				Key:    func(c slab) []string { return []string{c.cache} },
				Columns: []Metric[slab]{{
					Name:  "memory_slab_bytes",
					Help:  "Memory of the kernel's caches of sockets and connection tracking, the largest ones. From /sys/kernel/slab or /proc/slabinfo.",
					Value: func(c *slab) Number { return number(c.size) },
				}},
			},
		},
		Limits: []Limit[memory]{
			{
				LimitInfo: LimitInfo{
					Resource: "memory", Unit: Bytes, WarningRatio: 0.9, CriticalRatio: 0.97,
					Effect:   "The OOM killer ends a process: \"Out of memory: Killed process\".",
					Moves:    "the machine's memory",
					LogLines: []LogLine{{Text: "Out of memory: Kill"}},
				},
				Used: func(s *memory) Number {
					used := s.total.minus(s.available, s.hugetlb.orZero(), s.evictable())
					used.Value = max(used.Value, 0) // the counts are not of one instant
					return used
				},
				Most: func(s *memory) Number { return s.total.minus(s.hugetlb.orZero()) },
			},
			{
				LimitInfo: LimitInfo{
					Resource: "low_memory", Unit: Bytes, WarningRatio: 0.8, CriticalRatio: 0.9,
					Effect:   "The OOM killer ends a process, often a bystander, while high memory is free.",
					Moves:    "a 64-bit kernel; vm.min_free_kbytes",
					Sysctls:  []Sysctl{{"vm.min_free_kbytes", Kibibytes, false}},
					LogLines: []LogLine{{Text: "Out of memory: Kill"}},
				},
				Used: func(s *memory) Number { return s.low },
				Most: func(s *memory) Number { return s.lowLimit },
			},
			{
				LimitInfo: LimitInfo{
					Resource: "committed_memory", Unit: Bytes, WarningRatio: 0.85, CriticalRatio: 0.92,
					Effect: "fork, mmap and malloc fail with ENOMEM; without CAP_SYS_ADMIN some percent earlier (vm.admin_reserve_kbytes, vm.user_reserve_kbytes). Enforced while vm.overcommit_memory is 2.",
					Usage:  series("memory_committed_bytes"), Max: series("memory_commit_limit_bytes"),
					Sysctls: []Sysctl{{"vm.overcommit_ratio", Percents, false}, {"vm.overcommit_kbytes", Kibibytes, false}},
				},
				Most: func(s *memory) Number {
					if !s.overcommit.Present || s.overcommit.Value != overcommitNever {
						return Number{}
					}
					return s.commitLimit
				},
			},
		},
	})
}

// sized yields the zones, but for one that may have no memory at all.
func (s *memory) sized() iter.Seq[zone] {
	return func(yield func(zone) bool) {
		for _, z := range s.zones {
			if z.size().Present && !yield(z) {
				return
			}
		}
	}
}

// overcommitNever is the value of vm.overcommit_memory at which the kernel
// enforces the commit limit.
const overcommitNever = 2

func openMemory(k *Scope) func(context.Context, *memory) error {
	info, zoneinfo, vmstat := k.Proc("meminfo"), k.Proc("zoneinfo"), k.Proc("vmstat")
	pressure, overcommit := k.Proc("pressure/memory"), k.Proc("sys/vm/overcommit_memory")
	arcstats := k.Proc("spl/kstat/zfs/arcstats")
	slabs := newSlabReader(k)
	stat := k.Host.File("sockstat")

	return func(_ context.Context, s *memory) error {
		var p problems
		b, err := required(info, "/proc/meminfo")
		if isNotSupported(err) {
			return err
		}
		p.add(err)
		if b != nil {
			p.add(parseMeminfo(b, info.Path(), &s.meminfo))
		}
		for _, f := range []struct {
			file  kernel.File
			parse func(b []byte, path string) error
		}{
			{zoneinfo, func(b []byte, path string) (err error) {
				s.zones, err = parseZoneinfo(b, path)
				for i := range s.zones {
					s.zones[i].scale(float64(k.PageSize))
				}
				return err
			}},
			{vmstat, func(b []byte, path string) error { return parseOOMKills(b, path, &s.oomKills) }},
			{pressure, func(b []byte, path string) error { return parsePressure(b, path, s) }},
			{arcstats, func(b []byte, path string) error { return parseARC(b, path, s) }},
		} {
			b, err := optional(f.file)
			p.add(err)
			if b != nil {
				p.add(f.parse(b, f.file.Path()))
			}
		}
		s.overcommit, err = sysctlNumber(overcommit)
		p.add(err)
		if s.lowTotal.Present {
			b, err = optional(stat)
			p.add(err)
			var sockets sockstat
			if b == nil {
				sockets.alloc.bad = err != nil
			} else {
				p.add(parseSockstat(b, stat.Path(), 0, &sockets))
			}
			p.add(s.setLow(sockets.alloc, zoneinfo.Path()))
		}
		s.slabs, err = slabs.read()
		p.add(err)
		return p.err()
	}
}

// pinnedBySocket is what a TCP socket holds, in bytes, of slab that the kernel
// counts as reclaimable and cannot reclaim while the socket is open: its inode and
// its dentry (sock_inode_cache 683, dentry 179 on average, Linux 6.1 686-pae).
const pinnedBySocket = 860

// setLow finds how much low memory the kernel could not give back, and how much
// there may be of it until an allocation fails and the OOM killer comes. Page
// cache and reclaimable slab fill low memory on any busy host, and go when
// asked; the min watermark of a zone is kept for emergencies. Without one of the
// terms there is no number. path is that of zoneinfo.
func (s *memory) setLow(sockets Number, path string) error {
	var p problems
	reclaimable := s.slabReclaimable
	if sockets.bad {
		return nil // which the error of the file has said
	}
	if sockets.Present {
		reclaimable.Value = max(reclaimable.Value-sockets.Value*pinnedBySocket, 0)
	}
	low, limit := s.lowTotal.minus(s.lowFree, reclaimable), s.lowTotal
	zones, managed := 0, number(0)
	for _, z := range s.zones {
		if !z.isLow() {
			continue
		}
		zones++
		managed = managed.plus(z.managed)
		limit.Present = limit.Present && z.size().Present
		if !z.file().Present {
			p.add(fieldError(path, z.String()+": page cache", errMissing))
		}
		low = low.minus(z.file())
		limit = limit.minus(z.min)
	}
	if zones == 0 {
		return p.err()
	}
	// LowTotal is the sum of the low zones, so a zone is missing where it is not.
	if managed.Present && math.Abs(managed.Value-s.lowTotal.Value) > 0.01*s.lowTotal.Value {
		p.add(fieldError(path, "low zones", fmt.Errorf("they have %.0f kB of LowTotal's %.0f kB", managed.Value/1024, s.lowTotal.Value/1024)))
		return p.err()
	}
	// The counts are not of one instant.
	low.Value = max(low.Value, 0)
	s.low, s.lowLimit = low, limit
	return p.err()
}

// evictable is the part of the cache of ZFS that goes when memory is needed. The
// kernel counts it as used: it is no page cache.
func (s *memory) evictable() Number {
	if !s.arc.Present && !s.arc.bad {
		return Number{Present: true} // there is no ZFS
	}
	n := s.arc.minus(s.arcMin)
	n.Value = max(n.Value, 0)
	return n
}

// parseARC reads the size of the cache of ZFS and the least that it shrinks to, in
// bytes, from /proc/spl/kstat/zfs/arcstats (OpenZFS, module/zfs/arc.c): lines of a
// name, a type and a value.
func parseARC(b []byte, path string, s *memory) error {
	var p problems
	for line, b, ok := procfile.NextLine(b); ok; line, b, ok = procfile.NextLine(b) {
		name, line, _ := procfile.NextField(line)
		var into *Number
		switch string(name) {
		case "size":
			into = &s.arc
		case "c_min":
			into = &s.arcMin
		default:
			continue
		}
		_, line, _ = procfile.NextField(line)
		value, _, _ := procfile.NextField(line)
		if err := into.parse(value); err != nil {
			p.add(fieldError(path, string(name), err))
		}
	}
	p.add(complete(path, []field{{"size", s.arc}, {"c_min", s.arcMin}}))
	if !s.arc.Present {
		s.arc.bad = true
	}
	return p.err()
}

// parseOOMKills reads oom_kill of /proc/vmstat (Linux 4.13).
func parseOOMKills(b []byte, path string, into *Number) error {
	var p problems
	for line, b, ok := procfile.NextLine(b); ok; line, b, ok = procfile.NextLine(b) {
		name, value, _ := procfile.NextField(line)
		if string(name) == "oom_kill" {
			value, _, _ = procfile.NextField(value)
			if err := into.parseCounter(value); err != nil {
				p.add(fieldError(path, "oom_kill", err))
			}
		}
	}
	return p.err()
}

// parsePressure reads /proc/pressure/memory (kernel/sched/psi.c, Linux 4.20),
// whose totals are microseconds. Lines of other kinds than these two are passed
// over.
func parsePressure(b []byte, path string, s *memory) error {
	var p problems
	for line, b, ok := procfile.NextLine(b); ok; line, b, ok = procfile.NextLine(b) {
		kind, line, _ := procfile.NextField(line)
		var into *Number
		switch string(kind) {
		case "some":
			into = &s.pressureSome
		case "full":
			into = &s.pressureFull
		default:
			continue
		}
		found := false
		for word, line, ok := procfile.NextField(line); ok; word, line, ok = procfile.NextField(line) {
			if value, ok := bytes.CutPrefix(word, []byte("total=")); ok {
				found = true
				if err := into.parseCounter(value); err != nil {
					p.add(fieldError(path, string(kind)+" total", err))
				}
			}
		}
		if !found {
			p.add(fieldError(path, string(kind)+" total", errMissing))
		}
	}
	s.pressureSome, s.pressureFull = s.pressureSome.times(1e-6), s.pressureFull.times(1e-6)
	return p.err()
}
