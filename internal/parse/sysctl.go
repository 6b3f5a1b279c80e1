package parse

// Numbers reads the numbers at the start of the first line of a file, such as a sysctl
// (kernel/sysctl.c), as many as into holds. One that cannot be read is absent, and named
// in the error.
func Numbers(b []byte, path string, into []Number) error {
	var p Problems
	line, _, _ := NextLine(b)
	for i := range into {
		field, rest, ok := NextField(line)
		if !ok {
			p.Add(FieldError(path, ordinal(i), ErrMissing))
			continue
		}
		if err := into[i].parse(field); err != nil {
			p.Add(FieldError(path, ordinal(i), err))
		}
		line = rest
	}
	return p.Err()
}

func ordinal(i int) string { return "value " + string(rune('1'+i)) }
