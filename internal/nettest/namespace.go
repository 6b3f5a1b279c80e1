package nettest

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace is a network namespace that others can find.
type Namespace struct {
	// PID is a process in it, 0 for a namespace that is bound to a file.
	PID  int
	t    testing.TB
	path string
	end  func()
}

// New creates a namespace with a process in it, which ends with the test or by End. It
// needs root.
func New(t testing.TB) *Namespace {
	t.Helper()
	child := exec.Command("sleep", "300")
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	started, end, ended := make(chan error), make(chan struct{}), make(chan struct{})
	go func() { // the process ends with the thread that started it
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := child.Start()
		started <- err
		if err == nil {
			<-end
			_ = child.Process.Kill()
			_ = child.Wait()
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	n := &Namespace{PID: child.Process.Pid, t: t, path: fmt.Sprintf("/proc/%d/ns/net", child.Process.Pid)}
	n.end = sync.OnceFunc(func() {
		close(end)
		<-ended
	})
	t.Cleanup(n.end)
	return n
}

// At returns the namespace that a file is bound to.
func At(t testing.TB, path string) *Namespace {
	return &Namespace{t: t, path: path, end: func() {}}
}

// End ends the namespace's process.
func (n *Namespace) End() { n.end() }

// Inside runs fn on a thread in the namespace. The thread returns afterwards instead of
// ending, because its end would also end the processes that it started (Pdeathsig).
func (n *Namespace) Inside(fn func() error) {
	n.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	defer unix.Close(home)
	there, err := unix.Open(n.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		n.t.Fatalf("%s: %v", n.path, err)
	}
	err = unix.Setns(there, unix.CLONE_NEWNET)
	_ = unix.Close(there)
	if err != nil {
		n.t.Fatalf("setns: %v", err)
	}
	err = fn()
	if e := unix.Setns(home, unix.CLONE_NEWNET); e != nil {
		panic(fmt.Sprintf("a thread cannot come back from %s: %v", n.path, e))
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// Port is the port on 127.0.0.1 that Listen listens on.
const Port = 8080

// Listen brings loopback up, opens a listener with the given backlog that does not
// accept, and dials it the given number of times. All of it is closed when the test ends.
func (n *Namespace) Listen(backlog, dials int) {
	n.t.Helper()
	var open []int
	n.t.Cleanup(func() {
		for _, fd := range open {
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			_ = unix.Close(fd)
		}
	})
	socket := func(flags int) (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
		if err == nil {
			open = append(open, fd)
		}
		return fd, err
	}
	n.Inside(func() error {
		if err := Up(); err != nil {
			return err
		}
		at := &unix.SockaddrInet4{Port: Port, Addr: [4]byte{127, 0, 0, 1}}
		fd, err := socket(0)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Bind(fd, at), unix.Listen(fd, backlog)); err != nil {
			return err
		}
		for range dials {
			if fd, err = socket(unix.SOCK_NONBLOCK); err != nil {
				return err
			}
			if err := unix.Connect(fd, at); err != nil && !errors.Is(err, unix.EINPROGRESS) {
				return err
			}
		}
		return nil
	})
}
