// Package hostns finds the host's network namespace and runs code in it.
//
// The files below /proc/sys/net, and every socket, belong to the network
// namespace of the thread that opens them. A bind mount of the host's /proc does
// not change that, so an exporter in a container that reads them in the plain
// way shows the container's numbers as the host's.
package hostns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// View says how the host's network namespace can be reached.
type View int

const (
	// Own means that this process is in the host's network namespace.
	Own View = iota
	// Entered means that it is not, and that a thread of it could enter it.
	Entered
	// Foreign means that it is not, and may not enter. Files below
	// <procfs>/1/net still show the host; sysctls and sockets would not.
	Foreign
	// Files means that the path given is no procfs but a copy of one, as tests
	// use: there is no namespace at all.
	Files
)

// ErrForeign is the error of everything that would show the network namespace of
// this process in place of the host's.
var ErrForeign = errors.New("not in the host's network namespace, and not allowed to enter it")

// Host is the network namespace of process 1 of a procfs.
type Host struct {
	view View
	why  error // why the view is Foreign
	work chan func()
}

// Find compares the network namespace of process 1 of the procfs mounted at proc
// with our own and enters it where they differ. It fails where proc cannot be
// read.
//
// Two processes share a network namespace exactly when <pid>/net/sockstat has
// the same inode number for both; looking at it needs no privilege, unlike the
// link <pid>/ns/net.
func Find(proc string) (*Host, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(proc, &fs); err != nil {
		return nil, fmt.Errorf("procfs: %w", &os.PathError{Op: "statfs", Path: proc, Err: err})
	}
	if fs.Type != unix.PROC_SUPER_MAGIC {
		return &Host{view: Files}, nil
	}

	own, err := inode("/proc/self/net/sockstat")
	if err != nil {
		return nil, fmt.Errorf("procfs: %w", err)
	}
	host, err := inode(filepath.Join(proc, "1/net/sockstat"))
	if err != nil {
		// Process 1 is hidden (mount option hidepid). tcp_mem exists in the
		// initial network namespace only, so it tells where we are.
		if _, e := inode(filepath.Join(proc, "sys/net/ipv4/tcp_mem")); e != nil {
			return &Host{view: Foreign, why: err}, nil
		}
		return &Host{view: Own}, nil
	}
	if host == own {
		return &Host{view: Own}, nil
	}

	h := &Host{view: Entered, work: make(chan func())}
	entered := make(chan error)
	go h.serve(filepath.Join(proc, "1/ns/net"), entered)
	if err := <-entered; err != nil {
		return &Host{view: Foreign, why: err}, nil
	}
	return h, nil
}

// serve runs the functions it is sent on a thread that is in the namespace at
// path. The thread is never given back: it ends with the goroutine.
func (h *Host) serve(path string, entered chan<- error) {
	runtime.LockOSThread()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		entered <- &os.PathError{Op: "open", Path: path, Err: err}
		return
	}
	err = unix.Setns(fd, unix.CLONE_NEWNET)
	_ = unix.Close(fd)
	if err != nil {
		entered <- &os.PathError{Op: "setns", Path: path, Err: err}
		return
	}
	entered <- nil
	for fn := range h.work {
		fn()
	}
}

// View says how the host's namespace is reached.
func (h *Host) View() View { return h.view }

// Why gives the reason where the view is Foreign, else nil.
func (h *Host) Why() error { return h.why }

// Do runs fn on a thread in the host's network namespace and waits for it. It
// fails with ErrForeign, fn not run, where that is not possible.
func (h *Host) Do(fn func() error) error {
	switch h.view {
	case Own, Files:
		return fn()
	case Entered:
		done := make(chan error)
		h.work <- func() { done <- fn() }
		return <-done
	default:
		return ErrForeign
	}
}

// Close ends the thread in the host's namespace, if there is one.
func (h *Host) Close() {
	if h.work != nil {
		close(h.work)
	}
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}
