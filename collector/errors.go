package collector

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/hostns"
)

// NotSupportedError reports that this kernel does not provide what a collector reads.
// That is a property of the host, not a failure.
type NotSupportedError struct {
	// Feature names what is missing and, if possible, how to get it.
	Feature string
	Err     error
}

func (e *NotSupportedError) Error() string { return "not supported: " + e.Feature }

func (e *NotSupportedError) Unwrap() error { return e.Err }

func isNotSupported(err error) bool {
	_, ok := errors.AsType[*NotSupportedError](err)
	return ok
}

// isAbsent reports whether err means that a file does not exist, that its feature was
// disabled at boot (EOPNOTSUPP, as for pressure stall information), or that it belongs to
// a network namespace that is not the host's.
func isAbsent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, hostns.ErrForeign)
}
