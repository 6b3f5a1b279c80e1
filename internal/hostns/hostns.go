// Package hostns finds the host's network namespace and runs code in it.
//
// The files below /proc/sys/net, and every socket, belong to the network namespace of the
// thread that opens them. A bind mount of the host's /proc does not change that, so an
// exporter in a container that simply read them would show the container's numbers as the
// host's.
package hostns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// View describes how the host's network namespace can be reached.
type View int

const (
	// Own means that this process is in the host's network namespace.
	Own View = iota
	// Entered means that it is not, but that a thread of it can enter that namespace.
	Entered
	// Foreign means that it is not, and may not enter. Files below <procfs>/1/net still
	// show the host; sysctls and sockets would not.
	Foreign
)

// ErrForeign is returned instead of anything that would show the network namespace of
// this process instead of the host's.
var ErrForeign = errors.New("not in the host's network namespace and not permitted to enter it")

// Host is the network namespace of process 1 of a procfs. The zero Host is the network
// namespace of this process.
type Host struct {
	view View
	why  error  // why the view is Foreign
	path string // of the namespace, if it is entered
}

// Unreachable returns a Host for a namespace that cannot be reached, with the reason.
func Unreachable(why error) *Host { return &Host{view: Foreign, why: why} }

// Find compares the network namespace of process 1 of the procfs mounted at proc with
// that of this process, and enters it if they differ. It returns an error if this process
// cannot see its own.
//
// Two processes share a network namespace exactly when <pid>/net/sockstat has the same
// inode number for both. Comparing these needs no privilege, unlike the link
// <pid>/ns/net.
func Find(proc string) (*Host, error) {
	process := filepath.Join(proc, "1")
	own, err := inode(filepath.Join(proc, "self/net/sockstat"))
	if errors.Is(err, os.ErrNotExist) {
		// proc is of a PID namespace in which this process does not exist.
		own, err = inode("/proc/self/net/sockstat")
	}
	if err != nil {
		return nil, fmt.Errorf("procfs: %w", err)
	}
	host, err := inode(filepath.Join(process, "net/sockstat"))
	if err != nil {
		// Process 1 is hidden (mount option hidepid). tcp_mem exists only in the initial
		// network namespace, so it shows which one this is.
		if _, e := inode(filepath.Join(proc, "sys/net/ipv4/tcp_mem")); e != nil {
			return Unreachable(err), nil
		}
		return &Host{}, nil
	}
	if host == own {
		return &Host{}, nil
	}
	h := &Host{view: Entered, path: filepath.Join(process, "ns/net")}
	if err := h.Do(func() error { return nil }); err != nil {
		return Unreachable(err), nil
	}
	return h, nil
}

// View returns how the host's namespace is reached.
func (h *Host) View() View { return h.view }

// Why returns the reason if the view is Foreign, and nil otherwise.
func (h *Host) Why() error { return h.why }

// Do runs fn in the host's network namespace and waits for it. If that is not possible,
// it does not run fn and returns ErrForeign. Several calls may run concurrently, so one
// that hangs does not delay the others.
func (h *Host) Do(fn func() error) error {
	switch h.view {
	case Own:
		return fn()
	case Entered:
		done := make(chan error, 1)
		go func() { done <- h.enter(fn) }()
		return <-done
	default:
		return ErrForeign
	}
}

// enter runs fn on a thread that enters the namespace.
func (h *Host) enter(fn func() error) error {
	return onThread(func(*home) error {
		if err := setns(h.path); err != nil {
			return err
		}
		return fn()
	})
}

// onThread runs fn on a thread of its own. Afterwards the thread returns to its home
// namespace and to Go's runtime for reuse. It does not simply end, because a host that
// has no threads left cannot replace it, and Go's runtime ends a program when it cannot
// create a thread. If returning home fails the thread does end, with the goroutine that
// is locked to it, so the caller's goroutine has to end with onThread. So no thread is
// reused in the wrong namespace. A panic of fn becomes an error, because no caller could
// recover it.
func onThread(fn func(*home) error) (err error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread cannot end, and might stay in the namespace. While this
		// goroutine holds it, another goroutine gets another thread.
		defer runtime.UnlockOSThread()
		done := make(chan error, 1)
		go func() { done <- onThread(fn) }()
		return <-done
	}
	h := newHome()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in another network namespace: %v", p)
		}
		if h.enter() == nil && h.here() {
			runtime.UnlockOSThread()
		}
		h.close()
	}()
	return fn(h)
}

// home is the network namespace that a thread came from.
type home struct {
	fd  int
	id  uint64
	err error // why it cannot return
}

// ownNetns is the network namespace of the calling thread.
const ownNetns = "/proc/thread-self/ns/net"

func newHome() *home {
	fd, err := unix.Open(ownNetns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &home{fd: -1, err: &os.PathError{Op: "open", Path: ownNetns, Err: err}}
	}
	id, err := inode(ownNetns)
	return &home{fd: fd, id: id, err: err}
}

// enter returns the thread to its home namespace.
func (h *home) enter() error {
	if h.err != nil {
		return h.err
	}
	if err := unix.Setns(h.fd, unix.CLONE_NEWNET); err != nil && !h.here() { // without permission the thread has never left
		return fmt.Errorf("setns to the network namespace of this process: %w", err)
	}
	return nil
}

// here reports whether the thread is at home.
func (h *home) here() bool {
	id, err := inode(ownNetns)
	return h.err == nil && err == nil && id == h.id
}

func (h *home) close() {
	if h.fd >= 0 {
		_ = unix.Close(h.fd)
	}
}

// setns moves the calling thread into the network namespace of a file. It leaves nothing
// open.
func setns(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	err = unix.Setns(fd, unix.CLONE_NEWNET)
	_ = unix.Close(fd)
	if err != nil {
		return &os.PathError{Op: "setns", Path: path, Err: err}
	}
	return nil
}

func inode(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}
