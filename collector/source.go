package collector

import (
	"errors"
	"io/fs"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// required reads a file that a collector cannot do without. Where this kernel
// does not have it, the collector is not supported.
func required(f *procfile.File, feature string) ([]byte, error) {
	b, err := f.Read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &NotSupportedError{Feature: feature, Err: err}
	}
	if err != nil {
		return nil, err
	}
	return b, whole(b, f.Path())
}

// optional reads a file that a kernel may not have. Then b is nil and so is err.
func optional(f *procfile.File) (b []byte, err error) {
	b, err = f.Read()
	if isAbsent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return b, whole(b, f.Path())
}

// whole says whether a file was cut short. The kernel ends every line, so the
// last number of a file that does not end with one may lack digits.
func whole(b []byte, path string) error {
	if len(b) > 0 && b[len(b)-1] == '\n' {
		return nil
	}
	return fieldError(path, "end of the last line", errMissing)
}

// sysctlNumber reads a sysctl of one number; absent where there is no such
// sysctl.
func sysctlNumber(f *procfile.File) (Number, error) {
	var n [1]Number
	err := sysctlNumbers(f, n[:])
	return n[0], err
}

// sysctlNumbers reads a sysctl of several numbers, as many as into holds.
func sysctlNumbers(f *procfile.File, into []Number) error {
	b, err := optional(f)
	if b == nil || err != nil {
		return err
	}
	return parseNumbers(b, f.Path(), into)
}

// parseNumbers reads the numbers at the start of the first line.
func parseNumbers(b []byte, path string, into []Number) error {
	line, _, _ := procfile.NextLine(b)
	for i := range into {
		field, rest, ok := procfile.NextField(line)
		if !ok {
			return fieldError(path, ordinal(i), errMissing)
		}
		v, err := procfile.Uint(field, 10)
		if err != nil {
			return fieldError(path, ordinal(i), err)
		}
		into[i], line = number(v), rest
	}
	return nil
}

func ordinal(i int) string { return "value " + string(rune('1'+i)) }

// field is a named value of a file.
type field struct {
	name string
	n    Number
}

// complete says which field is missing, for fields that every kernel has: the
// file was cut short, or is not what it should be.
func complete(path string, fields []field) error {
	for _, f := range fields {
		if !f.n.Present {
			return fieldError(path, f.name, errMissing)
		}
	}
	return nil
}
