// Package sockdiag walks the kernel's tables of TCP and UDP sockets over netlink
// sock_diag.
//
// It streams: it uses one receive buffer and one Socket, and allocates nothing per
// socket. The kernel filters what it can, so that a walk over a million sockets copies
// only the few that were asked for.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// State is a TCP state as numbered in include/net/tcp_states.h (Linux 2.6).
type State uint8

// The TCP states that sock_diag reports. A request socket (TCP_NEW_SYN_RECV
// inside the kernel) is reported as SynRecv.
const (
	Established State = iota + 1
	SynSent
	SynRecv
	FinWait1
	FinWait2
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	Closing
)

// String returns the state's name in lower case, as in tcp_sockets{state}.
func (s State) String() string {
	names := [...]string{
		"unknown", "established", "syn_sent", "syn_recv", "fin_wait1", "fin_wait2", "time_wait",
		"close", "close_wait", "last_ack", "listen", "closing",
	}
	if int(s) >= len(names) {
		s = 0
	}
	return names[s]
}

// AllStates is the mask of the eleven states above. It does not include sockets that are
// bound but neither connected nor listening (bit 13, Linux 6.8).
const AllStates Mask = 0xffe

// Mask is a set of states, one bit each.
type Mask uint32

// MaskOf returns the set of the given states.
func MaskOf(states ...State) Mask {
	var m Mask
	for _, s := range states {
		m |= 1 << s
	}
	return m
}

// Without returns the set without the given states.
func (m Mask) Without(states ...State) Mask { return m &^ MaskOf(states...) }

// TimerTimeWait is the value of Socket.Timer for a time-wait mini-socket. Sockstat's tw
// also counts mini-sockets in state FinWait2.
const TimerTimeWait = 3

// Socket is one struct inet_diag_msg (include/uapi/linux/inet_diag.h, Linux
// 2.6.14, unchanged since). An address of family AF_INET fills the first four
// bytes of its array.
type Socket struct {
	Family          uint8
	State           State
	Timer           uint8
	SourcePort      uint16
	DestinationPort uint16
	SourceAddr      [16]byte
	DestinationAddr [16]byte
	// RecvQueue and SendQueue are in bytes. For a listener they are the number of
	// connections that wait to be accepted and the maximum of that number.
	RecvQueue uint32
	SendQueue uint32

	// The fields below are set if Request.Details is.

	// UID is the user that created the socket. It is 0 for sockets without an inode,
	// which is where the kernel keeps the user (before Linux 6.17).
	UID uint32
	// Inode is the number in the link of the socket's descriptors, socket:[<inode>]. It
	// is 0 for sockets that no process holds: orphans, connections that were not accepted
	// yet, TIME_WAIT and SYN_RECV.
	Inode uint32
	// Cgroup is the ID of the socket's cgroup of version 2, which is the inode number of
	// its folder (INET_DIAG_CGROUP_ID, Linux 5.7). It is 0 for mini-sockets, and if the
	// kernel does not report it.
	Cgroup uint64
	// Memory is zero for mini-sockets.
	Memory Memory
}

// Memory is the memory of a socket, in bytes (INET_DIAG_SKMEMINFO, Linux 3.6).
type Memory struct {
	Receive   uint32 // received and not read (rmem_alloc, r of ss -m)
	Sending   uint32 // not yet sent by the device (wmem_alloc, t)
	Ahead     uint32 // taken from the protocol's limit, not used yet (fwd_alloc, f)
	SendQueue uint32 // written and not acknowledged (wmem_queued, w)
	Options   uint32 // options and filters (optmem, o)
	Backlog   uint32 // received while a program held the socket (backlog, bl)
	Limit     uint32 // limit of Receive, the receive buffer (rcvbuf, rb)
	Drops     uint32 // datagrams or segments dropped since the socket was created (d)
}

// Charged returns the bytes that count against net.ipv4.tcp_mem or udp_mem: the kernel
// takes pages for received and queued data, and keeps their unused part for later.
func (m *Memory) Charged() uint64 {
	return uint64(m.Receive) + uint64(m.SendQueue) + uint64(m.Ahead)
}

// Source16 returns the local address, an IPv4 address mapped into IPv6.
func (s *Socket) Source16() [16]byte { return s.mapped(&s.SourceAddr) }

// Destination16 returns the remote address, an IPv4 address mapped into IPv6.
func (s *Socket) Destination16() [16]byte { return s.mapped(&s.DestinationAddr) }

func (s *Socket) mapped(a *[16]byte) [16]byte {
	if s.Family == unix.AF_INET {
		return [16]byte{10: 0xff, 11: 0xff, 12: a[0], 13: a[1], 14: a[2], 15: a[3]}
	}
	return *a
}

// Source returns the local address and port. An IPv4-mapped address is returned as IPv4.
func (s *Socket) Source() netip.AddrPort {
	return netip.AddrPortFrom(s.addr(&s.SourceAddr), s.SourcePort)
}

// Destination returns the remote address and port. An IPv4-mapped address is returned as
// IPv4.
func (s *Socket) Destination() netip.AddrPort {
	return netip.AddrPortFrom(s.addr(&s.DestinationAddr), s.DestinationPort)
}

func (s *Socket) addr(a *[16]byte) netip.Addr {
	if s.Family == unix.AF_INET {
		return netip.AddrFrom4([4]byte(a[:4]))
	}
	return netip.AddrFrom16(*a).Unmap()
}

// sizeofMsg is the size of struct inet_diag_msg; attributes follow it.
const sizeofMsg = 72

var errShort = errors.New("inet_diag message is truncated")

// decode reads a struct inet_diag_msg, the payload of one netlink message, into s. known
// is false for a socket of an address family or a state that this package does not know,
// as a later kernel may have. After an error s must not be used.
func decode(b []byte, s *Socket) (known bool, err error) {
	if len(b) < sizeofMsg {
		return false, errShort
	}
	b = b[:sizeofMsg]
	s.Family, s.State, s.Timer = b[0], State(b[1]), b[2]
	s.SourcePort = binary.BigEndian.Uint16(b[4:])
	s.DestinationPort = binary.BigEndian.Uint16(b[6:])
	s.SourceAddr = [16]byte(b[8:24])
	s.DestinationAddr = [16]byte(b[24:40])
	s.RecvQueue = binary.NativeEndian.Uint32(b[56:])
	s.SendQueue = binary.NativeEndian.Uint32(b[60:])
	return (s.Family == unix.AF_INET || s.Family == unix.AF_INET6) && s.State >= Established && s.State <= Closing, nil
}

// Attributes after a struct inet_diag_msg (include/uapi/linux/inet_diag.h).
const (
	attrMemory = 7  // INET_DIAG_SKMEMINFO, unsigned 32-bit numbers
	attrCgroup = 21 // INET_DIAG_CGROUP_ID, an unsigned 64-bit number
)

// Indexes into INET_DIAG_SKMEMINFO (include/uapi/linux/sock_diag.h).
const (
	memReceive   = 0 // SK_MEMINFO_RMEM_ALLOC
	memLimit     = 1 // SK_MEMINFO_RCVBUF
	memSending   = 2 // SK_MEMINFO_WMEM_ALLOC
	memAhead     = 4 // SK_MEMINFO_FWD_ALLOC
	memSendQueue = 5 // SK_MEMINFO_WMEM_QUEUED
	memOptions   = 6 // SK_MEMINFO_OPTMEM
	memBacklog   = 7 // SK_MEMINFO_BACKLOG, Linux 3.6
	memDrops     = 8 // SK_MEMINFO_DROPS, Linux 4.7
)

// decodeDetails reads the fields that decode leaves out, from a message that decode has
// read.
func decodeDetails(b []byte, s *Socket) error {
	s.UID = binary.NativeEndian.Uint32(b[64:])
	s.Inode = binary.NativeEndian.Uint32(b[68:])
	s.Cgroup, s.Memory = 0, Memory{}
	for b = b[sizeofMsg:]; len(b) >= sizeofAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < sizeofAttr || size > len(b) {
			return errShort
		}
		value := b[sizeofAttr:size]
		switch binary.NativeEndian.Uint16(b[2:]) {
		case attrMemory:
			decodeMemory(value, &s.Memory)
		case attrCgroup:
			if len(value) >= 8 {
				s.Cgroup = binary.NativeEndian.Uint64(value)
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

const sizeofAttr = 4 // struct nlattr

// decodeMemory reads INET_DIAG_SKMEMINFO, which has become longer over time.
func decodeMemory(b []byte, m *Memory) {
	if len(b) < 4*(memDrops+1) {
		b = append(make([]byte, 0, 4*(memDrops+1)), b...)[:4*(memDrops+1)]
	}
	number := func(at int) uint32 { return binary.NativeEndian.Uint32(b[4*at:]) }
	m.Receive, m.Sending, m.Ahead = number(memReceive), number(memSending), number(memAhead)
	m.SendQueue, m.Options, m.Backlog = number(memSendQueue), number(memOptions), number(memBacklog)
	m.Limit, m.Drops = number(memLimit), number(memDrops)
}
