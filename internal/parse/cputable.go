package parse

import (
	"fmt"
	"slices"
)

// CPUTable reads a file of /proc/net/stat (nf_conntrack:
// net/netfilter/nf_conntrack_standalone.c; arp_cache, ndisc_cache: net/core/neighbour.c,
// Linux 2.6): a line of column names, then a line of hexadecimal numbers for each
// possible CPU. The columns differ between kernels, so they are found by name. visit is
// called with the number in row cpu under wanted[column].
//
// lost[column] is set if the number of some CPU could not be read, so that a sum over all
// CPUs would be wrong; the error says which. A line that has another number of fields and
// does not begin with a number does not belong to a CPU.
func CPUTable(b []byte, path string, wanted []string, visit func(cpu, column int, v uint64)) (lost []bool, err error) {
	lost = make([]bool, len(wanted))
	loseAll := func() {
		for i := range lost {
			lost[i] = true
		}
	}
	header, b, _ := NextLine(b)
	columns := CountFields(header)
	if columns == 0 {
		loseAll()
		return lost, FieldError(path, "header", ErrMissing)
	}
	place := make([]int, 0, columns) // the index of each column in wanted, or -1
	for name, header, ok := NextField(header); ok; name, header, ok = NextField(header) {
		place = append(place, slices.Index(wanted, string(name)))
	}

	var p Problems
	cpu := 0
	for len(b) > 0 {
		var line []byte
		line, b, _ = NextLine(b)
		if n := CountFields(line); n != columns {
			if !isHex(line) {
				continue
			}
			if n < columns {
				p.Add(FieldError(path, fmt.Sprintf("row of CPU %d", cpu), fmt.Errorf("%d values for %d columns", n, columns)))
				loseAll()
				cpu++
				continue
			}
		}
		for _, at := range place {
			var f []byte
			f, line, _ = NextField(line)
			if at < 0 {
				continue
			}
			v, err := Uint(f, 16)
			if err != nil {
				p.Add(FieldError(path, fmt.Sprintf("%s of CPU %d", wanted[at], cpu), err))
				lost[at] = true
				continue
			}
			visit(cpu, at, v)
		}
		cpu++
	}
	if cpu == 0 {
		loseAll()
		p.Add(FieldError(path, "rows", ErrMissing))
	}
	return lost, p.Err()
}

// isHex reports whether a line begins with a hexadecimal number.
func isHex(line []byte) bool {
	first, _, _ := NextField(line)
	_, err := Uint(first, 16)
	return err == nil
}
