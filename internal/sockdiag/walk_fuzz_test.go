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

// hostile is a kernel that does what a script says, a byte for each thing that it is
// asked for, and that keeps account of what a walk may make of it. At the end of the
// script, and when it is good, it gives the rest of the answer that it owes. Requests it
// answers only when it is good.
type hostile struct {
	t      *testing.T
	script []byte
	good   bool
	// sour makes a good kernel end the answer that it owes with an error.
	sour bool
	// expire makes the walk's deadline pass.
	expire func()

	// closed is set once the descriptor was closed under the client, until it dials.
	closed bool
	seq    uint32
	// owes is set while the last message of an answer is to come.
	owes    bool
	pending [][]byte // the datagrams of a good answer
	port    uint16   // of the last socket, which tells it from all others
	// How often the kernel may still be called in this walk.
	receives, sends int

	// asked is set from a request on: what comes before it is the rest of an answer
	// that nobody waits for.
	asked bool
	// wrong is set by what must make the walk fail, or start over.
	wrong bool
	// Any bytes were sent, and it is not known what they mean: whether they ended the
	// answer, and what they make of the walk.
	unsureEnd, unsureWalk bool
	// mayVisit are the sockets that were sent whole, in their turn, and before
	// anything that is wrong.
	mayVisit map[uint16]bool
	visited  map[uint16]bool
	visits   int
}

// The mistakes of a hostile kernel.
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
		h.t.Fatal("a request before the end of the last answer, which the kernel refuses with EBUSY")
	}
	h.seq++
	m.Header.Sequence = h.seq
	h.owes, h.asked, h.unsureEnd, h.pending = true, true, false, nil
	if !h.good {
		return m, nil
	}
	// Each family has as many sockets as its number.
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

// message encodes one, padded.
func message(typ, flags uint16, seq uint32, payload []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0)
	b = append(b, payload...)
	return append(b, make([]byte, -len(payload)&3)...)
}

// socket encodes one that no other is like. counts is set if it may be visited.
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
		// A socket may be sent twice: a walk is not a snapshot.
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

// receiveRest gives the rest of an answer, and nothing where none is owed: such a read
// would wait until its deadline.
func (h *hostile) receiveRest(b []byte) (int, error) {
	if !h.owes {
		if !h.unsureEnd {
			h.t.Fatal("a read where nothing is to come")
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
		h.t.Fatalf("visited %d, which is of another answer, or behind an error", s.SourcePort)
	}
	h.visited[s.SourcePort] = true
}

// walk walks, and expects an end, and no success but over a whole answer.
func (h *hostile) walk(ctx context.Context, c *sockdiag.Client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h.expire = cancel
	// Two tries, of one request for both families and one for each; before each
	// request there may be the end of an answer to read.
	h.sends = 2 * 3
	h.receives = len(h.script) + 3*h.sends
	err := c.Walk(deadlined{ctx}, sockdiag.Request{States: sockdiag.AllStates}, h)
	if err == nil && !h.unsureWalk {
		if h.wrong {
			h.t.Error("no error, and an answer that is not whole")
		}
		if !maps.Equal(h.visited, h.mayVisit) {
			h.t.Errorf("visited %v of %v", h.visited, h.mayVisit)
		}
	}
	return err
}

// FuzzWalk walks over a kernel that does anything, and then once more, with the same
// client, when the kernel is good again.
func FuzzWalk(f *testing.F) {
	for what := range byte(mistakes) {
		// The first two bytes are for dialling and for the deadline, the third for the
		// request.
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
			t.Fatalf("over a good kernel: %v", err)
		}
		if h.visits != unix.AF_INET+unix.AF_INET6 {
			t.Errorf("%d sockets", h.visits)
		}
	})
}
