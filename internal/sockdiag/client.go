package sockdiag

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// bufferSize is the size of the receive buffer. The kernel fills at most 32 KiB of a
// buffer, however large it is (netlink_recvmsg).
const bufferSize = 32 << 10

// ErrNotSupported means that this kernel has no sock_diag for TCP, or that its
// module is not loaded and was not loaded on demand.
var ErrNotSupported = errors.New("this kernel does not have sock_diag for TCP (try: modprobe tcp_diag)")

// ErrUDPNotSupported is ErrNotSupported for UDP.
var ErrUDPNotSupported = errors.New("this kernel does not have sock_diag for UDP (try: modprobe udp_diag)")

// errInterrupted means that the kernel's table changed during the dump in a way that made
// the dump inconsistent.
var errInterrupted = errors.New("dump interrupted")

// A Visitor receives the sockets of a walk. Reset is called before the first socket, and
// again if a walk has to start over.
type Visitor interface {
	Reset()
	// Visit must not keep s, which is reused for the next socket.
	Visit(s *Socket)
}

// A Transport carries messages to and from the kernel.
type Transport interface {
	// Send sends a request and returns it with its sequence number.
	Send(m netlink.Message) (netlink.Message, error)
	// Receive reads one datagram into b.
	Receive(b []byte) (int, error)
	SetDeadline(t time.Time) error
	Close() error
}

// Client walks the socket table through a netlink socket. Unless it was created by
// NewOnce, it keeps the socket open, so that a process that cannot open any more files
// can still walk. It must not be used concurrently.
type Client struct {
	dial func() (Transport, error)
	once bool // the socket is closed after each walk
	sock Transport
	buf  []byte
	s    Socket

	seq uint32 // of the last request
	// answering is set until the answer to the last request has been read to its end.
	answering bool
}

// New returns a client that connects with dial when it is first used, and again after a
// walk that failed.
func New(dial func() (Transport, error)) *Client {
	return &Client{dial: dial, buf: make([]byte, bufferSize)}
}

// NewOnce returns a client that connects with dial for each walk and keeps nothing open
// in between, because an open socket keeps its network namespace alive.
func NewOnce(dial func() (Transport, error)) *Client {
	c := New(dial)
	c.once = true
	return c
}

// Close closes the netlink socket. A later walk opens another one.
func (c *Client) Close() {
	if c.sock != nil {
		_ = c.sock.Close()
		c.sock = nil
	}
}

// Walk visits every socket that r selects, of both address families, in one pass over the
// kernel's table, or in two for UDP. A walk is not a snapshot: sockets are opened and
// closed while it runs. At the context's deadline it stops with the context's error. It
// returns ErrNotSupported, or ErrUDPNotSupported for UDP, if the kernel does not support
// it.
func (c *Client) Walk(ctx context.Context, r Request, v Visitor) error {
	if c.once {
		defer c.Close()
	}
	err := c.walk(ctx, r, v)
	if errors.Is(err, errInterrupted) || errors.Is(err, unix.ENOBUFS) {
		err = c.walk(ctx, r, v)
	}
	if err != nil {
		return fmt.Errorf("sock_diag: %w", err)
	}
	return nil
}

func (c *Client) walk(ctx context.Context, r Request, v Visitor) error {
	c.s = Socket{} // clear the details of an earlier walk
	v.Reset()
	if r.Protocol == TCP {
		err := c.dump(ctx, r.tcpDiag(), c.decoded(r, v))
		if !isRefused(err) {
			return err
		}
		// The kernel, or a security module, refuses the older request type.
		v.Reset()
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := c.dump(ctx, r.byFamily(family), c.decoded(r, v)); err != nil {
			if isRefused(err) {
				return r.Protocol.notSupported()
			}
			return err
		}
	}
	return nil
}

// isRefused reports whether err means that the kernel does not support the request:
// EOPNOTSUPP without inet_diag, ENOENT without tcp_diag, EINVAL for an unknown type,
// EPROTONOSUPPORT without sock_diag itself.
func isRefused(err error) bool {
	for _, e := range []error{unix.EOPNOTSUPP, unix.ENOENT, unix.EINVAL, unix.EPROTONOSUPPORT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// dump sends one request and visits the messages of the answer. At a deadline it keeps
// the socket open, since it might not be possible to open another one, and leaves the
// rest of the answer for the next dump to discard. It also keeps the socket after a
// refused or an interrupted dump, and closes it after any other failure.
func (c *Client) dump(ctx context.Context, m netlink.Message, visit func(payload []byte) error) (err error) {
	if c.sock == nil {
		if c.sock, err = c.dial(); err != nil {
			c.sock = nil
			return err
		}
		c.answering = false
	}
	defer func() {
		if err != nil && !isRefused(err) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errInterrupted) {
			c.Close()
		}
	}()

	// Without a deadline this is the zero time, which removes an earlier one.
	deadline, _ := ctx.Deadline()
	if err := c.sock.SetDeadline(deadline); err != nil {
		return err
	}
	if c.answering {
		// The kernel does not accept a request before the last answer has been read to
		// its end. That answer is discarded, so an error at its end does not concern this
		// walk.
		if err := c.receive(ctx, nil); c.answering {
			return err
		}
	}
	m, err = c.sock.Send(m)
	if err != nil {
		return err
	}
	c.seq, c.answering = m.Header.Sequence, true
	return c.receive(ctx, visit)
}

// decoded returns a function that decodes a message and lets v visit its socket.
func (c *Client) decoded(r Request, v Visitor) func(payload []byte) error {
	return func(payload []byte) error {
		known, err := decode(payload, &c.s)
		if err != nil {
			return err
		}
		if !known || !r.selects(&c.s) {
			return nil
		}
		if r.Details {
			if err := decodeDetails(payload, &c.s); err != nil {
				return err
			}
		}
		v.Visit(&c.s)
		return nil
	}
}

// receive passes the messages of an answer to visit, up to the end of the answer. If
// visit is nil it discards them.
func (c *Client) receive(ctx context.Context, visit func(payload []byte) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := c.sock.Receive(c.buf)
		if err != nil {
			return err
		}
		done, err := c.datagram(c.buf[:n], visit)
		if done {
			c.answering = false
		}
		if done || err != nil {
			return err
		}
	}
}

const sizeofHeader = 16 // struct nlmsghdr

// datagram visits the messages of one datagram. done is true after the last message of
// the dump.
func (c *Client) datagram(b []byte, visit func(payload []byte) error) (done bool, err error) {
	var torn error
	for len(b) >= sizeofHeader {
		size := int(binary.NativeEndian.Uint32(b))
		if size < sizeofHeader || size > len(b) {
			return false, fmt.Errorf("netlink message of %d bytes in %d", size, len(b))
		}
		typ := netlink.HeaderType(binary.NativeEndian.Uint16(b[4:]))
		flags := netlink.HeaderFlags(binary.NativeEndian.Uint16(b[6:]))
		mine := binary.NativeEndian.Uint32(b[8:]) == c.seq
		payload := b[sizeofHeader:size]
		b = b[min((size+3)&^3, len(b)):]
		if !mine {
			continue
		}

		if typ == netlink.Done || typ == netlink.Error {
			return true, errors.Join(torn, errno(typ, payload))
		}
		if visit == nil {
			continue
		}
		if flags&netlink.DumpInterrupted != 0 {
			// Only the end of the answer is still of interest.
			visit, torn = nil, errInterrupted
			continue
		}
		switch typ {
		case netlink.Noop:
		case netlink.Overrun:
			return false, unix.ENOBUFS
		case typeTCPDiag, typeByFamily:
			if err := visit(payload); err != nil {
				return false, err
			}
		default: // of a later kernel
		}
	}
	if len(b) != 0 {
		return false, errShort
	}
	return false, torn
}

// errno decodes the result that a Done or Error message carries. An error message always
// has one, the end of a dump since Linux 4.
func errno(typ netlink.HeaderType, b []byte) error {
	if len(b) < 4 {
		if typ == netlink.Done {
			return nil
		}
		return errShort
	}
	if e := int32(binary.NativeEndian.Uint32(b)); e != 0 {
		return syscall.Errno(-e)
	}
	return nil
}
