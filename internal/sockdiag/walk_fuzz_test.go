package sockdiag_test

import (
	"context"
	"encoding/binary"
	"maps"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// hostile is a kernel that follows a script, which has a byte for each call, and records what
// a walk may make of that. At the end of the script, and when good is set, it sends the rest
// of its unfinished reply. It replies to requests only when good is set.
type hostile struct {
	t      *testing.T
	script []byte
	good   bool
	// sour makes a good kernel end its unfinished reply with an error.
	sour bool
	// expire makes the walk's deadline pass.
	expire func()

	// closed is set when the descriptor is closed without the client, and reset when the
	// client dials.
	closed bool
	seq    uint32
	// owes is set while the last message of a reply has not been sent.
	owes    bool
	pending [][]byte // the datagrams of a good answer
	port    uint16   // the port of the last socket, unique to it
	// How often the kernel may still be called in this walk.
	receives, sends int

	// asked is set by the first request. What is received before it is the rest of an earlier
	// reply.
	asked bool
	// wrong is set if the walk must fail or start over.
	wrong bool
	// Random bytes were sent, so it is unknown whether they ended the reply, and what the walk
	// should make of them.
	unsureEnd, unsureWalk bool
	// mayVisit has the sockets that were sent completely, in a reply to the current request,
	// and before anything invalid.
	mayVisit map[uint16]bool
	visited  map[uint16]bool
	visits   int
}

// The steps of a script.
const (
	oneSocket = iota
	manySockets
	repeated
	foreignSocket // of another request
	foreignEnd
	tornSocket // with NLM_F_DUMP_INTR
	shortSocket
	cutDatagram
	noDatagram
	rawDatagram
	overrun
	noise
	end
	endWithError
	failure
	receiveError
	deadline
	mistakes
)

func (h *hostile) draw() (b byte, ok bool) {
	if h.good || len(h.script) == 0 {
		return 0, false
	}
	b, h.script = h.script[0], h.script[1:]
	return b, true
}

func (h *hostile) errno() syscall.Errno {
	errnos := []syscall.Errno{
		unix.ENOBUFS, unix.EINVAL, unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT,
		unix.EPERM, unix.ENOMEM, unix.EBADF, unix.EBUSY, unix.ETIMEDOUT,
	}
	b, _ := h.draw()
	return errnos[int(b)%len(errnos)]
}

func (h *hostile) dial() (sockdiag.Transport, error) {
	if b, _ := h.draw(); b >= 250 {
		return nil, h.errno()
	}
	h.owes, h.pending, h.unsureEnd, h.closed = false, nil, false, false
	return h, nil
}

func (h *hostile) SetDeadline(time.Time) error {
	if h.closed {
		return unix.EBADF
	}
	if b, _ := h.draw(); b >= 250 {
		return h.errno()
	}
	return nil
}

func (h *hostile) Close() error { return nil }

func (h *hostile) Send(m netlink.Message) (netlink.Message, error) {
	if h.sends--; h.sends < 0 {
		h.t.Fatal("the walk does not end: too many requests")
	}
	if b, _ := h.draw(); b >= 250 {
		return m, h.errno()
	}
	if h.owes && !h.unsureEnd {
		h.t.Fatal("a request before the end of the last reply, which the kernel refuses with EBUSY")
	}
	h.seq++
	m.Header.Sequence = h.seq
	h.owes, h.asked, h.unsureEnd, h.pending = true, true, false, nil
	if !h.good {
		return m, nil
	}
	// Each family has as many sockets as its number: 2 for AF_INET and 10 for AF_INET6.
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if m.Header.Type == 20 && m.Data[0] != family {
			continue
		}
		var datagram []byte
		for range family {
			datagram = append(datagram, h.socket(family, h.seq, true)...)
		}
		h.pending = append(h.pending, datagram)
	}
	return m, nil
}

// message returns an encoded message with padding.
func message(typ, flags uint16, seq uint32, payload []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0)
	b = append(b, payload...)
	return append(b, make([]byte, -len(payload)&3)...)
}

// socket returns an encoded socket with a unique port. counts is set if the socket may be
// visited.
func (h *hostile) socket(family byte, seq uint32, counts bool) []byte {
	h.port++
	payload := make([]byte, 72)
	payload[0], payload[1] = family, byte(sockdiag.Established)
	binary.BigEndian.PutUint16(payload[4:], h.port)
	if counts && h.asked {
		h.mayVisit[h.port] = true
	}
	return message(20, unix.NLM_F_MULTI, seq, payload)
}

func result(typ uint16, seq uint32, errno syscall.Errno) []byte {
	return message(typ, unix.NLM_F_MULTI, seq, binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno))))
}

func (h *hostile) Receive(b []byte) (int, error) {
	if h.receives--; h.receives < 0 {
		h.t.Fatal("the walk does not end: too many reads")
	}
	what, ok := h.draw()
	if !ok {
		return h.receiveRest(b)
	}
	seq := h.seq
	switch what % mistakes {
	case oneSocket:
		return copy(b, h.socket(unix.AF_INET, seq, true)), nil
	case manySockets:
		n := 0
		for range what / mistakes {
			n += copy(b[n:], h.socket(unix.AF_INET6, seq, true))
		}
		return n, nil
	case repeated:
		// A socket may be sent twice, because a walk is not a snapshot.
		m := h.socket(unix.AF_INET, seq, true)
		return copy(b, slices.Concat(m, m)), nil
	case foreignSocket:
		return copy(b, h.socket(unix.AF_INET, seq+uint32(what), false)), nil
	case foreignEnd:
		return copy(b, result(unix.NLMSG_DONE, seq-1, 0)), nil
	case tornSocket:
		m := h.socket(unix.AF_INET, seq, false)
		m[6] |= unix.NLM_F_DUMP_INTR
		h.wrong = h.asked
		return copy(b, slices.Concat(m, h.socket(unix.AF_INET, seq, false))), nil
	case shortSocket:
		h.wrong = h.asked
		short := message(20, unix.NLM_F_MULTI, seq, make([]byte, what/mistakes*4))
		return copy(b, slices.Concat(h.socket(unix.AF_INET, seq, true), short, h.socket(unix.AF_INET, seq, false))), nil
	case cutDatagram:
		h.wrong = h.asked
		m := slices.Concat(h.socket(unix.AF_INET, seq, true), h.socket(unix.AF_INET, seq, false))
		return copy(b, m[:len(m)-1-int(what)%80]), nil
	case noDatagram:
		return 0, nil
	case rawDatagram:
		h.unsureEnd, h.unsureWalk = true, true
		n := copy(b, h.script[:min(int(what), len(h.script))])
		h.script = h.script[n:]
		return n, nil
	case overrun:
		h.wrong = h.asked
		return copy(b, slices.Concat(message(unix.NLMSG_OVERRUN, 0, seq, nil), h.socket(unix.AF_INET, seq, false))), nil
	case noise:
		return copy(b, slices.Concat(message(unix.NLMSG_NOOP, 0, seq, nil), message(uint16(what)+100, 0, seq, make([]byte, what)))), nil
	case end:
		h.owes = false
		return copy(b, slices.Concat(h.socket(unix.AF_INET, seq, true), result(unix.NLMSG_DONE, seq, 0), h.socket(unix.AF_INET, seq, false))), nil
	case endWithError:
		h.owes = false
		return copy(b, result(unix.NLMSG_DONE, seq, h.errno())), nil
	case failure:
		h.owes = false
		return copy(b, result(unix.NLMSG_ERROR, seq, h.errno())), nil
	case receiveError:
		err := h.errno()
		h.closed = err == unix.EBADF
		return 0, err
	default:
		h.expire()
		return 0, context.DeadlineExceeded
	}
}

// receiveRest returns the rest of a reply. If no reply is unfinished, it returns nothing,
// because such a read would wait until its deadline.
func (h *hostile) receiveRest(b []byte) (int, error) {
	if !h.owes {
		if !h.unsureEnd {
			h.t.Fatal("a read although no reply is unfinished")
		}
		return 0, context.DeadlineExceeded
	}
	if len(h.pending) > 0 {
		n := copy(b, h.pending[0])
		h.pending = h.pending[1:]
		return n, nil
	}
	h.owes = false
	var errno syscall.Errno
	if h.sour && !h.asked {
		errno = unix.ENOMEM
	}
	return copy(b, result(unix.NLMSG_DONE, h.seq, errno)), nil
}

func (h *hostile) Reset() {
	clear(h.visited)
	clear(h.mayVisit)
	h.asked, h.wrong, h.unsureWalk, h.visits = false, false, false, 0
}

func (h *hostile) Visit(s *sockdiag.Socket) {
	h.visits++
	if h.unsureWalk {
		return
	}
	if !h.mayVisit[s.SourcePort] {
		h.t.Fatalf("visited %d, which belongs to another reply or follows an error", s.SourcePort)
	}
	h.visited[s.SourcePort] = true
}

// walk runs a walk. It checks that the walk ends, and that it succeeds only if the reply was
// complete.
func (h *hostile) walk(ctx context.Context, c *sockdiag.Client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.expire = cancel
	// Two tries, each with one request for both families and one for each family. Before each
	// request, the end of an earlier reply may have to be read.
	h.sends = 2 * 3
	h.receives = len(h.script) + 3*h.sends
	err := c.Walk(deadlined{ctx}, sockdiag.Request{States: sockdiag.AllStates}, h)
	if err == nil && !h.unsureWalk {
		if h.wrong {
			h.t.Error("no error although the reply was incomplete")
		}
		if !maps.Equal(h.visited, h.mayVisit) {
			h.t.Errorf("visited %v of %v", h.visited, h.mayVisit)
		}
	}
	return err
}

// FuzzWalk checks a walk over a kernel that does anything, followed by another walk with the
// same client when the kernel works correctly.
func FuzzWalk(f *testing.F) {
	for what := range byte(mistakes) {
		// The first two bytes are for dialing and for the deadline, the third for the request.
		f.Add([]byte{0, 0, 0, what, what, oneSocket, end}, false)
		f.Add([]byte{0, 0, 0, oneSocket, what, 1, 0, 0, what, end}, true)
	}
	f.Add([]byte{0, 0, 0, failure, 1, 0, 0, oneSocket, end, 0, 0, oneSocket, deadline}, true)
	f.Add([]byte{0, 0, 0, oneSocket, receiveError, 7}, false) // EBADF
	f.Add([]byte{255, 0, 0, 255, 1, 0, 255, 1}, false)
	f.Fuzz(func(t *testing.T, script []byte, sour bool) {
		h := &hostile{t: t, script: script, mayVisit: map[uint16]bool{}, visited: map[uint16]bool{}}
		c := sockdiag.New(h.dial)
		_ = h.walk(t.Context(), c)

		h.good, h.sour = true, sour
		if err := h.walk(t.Context(), c); err != nil {
			t.Fatalf("over a working kernel: %v", err)
		}
		if h.visits != unix.AF_INET+unix.AF_INET6 {
			t.Errorf("%d sockets", h.visits)
		}
	})
}
