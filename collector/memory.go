package collector

import (
	"context"
	"fmt"
	"iter"
	"math"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// memory is one reading of the machine's memory, as far as it predicts a failed
// allocation or an OOM kill.
type memory struct {
	parse.Memory
	zones []parse.Zone
	slabs []parse.Slab
	// low is the low memory that the kernel could not reclaim, lowLimit how much of it
	// there may be; bytes.
	low, lowLimit Number
	arc           parse.ARC
	overcommit    Number // vm.overcommit_memory
	oomKills      Number
	pressure      parse.Stalls
}

func memorySpec() Spec {
	return define(Definition[memory]{
		Name:      "memory",
		Help:      "Memory that decides over failed allocations and OOM kills, including low memory of 32-bit kernels, from /proc/meminfo, /proc/zoneinfo, /proc/vmstat, /proc/pressure/memory and /sys/kernel/slab.",
		Privilege: "memory_slab_bytes needs root, because the kernel shows its slab caches to root only.",
		Open:      func(k *Scope) func(context.Context, *memory) error { return openMemory(k, true) },
		Sample:    func(k *Scope) func(context.Context, *memory) error { return openMemory(k, false) },
		Metrics: []Metric[memory]{
			{
				Name:  "memory_total_bytes",
				Help:  "Memory of the whole machine. From /proc/meminfo, MemTotal.",
				Value: func(s *memory) Number { return s.Total },
			},
			{
				Name:  "memory_available_bytes",
				Help:  "Memory available to programs without swapping, as estimated by the kernel. From /proc/meminfo, MemAvailable.",
				Value: func(s *memory) Number { return s.Available },
			},
			{
				Name:  "memory_hugetlb_bytes",
				Help:  "Memory reserved for huge pages, used or not, which saturation_ratio{resource=\"memory\"} leaves out of both usage and limit. From /proc/meminfo, Hugetlb, or HugePages_Total and Hugepagesize before Linux 4.19.",
				Value: func(s *memory) Number { return s.Hugetlb },
			},
			{
				Name:  "memory_zfs_arc_bytes",
				Help:  "Size of the ZFS cache (ARC), which shrinks to a minimum when memory is needed; saturation_ratio{resource=\"memory\"} counts the part above that minimum as free. From /proc/spl/kstat/zfs/arcstats, size.",
				Value: func(s *memory) Number { return s.arc.Size },
			},
			{
				Name:  "memory_low_total_bytes",
				Help:  "Memory that a 32-bit kernel can use for its own data, including sockets. From /proc/meminfo, LowTotal (32-bit kernels with CONFIG_HIGHMEM only).",
				Value: func(s *memory) Number { return s.LowTotal },
			},
			{
				Name:  "memory_low_free_bytes",
				Help:  "Free low memory; unlike saturation_ratio{resource=\"low_memory\"} it does not count page cache, which can be reclaimed, as free. From /proc/meminfo, LowFree (32-bit kernels with CONFIG_HIGHMEM only).",
				Value: func(s *memory) Number { return s.LowFree },
			},
			{
				Name:  "memory_high_total_bytes",
				Help:  "Memory that a 32-bit kernel can give to programs but not use for its own data. From /proc/meminfo, HighTotal (32-bit kernels with CONFIG_HIGHMEM only).",
				Value: func(s *memory) Number { return s.HighTotal },
			},
			{
				Name:  "memory_high_free_bytes",
				Help:  "Free high memory. From /proc/meminfo, HighFree (32-bit kernels with CONFIG_HIGHMEM only).",
				Value: func(s *memory) Number { return s.HighFree },
			},
			{
				Name:  "memory_committed_bytes",
				Help:  "Memory promised to programs, used or not. From /proc/meminfo, Committed_AS.",
				Value: func(s *memory) Number { return s.Committed },
			},
			{
				Name:  "memory_commit_limit_bytes",
				Help:  "Memory that may be promised to programs; enforced only while vm.overcommit_memory is 2. From /proc/meminfo, CommitLimit.",
				Value: func(s *memory) Number { return s.CommitLimit },
			},
			{
				Name:   "memory_kernel_bytes",
				Help:   "Memory used by the kernel itself, by kind; vmalloc may include kernel_stack. From /proc/meminfo.",
				Labels: []string{"kind"},
				Values: func(s *memory, emit Emit) {
					emit(s.SlabReclaimable, "slab_reclaimable")
					emit(s.SlabUnreclaimable, "slab_unreclaimable")
					emit(s.KernelStack, "kernel_stack")
					emit(s.PageTables, "page_tables")
					emit(s.SecPageTables, "secondary_page_tables")
					emit(s.Percpu, "percpu")
					emit(s.Vmalloc, "vmalloc")
				},
			},
			{
				Name:  "oom_kills_total",
				Help:  "Processes killed by the OOM killer on the whole machine, including those of a cgroup at its memory limit. From /proc/vmstat, oom_kill.",
				Value: func(s *memory) Number { return s.oomKills },
			},
			{
				Name:   "memory_pressure_seconds_total",
				Help:   "Time during which some or all (full) tasks were waiting for memory. From /proc/pressure/memory.",
				Labels: []string{"kind"},
				Values: func(s *memory, emit Emit) {
					emit(s.pressure.Some, "some")
					emit(s.pressure.Full, "full")
				},
			},
		},
		Lists: []Lister[memory]{
			List[memory, parse.Zone]{
				Items:  (*memory).sized,
				Before: func(a, b parse.Zone) bool { return a.Need() > b.Need() },
				Labels: []string{"node", "zone"},
				Key:    func(z parse.Zone) []string { return []string{z.Node, z.Name} },
				Columns: []Metric[parse.Zone]{
					{
						Name:  "memory_zone_free_bytes",
						Help:  "Free memory of a zone, for the zones closest to their watermarks. From /proc/zoneinfo.",
						Value: func(z *parse.Zone) Number { return z.Free },
					},
					{
						Name:   "memory_zone_watermark_bytes",
						Help:   "Watermarks of a zone: below low the kernel reclaims memory in the background until high, below min allocations wait or end in an OOM kill. From /proc/zoneinfo.",
						Labels: []string{"watermark"},
						Values: func(z *parse.Zone, emit Emit) {
							emit(z.Min, "min")
							emit(z.Low, "low")
							emit(z.High, "high")
						},
					},
				},
			},
			List[memory, parse.Slab]{
				Items:  func(s *memory) iter.Seq[parse.Slab] { return slices.Values(s.slabs) },
				Before: largerSlab,
				Labels: []string{"cache"},
				Key:    func(c parse.Slab) []string { return []string{c.Cache} },
				Columns: []Metric[parse.Slab]{{
					Name:  "memory_slab_bytes",
					Help:  "Memory of slab caches used by sockets and connection tracking, the largest ones only; filp and dentry also hold files that are not sockets. From /sys/kernel/slab or /proc/slabinfo.",
					Value: func(c *parse.Slab) Number { return number(c.Size) },
				}},
			},
		},
		Limits: []Limit[memory]{
			{
				LimitInfo: LimitInfo{
					Resource: "memory", Unit: Bytes, WarningRatio: 0.9, CriticalRatio: 0.97,
					Effect:   "The OOM killer kills a process: \"Out of memory: Killed process\".",
					SetWith:  "the machine's memory",
					LogLines: oomLines(),
					Sizing: Sizing{
						Needs: func(l Load) float64 { return l.KernelBytes + l.ProgramBytes },
						Rule:  "the kernel's memory for connections and their data, plus the programs",
						Fixed: true,
					},
				},
				Used: func(s *memory) Number {
					used := s.Total.Minus(s.Available, s.Hugetlb.OrZero(), s.evictable())
					used.Value = max(used.Value, 0) // the counts are not from the same instant
					return used
				},
				Most: func(s *memory) Number { return s.Total.Minus(s.Hugetlb.OrZero()) },
			},
			{
				LimitInfo: LimitInfo{
					Resource: "low_memory", Unit: Bytes, WarningRatio: 0.8, CriticalRatio: 0.9,
					Effect:   "The OOM killer kills a process, often an unrelated one, although high memory is free.",
					SetWith:  "a 64-bit kernel; vm.min_free_kbytes",
					Sysctls:  []Sysctl{{"vm.min_free_kbytes", Kibibytes, false}},
					LogLines: oomLines(),
					Sizing: Sizing{
						Needs:   func(l Load) float64 { return l.KernelBytes },
						Rule:    "the kernel's memory for connections and their data; no setting changes that much",
						Initial: "less than 900 MiB on 32 bits",
						Fixed:   true,
					},
				},
				Used: func(s *memory) Number { return s.low },
				Most: func(s *memory) Number { return s.lowLimit },
			},
			{
				LimitInfo: LimitInfo{
					Resource: "committed_memory", Unit: Bytes, WarningRatio: 0.85, CriticalRatio: 0.92,
					Effect: "fork, mmap and malloc fail with ENOMEM, for users without CAP_SYS_ADMIN a few percent earlier (vm.admin_reserve_kbytes, vm.user_reserve_kbytes). Enforced only while vm.overcommit_memory is 2.",
					Usage:  series("memory_committed_bytes"), Max: series("memory_commit_limit_bytes"),
					Sysctls: []Sysctl{{"vm.overcommit_ratio", Percents, false}, {"vm.overcommit_kbytes", Kibibytes, false}},
					Sizing: Sizing{
						Needs: func(l Load) float64 { return l.ProgramBytes },
						Rule:  "memory requested by programs, used or not, while `vm.overcommit_memory` is 2",
					},
				},
				Most: func(s *memory) Number {
					if !s.overcommit.Present || s.overcommit.Value != overcommitNever {
						return Number{}
					}
					return s.CommitLimit
				},
			},
		},
		LogLines: []LogLine{
			{Message: "oom_kill_cgroup", Pattern: `Memory cgroup out of memory: ` + killed},
			{Message: "oom_kill_cpuset", Pattern: outOfMemory + killed, Constraint: `CPUSET|MEMORY_POLICY`},
			{Message: "page_allocation_failure", Pattern: comm + `: page allocation failure: order:\d+`},
			{Message: "slab_allocation_failure", Pattern: `SLUB: Unable to allocate memory on `},
			{Message: "vmap_allocation_failure", Pattern: `vmap allocation for size \d+ failed|` + comm + `: vmalloc error: size \d+|` + comm + `: vmalloc: allocation failure`},
			{Message: "hung_task", Pattern: `INFO: task (?P<process>.*):(?P<pid>\d+) blocked for more than \d+ seconds`},
		},
	})
}

// Parts of the kernel's lines. The name of a process may have any bytes, up to 15.
const (
	comm        = `(?P<process>(?:[^\\]|\\x[0-9a-f]{2}){1,15})`
	outOfMemory = `Out of memory(?: \(oom_kill_allocating_task\))?: `
	killed      = `Kill(?:ed)? process (?P<pid>\d+) \((?P<process>.*)\)(?:,| total-vm| score)`
)

// oomLines are the lines about a process killed because the machine is out of memory.
func oomLines() []LogLine {
	return []LogLine{{Message: "oom_kill", Pattern: outOfMemory + killed}}
}

// sized yields the zones, except those that may have no memory at all.
func (s *memory) sized() iter.Seq[parse.Zone] {
	return func(yield func(parse.Zone) bool) {
		for _, z := range s.zones {
			if z.Size().Present && !yield(z) {
				return
			}
		}
	}
}

// overcommitNever is the value of vm.overcommit_memory at which the kernel enforces the
// commit limit.
const overcommitNever = 2

// openMemory opens the sources of everything, or only of what the limits need.
func openMemory(k *Scope, everything bool) func(context.Context, *memory) error {
	info, zoneinfo, vmstat := k.Proc("meminfo"), k.Proc("zoneinfo"), k.Proc("vmstat")
	pressure, overcommit := k.Proc("pressure/memory"), k.GlobalSysctl("vm.overcommit_memory")
	arcstats := k.Proc("spl/kstat/zfs/arcstats")
	slabs := newSlabReader(k)
	stat := k.Host.File("sockstat")

	return func(_ context.Context, s *memory) error {
		var p parse.Problems
		b, err := required(info, "/proc/meminfo")
		if isNotSupported(err) {
			return err
		}
		p.Add(err)
		if b != nil {
			s.Memory, err = parse.Meminfo(b, info.Path())
			p.Add(err)
		}
		for _, f := range []struct {
			file   kernel.File
			needed bool
			parse  func(b []byte, path string) error
		}{
			{zoneinfo, everything || s.LowTotal.Present, func(b []byte, path string) (err error) {
				s.zones, err = parse.Zoneinfo(b, path, k.PageSize)
				return err
			}},
			{vmstat, everything, func(b []byte, path string) (err error) {
				s.oomKills, err = parse.OOMKills(b, path)
				return err
			}},
			{pressure, everything, func(b []byte, path string) (err error) {
				s.pressure, err = parse.Pressure(b, path)
				return err
			}},
			{arcstats, true, func(b []byte, path string) (err error) {
				s.arc, err = parse.Arcstats(b, path)
				return err
			}},
		} {
			if !f.needed {
				continue
			}
			b, err := optional(f.file)
			p.Add(err)
			if b != nil {
				p.Add(f.parse(b, f.file.Path()))
			}
		}
		s.overcommit, err = sysctlNumber(overcommit)
		p.Add(err)
		if s.LowTotal.Present {
			b, err = optional(stat)
			p.Add(err)
			var sockets parse.Sockets
			switch {
			case b != nil:
				sockets, err = parse.Sockstat(b, stat.Path(), 0)
				p.Add(err)
			case err != nil:
				sockets.Allocated = parse.Unreadable()
			}
			p.Add(s.setLow(sockets.Allocated, zoneinfo.Path()))
		}
		if everything {
			s.slabs, err = slabs.read()
			p.Add(err)
		}
		return p.Err()
	}
}

// pinnedBySocket is the slab, in bytes, that a TCP socket holds and that the kernel
// counts as reclaimable but cannot reclaim while the socket is open: its inode and its
// dentry (sock_inode_cache 683, dentry 179 on average, Linux 6.1 686-pae).
const pinnedBySocket = 860

// setLow finds how much low memory the kernel could not reclaim, and how much of it there
// may be before an allocation fails and the OOM killer runs. Page cache and reclaimable
// slab fill low memory on any busy host, and are freed on demand; the min watermark of a
// zone is reserved for emergencies. If one of the terms is missing there is no number.
// path is that of zoneinfo.
func (s *memory) setLow(sockets Number, path string) error {
	var p parse.Problems
	reclaimable := s.SlabReclaimable
	if sockets.IsUnreadable() {
		return nil // the error of the file already reports it
	}
	if sockets.Present {
		reclaimable.Value = max(reclaimable.Value-sockets.Value*pinnedBySocket, 0)
	}
	low, limit := s.LowTotal.Minus(s.LowFree, reclaimable), s.LowTotal
	zones, managed := 0, number(0)
	for _, z := range s.zones {
		if !z.IsLow() {
			continue
		}
		zones++
		managed = managed.Plus(z.Managed)
		limit.Present = limit.Present && z.Size().Present
		if !z.PageCache().Present {
			p.Add(parse.FieldError(path, z.String()+": page cache", parse.ErrMissing))
		}
		low = low.Minus(z.PageCache())
		limit = limit.Minus(z.Min)
	}
	if zones == 0 {
		return p.Err()
	}
	// LowTotal is the sum of the low zones, so if it differs a zone is missing.
	if managed.Present && math.Abs(managed.Value-s.LowTotal.Value) > 0.01*s.LowTotal.Value {
		p.Add(parse.FieldError(path, "low zones", fmt.Errorf("they have %.0f kB of LowTotal's %.0f kB", managed.Value/1024, s.LowTotal.Value/1024)))
		return p.Err()
	}
	// The counts are not from the same instant.
	low.Value = max(low.Value, 0)
	s.low, s.lowLimit = low, limit
	return p.Err()
}

// evictable returns the part of the ZFS cache that is freed when memory is needed. The
// kernel counts it as used, because it is not page cache.
func (s *memory) evictable() Number {
	if s.arc.Size.IsMissing() {
		return Number{Present: true} // there is no ZFS
	}
	n := s.arc.Size.Minus(s.arc.Min)
	n.Value = max(n.Value, 0)
	return n
}
