// Package sockdiagtest simulates the kernel's sock_diag in tests: it answers
// requests from a recorded dump.
package sockdiagtest

import (
	"encoding/binary"
	"io"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

const (
	sizeofHeader = 16
	typeLegacy   = 18
	typeByFamily = 20
)

// Replay is a transport that answers from a recorded dump with every state in its mask.
// Like the kernel it filters by state and family, but it ignores bytecode.
type Replay struct {
	Dump []byte
	// UDP and Unix are dumps of those sockets. Without one, Replay behaves like a kernel
	// without that module.
	UDP, Unix []byte
	// RefuseLegacy, if not 0, is the error for a request of the older type, and RefuseAll
	// that for every request.
	RefuseLegacy, RefuseAll syscall.Errno
	// Interrupt is the number of coming answers that get the flag of an interrupted dump.
	Interrupt int
	// Requests are the requests that were sent.
	Requests []netlink.Message

	pending []byte
}

// Dial returns a separate transport that answers as r does.
func (r *Replay) Dial() (sockdiag.Transport, error) {
	fresh := *r
	return &fresh, nil
}

// Send answers a request from the dumps.
func (r *Replay) Send(m netlink.Message) (netlink.Message, error) {
	m.Header.Sequence = uint32(len(r.Requests) + 1)
	r.Requests = append(r.Requests, m)
	r.pending = nil

	refuse := r.RefuseAll
	if r.RefuseLegacy != 0 && m.Header.Type == typeLegacy {
		refuse = r.RefuseLegacy
	}
	states, family, dump := uint32(0), uint8(0), r.Dump
	switch m.Header.Type { //nolint:exhaustive // control messages are no requests
	case typeLegacy:
		states = binary.NativeEndian.Uint32(m.Data[52:])
	case typeByFamily:
		states, family = binary.NativeEndian.Uint32(m.Data[4:]), m.Data[0]
		other := true
		switch {
		case family == unix.AF_UNIX:
			dump = r.Unix
		case m.Data[1] == unix.IPPROTO_UDP:
			dump = r.UDP
		default:
			other = false
		}
		if other && dump == nil && refuse == 0 {
			refuse = unix.ENOENT
		}
	}
	if refuse != 0 {
		r.add(m, unix.NLMSG_ERROR, binary.NativeEndian.AppendUint32(nil, uint32(-int32(refuse))))
		return m, nil
	}
	for b := dump; len(b) >= sizeofHeader; {
		size := int(binary.NativeEndian.Uint32(b))
		typ := binary.NativeEndian.Uint16(b[4:])
		payload := b[sizeofHeader:size]
		b = b[min((size+3)&^3, len(b)):]
		state := payload[1]
		if family == unix.AF_UNIX {
			state = payload[2]
		}
		if typ == unix.NLMSG_DONE || states&(1<<state) == 0 || family != 0 && family != payload[0] {
			continue
		}
		r.add(m, uint16(m.Header.Type), payload)
	}
	r.add(m, unix.NLMSG_DONE, make([]byte, 4))
	if r.Interrupt > 0 {
		r.Interrupt--
	}
	return m, nil
}

// add appends one message to the answer.
func (r *Replay) add(request netlink.Message, typ uint16, payload []byte) {
	flags := uint16(unix.NLM_F_MULTI)
	if r.Interrupt > 0 {
		flags |= unix.NLM_F_DUMP_INTR
	}
	size := sizeofHeader + len(payload)
	b := binary.NativeEndian.AppendUint32(r.pending, uint32(size))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, request.Header.Sequence)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, payload...)
	b = append(b, make([]byte, (size+3)&^3-size)...)
	r.pending = b
}

// Receive returns as many whole messages as fit into b.
func (r *Replay) Receive(b []byte) (int, error) {
	n := 0
	for n < len(r.pending) {
		size := (int(binary.NativeEndian.Uint32(r.pending[n:])) + 3) &^ 3
		if n+size > len(b) {
			break
		}
		n += size
	}
	if n == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	copy(b, r.pending[:n])
	r.pending = r.pending[n:]
	return n, nil
}

// SetDeadline does nothing, because answers are available at once.
func (r *Replay) SetDeadline(time.Time) error { return nil }

// Close does nothing.
func (r *Replay) Close() error { return nil }
