package parse

import (
	"errors"
	"fmt"
	"strings"
)

// FieldError returns an error that names the field and the file that could not be read.
func FieldError(path, field string, err error) error {
	return fmt.Errorf("%s: %s: %w", path, field, err)
}

// ErrMissing is the error of a field that a file does not have and should.
var ErrMissing = errors.New("missing")

// Problems gathers what went wrong in one reading. One field that cannot be read
// takes no other one with it, so there can be many.
type Problems struct {
	errs []error
	more int
}

// maxProblems bounds how many are told: a file of garbage has hundreds.
const maxProblems = 8

// Add notes an error, or nothing if it is nil.
func (p *Problems) Add(err error) {
	var several *severalError
	switch {
	case err == nil:
	case errors.As(err, &several):
		p.more += several.more
		for _, e := range several.errs {
			p.Add(e)
		}
	case len(p.errs) == maxProblems:
		p.more++
	default:
		p.errs = append(p.errs, err)
	}
}

// Err returns all that was added as one error, nil if it was nothing.
func (p *Problems) Err() error {
	switch {
	case len(p.errs) == 0:
		return nil
	case len(p.errs) == 1 && p.more == 0:
		return p.errs[0]
	}
	return &severalError{p.errs, p.more}
}

// severalError is what went wrong in one reading, if it was more than one thing.
type severalError struct {
	errs []error
	more int
}

func (e *severalError) Error() string {
	texts := make([]string, len(e.errs))
	for i, err := range e.errs {
		texts[i] = err.Error()
	}
	if e.more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", e.more))
	}
	return strings.Join(texts, "; ")
}

func (e *severalError) Unwrap() []error { return e.errs }
