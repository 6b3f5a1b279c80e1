package sockdiag_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/mdlayher/netlink"

	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// counting is a transport that counts the sockets that the kernel sends.
type counting struct {
	sockdiag.Transport
	sent int
}

func (c *counting) Receive(b []byte) (int, error) {
	n, err := c.Transport.Receive(b)
	for m := b[:n]; len(m) >= 16; m = m[min((int(binary.NativeEndian.Uint32(m))+3)&^3, len(m)):] {
		if binary.NativeEndian.Uint16(m[4:]) >= 16 { // below are control messages
			c.sent++
		}
	}
	return n, err
}

// ports collects the source ports of a walk.
type ports []uint16

func (p *ports) Reset()                   { *p = nil }
func (p *ports) Visit(s *sockdiag.Socket) { *p = append(*p, s.SourcePort) }

// TestFilteredByKernel checks that the kernel itself leaves out ports just outside the ranges,
// with both kinds of request.
func TestFilteredByKernel(t *testing.T) {
	// Listeners on an address used only here, at ports that the kernel chooses.
	var all []uint16
	for range 12 {
		l, err := net.Listen("tcp4", "127.99.1.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		all = append(all, netip.MustParseAddrPort(l.Addr().String()).Port())
	}
	slices.Sort(all)

	for name, c := range map[string]struct {
		ranges []sockdiag.PortRange
		want   []uint16
	}{
		"one port":   {[]sockdiag.PortRange{{Low: all[3], High: all[3]}}, all[3:4]},
		"one range":  {[]sockdiag.PortRange{{Low: all[2], High: all[5]}}, all[2:6]},
		"two ranges": {[]sockdiag.PortRange{{Low: all[0], High: all[1]}, {Low: all[8], High: all[9]}}, slices.Concat(all[:2], all[8:10])},
		"three ranges, the last open": {
			[]sockdiag.PortRange{{Low: all[1], High: all[1]}, {Low: all[4], High: all[4]}, {Low: all[10], High: 65535}},
			[]uint16{all[1], all[4], all[10], all[11]},
		},
		"the highest port": {[]sockdiag.PortRange{{Low: 65535, High: 65535}}, nil},
	} {
		for _, legacy := range []bool{true, false} {
			kernel, err := sockdiag.Dial()
			if err != nil {
				t.Fatal(err)
			}
			transport := &counting{Transport: kernel}
			client := sockdiag.New(func() (sockdiag.Transport, error) {
				if legacy {
					return transport, nil
				}
				return refusing{transport}, nil
			})
			var got ports
			err = client.Walk(t.Context(), sockdiag.Request{States: sockdiag.MaskOf(sockdiag.Listen), Ports: c.ranges}, &got)
			client.Close()
			if err != nil {
				t.Fatal(err)
			}
			if transport.sent != len(got) {
				t.Errorf("%s: the kernel sent %d sockets, %d were requested", name, transport.sent, len(got))
			}
			got = slices.DeleteFunc(got, func(p uint16) bool { return !slices.Contains(all, p) })
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("%s (legacy %t): ports %v, want %v of %v", name, legacy, got, c.want, all)
			}
		}
	}
}

// refusing replaces the older request by one that no kernel supports.
type refusing struct{ *counting }

func (r refusing) Send(m netlink.Message) (netlink.Message, error) {
	if m.Header.Type == 18 {
		m.Header.Type = 99
	}
	return r.counting.Send(m)
}
