package byhand

import (
	endian "encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// State is a TCP state as numbered in /proc/net/tcp and TCP_INFO.
type State uint8

// The states that are used by name, including the first and the last.
const (
	Established State = 1
	SynRecv     State = 3
	FinWait2    State = 5
	Closed      State = 7
	Listening   State = 10
	Closing     State = 11
)

// String returns the label value of a state.
func (s State) String() string {
	names := [...]string{
		"unknown", "established", "syn_sent", "syn_recv", "fin_wait1", "fin_wait2", "time_wait",
		"close", "close_wait", "last_ack", "listen", "closing",
	}
	if int(s) >= len(names) {
		return names[0]
	}
	return names[s]
}

// Socket is a line of /proc/net/tcp or tcp6.
type Socket struct {
	Family        string // ipv4, ipv6
	Local, Remote netip.AddrPort
	State         State
	Waiting       uint64 // for a listener: connections that wait to be accepted
	Mini          bool   // the remainder of a closed socket
}

// Sockets reads the TCP sockets of the namespace of the calling thread.
func Sockets() ([]Socket, error) {
	p := newPass()
	sockets := p.sockets()
	return sockets, p.err
}

func (p *pass) sockets() []Socket {
	var all []Socket
	for name, family := range map[string]string{"tcp": "ipv4", "tcp6": "ipv6"} {
		for i, f := range p.lines("/proc/net/" + name) {
			if i == 0 {
				continue // the heading
			}
			_, queue, _ := strings.Cut(f.at(4), ":")
			timer, _, _ := strings.Cut(f.at(5), ":")
			state := p.hexadecimal(f.at(3))
			if state > uint64(Closing) {
				p.fail(fmt.Errorf("a state %d", state))
			}
			all = append(all, Socket{
				Family: family,
				Local:  p.address(f.at(1)), Remote: p.address(f.at(2)),
				State: State(state), Waiting: p.hexadecimal(queue), Mini: p.hexadecimal(timer) == 3,
			})
		}
	}
	return all
}

// address parses an address: 32-bit words in the byte order of the CPU, then the port.
func (p *pass) address(s string) netip.AddrPort {
	words, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(words)
	if err != nil {
		p.fail(err)
	}
	for i := 0; i+4 <= len(b); i += 4 {
		endian.NativeEndian.PutUint32(b[i:], endian.BigEndian.Uint32(b[i:]))
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		p.fail(fmt.Errorf("%q is no address", s))
	}
	return netip.AddrPortFrom(a, uint16(p.hexadecimal(port)))
}

// Unmap returns an IPv4 address of an IPv6 socket as an IPv4 address.
func Unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Table counts the lines of /proc/net/tcp and tcp6: the states, accept queues and
// connection requests of the listeners, and the ephemeral ports. The files are those of
// the namespace of the calling thread.
func Table() (Readings, error) {
	p := newPass()
	table := p.sockets()
	count := map[State]float64{}
	queues := map[string]float64{}
	for _, s := range table {
		count[s.State]++
		if s.State == Listening {
			queues[Unmap(s.Local).String()] += float64(s.Waiting)
		}
	}
	for state := Established; state <= Closing; state++ {
		p.Set(count[state], "tcp_sockets", "state", state.String())
	}
	for at, waiting := range queues {
		p.Set(waiting, "accept_queue_length", "listener", at)
	}
	p.requests(table)
	p.Set(float64(len(queues)), "tcp_listeners")
	p.Set(float64(max(len(queues)-8192, 0)), "tcp_listeners_crowded")
	p.ports(table)
	return p.result()
}

// requests counts the connection requests of each listener. If there are none, it reports
// the first listener with none.
func (p *pass) requests(table []Socket) {
	var listeners []netip.AddrPort
	for _, s := range table {
		if s.State == Listening {
			listeners = append(listeners, Unmap(s.Local))
		}
	}
	slices.SortFunc(listeners, netip.AddrPort.Compare)
	asked := false
	for _, s := range table {
		if s.State != SynRecv {
			continue
		}
		// The listener on this address, or on all IPv4 addresses, or on all.
		at := Unmap(s.Local)
		for _, of := range []netip.Addr{at.Addr(), netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			listener := netip.AddrPortFrom(of, at.Port())
			if of == netip.IPv4Unspecified() && at.Addr().Is6() || !slices.Contains(listeners, listener) {
				continue
			}
			p.Readings[Series("request_queue_length", "listener", listener.String())]++
			asked = true
			break
		}
	}
	if !asked && len(listeners) > 0 {
		p.Set(0, "request_queue_length", "listener", listeners[0].String())
	}
}

// ports counts the ephemeral ports that are held.
func (p *pass) ports(table []Socket) {
	// Ports that the kernel may have chosen.
	free := map[uint16]bool{}
	bounds := p.numbers("/proc/sys/net/ipv4/ip_local_port_range")
	if len(bounds) != 2 {
		p.fail(fmt.Errorf("%d numbers, not 2", len(bounds)))
		return
	}
	for port := bounds[0]; port <= bounds[1]; port++ {
		free[uint16(port)] = true
	}
	reserved := p.text("/proc/sys/net/ipv4/ip_local_reserved_ports")
	for item := range strings.FieldsFuncSeq(reserved, func(r rune) bool { return r == ',' || r == '\n' }) {
		first, last, ok := strings.Cut(item, "-")
		if !ok {
			last = first
		}
		for port := p.decimal(first); port <= p.decimal(last); port++ {
			delete(free, uint16(port))
		}
	}
	// The other end of an accepted connection holds the port of a listener, and no
	// connection is assigned such a port.
	listened := map[netip.AddrPort]bool{}
	given := maps.Clone(free)
	for _, s := range table {
		if s.State == Listening {
			listened[Unmap(s.Local)] = true
			delete(given, s.Local.Port())
			if s.Local.Addr().IsUnspecified() {
				delete(free, s.Local.Port())
			}
		}
	}
	limit := float64(len(given))
	p.Set(limit, "ephemeral_ports_limit")
	most := 0.0
	for _, s := range table {
		from, to := Unmap(s.Local), Unmap(s.Remote)
		if !free[from.Port()] || listened[from] || s.State == Closed || s.State == SynRecv {
			continue
		}
		series := Series("ephemeral_ports_used", "source", from.Addr().String(), "destination", to.String())
		p.Readings[series]++
		most = max(most, p.Readings[series])
	}
	if limit > 0 {
		p.Set(most/limit, "saturation_ratio", "resource", "ephemeral_ports")
	}
}
