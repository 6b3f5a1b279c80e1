package collector

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/hostns"
)

// NotSupportedError reports that this kernel does not have what a collector reads.
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
