package parse

// ARC is the size of the ZFS cache, in bytes.
type ARC struct {
	Size Number
	Min  Number // the minimum size to which it shrinks
}

// Arcstats reads the size and the minimum size of the ZFS cache, in bytes, from
// /proc/spl/kstat/zfs/arcstats (OpenZFS, module/zfs/arc.c): lines of a name, a type and a
// value.
func Arcstats(b []byte, path string) (s ARC, err error) {
	var p Problems
	for line, b, ok := NextLine(b); ok; line, b, ok = NextLine(b) {
		name, line, _ := NextField(line)
		var into *Number
		switch string(name) {
		case "size":
			into = &s.Size
		case "c_min":
			into = &s.Min
		default:
			continue
		}
		_, line, _ = NextField(line)
		value, _, _ := NextField(line)
		if err := into.parse(value); err != nil {
			p.Add(FieldError(path, string(name), err))
		}
	}
	p.Add(complete(path, []field{{"size", s.Size}, {"c_min", s.Min}}))
	if !s.Size.Present {
		s.Size.bad = true
	}
	return s, p.Err()
}
