package parse

import (
	"errors"
	"fmt"
	"strings"
)

// FieldError returns an error that names the file and the field that could not be read.
func FieldError(path, field string, err error) error {
	return fmt.Errorf("%s: %s: %w", path, field, err)
}

// ErrMissing is the error for a field that a file should have, but does not.
var ErrMissing = errors.New("missing")

// Problems collects the errors of one reading. A field that cannot be read does not
// affect others, so there can be many.
type Problems struct {
	errs []error
	more int
}

// maxProblems bounds how many are reported: a file of garbage has hundreds.
const maxProblems = 8

// Add adds an error, unless it is nil.
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

// Err returns everything that was added as one error, nil if there is nothing.
func (p *Problems) Err() error {
	switch {
	case len(p.errs) == 0:
		return nil
	case len(p.errs) == 1 && p.more == 0:
		return p.errs[0]
	}
	return &severalError{p.errs, p.more}
}

// severalError is the errors of one reading, if there was more than one.
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
