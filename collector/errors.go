package collector

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/hostns"
)

// NotSupportedError says that this kernel does not have what a collector reads.
// That is a state of the host, not a failure.
type NotSupportedError struct {
	// Feature names what is missing and how to get it, where that is possible.
	Feature string
	Err     error
}

func (e *NotSupportedError) Error() string { return "not supported: " + e.Feature }

func (e *NotSupportedError) Unwrap() error { return e.Err }

func isNotSupported(err error) bool {
	_, ok := errors.AsType[*NotSupportedError](err)
	return ok
}

// isAbsent reports whether err means that a file does not exist, that its feature
// was turned off when the machine started (EOPNOTSUPP, as of pressure stall
// information), or that it is of a network namespace that is not the host's.
func isAbsent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, hostns.ErrForeign)
}

// fieldError says which field of which file could not be read.
func fieldError(path, field string, err error) error {
	return fmt.Errorf("%s: %s: %w", path, field, err)
}

var errMissing = errors.New("missing")

// problems gathers what went wrong in one reading. One field that cannot be read
// takes no other one with it, so there can be many.
type problems struct {
	errs []error
	more int
}

// maxProblems bounds how many are told: a file of garbage has hundreds.
const maxProblems = 8

// add notes an error, or nothing if it is nil.
func (p *problems) add(err error) {
	var several *severalError
	switch {
	case err == nil:
	case errors.As(err, &several):
		p.more += several.more
		for _, e := range several.errs {
			p.add(e)
		}
	case len(p.errs) == maxProblems:
		p.more++
	default:
		p.errs = append(p.errs, err)
	}
}

// err returns all that was added as one error, nil if it was nothing.
func (p *problems) err() error {
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
