package who

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// memoryKinds returns the uses of memory in /proc/meminfo that cannot be reclaimed. Slab
// memory is listed separately, by cache if this user may see it.
func memoryKinds() []memoryKind {
	return []memoryKind{
		{"AnonPages", "programs (AnonPages)", false},
		{"Shmem", "shared memory and tmpfs (Shmem)", false},
		{"KernelStack", "stacks in the kernel (KernelStack)", true},
		{"PageTables", "page tables (PageTables)", true},
		{"SecPageTables", "page tables of devices and guests (SecPageTables)", true},
		{"Percpu", "per-CPU data (Percpu)", true},
		{"VmallocUsed", "vmalloc (VmallocUsed)", true},
	}
}

type memoryKind struct {
	field, name string
	kernel      bool // it is in low memory, if there is high memory
}

// readMemoryKinds answers by the uses of memory. Low memory belongs to the kernel, so its
// uses are the caches alone.
func readMemoryKinds(low bool) func(*inquiry) error {
	return func(q *inquiry) error {
		path := filepath.Join(q.ProcPath, "meminfo")
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fields := meminfo(b)
		for _, kind := range memoryKinds() {
			if !low || kind.kernel {
				q.addMemory(kind.name, fields[kind.field])
			}
		}
		if !q.addSlabs(low) {
			q.addMemory("slab caches that cannot be given back (SUnreclaim)", fields["SUnreclaim"])
			if low {
				q.addMemory("slab caches that can be given back (SReclaimable)", fields["SReclaimable"])
			}
			q.note("Listing the slab caches needs root.")
		}
		if f := q.Host.File("sockstat"); q.MemoryUnit != nil {
			if unit, err := q.MemoryUnit(); err == nil {
				if b, err := f.Read(); err == nil {
					if s, err := parse.Sockstat(b, f.Path(), unit); err == nil {
						q.note("This includes %s of TCP and %s of UDP socket buffers, in slab caches and in pages of their own.",
							collector.Bytes.Format(s.TCPMemory.Value), collector.Bytes.Format(s.UDPMemory.Value))
					}
				}
			}
		}
		q.answer.Memory = q.tally.all.bytes
		return nil
	}
}

func (q *inquiry) addMemory(name string, size float64) {
	if size > 0 {
		q.tally.all.bytes += size
		q.answer.add(Group{Who: name, Memory: size, score: size})
	}
}

// addSlabs adds each slab cache, and reports whether this user may see them. The
// reclaimable ones hold names and files that were in use, and the kernel counts most of
// that memory as available; but in low memory they may belong to open sockets.
func (q *inquiry) addSlabs(all bool) bool {
	path := filepath.Join(q.ProcPath, "slabinfo")
	b, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	slabs, err := parse.Slabinfo(b, path, nil, q.PageSize)
	if err != nil && len(slabs) == 0 {
		return false
	}
	for _, s := range slabs {
		name := "slab cache " + parse.Printable(s.Cache)
		if q.reclaimable(s.Cache) {
			if !all {
				continue
			}
			name += " (can be given back)"
		}
		q.addMemory(name, s.Size)
	}
	return true
}

// reclaimable reports whether a slab cache can be reclaimed.
func (q *inquiry) reclaimable(cache string) bool {
	b, err := os.ReadFile(filepath.Join(q.SysPath, "kernel/slab", cache, "reclaim_account"))
	return err == nil && string(bytes.TrimSpace(b)) == "1"
}

// meminfo reads the sizes of /proc/meminfo, in bytes.
func meminfo(b []byte) map[string]float64 {
	fields := map[string]float64{}
	for line, b, ok := parse.NextLine(b); ok; line, b, ok = parse.NextLine(b) {
		name, rest, _ := bytes.Cut(line, []byte(":"))
		value, rest, _ := parse.NextField(rest)
		if n, err := parse.Count(value); err == nil && strings.TrimSpace(string(rest)) == "kB" {
			fields[string(name)] = float64(n) * 1024
		}
	}
	return fields
}
