package collector

import (
	"bytes"
	"errors"
	"io/fs"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// required reads a file that a collector cannot do without. Where this kernel
// does not have it, the collector is not supported. Beside any other error b is
// what can be used all the same, or nil.
func required(f kernel.File, feature string) (b []byte, err error) {
	b, err = f.Read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &NotSupportedError{Feature: feature, Err: err}
	}
	if err != nil {
		return nil, err
	}
	return whole(b, f.Path())
}

// optional reads a file that a kernel may not have. Then b is nil and so is err.
func optional(f kernel.File) (b []byte, err error) {
	b, err = f.Read()
	if isAbsent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return whole(b, f.Path())
}

// whole returns the lines of a file that are whole, nil if none is, and an error
// if it was cut short. The kernel ends every line, so the last number of a file
// that does not end with one may lack digits.
func whole(b []byte, path string) ([]byte, error) {
	end := bytes.LastIndexByte(b, '\n') + 1
	if end == len(b) && end > 0 {
		return b, nil
	}
	err := fieldError(path, "end of the last line", errMissing)
	if end == 0 {
		return nil, err
	}
	return b[:end], err
}

// sysctlNumber reads a sysctl of one number; absent where there is no such
// sysctl.
func sysctlNumber(f kernel.File) (Number, error) {
	var n [1]Number
	err := sysctlNumbers(f, n[:])
	return n[0], err
}

// sysctlNumbers reads a sysctl of several numbers, as many as into holds.
func sysctlNumbers(f kernel.File, into []Number) error {
	var p problems
	b, err := optional(f)
	p.add(err)
	if b != nil {
		p.add(parseNumbers(b, f.Path(), into))
	}
	return p.err()
}

// parseNumbers reads the numbers at the start of the first line. One that cannot
// be read is absent, and named in the error.
func parseNumbers(b []byte, path string, into []Number) error {
	var p problems
	line, _, _ := procfile.NextLine(b)
	for i := range into {
		field, rest, ok := procfile.NextField(line)
		if !ok {
			p.add(fieldError(path, ordinal(i), errMissing))
			continue
		}
		if err := into[i].parse(field); err != nil {
			p.add(fieldError(path, ordinal(i), err))
		}
		line = rest
	}
	return p.err()
}

func ordinal(i int) string { return "value " + string(rune('1'+i)) }

// parse sets the number to a count, from 0 to 2^63-1. After an error it is absent.
// Of a field that a file has twice the first counts.
func (n *Number) parse(text []byte) error {
	if n.Present || n.bad {
		return nil
	}
	v, err := procfile.Count(text)
	if err != nil {
		n.bad = true
		return err
	}
	*n = number(v)
	return nil
}

// parseCounter is parse for a counter, which the kernel keeps without a sign: from
// 0 to 2^64-1.
func (n *Number) parseCounter(text []byte) error {
	if n.Present || n.bad {
		return nil
	}
	v, err := procfile.Uint(text, 10)
	if err != nil {
		n.bad = true
		return err
	}
	*n = number(v)
	return nil
}

// field is a named value of a file.
type field struct {
	name string
	n    Number
}

// isMissing reports whether a file does not have the field at all.
func (f field) isMissing() bool { return !f.n.Present && !f.n.bad }

// complete names the fields that are missing, of those that every kernel has: the
// file was cut short, or is not what it should be. Fields that could not be parsed
// have been named before.
func complete(path string, fields []field) error {
	var p problems
	for _, f := range fields {
		if f.isMissing() {
			p.add(fieldError(path, f.name, errMissing))
		}
	}
	return p.err()
}
