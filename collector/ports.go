package collector

import (
	"bytes"
	"context"
	"iter"
	"net/netip"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// ports is one reading of the ephemeral ports that outbound connections hold.
type ports struct {
	// limit is the number of ports in the range that connect may choose from.
	limit Number
	// tuples is the number of ports that each tuple holds, of those that were counted.
	tuples map[tuple]uint32
	// holders finds the holders of the ports of some tuples.
	holders func(context.Context, []tupleCount) []holding
}

// tuple is the key by which the kernel assigns ports: each tuple may use every port of
// the range once. An IPv4 address is mapped into IPv6.
type tuple struct {
	source, destination [16]byte
	port                uint16 // of the destination
}

func (t tuple) from() string { return netip.AddrFrom16(t.source).Unmap().String() }

func (t tuple) to() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(t.destination).Unmap(), t.port)
}

type tupleCount struct {
	tuple
	used uint64
}

func (t tupleCount) before(o tupleCount) bool {
	if t.used != o.used {
		return t.used > o.used
	}
	if c := bytes.Compare(t.destination[:], o.destination[:]); c != 0 {
		return c < 0
	}
	if t.port != o.port {
		return t.port < o.port
	}
	return bytes.Compare(t.source[:], o.source[:]) < 0
}

// counts yields the tuples.
func (s *ports) counts() iter.Seq[tupleCount] {
	if s.tuples == nil {
		return nil
	}
	return func(yield func(tupleCount) bool) {
		for t, used := range s.tuples {
			if !yield(tupleCount{t, uint64(used)}) {
				return
			}
		}
	}
}

func portsSpec() Spec {
	return define(Definition[ports]{
		Name: "ports",
		Help: "Ephemeral ports in use by outbound connections, by a walk of netlink sock_diag over the ports in net.ipv4.ip_local_port_range.",
		Walk: true,
		Open: func(k *Scope) func(context.Context, *ports) error { return portsOf(k.Host) },
		Metrics: []Metric[ports]{{
			Name:  "ephemeral_ports_limit",
			Help:  "Ephemeral ports available to connections from one address to one destination. From net.ipv4.ip_local_port_range, less net.ipv4.ip_local_reserved_ports and the ports of listeners.",
			Value: func(s *ports) Number { return s.limit },
		}},
		Lists: []Lister[ports]{List[ports, tupleCount]{
			Items:  (*ports).counts,
			Before: tupleCount.before,
			Labels: []string{"source", "destination"},
			Key:    func(t tupleCount) []string { return []string{t.from(), t.to().String()} },
			Columns: []Metric[tupleCount]{{
				Name:  "ephemeral_ports_used",
				Help:  "Ephemeral ports held by connections from one address to one destination, including TIME_WAIT, for the pairs with the most. From sock_diag.",
				Value: func(t *tupleCount) Number { return number(t.used) },
			}},
			Holders: func(ctx context.Context, s *ports, of []tupleCount) []holding { return s.holders(ctx, of) },
			Limit: &ItemLimit[tupleCount]{LimitInfo: LimitInfo{
				Resource: "ephemeral_ports", Unit: Ports, WarningRatio: 0.7, CriticalRatio: 0.9,
				Effect: "connect to that destination fails with EADDRNOTAVAIL; nothing is counted or logged.",
				Usage:  series("ephemeral_ports_used"), Max: series("ephemeral_ports_limit"),
				List:    &ListInfo{Title: "Address pairs that hold the most ephemeral ports", Column: "from → to"},
				Sysctls: []Sysctl{{"net.ipv4.ip_local_port_range", Ports, true}},
				Sizing: Sizing{
					// A connection that the host closes first holds its port in
					// TIME_WAIT.
					Needs: func(l Load) float64 {
						if l.Outbound == 0 {
							return 0
						}
						return (l.Outbound + l.Closes*timeWait*l.Outbound/l.Tracked) / max(l.Destinations, 1)
					},
					Rule:    "connections that the host opens, plus 60 times those of them that it closes per second, for each pair of a local address and a destination; services on ports in the range must be listed in `net.ipv4.ip_local_reserved_ports`",
					Initial: "32768 60999: 28,232",
					Objects: []Object{{"tcp_bind_bucket", 128}, {"tcp_bind2_bucket", 128}},
					Most:    highestPort - lowestPort + 1,
					Write:   writeRange,
					Safe:    true,
				},
			}},
		}},
	})
}

// portsOf returns a function that reads the ephemeral ports of a network namespace.
func portsOf(n *kernel.Netns) func(context.Context, *ports) error {
	client := n.SockDiag()
	portRange := n.Sysctl("net.ipv4.ip_local_port_range")
	reserved := n.Sysctl("net.ipv4.ip_local_reserved_ports")
	outbound := new(portSet)
	listening := &listenVisitor{wildcard: outbound, addresses: map[localAddr]bool{}}
	v := &portsVisitor{outbound: outbound, listening: listening, tuples: newFrequent[tuple](maxTuples)}

	return func(ctx context.Context, s *ports) error {
		// Every row depends on the range, so an error in it affects all.
		b, err := required(portRange, "net.ipv4.ip_local_port_range")
		if err != nil {
			return err
		}
		low, high, err := parse.PortRange(b, portRange.Path())
		if err != nil {
			return err
		}
		*outbound = portSet{}
		outbound.add(low, high)
		if b, err = optional(reserved); err != nil {
			return err
		}
		if err := parse.List(b, reserved.Path(), outbound.remove); err != nil {
			return err
		}

		// Connections of a port with a listener were accepted. Asking for listeners only
		// spares the kernel a walk of the large table.
		listeners := sockdiag.Request{
			States: sockdiag.MaskOf(sockdiag.Listen),
			Ports:  []sockdiag.PortRange{{Low: low, High: high}},
		}
		if err := walk(ctx, client, listeners, listening); err != nil {
			return err
		}
		// connect skips a port that has a listener, at any address.
		s.limit = number(outbound.countWithout(&listening.ports))
		held := sockdiag.Request{
			States: sockdiag.AllStates.Without(sockdiag.Listen, sockdiag.Close, sockdiag.SynRecv),
			Ports:  outbound.ranges(sockdiag.MaxRanges),
		}
		v.Reset() // in case there is no port to ask for
		if len(held.Ports) > 0 {
			if err := walk(ctx, client, held, v); err != nil {
				return err
			}
		}
		s.tuples = v.tuples.counts
		s.holders = func(ctx context.Context, of []tupleCount) []holding {
			held.Details = true
			return portsHeld(ctx, client, held, of)
		}
		return nil
	}
}

// portsHeld returns the largest holder of each tuple's ports, by another walk.
func portsHeld(ctx context.Context, client *sockdiag.Client, held sockdiag.Request, of []tupleCount) []holding {
	v := &portsHeldVisitor{of: of}
	if walk(ctx, client, held, v) != nil {
		v.Reset() // then nobody is known
	}
	most := make([]holding, len(of))
	for i, groups := range v.groups {
		most[i] = groups.most()
	}
	return most
}

// portsHeldVisitor counts the sockets of some tuples by user and cgroup. Sockets in
// TIME_WAIT have neither.
type portsHeldVisitor struct {
	of     []tupleCount
	groups []socketGroups
}

func (v *portsHeldVisitor) Reset() {
	v.groups = make([]socketGroups, len(v.of))
	for i := range v.groups {
		v.groups[i] = socketGroups{}
	}
}

func (v *portsHeldVisitor) Visit(s *sockdiag.Socket) {
	if s.Inode == 0 && s.Cgroup == 0 {
		return
	}
	at := tuple{s.Source16(), s.Destination16(), s.DestinationPort}
	if i := slices.IndexFunc(v.of, func(t tupleCount) bool { return t.tuple == at }); i >= 0 {
		v.groups[i].add(socketGroup{s.Cgroup, s.UID}, s.Inode)
	}
}

// maxTuples bounds the memory of a walk, to some 1.5 MB. Up to that many tuples the
// counts are exact. Beyond it, of n connections counted, a count can be too low by at
// most 2 n / maxTuples, and is never too high: with a million connections to as many
// destinations, by 122 of the 28,232 ports of the default range.
const maxTuples = 16384

// portsVisitor counts the ports that each tuple holds.
type portsVisitor struct {
	outbound  *portSet
	listening *listenVisitor
	tuples    *frequent[tuple]
}

func (v *portsVisitor) Reset() { v.tuples.reset() }

func (v *portsVisitor) Visit(s *sockdiag.Socket) {
	if v.outbound.has(s.SourcePort) && !v.listening.at(s) {
		v.tuples.add(tuple{s.Source16(), s.Destination16(), s.DestinationPort})
	}
}

// listenVisitor finds the ports and addresses that have listeners. It removes a port with
// a listener on every address from a set, by which the kernel filters. A port with a
// listener on one address may hold connections from other addresses, by bind.
//
// Any user may listen on half a million addresses of loopback, so only maxListeners are
// kept. If there are more, a port that has a listener on one of the others counts as
// having one on every address, as it also does for connect.
type listenVisitor struct {
	wildcard  *portSet
	addresses map[localAddr]bool
	ports     portSet // of addresses, and of those that were not kept
	crowded   portSet // of those that were not kept
}

// maxListeners bounds the memory of a walk over listeners, to some 1 MB.
const maxListeners = 8192

type localAddr struct {
	addr [16]byte
	port uint16
}

func (v *listenVisitor) Reset() {
	clear(v.addresses)
	v.ports, v.crowded = portSet{}, portSet{}
}

func (v *listenVisitor) Visit(s *sockdiag.Socket) {
	if s.Source().Addr().IsUnspecified() {
		v.wildcard.remove(s.SourcePort, s.SourcePort)
		return
	}
	v.ports.add(s.SourcePort, s.SourcePort)
	if len(v.addresses) < maxListeners {
		v.addresses[localAddr{s.Source16(), s.SourcePort}] = true
	} else {
		v.crowded.add(s.SourcePort, s.SourcePort)
	}
}

// at reports whether there is a listener on the local address and port of a socket.
func (v *listenVisitor) at(s *sockdiag.Socket) bool {
	return v.ports.has(s.SourcePort) && (v.crowded.has(s.SourcePort) || v.addresses[localAddr{s.Source16(), s.SourcePort}])
}

// portSet is a set of port numbers.
type portSet [65536]bool

func (p *portSet) add(low, high uint16)    { p.set(low, high, true) }
func (p *portSet) remove(low, high uint16) { p.set(low, high, false) }
func (p *portSet) has(port uint16) bool    { return p[port] }

func (p *portSet) set(low, high uint16, in bool) {
	for i := int(low); i <= int(high); i++ {
		p[i] = in
	}
}

// ranges returns the set as at most n ranges, in ascending order. If the set has more,
// the last one also covers ports that are not in the set.
func (p *portSet) ranges(n int) []sockdiag.PortRange {
	var ranges []sockdiag.PortRange
	for i, in := range p {
		if !in {
			continue
		}
		port := uint16(i)
		if last := len(ranges) - 1; last >= 0 && (ranges[last].High+1 == port || len(ranges) == n) {
			ranges[last].High = port
		} else {
			ranges = append(ranges, sockdiag.PortRange{Low: port, High: port})
		}
	}
	return ranges
}

// countWithout counts the ports in the set that are not in other.
func (p *portSet) countWithout(other *portSet) (n uint64) {
	for i, in := range p {
		if in && !other[i] {
			n++
		}
	}
	return n
}
