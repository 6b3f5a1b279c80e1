package procfile

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// A Once is a kernel file that is opened for each reading. It must not be used
// concurrently: what Read returns is valid until the next Read.
type Once struct{ f File }

// NewOnce returns the file at path.
func NewOnce(path string, o Options) *Once { return &Once{*New(path, o)} }

// Path returns the path given to NewOnce, or to At.
func (o *Once) Path() string { return o.f.path }

// At changes the path of the file.
func (o *Once) At(path string) { o.f.path = path }

// Read returns the current content of the whole file, and leaves nothing open. Every
// error names the path.
func (o *Once) Read() ([]byte, error) {
	o.f.place.Enter(&o.f.path)
	defer o.f.place.Leave()
	fd, err := o.f.open(o.f.path)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: o.f.path, Err: err}
	}
	o.f.fd = fd
	b, err := o.f.pread()
	_ = unix.Close(fd)
	o.f.fd = -1
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: o.f.path, Err: err}
	}
	return b, nil
}
