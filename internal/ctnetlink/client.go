// Package ctnetlink reads the statistics and entries of connection tracking over netlink.
// The statistics are for kernels without CONFIG_NF_CONNTRACK_PROCFS, which have no file
// of them.
package ctnetlink

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

var (
	// ErrNotSupported means that this kernel has no ctnetlink, or that its module is
	// not loaded and was not loaded on demand.
	ErrNotSupported = errors.New("this kernel does not have ctnetlink (try: modprobe nf_conntrack_netlink)")
	// ErrNotPermitted means that this process is not permitted to ask.
	ErrNotPermitted = errors.New("ctnetlink needs CAP_NET_ADMIN")
)

// errInterrupted means that the dumped data changed during the dump in a way that made
// the dump inconsistent.
var errInterrupted = errors.New("dump interrupted")

// A Conn carries messages to and from the kernel, as a *netlink.Conn does.
type Conn interface {
	// Send sends a request and returns it with its sequence number.
	Send(m netlink.Message) (netlink.Message, error)
	// ReceiveIter yields the messages of a reply, up to its end or an error. It reads to
	// the end of the reply even if its caller stops earlier.
	ReceiveIter() iter.Seq2[netlink.Message, error]
	SetDeadline(t time.Time) error
	// Close makes a ReceiveIter in progress fail.
	Close() error
}

// Dial opens a netlink socket in the network namespace of the calling thread.
func Dial() (Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// Client reads connection tracking through a netlink socket. Unless it was created by
// NewOnce, it keeps the socket open, so that a process that cannot open any more files
// can still read. It must not be used concurrently.
type Client struct {
	dial func() (Conn, error)
	once bool // the socket is closed after each reading
	conn Conn
}

// New returns a client that connects with dial when it is first used, and again after a
// reading that failed.
func New(dial func() (Conn, error)) *Client { return &Client{dial: dial} }

// NewOnce returns a client that connects with dial for each reading and keeps nothing
// open in between, because an open socket keeps its network namespace alive.
func NewOnce(dial func() (Conn, error)) *Client { return &Client{dial: dial, once: true} }

// Close closes the netlink socket. A later reading opens another one.
func (c *Client) Close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// Stats returns the statistics of every possible CPU, in the order of their numbers. It
// returns ErrNotSupported if the kernel does not support it, ErrNotPermitted if the
// kernel refuses it, the context's error at its deadline, and another error if the reply
// is not complete.
func (c *Client) Stats(ctx context.Context) ([]CPU, error) {
	if c.once {
		defer c.Close()
	}
	stats, err := c.dump(ctx)
	if errors.Is(err, errInterrupted) {
		stats, err = c.dump(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("ctnetlink statistics: %w", err)
	}
	return stats, nil
}

func (c *Client) dump(ctx context.Context) (_ []CPU, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.conn == nil {
		conn, err := c.dial()
		if err != nil {
			return nil, typed(err)
		}
		c.conn = conn
	}
	defer func() {
		// A socket is still usable after a refusal, and it might not be possible to open
		// another one.
		if err != nil && !isRefused(err) && !errors.Is(err, errInterrupted) {
			c.Close()
		}
	}()

	// Without a deadline this is the zero time, which removes an earlier one.
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	request, err := c.conn.Send(request())
	if err != nil {
		return nil, typed(err)
	}
	return c.receive(request)
}

// receive reads the reply to a request. The kernel goes through the CPUs in ascending
// order. receive returns an error for a CPU that is repeated or out of order, so a reply
// cannot go on forever.
func (c *Client) receive(request netlink.Message) ([]CPU, error) {
	var stats []CPU
	torn := false
	for m, err := range c.conn.ReceiveIter() {
		if err != nil {
			return nil, typed(err)
		}
		cpu, err := decode(request, m)
		if n := len(stats); err == nil && n > 0 && cpu.ID <= stats[n-1].ID {
			err = fmt.Errorf("CPU %d after CPU %d", cpu.ID, stats[n-1].ID)
		}
		if err != nil {
			// The rest would be read to its end, which may never come.
			c.Close()
			return nil, err
		}
		stats = append(stats, cpu)
		torn = torn || m.Header.Flags&netlink.DumpInterrupted != 0
	}
	switch {
	case torn:
		return nil, errInterrupted
	case len(stats) == 0:
		return nil, errors.New("reply has no CPU")
	}
	return stats, nil
}

// typed converts errors of a netlink socket to those that callers know.
func typed(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return context.DeadlineExceeded
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	// EOPNOTSUPP without nf_conntrack_netlink, EINVAL for an unknown message,
	// EPROTONOSUPPORT without nfnetlink itself, ENOENT for what does not exist.
	for _, e := range []error{unix.EOPNOTSUPP, unix.EINVAL, unix.EPROTONOSUPPORT, unix.ENOENT} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", ErrNotSupported, err)
		}
	}
	return err
}

func isRefused(err error) bool {
	return errors.Is(err, ErrNotSupported) || errors.Is(err, ErrNotPermitted)
}
