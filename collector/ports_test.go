package collector

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// socket returns a socket with the given source and destination.
func socket(source, destination string) *sockdiag.Socket {
	a, b := netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	s := &sockdiag.Socket{Family: unix.AF_INET6, SourcePort: a.Port(), DestinationPort: b.Port()}
	s.SourceAddr, s.DestinationAddr = a.Addr().As16(), b.Addr().As16()
	if a.Addr().Is4() {
		s.Family = unix.AF_INET
		s.SourceAddr, s.DestinationAddr = [16]byte{}, [16]byte{}
		v4a, v4b := a.Addr().As4(), b.Addr().As4()
		copy(s.SourceAddr[:], v4a[:])
		copy(s.DestinationAddr[:], v4b[:])
	}
	return s
}

// TestOutbound checks that outbound connections are counted and accepted ones are not, with
// listeners at all addresses or at a single address, and connections from that port at other
// addresses.
func TestOutbound(t *testing.T) {
	outbound := new(portSet)
	outbound.add(32768, 60999)
	listening := &listenVisitor{wildcard: outbound, addresses: map[localAddr]bool{}}
	listening.Reset()
	listening.Visit(socket("0.0.0.0:50051", "0.0.0.0:0"))
	listening.Visit(socket("[::]:50052", "[::]:0"))
	listening.Visit(socket("192.0.2.1:50053", "0.0.0.0:0"))

	v := &portsVisitor{outbound: outbound, listening: listening, tuples: newFrequent[tuple](maxTuples)}
	v.Reset()
	for _, s := range []*sockdiag.Socket{
		socket("192.0.2.1:50051", "198.51.100.1:40000"),               // accepted
		socket("[::ffff:192.0.2.1]:50052", "[::ffff:198.51.100.1]:1"), // accepted
		socket("192.0.2.1:50053", "198.51.100.1:40000"),               // accepted
		socket("192.0.2.2:50053", "198.51.100.1:443"),
		socket("192.0.2.2:50054", "198.51.100.1:443"),
		socket("[::ffff:192.0.2.2]:50055", "[::ffff:198.51.100.1]:443"), // the same pair
		socket("[2001:db8::1]:50053", "[2001:db8::2]:443"),
		socket("192.0.2.2:80", "198.51.100.1:443"), // the port is outside the range
	} {
		v.Visit(s)
	}
	got := map[string]uint32{}
	for tuple, n := range v.tuples.counts {
		got[tuple.from()+" "+tuple.to().String()] = n
	}
	if len(got) != 2 || got["192.0.2.2 198.51.100.1:443"] != 3 || got["2001:db8::1 [2001:db8::2]:443"] != 1 {
		t.Errorf("%v", got)
	}
}

func TestPortRanges(t *testing.T) {
	type ranges = []sockdiag.PortRange
	for _, c := range []struct {
		add, remove [][2]uint16
		n           int
		want        ranges
	}{
		{nil, nil, 4, nil},
		{[][2]uint16{{32768, 60999}}, nil, 4, ranges{{Low: 32768, High: 60999}}},
		{[][2]uint16{{32768, 60999}}, [][2]uint16{{50051, 50051}}, 4, ranges{{Low: 32768, High: 50050}, {Low: 50052, High: 60999}}},
		{[][2]uint16{{0, 65535}}, nil, 4, ranges{{Low: 0, High: 65535}}},
		{[][2]uint16{{0, 65535}}, [][2]uint16{{0, 0}, {65535, 65535}}, 4, ranges{{Low: 1, High: 65534}}},
		// There are more ranges than can be sent: the last one covers the rest.
		{[][2]uint16{{1, 1}, {3, 3}, {5, 5}, {9, 9}}, nil, 2, ranges{{Low: 1, High: 1}, {Low: 3, High: 9}}},
	} {
		set := new(portSet)
		for _, r := range c.add {
			set.add(r[0], r[1])
		}
		for _, r := range c.remove {
			set.remove(r[0], r[1])
		}
		if got := set.ranges(c.n); !slices.Equal(got, c.want) {
			t.Errorf("%v less %v: %v, want %v", c.add, c.remove, got, c.want)
		}
	}
}
