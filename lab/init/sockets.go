package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// answer is how long a program under load waits for the peer, which is always on this
// machine.
const answer = 800 * time.Millisecond

// sockets are sockets that stay open until the load is released.
type sockets []int

func (s *sockets) keep(fd int) int {
	*s = append(*s, fd)
	return fd
}

func (s *sockets) close() error {
	for _, fd := range *s {
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	*s = nil
	return nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// loopback returns a port of 127.0.0.1.
func loopback(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
}

func socket(kind int, of netip.AddrPort) (int, error) {
	family := unix.AF_INET
	if of.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	return fd, nil
}

// bound returns a UDP socket bound to an address and port.
func bound(at netip.AddrPort) (int, error) {
	fd, err := socket(unix.SOCK_DGRAM, at)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind to %v: %w", at, err)
	}
	return fd, nil
}

// listen returns a listener from which only the load accepts.
func listen(at netip.AddrPort, backlog int) (int, error) {
	fd, err := socket(unix.SOCK_STREAM, at)
	if err != nil {
		return -1, err
	}
	// An earlier listener may have left sockets in TIME_WAIT.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, sockaddr(at))
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen on %v: %w", at, err)
	}
	return fd, nil
}

// errUnanswered means that a connection was not established in time.
var errUnanswered = errors.New("no answer")

// connect makes a connection. The socket is valid even if there is an error, unless it is
// below 0.
func connect(to netip.AddrPort) (int, error) {
	fd, err := socket(unix.SOCK_STREAM, to)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fd, fmt.Errorf("connect: %w", err)
	}
	events, err := poll(fd, unix.POLLOUT, answer)
	if err != nil {
		return fd, err
	}
	if events == 0 {
		return fd, fmt.Errorf("connect: %w in %v", errUnanswered, answer)
	}
	if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || n != 0 {
		return fd, fmt.Errorf("connect: %w", unix.Errno(n))
	}
	return fd, nil
}

// pair makes a connection and accepts it.
func pair(listener int, to netip.AddrPort) (client, server int, err error) {
	if client, err = connect(to); err != nil {
		if client >= 0 {
			unix.Close(client)
		}
		return -1, -1, err
	}
	if server, err = accept(listener); err != nil {
		unix.Close(client)
		return -1, -1, err
	}
	return client, server, nil
}

func accept(listener int) (int, error) {
	if events, err := poll(listener, unix.POLLIN, answer); err != nil || events == 0 {
		return -1, fmt.Errorf("accept: %w", errors.Join(errUnanswered, err))
	}
	fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("accept: %w", err)
	}
	return fd, nil
}

// poll waits for events, and returns none if there were none in time.
func poll(fd int, events int16, timeout time.Duration) (int16, error) {
	for end := time.Now().Add(timeout); ; {
		p := []unix.PollFd{{Fd: int32(fd), Events: events}}
		left := max(time.Until(end), 0)
		_, err := unix.Poll(p, int((left+time.Millisecond-1)/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return p[0].Revents, err
	}
}

// resets makes a connection end with a reset when it is closed, and so leave no
// TIME_WAIT.
func resets(fd int) error {
	return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// fill writes to a socket until it accepts no more, or has accepted most bytes.
func fill(fd, most int) {
	b := make([]byte, 4096)
	for written := 0; written < most; {
		n, err := unix.Write(fd, b[:min(len(b), most-written)])
		if err != nil {
			return
		}
		written += n
	}
}

// arrives reports whether the given number of bytes arrives through a connection.
func arrives(from, to, bytes int) bool {
	b := make([]byte, 4096)
	for sent, got := 0, 0; got < bytes; {
		if sent < bytes {
			if n, err := unix.Write(from, b[:min(len(b), bytes-sent)]); err == nil {
				sent += n
			}
		}
		if events, err := poll(to, unix.POLLIN, answer); err != nil || events == 0 {
			return false
		}
		n, err := unix.Read(to, b)
		if err != nil || n == 0 {
			return false
		}
		got += n
	}
	return true
}

// sockstat reads a number of /proc/net/sockstat or sockstat6: "TCP:", "mem".
func sockstat(file, line, key string) (int, error) {
	b, err := os.ReadFile("/proc/thread-self/net/" + file)
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		for i := 1; f[0] == line && i+1 < len(f); i += 2 {
			if f[i] == key {
				return strconv.Atoi(f[i+1])
			}
		}
	}
	return 0, fmt.Errorf("%s has no %s %s", file, line, key)
}
