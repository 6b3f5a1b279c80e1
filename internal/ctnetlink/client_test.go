package ctnetlink_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/ctnetlink"
)

// conn is a connection of nltest that records its deadline and whether it was closed.
type conn struct {
	*netlink.Conn
	deadline time.Time
	closed   bool
}

func (c *conn) SetDeadline(t time.Time) error {
	c.deadline = t
	return nil
}

func (c *conn) Close() error {
	c.closed = true
	return c.Conn.Close()
}

// kernel answers requests as the Linux kernel does.
type kernel struct {
	conns []*conn
	// answer returns the messages in reply to a request.
	answer func(request netlink.Message) ([]netlink.Message, error)
	// more returns further messages, if those of answer do not end the dump.
	more     func() []netlink.Message
	requests []netlink.Message
}

func (k *kernel) dial() (ctnetlink.Conn, error) {
	c := &conn{}
	c.Conn = nltest.Dial(func(requests []netlink.Message) ([]netlink.Message, error) {
		switch {
		case c.closed:
			return nil, net.ErrClosed
		case len(requests) == 0 && k.more != nil:
			return k.more(), nil
		case len(requests) == 0:
			return nil, os.ErrDeadlineExceeded // nothing more comes
		}
		k.requests = append(k.requests, requests...)
		return k.answer(requests[0])
	})
	k.conns = append(k.conns, c)
	return c, nil
}

// stats returns a message with a CPU's statistics, in reply to a request.
func stats(request netlink.Message, cpu uint16, attributes ...netlink.Attribute) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Type: 0x104, Flags: netlink.Multi,
			Sequence: request.Header.Sequence, PID: request.Header.PID,
		},
		Data: append([]byte{unix.AF_UNSPEC, 0, byte(cpu >> 8), byte(cpu)}, nltest.MustMarshalAttributes(attributes)...),
	}
}

// counter returns a big-endian 32-bit attribute.
func counter(typ uint16, v uint32) netlink.Attribute {
	return netlink.Attribute{Type: typ, Data: binary.BigEndian.AppendUint32(nil, v)}
}

// end returns the message that ends a dump with an error, or with 0 for none.
func end(request netlink.Message, errno unix.Errno) netlink.Message {
	m := stats(request, 0)
	m.Header.Type = netlink.Done
	m.Data = binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno)))
	return m
}

// whole answers with a dump of the CPUs 0 and 1.
func whole(r netlink.Message) ([]netlink.Message, error) {
	return []netlink.Message{stats(r, 0), stats(r, 1), end(r, 0)}, nil
}

// TestStats checks the statistics that Linux 6.12 sends for two CPUs, whose numbers are not
// consecutive.
func TestStats(t *testing.T) {
	k := &kernel{answer: func(r netlink.Message) ([]netlink.Message, error) {
		return []netlink.Message{
			stats(
				r, 0, counter(2, 91), counter(4, 1), counter(8, 92), counter(9, 2), counter(10, 3), counter(11, 4),
				counter(12, 93), counter(13, 1<<32-1), counter(14, 94), counter(15, 95),
			),
			// An older kernel has fewer counters.
			stats(r, 0x102, counter(10, 7)),
			end(r, 0),
		}, nil
	}}
	c := ctnetlink.New(k.dial)
	present := func(v uint32) ctnetlink.Counter { return ctnetlink.Counter{Value: v, Present: true} }
	want := []ctnetlink.CPU{
		{Invalid: present(1), InsertFailed: present(2), Drop: present(3), EarlyDrop: present(4), SearchRestart: present(1<<32 - 1)},
		{ID: 0x102, Drop: present(7)},
	}
	for range 3 {
		got, err := c.Stats(t.Context())
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%+v, %v\nwant %+v", got, err, want)
		}
	}
	if len(k.conns) != 1 || k.conns[0].closed {
		t.Errorf("%d sockets, the first closed: %v", len(k.conns), k.conns[0].closed)
	}
	c.Close()
	if !k.conns[0].closed {
		t.Error("the socket stays open")
	}
	if _, err := c.Stats(t.Context()); err != nil || len(k.conns) != 2 {
		t.Errorf("after Close: %v, %d sockets", err, len(k.conns))
	}
}

// TestRequest checks that the bytes that are sent are those of the kernel's structures.
func TestRequest(t *testing.T) {
	k := &kernel{answer: whole}
	c := ctnetlink.New(k.dial)
	for range 2 {
		if _, err := c.Stats(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(k.requests) != 2 || k.requests[0].Header.Sequence == k.requests[1].Header.Sequence {
		t.Fatalf("requests %+v", k.requests)
	}
	for _, r := range k.requests {
		got, err := r.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		want := binary.NativeEndian.AppendUint32(nil, 16+4)                               // struct nlmsghdr: length,
		want = binary.NativeEndian.AppendUint16(want, 1<<8|4)                             // IPCTNL_MSG_CT_GET_STATS_CPU of NFNL_SUBSYS_CTNETLINK,
		want = binary.NativeEndian.AppendUint16(want, unix.NLM_F_REQUEST|unix.NLM_F_DUMP) // flags,
		want = binary.NativeEndian.AppendUint32(want, r.Header.Sequence)
		want = binary.NativeEndian.AppendUint32(want, nltest.PID)
		want = append(want, unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0) // struct nfgenmsg
		if !slices.Equal(got, want) {
			t.Errorf("request\nis   %x\nwant %x", got, want)
		}
	}
}

// TestRefused checks that a refusal by the kernel is distinguished from a failure, and that
// only a failure closes the socket.
func TestRefused(t *testing.T) {
	for errno, want := range map[unix.Errno]error{
		unix.EPERM:           ctnetlink.ErrNotPermitted,
		unix.EINVAL:          ctnetlink.ErrNotSupported,
		unix.EOPNOTSUPP:      ctnetlink.ErrNotSupported,
		unix.ENOENT:          ctnetlink.ErrNotSupported,
		unix.EPROTONOSUPPORT: ctnetlink.ErrNotSupported,
		unix.ENOBUFS:         nil,
		unix.EIO:             nil,
	} {
		for how, answer := range map[string]func(r netlink.Message) ([]netlink.Message, error){
			"error": func(r netlink.Message) ([]netlink.Message, error) {
				replies, err := nltest.Error(int(errno), []netlink.Message{r})
				// The kernel does not repeat the request's flags.
				replies[0].Header.Flags = 0
				return replies, err
			},
			"end": func(r netlink.Message) ([]netlink.Message, error) {
				return []netlink.Message{stats(r, 0), end(r, errno)}, nil
			},
			"system call": func(netlink.Message) ([]netlink.Message, error) { return nil, errno },
		} {
			k := &kernel{answer: answer}
			stats, err := ctnetlink.New(k.dial).Stats(t.Context())
			if !errors.Is(err, errno) || stats != nil {
				t.Errorf("%s %v: %v, %v", how, errno, stats, err)
			}
			for _, typ := range []error{ctnetlink.ErrNotSupported, ctnetlink.ErrNotPermitted} {
				if errors.Is(err, typ) != errors.Is(want, typ) {
					t.Errorf("%s %v: %v", how, errno, err)
				}
			}
			if k.conns[0].closed != (want == nil) {
				t.Errorf("%s %v: closed %v", how, errno, k.conns[0].closed)
			}
		}
		_, err := ctnetlink.New(func() (ctnetlink.Conn, error) { return nil, os.NewSyscallError("socket", errno) }).Stats(t.Context())
		if !errors.Is(err, errno) || want != nil && !errors.Is(err, want) {
			t.Errorf("socket %v: %v", errno, err)
		}
	}
}

// TestBroken checks that an invalid reply gives an error and no statistics, and closes the
// socket.
func TestBroken(t *testing.T) {
	for name, c := range map[string]struct {
		reply func(r netlink.Message) []netlink.Message
		want  string
	}{
		"no CPU": {func(r netlink.Message) []netlink.Message { return []netlink.Message{end(r, 0)} }, "no CPU"},
		"a CPU twice": {func(r netlink.Message) []netlink.Message {
			return []netlink.Message{stats(r, 3), stats(r, 3), end(r, 0)}
		}, "CPU 3 after CPU 3"},
		"a CPU late": {func(r netlink.Message) []netlink.Message {
			return []netlink.Message{stats(r, 3), stats(r, 2), end(r, 0)}
		}, "CPU 2 after CPU 3"},
		"another request's": {func(r netlink.Message) []netlink.Message {
			m := stats(r, 1)
			m.Header.Sequence--
			return []netlink.Message{stats(r, 0), m, end(r, 0)}
		}, "sequence"},
		"another socket's": {func(r netlink.Message) []netlink.Message {
			m := stats(r, 1)
			m.Header.PID++
			return []netlink.Message{stats(r, 0), m, end(r, 0)}
		}, "PID"},
		"another type": {func(r netlink.Message) []netlink.Message {
			m := stats(r, 1)
			m.Header.Type = 0x105
			return []netlink.Message{stats(r, 0), m, end(r, 0)}
		}, "type 261"},
		"lost messages": {func(r netlink.Message) []netlink.Message {
			m := stats(r, 1)
			m.Header.Type = netlink.Overrun
			return []netlink.Message{stats(r, 0), m, end(r, 0)}
		}, "type 4"},
		"no dump": {func(r netlink.Message) []netlink.Message {
			m := stats(r, 0)
			m.Header.Flags = 0
			return []netlink.Message{m}
		}, "flags 0x0"},
		"an acknowledgement": {func(r netlink.Message) []netlink.Message {
			m := end(r, 0)
			m.Header.Type, m.Header.Flags = netlink.Error, 0
			return []netlink.Message{m}
		}, "type 2"},
		"a short error": {func(r netlink.Message) []netlink.Message {
			m := end(r, unix.EIO)
			m.Data = m.Data[:3]
			return []netlink.Message{stats(r, 0), m}
		}, "not enough data"},
		"a short message": {func(r netlink.Message) []netlink.Message {
			m := stats(r, 0)
			m.Data = m.Data[:3]
			return []netlink.Message{m, end(r, 0)}
		}, "truncated"},
		"a short attribute": {func(r netlink.Message) []netlink.Message {
			m := stats(r, 5, counter(4, 1), counter(10, 1))
			m.Data = m.Data[:len(m.Data)-1]
			return []netlink.Message{m, end(r, 0)}
		}, "CPU 5: "},
		"a counter of 64 bits": {func(r netlink.Message) []netlink.Message {
			return []netlink.Message{stats(r, 5, netlink.Attribute{Type: 10, Data: make([]byte, 8)}), end(r, 0)}
		}, "CPU 5: "},
		"no end": {func(r netlink.Message) []netlink.Message {
			return []netlink.Message{stats(r, 0), stats(r, 1)}
		}, context.DeadlineExceeded.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			k := &kernel{answer: func(r netlink.Message) ([]netlink.Message, error) { return c.reply(r), nil }}
			client := ctnetlink.New(k.dial)
			got, err := client.Stats(t.Context())
			if err == nil || !strings.HasPrefix(err.Error(), "ctnetlink statistics: ") || !strings.Contains(err.Error(), c.want) || got != nil {
				t.Errorf("%v, %v", got, err)
			}
			if !k.conns[0].closed {
				t.Error("the socket stays open")
			}
			// The next request succeeds.
			k.answer = whole
			if got, err := client.Stats(t.Context()); err != nil || len(got) != 2 {
				t.Errorf("the next time: %v, %v", got, err)
			}
		})
	}
}

// TestEndless checks that an endless reply is abandoned at the first message that cannot
// belong to it.
func TestEndless(t *testing.T) {
	for name, next := range map[string]func(last uint16) uint16{
		"ever the same CPU": func(last uint16) uint16 { return last },
		"ever another CPU":  func(last uint16) uint16 { return last + 1 },
	} {
		t.Run(name, func(t *testing.T) {
			var request netlink.Message
			var cpu uint16
			sent := 0
			k := &kernel{answer: func(r netlink.Message) ([]netlink.Message, error) {
				request = r
				return []netlink.Message{stats(r, cpu)}, nil
			}}
			k.more = func() []netlink.Message {
				sent++
				cpu = next(cpu)
				return []netlink.Message{stats(request, cpu)}
			}
			if _, err := ctnetlink.New(k.dial).Stats(t.Context()); err == nil || !strings.Contains(err.Error(), "after CPU") {
				t.Error(err)
			}
			if sent > 1<<16 || !k.conns[0].closed {
				t.Errorf("%d messages were read; closed: %v", sent, k.conns[0].closed)
			}
		})
	}
}

// TestInterrupted checks that an interrupted dump is requested again once, and fails if that
// one is interrupted too.
func TestInterrupted(t *testing.T) {
	for torn, ok := range map[int]bool{0: true, 1: true, 2: false} {
		k := &kernel{}
		k.answer = func(r netlink.Message) ([]netlink.Message, error) {
			messages, err := whole(r)
			if len(k.requests) <= torn {
				messages[0].Header.Flags |= netlink.DumpInterrupted
			}
			return messages, err
		}
		got, err := ctnetlink.New(k.dial).Stats(t.Context())
		if (err == nil) != ok || ok != (len(got) == 2) || len(k.conns) != 1 || k.conns[0].closed {
			t.Errorf("torn %d times: %v, %v, %d sockets", torn, got, err, len(k.conns))
		}
	}
}

// TestDeadline checks that the socket gets the deadline of the context, or none.
func TestDeadline(t *testing.T) {
	k := &kernel{answer: whole}
	c := ctnetlink.New(k.dial)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if _, err := c.Stats(ctx); err != nil {
		t.Fatal(err)
	}
	if want, _ := ctx.Deadline(); !k.conns[0].deadline.Equal(want) {
		t.Errorf("deadline %v, want %v", k.conns[0].deadline, want)
	}
	if _, err := c.Stats(t.Context()); err != nil || !k.conns[0].deadline.IsZero() {
		t.Errorf("deadline %v: %v", k.conns[0].deadline, err)
	}

	over, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	if _, err := c.Stats(over); !errors.Is(err, context.DeadlineExceeded) || len(k.requests) != 2 {
		t.Errorf("%v after %d requests", err, len(k.requests))
	}

	k.answer = func(netlink.Message) ([]netlink.Message, error) { return nil, os.ErrDeadlineExceeded }
	if _, err := c.Stats(ctx); !errors.Is(err, context.DeadlineExceeded) || !k.conns[0].closed {
		t.Errorf("%v; closed: %v", err, k.conns[0].closed)
	}
}

// TestOnce checks that a client from NewOnce keeps no socket open between readings.
func TestOnce(t *testing.T) {
	k := &kernel{answer: whole}
	c := ctnetlink.NewOnce(k.dial)
	for range 2 {
		if _, err := c.Stats(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	k.answer = func(netlink.Message) ([]netlink.Message, error) { return nil, io.ErrUnexpectedEOF }
	if _, err := c.Stats(t.Context()); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if len(k.conns) != 3 {
		t.Errorf("%d sockets", len(k.conns))
	}
	for i, conn := range k.conns {
		if !conn.closed {
			t.Errorf("socket %d stays open", i)
		}
	}
}
