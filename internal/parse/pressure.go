package parse

import "bytes"

// Stalls is how long some, or all, tasks have waited for a resource, in seconds.
type Stalls struct{ Some, Full Number }

// Pressure reads /proc/pressure/memory (kernel/sched/psi.c, Linux 4.20), whose totals are
// in microseconds. Lines of other kinds than these two are skipped.
func Pressure(b []byte, path string) (s Stalls, err error) {
	var p Problems
	for line, b, ok := NextLine(b); ok; line, b, ok = NextLine(b) {
		kind, line, _ := NextField(line)
		var into *Number
		switch string(kind) {
		case "some":
			into = &s.Some
		case "full":
			into = &s.Full
		default:
			continue
		}
		found := false
		for word, line, ok := NextField(line); ok; word, line, ok = NextField(line) {
			if value, ok := bytes.CutPrefix(word, []byte("total=")); ok {
				found = true
				if err := into.parseCounter(value); err != nil {
					p.Add(FieldError(path, string(kind)+" total", err))
				}
			}
		}
		if !found {
			p.Add(FieldError(path, string(kind)+" total", ErrMissing))
		}
	}
	s.Some, s.Full = s.Some.Times(1e-6), s.Full.Times(1e-6)
	return s, p.Err()
}
