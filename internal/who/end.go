package who

import (
	"encoding/binary"
	"net/netip"

	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// end is the end of a connection that shows its purpose: the listener that accepted it
// or, if out is set, the destination of a connection that this host opened.
type end struct {
	addr [16]byte // mapped into IPv6; zero for a listener at every address
	port uint16
	out  bool
}

func (e end) String() string {
	if e == (end{}) {
		return ""
	}
	if e.out {
		return "to " + address(e.addr, e.port)
	}
	return "at " + address(e.addr, e.port)
}

// address formats an address and, unless it is 0, a port.
func address(addr [16]byte, port uint16) string {
	a := netip.AddrFrom16(addr).Unmap()
	switch {
	case addr == [16]byte{}:
		return "*:" + digitsOf(port)
	case port == 0:
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

// maxListeners bounds the addresses that are kept, to some 1 MB, because any user can
// listen on half a million addresses of loopback. If there are more, a port counts as
// having a listener on every address.
const maxListeners = 8192

// listening is the set of listeners in a network namespace. It is a sockdiag.Visitor.
type listening struct {
	// ports has, for each port, whether it has a listener on every address, or on some.
	ports [1 << 16]struct{ every, some bool }
	at    map[localEnd]bool
	// recent caches some of them, by a hash of their address. It avoids most lookups in
	// the map.
	recent [recentKeys]localEnd
}

type localEnd struct {
	addr [16]byte
	port uint16
}

func (l *listening) Reset() {
	clear(l.ports[:])
	l.at = map[localEnd]bool{}
	clear(l.recent[:])
}

func (l *listening) Visit(s *sockdiag.Socket) {
	addr := s.Source16()
	switch {
	case unspecified(addr), len(l.at) == maxListeners:
		l.ports[s.SourcePort].every = true
	default:
		l.ports[s.SourcePort].some = true
		l.at[localEnd{addr, s.SourcePort}] = true
	}
}

// end returns the end of a connection that shows its purpose.
func (l *listening) end(s *sockdiag.Socket) end {
	if s.State == sockdiag.Listen {
		return end{addr: local(s), port: s.SourcePort}
	}
	switch p := l.ports[s.SourcePort]; {
	case p.some && l.listened(localEnd{s.Source16(), s.SourcePort}):
		return end{addr: s.Source16(), port: s.SourcePort}
	case p.every:
		return end{port: s.SourcePort}
	}
	return end{addr: s.Destination16(), port: s.DestinationPort, out: true}
}

func (l *listening) listened(e localEnd) bool {
	recent := &l.recent[(binary.LittleEndian.Uint32(e.addr[12:])+uint32(e.port))*2654435769>>22]
	if *recent == e {
		return true // no socket is at port 0
	}
	if !l.at[e] {
		return false
	}
	*recent = e
	return true
}

// local returns the local address of a socket, zero for the unspecified address.
func local(s *sockdiag.Socket) [16]byte {
	addr := s.Source16()
	if unspecified(addr) {
		return [16]byte{}
	}
	return addr
}

func unspecified(addr [16]byte) bool {
	return addr == [16]byte{} || addr == [16]byte{10: 0xff, 11: 0xff}
}

// udpEnd returns the end of a UDP socket: its destination if it is connected, or else the
// address and port where it receives.
func udpEnd(s *sockdiag.Socket) end {
	if s.State == sockdiag.Established {
		return end{addr: s.Destination16(), port: s.DestinationPort, out: true}
	}
	return end{addr: local(s), port: s.SourcePort}
}
