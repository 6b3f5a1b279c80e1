package parse

// field is a named value of a file.
type field struct {
	name string
	n    Number
}

// complete returns an error that names the missing fields, of those that every kernel
// has: the file was truncated, or is not what it should be. Fields that could not be
// parsed have already been reported.
func complete(path string, fields []field) error {
	var p Problems
	for _, f := range fields {
		if f.n.IsMissing() {
			p.Add(FieldError(path, f.name, ErrMissing))
		}
	}
	return p.Err()
}
