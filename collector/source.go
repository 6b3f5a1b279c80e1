package collector

import (
	"bytes"
	"errors"
	"io/fs"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// required reads a file that a collector cannot do without. If this kernel does not have
// it, the error is a NotSupportedError. With any other error, b is the part that is still
// usable, or nil.
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

// optional reads a file that a kernel may not have. If it is absent, b and err are nil.
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

// whole returns the complete lines of a file, nil if there are none, and an error if the
// file was truncated. The kernel ends every line with a newline, so the last number of a
// file that does not may lack digits.
func whole(b []byte, path string) ([]byte, error) {
	end := bytes.LastIndexByte(b, '\n') + 1
	if end == len(b) && end > 0 {
		return b, nil
	}
	err := parse.FieldError(path, "end of the last line", parse.ErrMissing)
	if end == 0 {
		return nil, err
	}
	return b[:end], err
}

// sysctlNumber reads a sysctl of one number, absent if there is no such sysctl.
func sysctlNumber(f kernel.File) (Number, error) {
	var n [1]Number
	err := sysctlNumbers(f, n[:])
	return n[0], err
}

// sysctlNumbers reads a sysctl of several numbers, as many as into holds.
func sysctlNumbers(f kernel.File, into []Number) error {
	var p parse.Problems
	b, err := optional(f)
	p.Add(err)
	if b != nil {
		p.Add(parse.Numbers(b, f.Path(), into))
	}
	return p.Err()
}
