package collector

import (
	"fmt"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// parseCPUTable reads a file of /proc/net/stat: a line of column names, then a
// line of hexadecimal numbers for each possible CPU. The columns differ from
// kernel to kernel, so they go by name. visit gets the number that stands in row
// cpu under wanted[column].
func parseCPUTable(b []byte, path string, wanted []string, visit func(cpu, column int, v uint64)) error {
	header, b, _ := procfile.NextLine(b)
	columns := procfile.CountFields(header)
	if columns == 0 {
		return fieldError(path, "header", errMissing)
	}
	place := make([]int, 0, columns) // of each column in wanted, or -1
	for name, header, ok := procfile.NextField(header); ok; name, header, ok = procfile.NextField(header) {
		at := -1
		for i, w := range wanted {
			if string(name) == w {
				at = i
			}
		}
		place = append(place, at)
	}

	cpu := 0
	for ; len(b) > 0; cpu++ {
		var line []byte
		line, b, _ = procfile.NextLine(b)
		if n := procfile.CountFields(line); n != columns {
			return fieldError(path, fmt.Sprintf("row of CPU %d", cpu), fmt.Errorf("%d values for %d columns", n, columns))
		}
		for _, at := range place {
			var f []byte
			f, line, _ = procfile.NextField(line)
			if at < 0 {
				continue
			}
			v, err := procfile.Uint(f, 16)
			if err != nil {
				return fieldError(path, fmt.Sprintf("%s of CPU %d", wanted[at], cpu), err)
			}
			visit(cpu, at, v)
		}
	}
	if cpu == 0 {
		return fieldError(path, "rows", errMissing)
	}
	return nil
}
