package collector

import (
	"bytes"
	"fmt"

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
	// hugetlb is the memory that is set aside for huge pages of every size. Before
	// Linux 4.19 it is made of the two others: how many there are of the default
	// size (no bytes), and that size.
	hugetlb, hugePages, hugePageSize Number
}

// parseMeminfo reads /proc/meminfo (fs/proc/meminfo.c; MemAvailable since Linux
// 3.14), whose unit is 1024 bytes. MemTotal alone is demanded, and LowFree where
// there is a LowTotal: other kernels lack others.
func parseMeminfo(b []byte, path string, m *meminfo) error {
	var p problems
	for line, b, ok := procfile.NextLine(b); ok; line, b, ok = procfile.NextLine(b) {
		name, rest, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		n := m.field(name)
		if n == nil || n.Present {
			continue
		}
		value, _, _ := procfile.NextField(rest)
		if err := n.parse(value); err != nil {
			p.add(fieldError(path, string(name), err))
		}
		if n != &m.hugePages {
			*n = n.times(1024)
		}
	}
	fields := []field{{"MemTotal", m.total}}
	if m.lowTotal.Present {
		fields = append(fields, field{"LowFree", m.lowFree})
	}
	p.add(complete(path, fields))
	if !m.hugetlb.Present && !m.hugetlb.bad && m.hugePages.Present && m.hugePageSize.Present {
		m.hugetlb = m.hugePages.times(m.hugePageSize.Value)
	}

	// A part that is larger than the whole is not the whole's (lxcfs shows a
	// container's total beside the machine's rest).
	for _, part := range []struct {
		name  string
		n     *Number
		whole Number
		of    string
	}{
		{"MemAvailable", &m.available, m.total, "MemTotal"},
		{"Hugetlb", &m.hugetlb, m.total, "MemTotal"},
		{"LowFree", &m.lowFree, m.lowTotal, "LowTotal"},
		{"HighFree", &m.highFree, m.highTotal, "HighTotal"},
	} {
		if part.n.Present && part.whole.Present && part.n.Value > part.whole.Value {
			p.add(fieldError(path, part.name, fmt.Errorf("%.0f kB is more than %s", part.n.Value/1024, part.of)))
			*part.n = Number{bad: true}
		}
	}
	return p.err()
}

// field returns where a field of the file belongs, nil for one that is not read.
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
	case "Hugetlb":
		return &m.hugetlb
	case "HugePages_Total":
		return &m.hugePages
	case "Hugepagesize":
		return &m.hugePageSize
	}
	return nil
}
