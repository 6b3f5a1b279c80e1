// Package procfile reads kernel text files (/proc, /sys) repeatedly at low cost.
//
// A file is opened once and reread with pread at offset 0. That costs two system calls
// per read and no allocation. It keeps working when the process or the whole machine has
// run out of file descriptors, which is one of the failures this exporter exists to
// report.
package procfile

import (
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxSize bounds the size of one read. The largest file read this way, zoneinfo on a
// machine with many CPUs, has at most a few megabytes. The kernel refuses to read a
// sysctl into 4 MiB or more.
const (
	maxSize   = 16 << 20
	maxSysctl = 2 << 20
)

// An Opener opens path for reading and returns its descriptor. It exists so that a file
// can be opened on a thread in another network namespace.
type Opener func(path string) (fd int, err error)

// Open is the default Opener: read only, not inherited by child processes.
func Open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// A File is one kernel file. It must not be used concurrently: what Read returns is valid
// until the next Read.
type File struct {
	path string
	open Opener
	// sysctl is set for a file that has to be read in one piece.
	sysctl bool
	place  *Place

	fd  int // -1 while not open
	buf []byte
	// failed is the error of the last Read, if it failed.
	failed error
}

// Options are what differs between files. The zero value is for a file that is opened
// with Open and read piece by piece, as the kernel's seq_file allows.
type Options struct {
	// Open opens the file; nil means Open.
	Open Opener
	// Sysctl marks a file below /proc/sys, for which a read at an offset above 0 returns
	// nothing, however much is left (proc_sys_call_handler and the handlers of
	// kernel/sysctl.c). It is read in one piece.
	Sysctl bool
	// Place records which file is being read; it may be nil.
	Place *Place
}

// New returns the file at path. It does not open it.
func New(path string, o Options) *File {
	if o.Open == nil {
		o.Open = Open
	}
	return &File{path: path, open: o.Open, sysctl: o.Sysctl, place: o.Place, fd: -1}
}

// Path returns the path given to New.
func (f *File) Path() string { return f.path }

// A Place records the file that a reader is reading, so that another goroutine can see
// where the reader hangs. Its methods may be called on a nil Place, and String
// concurrently.
type Place struct{ path atomic.Pointer[string] }

// Enter records that path is about to be opened or read. It keeps the pointer.
func (p *Place) Enter(path *string) {
	if p != nil {
		p.path.Store(path)
	}
}

// Leave records that the reader is not reading any file.
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

// Read returns the current content of the whole file, valid until the next Read. For a
// file that does not exist it returns an error for which errors.Is(err, fs.ErrNotExist)
// holds, and it tries to open the file again at the next Read. Every error names the
// path.
//
// Without a free descriptor no file can be opened, so after a failed read Read then
// returns the previous error: a lack of descriptors hides no more than necessary.
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
		// Reading an entry that was removed (its module was unloaded) always fails on the
		// old descriptor, but the entry may exist again.
		f.Close()
		if reopened {
			return nil, &fs.PathError{Op: "read", Path: f.path, Err: err}
		}
	}
}

// pread reads from offset 0 to the end of the file. For most files a short read does not
// mean the end: seq_file returns only whole records. A sysctl returns all that fits at
// the first read and nothing after it, so it has been read completely if there is room
// left.
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

// ReadOnce opens a small file, reads it into buf as far as it fits, and closes it: three
// system calls, instead of the nine of os.Open and io.ReadAll, which first determine
// whether the file can be polled.
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
