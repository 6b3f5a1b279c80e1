// Package ctnetlink reads the statistics of connection tracking over netlink, for
// kernels without CONFIG_NF_CONNTRACK_PROCFS, which have no file of them.
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
	// ErrNotPermitted means that this process may not ask.
	ErrNotPermitted = errors.New("ctnetlink needs CAP_NET_ADMIN")
)

// errInterrupted means that what is dumped changed in a way that tore the dump.
var errInterrupted = errors.New("dump interrupted")

// A Conn carries messages to and from the kernel, as a *netlink.Conn does.
type Conn interface {
	// Send sends a request and returns it with the sequence number it got.
	Send(m netlink.Message) (netlink.Message, error)
	// ReceiveIter yields the messages of a reply, up to its end or an error. It reads to
	// the end of the reply even where its caller does not.
	ReceiveIter() iter.Seq2[netlink.Message, error]
	SetDeadline(t time.Time) error
	// Close makes a ReceiveIter that is under way fail.
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

// Client reads statistics through a netlink socket. Unless it was made by NewOnce
// it keeps that open: a process that may open no file any more can still read. It
// has one user at a time.
type Client struct {
	dial func() (Conn, error)
	once bool // the socket is closed after each reading
	conn Conn
}

// New returns a client that connects with dial when it is first used, and again
// after a reading that failed.
func New(dial func() (Conn, error)) *Client { return &Client{dial: dial} }

// NewOnce returns a client that connects with dial for each reading, and keeps
// nothing open in between: a socket keeps its network namespace alive.
func NewOnce(dial func() (Conn, error)) *Client { return &Client{dial: dial, once: true} }

// Close closes the netlink socket. A later reading opens another one.
func (c *Client) Close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// Stats returns the statistics of every possible CPU, in the order of their
// numbers. It fails with ErrNotSupported where the kernel cannot do it, with
// ErrNotPermitted where it refuses, with the context's error at its deadline, and
// otherwise where the reply is not a whole one.
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
		// A socket that got a refusal is as good as before, and another one might not be
		// had.
		if err != nil && !isRefused(err) && !errors.Is(err, errInterrupted) {
			c.Close()
		}
	}()

	// No deadline is the zero time, which takes an earlier one away.
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

// receive reads the reply to a request. The kernel goes through the CPUs in
// ascending order, so that a reply has an end: a CPU that comes twice, or late, is
// an error.
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
			// What follows would be read to its end, which may never come.
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

// typed gives the errors of a netlink socket the types that callers know.
func typed(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return context.DeadlineExceeded
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	// EOPNOTSUPP without nf_conntrack_netlink, EINVAL for a message that it does not
	// know, EPROTONOSUPPORT without nfnetlink itself, ENOENT for what is not there.
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
