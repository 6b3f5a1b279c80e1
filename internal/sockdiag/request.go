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
	// Ports bounds the source port, in ascending order and without overlap. The
	// kernel leaves out what lies outside, at a fraction of the cost of copying
	// it. None means every port. More than MaxRanges cannot be sent.
	Ports []PortRange
	// Protocol is the zero TCP, or UDP.
	Protocol Protocol
	// Details asks for the socket's memory, and has what a Socket says beside its
	// addresses decoded. It makes the answer longer by a third.
	Details bool
}

// Protocol is a protocol whose sockets can be walked.
type Protocol uint8

// The protocols. Of UDP the states are those of TCP: Established for a socket that is
// connected, Close for one that is not.
const (
	TCP Protocol = iota
	UDP
)

// String returns the protocol's name as the kernel writes it.
func (p Protocol) String() string { return [...]string{"TCP", "UDP"}[p] }

// number is that of the protocol in IP.
func (p Protocol) number() uint8 { return [...]uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP}[p] }

func (p Protocol) notSupported() error { return [...]error{ErrNotSupported, ErrUDPNotSupported}[p] }

// extensions is the bit of each attribute that is asked for.
func (r Request) extensions() uint8 {
	if r.Details {
		return 1 << (attrMemory - 1)
	}
	return 0
}

// PortRange is the ports from Low to High, both included.
type PortRange struct{ Low, High uint16 }

// MaxRanges is how many ranges of ports a request may have: the kernel compares
// every socket with them one after the other.
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

// Operations of struct inet_diag_bc_op: {code, yes, no}, four bytes, where yes and
// no are how far to jump from here. One that compares a port takes a second slot,
// {0, 0, port}. A socket is accepted when a jump lands exactly on the end, and
// rejected when it lands behind it. opJump always jumps by no.
const (
	opJump     = 1
	opSourceGE = 2
	opSourceLE = 3

	sizeofJump    = 4
	sizeofCompare = 8
	// sizeofRange is what a range takes but for the last, which needs no jump.
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
		// Below this range, and above those before it.
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

// selects reports whether a socket is one that r asks for. A kernel that does not
// know a filter sends more than was asked for.
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
