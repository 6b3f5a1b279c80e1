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
				return s.err != unix.EAGAIN //nolint:errorlint // likewise
			}
		}
	}
	return s, nil
}

// socket sends through the netlink package and receives by itself: the
// package's receive path allocates and copies every message.
type socket struct {
	conn *netlink.Conn
	raw  syscall.RawConn

	// The arguments and results of read, which is made once so that a receive
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

// deadline makes a deadline of the socket one of the context that it came from.
func deadline(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.DeadlineExceeded
	}
	return err
}

func (s *socket) SetDeadline(t time.Time) error { return s.conn.SetDeadline(t) }

func (s *socket) Close() error { return s.conn.Close() }
