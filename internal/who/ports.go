package who

import (
	"errors"
	"io/fs"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// portSet is a set of port numbers.
type portSet [1 << 16]bool

// ephemeralPorts returns the ports that connect may choose from in a network namespace.
// It skips those with a listener.
func ephemeralPorts(n *kernel.Netns, l *listening) (*portSet, error) {
	f := n.Sysctl("net.ipv4.ip_local_port_range")
	b, err := f.Read()
	if err != nil {
		return nil, err
	}
	low, high, err := parse.PortRange(b, f.Path())
	if err != nil {
		return nil, err
	}
	set := new(portSet)
	set.put(low, high, true)
	f = n.Sysctl("net.ipv4.ip_local_reserved_ports")
	if b, err = f.Read(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := parse.List(b, f.Path(), func(low, high uint16) { set.put(low, high, false) }); err != nil {
		return nil, err
	}
	for port, p := range l.ports {
		if p.every || p.some {
			set[port] = false
		}
	}
	return set, nil
}

func (p *portSet) put(low, high uint16, in bool) {
	for i := int(low); i <= int(high); i++ {
		p[i] = in
	}
}

func (p *portSet) size() (n int) {
	for _, in := range p {
		if in {
			n++
		}
	}
	return n
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
