package parse

import (
	"fmt"
	"math"
)

// SoftnetLine is a line of /proc/net/softnet_stat: the queue of received packets of a
// CPU.
type SoftnetLine struct {
	// CPU is missing in every line before Linux 5.10.
	CPU Number
	// Dropped counts packets, Squeezed rounds that ended with packets left.
	Dropped, Squeezed Number
	// Backlog is the number of waiting packets, absent before Linux 5.10. Input is the
	// part of it that the kernel compares with net.core.netdev_max_backlog. Since Linux
	// 6.6 the file has Input alone; before, Input is Backlog.
	Backlog, Input Number
}

// Columns of /proc/net/softnet_stat (softnet_seq_show in net/core/net-procfs.c).
const (
	softnetDropped    = 1
	softnetSqueezed   = 2
	softnetBacklog    = 11 // Linux 5.10
	softnetCPU        = 12 // Linux 5.10
	softnetInputQueue = 13 // Linux 6.6
)

// Softnet reads /proc/net/softnet_stat (softnet_seq_show in net/core/net-procfs.c, Linux
// 2.4): a line of 32-bit hexadecimal numbers for each online CPU. All lines must have as
// many as the first. What cannot be read of a line is unreadable in the result, and named
// in the error. A line that does not begin with a number and has another number of fields
// does not belong to a CPU.
func Softnet(b []byte, path string) ([]SoftnetLine, error) {
	var p Problems
	var rows [][]byte
	columns := 0
	for len(b) > 0 {
		var line []byte
		line, b, _ = NextLine(b)
		if !isHex(line) && CountFields(line) != columns {
			continue // not of a CPU
		}
		if columns == 0 {
			columns = CountFields(line)
		}
		rows = append(rows, line)
	}
	if len(rows) == 0 {
		return nil, FieldError(path, "every line", ErrMissing)
	}
	lines := make([]SoftnetLine, 0, len(rows))
	for row, line := range rows {
		n := CountFields(line)
		var v [softnetInputQueue + 1]Number
		if n != columns || n <= softnetSqueezed {
			p.Add(FieldError(path, fmt.Sprintf("line %d", row+1), fmt.Errorf("%d columns instead of %d", n, columns)))
			for i := range min(max(columns, softnetSqueezed+1), len(v)) {
				v[i] = Unreadable()
			}
			// Then the number of waiting packets is not known either, whatever the kernel
			// shows.
			v[softnetBacklog] = Unreadable()
		} else {
			for i := range min(n, len(v)) {
				var f []byte
				f, line, _ = NextField(line)
				switch i {
				case softnetDropped, softnetSqueezed, softnetBacklog, softnetCPU, softnetInputQueue:
					var err error
					if v[i], err = softnetNumber(f); err != nil {
						p.Add(FieldError(path, fmt.Sprintf("line %d, column %d", row+1, i+1), err))
					}
				}
			}
		}
		input := v[softnetBacklog]
		if columns > softnetInputQueue {
			input = v[softnetInputQueue]
		}
		lines = append(lines, SoftnetLine{
			CPU:     v[softnetCPU],
			Dropped: v[softnetDropped], Squeezed: v[softnetSqueezed],
			Backlog: v[softnetBacklog], Input: input,
		})
	}
	return lines, p.Err()
}

func softnetNumber(b []byte) (Number, error) {
	v, err := Uint(b, 16)
	if err == nil && v > math.MaxUint32 {
		err = fmt.Errorf("%q has more than 32 bits", b)
	}
	if err != nil {
		return Unreadable(), err
	}
	return Of(v), nil
}
