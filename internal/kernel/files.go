package kernel

import (
	"path/filepath"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// File is a file of the kernel, kept open or not. It has one user at a time.
type File interface {
	// Path is where the file is.
	Path() string
	// Read returns the whole content as it is now, valid until the next Read. Every
	// error names the path.
	Read() ([]byte, error)
}

// Files opens the kernel's files and sockets for one owner. What is kept open is
// handed to the owner to be closed.
type Files struct {
	*Machine
	// Place is where the owner is at, for somebody else to see; nil is nowhere.
	Place *procfile.Place
	// Sampling is set while settings need not be read again: what they were at the last
	// reading will do. nil is never.
	Sampling *bool
	// Defer is given what closes each kept file, to be called when none is read any
	// more.
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

// GlobalSysctl returns a setting, by its dotted name, that has the same value in
// every network namespace.
func (f *Files) GlobalSysctl(name string) File {
	path := f.sysctlPath(name)
	return f.setting(f.keep(path, f.procFile(path, procfile.Open)))
}

// setting returns a file that only people change.
func (f *Files) setting(file File) File { return &setting{File: file, sampling: f.Sampling} }

// A setting is not read while samples are taken, if it ever was.
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

// keep returns a file that stays open once it was read.
func (f *Files) keep(path string, o procfile.Options) File {
	o.Place = f.Place
	file := procfile.New(path, o)
	f.Defer(file.Close)
	return file
}
