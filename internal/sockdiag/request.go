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

// Request says which sockets a walk is to visit.
type Request struct {
	States Mask
	// MinPort and MaxPort bound the source port, both included. The kernel
	// leaves out what lies outside, at a fraction of the cost of copying it.
	// Both 0 means every port.
	MinPort, MaxPort uint16
}

// sizeofID is the size of struct inet_diag_sockid, all zero in a dump request.
const sizeofID = 48

// tcpDiag encodes struct inet_diag_req, the request for both families.
func (r Request) tcpDiag() netlink.Message {
	b := make([]byte, 4+sizeofID+8)
	b[0] = unix.AF_INET // the kernel ignores it in a dump
	binary.NativeEndian.PutUint32(b[4+sizeofID:], uint32(r.States))
	return r.message(typeTCPDiag, b)
}

// byFamily encodes struct inet_diag_req_v2, the request for one family.
func (r Request) byFamily(family uint8) netlink.Message {
	b := make([]byte, 8+sizeofID)
	b[0] = family
	b[1] = unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[4:], uint32(r.States))
	return r.message(typeByFamily, b)
}

func (r Request) message(t netlink.HeaderType, b []byte) netlink.Message {
	if r.MinPort != 0 || r.MaxPort != 0 {
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

// Operations of struct inet_diag_bc_op. An operation that compares a port takes
// two slots of four bytes: {code, yes, no} and {0, 0, port}. yes and no are how
// far to jump; a socket is accepted when a jump lands exactly on the end.
const (
	opSourceGE = 2
	opSourceLE = 3
	opSize     = 8
)

// bytecode encodes "MinPort <= source port <= MaxPort".
func (r Request) bytecode() []byte {
	b := make([]byte, 0, 2*opSize)
	op := func(code uint8, port uint16, left int) {
		b = append(b, code, opSize)
		b = binary.NativeEndian.AppendUint16(b, uint16(left+4)) // past the end: reject
		b = append(b, 0, 0)
		b = binary.NativeEndian.AppendUint16(b, port)
	}
	op(opSourceGE, r.MinPort, 2*opSize)
	op(opSourceLE, r.MaxPort, opSize)
	return b
}

// selects says whether a socket is one that r asks for. A kernel that does not
// know a filter sends more than was asked for.
func (r Request) selects(s *Socket) bool {
	if r.States&MaskOf(s.State) == 0 {
		return false
	}
	return r.MinPort == 0 && r.MaxPort == 0 || s.SourcePort >= r.MinPort && s.SourcePort <= r.MaxPort
}
