package collector

import (
	"bytes"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// meminfo is what is read of /proc/meminfo, in bytes. The fields of low and high
// memory exist on 32-bit kernels with CONFIG_HIGHMEM only.
type meminfo struct {
	total, available                       Number
	lowTotal, lowFree, highTotal, highFree Number
	committed, commitLimit                 Number
	slabReclaimable, slabUnreclaimable     Number
	kernelStack, pageTables, secPageTables Number
	percpu, vmalloc                        Number
}

// parseMeminfo reads /proc/meminfo (fs/proc/meminfo.c; MemAvailable since Linux
// 3.14), whose unit is 1024 bytes.
func parseMeminfo(b []byte, path string, m *meminfo) error {
	for line, b, ok := procfile.NextLine(b); ok; line, b, ok = procfile.NextLine(b) {
		name, rest, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		n := m.field(name)
		if n == nil {
			continue
		}
		value, _, _ := procfile.NextField(rest)
		v, err := procfile.Uint(value, 10)
		if err != nil {
			return fieldError(path, string(name), err)
		}
		*n = number(v).times(1024)
	}
	fields := []field{
		{"MemTotal", m.total},
		{"MemAvailable", m.available},
		{"SReclaimable", m.slabReclaimable},
		{"SUnreclaim", m.slabUnreclaimable},
		{"CommitLimit", m.commitLimit},
		{"Committed_AS", m.committed},
	}
	if m.lowTotal.Present {
		fields = append(fields, field{"LowFree", m.lowFree})
	}
	return complete(path, fields)
}

func (m *meminfo) field(name []byte) *Number {
	switch string(name) {
	case "MemTotal":
		return &m.total
	case "MemAvailable":
		return &m.available
	case "LowTotal":
		return &m.lowTotal
	case "LowFree":
		return &m.lowFree
	case "HighTotal":
		return &m.highTotal
	case "HighFree":
		return &m.highFree
	case "Committed_AS":
		return &m.committed
	case "CommitLimit":
		return &m.commitLimit
	case "SReclaimable":
		return &m.slabReclaimable
	case "SUnreclaim":
		return &m.slabUnreclaimable
	case "KernelStack":
		return &m.kernelStack
	case "PageTables":
		return &m.pageTables
	case "SecPageTables":
		return &m.secPageTables
	case "Percpu":
		return &m.percpu
	case "VmallocUsed":
		return &m.vmalloc
	}
	return nil
}
