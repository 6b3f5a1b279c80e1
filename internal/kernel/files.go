package kernel

import (
	"path/filepath"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// File is a file of the kernel, which may be kept open. It must not be used concurrently.
type File interface {
	// Path returns the path of the file.
	Path() string
	// Read returns the current content of the whole file, valid until the next Read.
	// Every error names the path.
	Read() ([]byte, error)
}

// Files opens the kernel's files and sockets for one owner. It passes the owner a
// function to close each one that is kept open.
type Files struct {
	*Machine
	// Place is where the owner records what it is reading, for others to see; may be nil.
	Place *procfile.Place
	// Sampling is set while settings need not be read again, because their last values
	// will do. nil means never.
	Sampling *bool
	// Defer registers a function that closes a kept file, to be called when none is read
	// any more.
	Defer func(func())
}

// Proc returns a file of procfs that is the same in every network namespace.
func (f *Files) Proc(name string) File {
	path := filepath.Join(f.ProcPath, name)
	return f.keep(path, f.procFile(path, procfile.Open))
}

// Sys returns a file of sysfs that is opened with open.
func (f *Files) Sys(name string, open procfile.Opener) File {
	return f.keep(filepath.Join(f.SysPath, name), procfile.Options{Open: open})
}

// GlobalSysctl returns a sysctl, by its dotted name, that has the same value in every
// network namespace.
func (f *Files) GlobalSysctl(name string) File {
	path := f.sysctlPath(name)
	return f.setting(f.keep(path, f.procFile(path, procfile.Open)))
}

// setting returns a file that only people change.
func (f *Files) setting(file File) File { return &setting{File: file, sampling: f.Sampling} }

// A setting is not read again while samples are taken.
type setting struct {
	File
	sampling *bool
	content  []byte // of the last reading, nil if that failed
}

func (s *setting) Read() ([]byte, error) {
	if s.content != nil && s.sampling != nil && *s.sampling {
		return s.content, nil
	}
	var err error
	if s.content, err = s.File.Read(); err != nil {
		s.content = nil
	}
	return s.content, err
}

// keep returns a file that stays open after it was first read.
func (f *Files) keep(path string, o procfile.Options) File {
	o.Place = f.Place
	file := procfile.New(path, o)
	f.Defer(file.Close)
	return file
}
