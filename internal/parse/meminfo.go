package parse

import (
	"bytes"
	"fmt"
)

// Memory is what is read from /proc/meminfo, in bytes. The fields of low and high memory
// exist only on 32-bit kernels with CONFIG_HIGHMEM.
type Memory struct {
	Total, Available                       Number
	LowTotal, LowFree, HighTotal, HighFree Number
	Committed, CommitLimit                 Number
	SlabReclaimable, SlabUnreclaimable     Number
	KernelStack, PageTables, SecPageTables Number
	Percpu, Vmalloc                        Number
	// Hugetlb is the memory reserved for huge pages of every size. Before Linux 4.19 it
	// is computed from the two others: the number of huge pages of the default size, and
	// that size.
	Hugetlb                 Number
	hugePages, hugePageSize Number
}

// Meminfo reads /proc/meminfo (fs/proc/meminfo.c; MemAvailable since Linux 3.14), whose
// unit is 1024 bytes. Only MemTotal is required, and LowFree if there is a LowTotal: some
// kernels lack other fields.
func Meminfo(b []byte, path string) (m Memory, err error) {
	var p Problems
	for line, b, ok := NextLine(b); ok; line, b, ok = NextLine(b) {
		name, rest, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		n := m.field(name)
		if n == nil || n.Present {
			continue
		}
		value, _, _ := NextField(rest)
		if err := n.parse(value); err != nil {
			p.Add(FieldError(path, string(name), err))
		}
		if n != &m.hugePages {
			*n = n.Times(1024)
		}
	}
	fields := []field{{"MemTotal", m.Total}}
	if m.LowTotal.Present {
		fields = append(fields, field{"LowFree", m.LowFree})
	}
	p.Add(complete(path, fields))
	if m.Hugetlb.IsMissing() && m.hugePages.Present && m.hugePageSize.Present {
		m.Hugetlb = m.hugePages.Times(m.hugePageSize.Value)
	}

	// A part that is larger than its total is not of the same total (lxcfs shows a
	// container's total with the machine's other values).
	for _, part := range []struct {
		name  string
		n     *Number
		whole Number
		of    string
	}{
		{"MemAvailable", &m.Available, m.Total, "MemTotal"},
		{"Hugetlb", &m.Hugetlb, m.Total, "MemTotal"},
		{"LowFree", &m.LowFree, m.LowTotal, "LowTotal"},
		{"HighFree", &m.HighFree, m.HighTotal, "HighTotal"},
	} {
		if part.n.Present && part.whole.Present && part.n.Value > part.whole.Value {
			p.Add(FieldError(path, part.name, fmt.Errorf("%.0f kB is more than %s", part.n.Value/1024, part.of)))
			*part.n = Unreadable()
		}
	}
	return m, p.Err()
}

// field returns where to store a field of the file, nil for a field that is not read.
func (m *Memory) field(name []byte) *Number {
	switch string(name) {
	case "MemTotal":
		return &m.Total
	case "MemAvailable":
		return &m.Available
	case "LowTotal":
		return &m.LowTotal
	case "LowFree":
		return &m.LowFree
	case "HighTotal":
		return &m.HighTotal
	case "HighFree":
		return &m.HighFree
	case "Committed_AS":
		return &m.Committed
	case "CommitLimit":
		return &m.CommitLimit
	case "SReclaimable":
		return &m.SlabReclaimable
	case "SUnreclaim":
		return &m.SlabUnreclaimable
	case "KernelStack":
		return &m.KernelStack
	case "PageTables":
		return &m.PageTables
	case "SecPageTables":
		return &m.SecPageTables
	case "Percpu":
		return &m.Percpu
	case "VmallocUsed":
		return &m.Vmalloc
	case "Hugetlb":
		return &m.Hugetlb
	case "HugePages_Total":
		return &m.hugePages
	case "Hugepagesize":
		return &m.hugePageSize
	}
	return nil
}
