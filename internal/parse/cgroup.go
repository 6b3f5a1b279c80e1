package parse

import (
	"bytes"
	"slices"
)

// MemoryStat is what memory.stat of a cgroup counts, in bytes.
type MemoryStat struct {
	// Sockets is the memory of its socket buffers (sock).
	Sockets Number
	// Files is reclaimable page cache, and Slab reclaimable memory of the kernel's
	// caches.
	Files, Slab Number
}

// MemoryStatV2 reads memory.stat of version 2 (mm/memcontrol.c, Linux 4.5; sock since
// 4.5, slab_reclaimable since 4.18). All values include the cgroups below.
func MemoryStatV2(b []byte, path string) (s MemoryStat, err error) {
	var inactive, active Number
	err = numbersByName(b, path, map[string]*Number{
		"sock": &s.Sockets, "inactive_file": &inactive, "active_file": &active, "slab_reclaimable": &s.Slab,
	})
	s.Files = inactive.Plus(active)
	return s, err
}

// MemoryStatV1 reads memory.stat of version 1, which does not have sockets and caches.
func MemoryStatV1(b []byte, path string) (s MemoryStat, err error) {
	var inactive, active Number
	err = numbersByName(b, path, map[string]*Number{"total_inactive_file": &inactive, "total_active_file": &active})
	s.Files = inactive.Plus(active)
	return s, err
}

// MemoryEvents is what memory.events of a cgroup counts.
type MemoryEvents struct {
	// OOMs is how often a limit was reached with nothing left to reclaim (oom).
	OOMs Number
	// Kills is the number of processes that the OOM killer has killed, whether the
	// cgroup, one above it, or the machine was out of memory (oom_kill).
	Kills Number
}

// CgroupEvents reads memory.events of version 2, whose counters include the cgroups
// below, or memory.oom_control of version 1, which has only the kills in the cgroup
// itself. oom_kill exists since Linux 4.13.
func CgroupEvents(b []byte, path string) (e MemoryEvents, err error) {
	err = numbersByName(b, path, map[string]*Number{"oom": &e.OOMs, "oom_kill": &e.Kills})
	return e, err
}

// CgroupLimit reads memory.max or memory.limit_in_bytes. The limit is absent for a cgroup
// without one.
func CgroupLimit(b []byte, path string) (limit Number, err error) {
	b = bytes.TrimSpace(b)
	if string(b) == "max" {
		return Number{}, nil
	}
	var n [1]Number
	err = Numbers(append(slices.Clip(b), '\n'), path, n[:])
	// If there is no limit, version 1 has the greatest number of pages.
	if n[0].Value >= 1<<62 {
		return Number{}, err
	}
	return n[0], err
}

// numbersByName reads lines of a name and a number.
func numbersByName(b []byte, path string, into map[string]*Number) error {
	var p Problems
	for line, b, ok := NextLine(b); ok; line, b, ok = NextLine(b) {
		name, value, _ := NextField(line)
		if n := into[string(name)]; n != nil {
			value, _, _ = NextField(value)
			if err := n.parseCounter(value); err != nil {
				p.Add(FieldError(path, string(name), err))
			}
		}
	}
	return p.Err()
}
