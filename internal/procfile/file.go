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
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxSize bounds what one read takes in. The largest file that is read this
// way, zoneinfo on a machine with many CPUs, is of a few megabytes at most. The
// kernel refuses to read a sysctl into 4 MiB or more.
const (
	maxSize   = 16 << 20
	maxSysctl = 2 << 20
)

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
	// sysctl is set for a file that has to be read in one piece.
	sysctl bool
	place  *Place

	fd  int // -1 while not open
	buf []byte
	// failed is why the last Read failed, if it did.
	failed error
}

// Options are what differs between files. The zero value is a file that is
// opened with Open and read as the kernel's seq_file allows, piece by piece.
type Options struct {
	// Open opens the file; nil means Open.
	Open Opener
	// Sysctl marks a file below /proc/sys, of which a read at an offset above 0
	// gives nothing, however much is left (proc_sys_call_handler and the handlers
	// of kernel/sysctl.c). It is read in one piece.
	Sysctl bool
	// Place is told when the file is being read; nil means nobody is.
	Place *Place
}

// New returns the file at path, not opened yet.
func New(path string, o Options) *File {
	if o.Open == nil {
		o.Open = Open
	}
	return &File{path: path, open: o.Open, sysctl: o.Sysctl, place: o.Place, fd: -1}
}

// Path returns the path given to New.
func (f *File) Path() string { return f.path }

// A Place is the file that a reader is reading, so that another goroutine can tell where
// it hangs. Its methods may be called on a nil Place, and String by any goroutine.
type Place struct{ path atomic.Pointer[string] }

// Enter notes that path is about to be opened or read. It keeps the pointer.
func (p *Place) Enter(path *string) {
	if p != nil {
		p.path.Store(path)
	}
}

// Leave notes that the reader is at no file.
func (p *Place) Leave() { p.Enter(nil) }

// String returns the path of the file that is being read, or "".
func (p *Place) String() string {
	if p == nil {
		return ""
	}
	if path := p.path.Load(); path != nil {
		return *path
	}
	return ""
}

// Read returns the whole content of the file as it is now, valid until the next
// Read. A file that does not exist gives an error for which
// errors.Is(err, fs.ErrNotExist) holds, and is looked for again at the next
// Read. Every error names the path.
//
// Without a descriptor to spare nothing can be looked for, so what could not be
// read before gives the same error still: a lack of descriptors takes away no
// more than it has to.
func (f *File) Read() ([]byte, error) {
	f.place.Enter(&f.path)
	defer f.place.Leave()
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
		// old descriptor, and may be there again.
		f.Close()
		if reopened {
			return nil, &fs.PathError{Op: "read", Path: f.path, Err: err}
		}
	}
}

// pread reads from offset 0 to the end of the file. Of most files a short read
// does not mean the end: seq_file returns whole records only. A sysctl gives all
// that fits at the first read and nothing after it, so the whole of it has been
// read when there is room left.
func (f *File) pread() ([]byte, error) {
	if f.buf == nil {
		f.buf = make([]byte, 4096)
	}
	n := 0
	for {
		if n == len(f.buf) {
			if n >= maxSize || f.sysctl && n >= maxSysctl {
				return nil, fmt.Errorf("larger than %d bytes", n-1)
			}
			f.buf = append(f.buf, make([]byte, len(f.buf))...)
			if f.sysctl {
				n = 0
			}
		}
		m, err := unix.Pread(f.fd, f.buf[n:], int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		n += max(m, 0)
		if m <= 0 || f.sysctl && n < len(f.buf) {
			return f.buf[:n], nil
		}
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
