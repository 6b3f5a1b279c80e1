package sockdiag

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Dial opens a netlink socket in the network namespace of the calling thread.
// It needs no capability.
func Dial() (Transport, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	s := &socket{conn: conn, raw: raw}
	s.read = func(fd uintptr) bool {
		for {
			s.n, s.err = unix.Read(int(fd), s.buf)
			if s.err != unix.EINTR { //nolint:errorlint // unix.Read returns a bare Errno
				return s.err != unix.EAGAIN //nolint:errorlint // the same as above
			}
		}
	}
	return s, nil
}

// socket sends through the netlink package but receives by itself, because the package
// allocates and copies every message that it receives.
type socket struct {
	conn *netlink.Conn
	raw  syscall.RawConn

	// The arguments and results of read, which is created once so that a receive
	// allocates nothing.
	read func(fd uintptr) bool
	buf  []byte
	n    int
	err  error
}

func (s *socket) Send(m netlink.Message) (netlink.Message, error) {
	m, err := s.conn.Send(m)
	return m, deadline(err)
}

func (s *socket) Receive(b []byte) (int, error) {
	s.buf = b
	err := s.raw.Read(s.read)
	s.buf = nil
	if err != nil {
		return 0, deadline(err)
	}
	if s.err != nil {
		return 0, os.NewSyscallError("read netlink", s.err)
	}
	return s.n, nil
}

// deadline converts the deadline error of the socket to that of the context.
func deadline(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.DeadlineExceeded
	}
	return err
}

func (s *socket) SetDeadline(t time.Time) error { return s.conn.SetDeadline(t) }

func (s *socket) Close() error { return s.conn.Close() }

// DialBlocking opens a sock_diag socket in the network namespace of the calling thread,
// for a walk or two. It bypasses the runtime's poller, which would be woken for each
// socket. The kernel has the answer to a request ready when the request has been sent, so
// the socket blocks only on a lock in the kernel, and only up to the deadline.
func DialBlocking() (Transport, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, os.NewSyscallError("socket netlink", err)
	}
	return &blocking{fd: fd}, nil
}

// blocking is a socket with blocking system calls.
type blocking struct {
	fd  int
	seq uint32
}

func (s *blocking) Send(m netlink.Message) (netlink.Message, error) {
	s.seq++
	m.Header.Sequence, m.Header.Length = s.seq, uint32(unix.NLMSG_HDRLEN+len(m.Data))
	b, err := m.MarshalBinary()
	if err != nil {
		return m, err
	}
	err = retry(func() error { return unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) })
	return m, os.NewSyscallError("send netlink", err)
}

func (s *blocking) Receive(b []byte) (n int, err error) {
	err = retry(func() error {
		n, err = unix.Read(s.fd, b)
		return err
	})
	if errors.Is(err, unix.EAGAIN) {
		return 0, context.DeadlineExceeded
	}
	return n, os.NewSyscallError("read netlink", err)
}

// SetDeadline limits each later Receive to the time that is left now.
func (s *blocking) SetDeadline(t time.Time) error {
	left := unix.Timeval{} // zero means no limit
	if !t.IsZero() {
		left = unix.NsecToTimeval(max(int64(time.Until(t)), int64(time.Millisecond)))
	}
	return os.NewSyscallError("setsockopt SO_RCVTIMEO", unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &left))
}

func (s *blocking) Close() error { return unix.Close(s.fd) }

// retry repeats a system call that was interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
