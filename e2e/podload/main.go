// Command podload is the program that runs in the pods of TestRealPods, and of bench/pods.
// Its argument selects what it does to its network namespace, for as long as it runs:
//
//	quiet     listens
//	waiting   listens, with four waiting connections
//	overflow  fills an accept queue, and continues to dial
//	userns    the same in a network namespace of a separate user namespace
//	ports     connects to one destination until there is no port left
//	timewait  closes connections when TIME_WAIT has reached its limit
//
// Without an argument it does nothing, as the first process of a pod. It ends at SIGTERM.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM) // because SIGTERM by itself would not end process 1 of a namespace
	ended := make(chan error)
	if len(os.Args) > 1 {
		go func() { ended <- run(os.Args[1]) }()
	}
	select {
	case <-stop:
	case err := <-ended:
		fmt.Fprintln(os.Stderr, "podload:", err)
		os.Exit(1)
	}
}

// at returns the address on which it listens, and which it dials.
func at() *unix.SockaddrInet4 { return &unix.SockaddrInet4{Port: 8080, Addr: [4]byte{127, 0, 0, 1}} }

func run(load string) error {
	switch load {
	case "quiet":
		if _, err := listen(128); err != nil {
			return err
		}
		select {}
	case "waiting":
		if _, err := listen(128); err != nil {
			return err
		}
		for range 4 {
			if _, err := dial(); err != nil {
				return err
			}
		}
		select {}
	case "overflow":
		return overflow(1)
	case "userns":
		runtime.LockOSThread() // the child ends with the thread that started it
		child := exec.Command("/proc/self/exe", "inside")
		child.Stderr = os.Stderr
		child.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
			Pdeathsig:   unix.SIGKILL,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		return child.Run()
	case "inside":
		if err := nettest.Up(); err != nil {
			return err
		}
		return overflow(4)
	case "ports":
		return usePorts()
	case "timewait":
		return closeMore()
	default:
		return errors.New("no such load: " + load)
	}
}

func listen(backlog int) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	return fd, errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, at()), unix.Listen(fd, backlog))
}

// dial starts a connection, which is established at once if it is accepted at all.
func dial() (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return -1, err
	}
	if err = unix.Connect(fd, at()); errors.Is(err, unix.EINPROGRESS) {
		err = nil
	}
	return fd, err
}

// overflow never accepts. A queue admits one connection more than its backlog.
func overflow(backlog int) error {
	if _, err := listen(backlog); err != nil {
		return err
	}
	for n := 0; ; n++ {
		fd, err := dial()
		if err != nil {
			return err
		}
		if n > backlog {
			time.Sleep(200 * time.Millisecond)
			_ = unix.Close(fd)
		}
	}
}

// usePorts expects net.ipv4.ip_local_port_range to be small.
func usePorts() error {
	if _, err := listen(4096); err != nil {
		return err
	}
	for range 1 << 16 {
		if _, err := dial(); errors.Is(err, unix.EADDRNOTAVAIL) {
			select {}
		} else if err != nil {
			return err
		}
	}
	return errors.New("there is no end of ports")
}

// closeMore expects net.ipv4.tcp_max_tw_buckets to be small.
func closeMore() error {
	l, err := listen(128)
	if err != nil {
		return err
	}
	for {
		client, err := dial()
		if err != nil {
			return err
		}
		server, _, err := unix.Accept(l)
		if err != nil {
			return err
		}
		// The end that closes first is the one in TIME_WAIT.
		_ = unix.Close(client)
		_ = unix.Close(server)
		time.Sleep(10 * time.Millisecond)
	}
}
