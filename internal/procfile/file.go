// Package procfile reads kernel text files (/proc, /sys) over and over, cheaply.
//
// A file is opened once and reread with pread at offset 0. That costs two
// system calls a read and no allocation, and it goes on working when the
// process or the whole machine has run out of file descriptors, which is one of
// the failures this exporter exists to report.
package procfile

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// maxSize bounds what one read takes in. The largest file that is read this
// way, zoneinfo on a machine with many CPUs, stays below a megabyte.
const maxSize = 16 << 20

// An Opener opens path for reading and returns its descriptor. It exists so
// that a file can be opened on a thread in another network namespace.
type Opener func(path string) (fd int, err error)

// Open is the plain Opener: read only, not inherited by child processes.
func Open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// A File is one kernel file. It has one user at a time: what Read returns is
// valid until the next Read.
type File struct {
	path string
	open Opener

	fd  int // -1 while not open
	buf []byte
	// failed is why the last Read failed, if it did.
	failed error
}

// New returns the file at path, not opened yet. A nil open means Open.
func New(path string, open Opener) *File {
	if open == nil {
		open = Open
	}
	return &File{path: path, open: open, fd: -1}
}

// Path returns the path given to New.
func (f *File) Path() string { return f.path }

// Read returns the whole content of the file as it is now, valid until the next
// Read. A file that does not exist gives an error for which
// errors.Is(err, fs.ErrNotExist) holds, and is looked for again at the next
// Read. Every error names the path.
//
// Without a descriptor to spare nothing can be looked for, so what could not be
// read before gives the same error still: a lack of descriptors takes away no
// more than it has to.
func (f *File) Read() ([]byte, error) {
	b, err := f.read()
	if f.failed != nil && (errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)) {
		return nil, f.failed
	}
	f.failed = err
	return b, err
}

func (f *File) read() ([]byte, error) {
	reopened := false
	for {
		if f.fd < 0 {
			fd, err := f.open(f.path)
			if err != nil {
				return nil, &fs.PathError{Op: "open", Path: f.path, Err: err}
			}
			f.fd, reopened = fd, true
		}
		b, err := f.pread()
		if err == nil {
			return b, nil
		}
		// An entry that was removed (its module unloaded) fails for good on the
		// old descriptor, and may stand there anew.
		f.Close()
		if reopened {
			return nil, &fs.PathError{Op: "read", Path: f.path, Err: err}
		}
	}
}

// pread reads from offset 0 to the end of the file. A short read does not mean
// the end: seq_file returns whole records only.
func (f *File) pread() ([]byte, error) {
	if f.buf == nil {
		f.buf = make([]byte, 4096)
	}
	n := 0
	for {
		if n == len(f.buf) {
			if n >= maxSize {
				return nil, fmt.Errorf("larger than %d bytes", maxSize)
			}
			f.buf = append(f.buf, make([]byte, len(f.buf))...)
		}
		m, err := unix.Pread(f.fd, f.buf[n:], int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if m <= 0 {
			return f.buf[:n], nil
		}
		n += m
	}
}

// ReadOnce opens a small file, reads it into buf, as far as that goes, and
// closes it: three system calls, not the nine of os.Open and io.ReadAll, which
// find out first whether the file could be waited for.
func ReadOnce(path string, buf []byte) ([]byte, error) {
	fd, err := Open(path)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	n, err := unix.Read(fd, buf)
	_ = unix.Close(fd)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return buf[:n], nil
}

// Close closes the descriptor. A later Read opens the file again.
func (f *File) Close() {
	if f.fd >= 0 {
		_ = unix.Close(f.fd)
		f.fd = -1
	}
}
