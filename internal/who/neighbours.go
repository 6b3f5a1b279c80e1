package who

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// readNeighbours answers by the entries of the neighbour table of an address family. All
// network namespaces share the table, and each shows its own entries.
func readNeighbours(family uint8) func(*inquiry) error {
	return func(q *inquiry) error {
		names := map[key]string{} // of interfaces
		err := q.eachNetns(func(*collector.FoundNetns) collector.Number { return collector.Number{} }, func(n *kernel.Netns, at uint32) error {
			conn, err := kernel.Dial(n, func() (*netlink.Conn, error) { return netlink.Dial(unix.NETLINK_ROUTE, nil) })
			if err != nil {
				return err
			}
			defer conn.Close()
			defer context.AfterFunc(q.ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
			entries := 0
			err = dump(conn, unix.RTM_GETNEIGH, ndmsg(family), func(b []byte) error {
				if len(b) < unix.SizeofNdMsg {
					return fmt.Errorf("neighbour of %d bytes", len(b))
				}
				k := key{place: at}
				state := binary.NativeEndian.Uint16(b[8:])
				switch q.By {
				case ByInterface:
					k.id = uint64(binary.NativeEndian.Uint32(b[4:]))
				case ByState:
					k = key{id: uint64(state)}
				default:
					k.to = neighbourNetwork(b[unix.SizeofNdMsg:])
				}
				entries++
				q.tally.add(k, amount{count: 1}, 1)
				return nil
			})
			if err != nil || entries == 0 || q.By != ByInterface {
				return err
			}
			return dump(conn, unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(b []byte) error {
				if len(b) < unix.SizeofIfInfomsg {
					return fmt.Errorf("interface of %d bytes", len(b))
				}
				name := attribute(b[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME)
				names[key{place: at, id: uint64(binary.NativeEndian.Uint32(b[4:]))}] = parse.Printable(strings.TrimRight(string(name), "\x00"))
				return nil
			})
		})
		q.answer.Count, q.answer.TooLow = q.tally.all.count, q.tally.dropped
		for i := range q.tally.groups {
			t := &q.tally.groups[i]
			g := Group{Count: t.count, score: t.score, Netns: q.netns(t.place)}
			switch q.By {
			case ByInterface:
				if g.Who = names[t.key]; g.Who == "" {
					g.Who = fmt.Sprintf("interface %d", t.id)
				}
			case ByState:
				g.Who = neighbourState(uint16(t.id))
			default:
				g.Who = "unknown"
				if addr := netip.AddrFrom16(t.to).Unmap(); addr.IsValid() {
					g.Who = netip.PrefixFrom(addr, networkBits(addr)).String()
				}
			}
			q.answer.add(g)
		}
		return err
	}
}

func ndmsg(family uint8) []byte {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family
	return b
}

// dump sends a request for a list and calls visit with the payload of each message.
func dump(conn *netlink.Conn, typ netlink.HeaderType, payload []byte, visit func([]byte) error) error {
	if _, err := conn.Send(netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request | netlink.Dump}, Data: payload}); err != nil {
		return err
	}
	var failed error
	for m, err := range conn.ReceiveIter() {
		if err != nil {
			return err
		}
		if failed == nil {
			failed = visit(m.Data)
		}
	}
	return failed
}

// attribute returns the value of the first attribute of a type, nil if there is none.
func attribute(b []byte, typ uint16) []byte {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return nil
	}
	for d.Next() {
		if d.Type() == typ {
			return d.Bytes()
		}
	}
	return nil
}

// networkBits returns the length of the prefix by which neighbours are grouped.
func networkBits(addr netip.Addr) int {
	if addr.Is4() {
		return 24
	}
	return 64
}

// neighbourNetwork returns the network of a neighbour's address.
func neighbourNetwork(attributes []byte) (network [16]byte) {
	const destination = 1 // NDA_DST
	addr, ok := netip.AddrFromSlice(attribute(attributes, destination))
	if !ok {
		return network
	}
	prefix, err := addr.Prefix(networkBits(addr))
	if err != nil {
		return network
	}
	return prefix.Addr().As16()
}

// neighbourState names the bits of ndm_state as ip neighbour does.
func neighbourState(state uint16) string {
	var names []string
	for i, name := range []string{"incomplete", "reachable", "stale", "delay", "probe", "failed", "noarp", "permanent"} {
		if state&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(slices.Clip(names), ", ")
}
