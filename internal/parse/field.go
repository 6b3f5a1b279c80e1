package parse

// field is a named value of a file.
type field struct {
	name string
	n    Number
}

// complete names the fields that are missing, of those that every kernel has: the
// file was truncated, or is not what it should be. Fields that could not be parsed
// have been named before.
func complete(path string, fields []field) error {
	var p Problems
	for _, f := range fields {
		if f.n.IsMissing() {
			p.Add(FieldError(path, f.name, ErrMissing))
		}
	}
	return p.Err()
}
