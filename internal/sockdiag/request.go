package sockdiag

import (
	"encoding/binary"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Message types of NETLINK_SOCK_DIAG (include/uapi/linux/inet_diag.h and
// sock_diag.h).
const (
	// typeTCPDiag (TCPDIAG_GETSOCK, Linux 2.6.14) dumps both address families in
	// one walk of the socket table.
	typeTCPDiag netlink.HeaderType = 18
	// typeByFamily (SOCK_DIAG_BY_FAMILY, Linux 3.3) dumps one family.
	typeByFamily netlink.HeaderType = 20

	attrBytecode = 1 // INET_DIAG_REQ_BYTECODE
)

// Request selects the sockets that a walk visits.
type Request struct {
	States Mask
	// Ports bounds the source port, in ascending order and without overlap. The kernel
	// leaves out sockets outside, at a fraction of the cost of copying them. None means
	// every port. At most MaxRanges can be sent.
	Ports []PortRange
	// Protocol is TCP by default, or UDP.
	Protocol Protocol
	// Details asks for the socket's memory, and for the fields of Socket other than
	// addresses to be decoded. It makes the answer longer by a third.
	Details bool
}

// Protocol is a protocol whose sockets can be walked.
type Protocol uint8

// The protocols. UDP uses the states of TCP: Established for a connected socket, Close
// for one that is not.
const (
	TCP Protocol = iota
	UDP
)

// String returns the protocol's name in the kernel's spelling.
func (p Protocol) String() string { return [...]string{"TCP", "UDP"}[p] }

// number returns the IP protocol number.
func (p Protocol) number() uint8 { return [...]uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP}[p] }

func (p Protocol) notSupported() error { return [...]error{ErrNotSupported, ErrUDPNotSupported}[p] }

// extensions returns the bits of the attributes that are asked for.
func (r Request) extensions() uint8 {
	if r.Details {
		return 1 << (attrMemory - 1)
	}
	return 0
}

// PortRange is the ports from Low to High, inclusive.
type PortRange struct{ Low, High uint16 }

// MaxRanges is the maximum number of port ranges in a request. It is bounded because the
// kernel compares every socket with them one after the other.
const MaxRanges = 64

// sizeofID is the size of struct inet_diag_sockid, all zero in a dump request.
const sizeofID = 48

// tcpDiag encodes struct inet_diag_req, the request for both families.
func (r Request) tcpDiag() netlink.Message {
	b := make([]byte, 4+sizeofID+8)
	b[0] = unix.AF_INET // the kernel ignores it in a dump
	b[3] = r.extensions()
	binary.NativeEndian.PutUint32(b[4+sizeofID:], uint32(r.States))
	return r.message(typeTCPDiag, b)
}

// byFamily encodes struct inet_diag_req_v2, the request for one family.
func (r Request) byFamily(family uint8) netlink.Message {
	b := make([]byte, 8+sizeofID)
	b[0] = family
	b[1] = r.Protocol.number()
	b[2] = r.extensions()
	binary.NativeEndian.PutUint32(b[4:], uint32(r.States))
	return r.message(typeByFamily, b)
}

func (r Request) message(t netlink.HeaderType, b []byte) netlink.Message {
	if len(r.Ports) > 0 {
		code := r.bytecode()
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(code)))
		b = binary.NativeEndian.AppendUint16(b, attrBytecode)
		b = append(b, code...)
	}
	return netlink.Message{
		Header: netlink.Header{Type: t, Flags: netlink.Request | netlink.Dump},
		Data:   b,
	}
}

// Operations of struct inet_diag_bc_op: {code, yes, no}, four bytes, where yes and no are
// relative jumps in bytes. An operation that compares a port takes a second slot, {0, 0,
// port}. A socket is accepted when a jump lands exactly on the end, and rejected when it
// lands beyond it. opJump always jumps by no.
const (
	opJump     = 1
	opSourceGE = 2
	opSourceLE = 3

	sizeofJump    = 4
	sizeofCompare = 8
	// sizeofRange is the size of a range, except the last, which needs no jump.
	sizeofRange = 2*sizeofCompare + sizeofJump
)

// bytecode encodes "the source port is in one of the ranges".
func (r Request) bytecode() []byte {
	end := len(r.Ports)*sizeofRange - sizeofJump
	reject := end + 4
	b := make([]byte, 0, end)
	op := func(code uint8, yes int, no int) {
		at := len(b)
		b = append(b, code, uint8(yes))
		b = binary.NativeEndian.AppendUint16(b, uint16(no-at))
	}
	port := func(p uint16) {
		b = append(b, 0, 0)
		b = binary.NativeEndian.AppendUint16(b, p)
	}
	for i, p := range r.Ports {
		last := i == len(r.Ports)-1
		next := (i + 1) * sizeofRange
		if last {
			next = reject
		}
		// A port below this range is above the ranges before it, so it is in none.
		op(opSourceGE, sizeofCompare, reject)
		port(p.Low)
		op(opSourceLE, sizeofCompare, next)
		port(p.High)
		if !last {
			op(opJump, sizeofJump, end)
		}
	}
	return b
}

// selects reports whether r selects a socket. A kernel that does not know a filter sends
// more than was asked for.
func (r Request) selects(s *Socket) bool {
	if r.States&MaskOf(s.State) == 0 {
		return false
	}
	if len(r.Ports) == 0 {
		return true
	}
	for _, p := range r.Ports {
		if s.SourcePort >= p.Low && s.SourcePort <= p.High {
			return true
		}
	}
	return false
}
