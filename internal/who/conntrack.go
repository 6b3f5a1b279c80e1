package who

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/ctnetlink"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// readConntrack answers by the tracked connections of each network namespace.
func readConntrack(q *inquiry) error {
	about := func(n *collector.FoundNetns) collector.Number { return n.Conntrack }
	expected, read := uint64(0), uint64(0)
	if f := q.Host.SysctlUsage("net.netfilter.nf_conntrack_count"); !q.places[0].skipped {
		if b, err := f.Read(); err == nil {
			n, _ := parse.Count(bytes.TrimSpace(b))
			expected = n
		}
	}
	for _, p := range q.places[1:] {
		if !p.skipped && p.Enterable {
			expected += uint64(p.Conntrack.Value)
		}
	}
	err := q.eachNetns(about, func(n *kernel.Netns, at uint32) error {
		return n.CTNetlink().Walk(q.ctx, func(e *ctnetlink.Entry) {
			if read++; read%(1<<12) == 0 && q.Progress != nil {
				q.Progress(read, expected, "entries")
			}
			k := key{place: at}
			switch q.By {
			case BySource, ByPod:
				k.from = e.Source.As16()
			case ByDestination:
				k.to, k.toPort, k.kind = e.Destination.As16(), e.DestinationPort, e.Protocol
			default:
				k.kind, k.state = e.Protocol, uint8(e.State)
			}
			q.tally.add(k, amount{count: 1}, 1)
		})
	})
	if errors.Is(err, ctnetlink.ErrNotPermitted) {
		err = errors.New("listing tracked connections needs CAP_NET_ADMIN")
	}
	q.answer.Count, q.answer.TooLow = q.tally.all.count, q.tally.dropped
	var pods map[netip.Addr]owner.Owner
	if q.By == BySource || q.By == ByPod {
		pods = q.podAddresses()
	}
	for i := range q.tally.groups {
		t := &q.tally.groups[i]
		g := Group{Count: t.count, score: t.score, Netns: q.netns(t.place)}
		source := netip.AddrFrom16(t.from).Unmap()
		o := pods[source]
		g.Unit, g.Namespace, g.Pod = o.Name, o.Namespace, o.Pod
		switch q.By {
		case BySource:
			g.Who = source.String()
		case ByPod:
			g.Who, g.Netns = "from no pod of this host", ""
			if o.Pod != "" {
				g.Who = o.Namespace + "/" + o.Pod
			}
		case ByDestination:
			g.Who = protocol(t.kind) + " " + address(t.to, t.toPort)
		default:
			g.Who = protocol(t.kind)
			if t.kind == 6 {
				g.Who += " " + ctnetlink.TCPState(t.state).String()
			}
		}
		q.answer.add(g)
	}
	if q.By == ByPod {
		q.answer.merge()
	}
	return err
}

// protocol returns the name of an IP protocol, or its number.
func protocol(number uint8) string {
	names := map[uint8]string{1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 58: "icmpv6", 132: "sctp", 136: "udplite"}
	return cmp.Or(names[number], "protocol "+strconv.Itoa(int(number)))
}

// podAddresses returns the owners of the addresses in network namespaces other than the
// host's, for the addresses that only one owner has.
func (q *inquiry) podAddresses() map[netip.Addr]owner.Owner {
	of := map[netip.Addr]owner.Owner{}
	for _, p := range q.allPlaces() {
		if len(p.Processes) == 0 {
			continue
		}
		for _, addr := range localAddresses(filepath.Join(q.ProcPath, p.Processes[0], "net")) {
			if addr.IsLoopback() || addr.IsLinkLocalUnicast() || addr.IsMulticast() {
				continue
			}
			if o, known := of[addr]; known && o != p.Owner {
				of[addr] = owner.Owner{}
				continue
			}
			of[addr] = p.Owner
		}
	}
	return of
}

// allPlaces returns the network namespaces other than the host's, including those that
// the question excludes.
func (q *inquiry) allPlaces() []collector.FoundNetns {
	if len(q.places) == 1 {
		found, _ := collector.FindNetns(context.WithoutCancel(q.ctx), q.Scope)
		return found
	}
	var all []collector.FoundNetns
	for _, p := range q.places[1:] {
		all = append(all, p.FoundNetns)
	}
	return all
}

// localAddresses reads the addresses of a network namespace from fib_trie, in which each
// IPv4 address is a local leaf of 32 bits, and if_inet6. It needs no privilege.
func localAddresses(folder string) (addrs []netip.Addr) {
	b, _ := os.ReadFile(filepath.Join(folder, "fib_trie"))
	var leaf netip.Addr
	for line, b, ok := parse.NextLine(b); ok; line, b, ok = parse.NextLine(b) {
		first, rest, _ := parse.NextField(line)
		second, rest, _ := parse.NextField(rest)
		third, _, _ := parse.NextField(rest)
		switch {
		case string(first) == "|--":
			leaf, _ = netip.ParseAddr(string(second))
		case string(first) == "/32" && string(second) == "host" && string(third) == "LOCAL" && leaf.IsValid():
			addrs = append(addrs, leaf)
		}
	}
	b, _ = os.ReadFile(filepath.Join(folder, "if_inet6"))
	for line, b, ok := parse.NextLine(b); ok; line, b, ok = parse.NextLine(b) {
		field, _, _ := parse.NextField(line)
		var addr [16]byte
		if len(field) != 32 {
			continue
		}
		for i := range addr {
			v, err := strconv.ParseUint(string(field[2*i:2*i+2]), 16, 8)
			if err != nil {
				break
			}
			addr[i] = byte(v)
		}
		addrs = append(addrs, netip.AddrFrom16(addr))
	}
	return addrs
}
