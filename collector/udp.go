package collector

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// udp is one reading of the UDP sockets.
type udp struct {
	queues  []udpQueue // the fullest, or one
	dropped []udpDrops
}

// udpQueue is the receive queue of a UDP socket.
type udpQueue struct {
	socket      string
	held        holding
	used, limit uint64 // bytes
}

func (q udpQueue) saturation() float64 { return float64(q.used) / float64(max(q.limit, 1)) }

func (q udpQueue) before(o udpQueue) bool {
	return cmp.Or(cmp.Compare(o.saturation(), q.saturation()), cmp.Compare(q.socket, o.socket)) < 0
}

// udpDrops is the number of datagrams dropped by the sockets of one address.
type udpDrops struct {
	socket string
	total  float64
	rose   int // the reading at which it last rose
}

func udpSpec() Spec {
	return define(Definition[udp]{
		Name: "udp",
		Help: "Receive queues and drops of UDP sockets, by netlink sock_diag.",
		Walk: true,
		Open: func(k *Scope) func(context.Context, *udp) error { return udpOf(k.Host, k.Top) },
		Lists: []Lister[udp]{
			List[udp, udpQueue]{
				Items: func(s *udp) iter.Seq[udpQueue] {
					if s.queues == nil {
						return func(func(udpQueue) bool) {}
					}
					return slices.Values(s.queues)
				},
				Before: udpQueue.before,
				Labels: []string{"socket"},
				Part:   3,
				Key:    func(q udpQueue) []string { return []string{q.socket} },
				Columns: []Metric[udpQueue]{
					{
						Name:  "udp_receive_queue_bytes",
						Help:  "Memory of datagrams that the program has not read yet, including the kernel's overhead, for the UDP sockets closest to their limit; the fullest socket per address. From sock_diag.",
						Value: func(q *udpQueue) Number { return number(q.used) },
					},
					{
						Name:  "udp_receive_queue_limit_bytes",
						Help:  "Receive buffer of that socket: twice the value of SO_RCVBUF, or net.core.rmem_default. From sock_diag.",
						Value: func(q *udpQueue) Number { return number(q.limit) },
					},
				},
				Holders: func(_ context.Context, _ *udp, of []udpQueue) []holding {
					held := make([]holding, len(of))
					for i, q := range of {
						held[i] = q.held
					}
					return held
				},
				Limit: &ItemLimit[udpQueue]{LimitInfo: LimitInfo{
					Resource: "udp_receive_queue", Unit: Bytes, WarningRatio: 0.8, CriticalRatio: 0.95,
					Effect: "Datagrams to that socket are dropped.",
					Usage:  series("udp_receive_queue_bytes"), Max: series("udp_receive_queue_limit_bytes"),
					List:    &ListInfo{Title: "UDP sockets with the fullest receive queue", Column: "socket"},
					Proofs:  []Proof{{Counter: series("udp_receive_buffer_errors_total")}, {Counter: series("udp6_receive_buffer_errors_total")}},
					SetWith: "the program's SO_RCVBUF (up to net.core.rmem_max), net.core.rmem_default",
					Sysctls: []Sysctl{{"net.core.rmem_max", Bytes, false}, {"net.core.rmem_default", Bytes, false}},
					Sizing: Sizing{
						Rule:     "datagrams that arrive while the program is briefly busy, times the size that the kernel charges for each, at least 768 bytes",
						Initial:  "208 KiB",
						Settings: []Setting{{"in the program: setsockopt SO_RCVBUF, which the kernel doubles", "half of %.0f"}},
					},
				}},
			},
			List[udp, udpDrops]{
				Items: func(s *udp) iter.Seq[udpDrops] { return slices.Values(s.dropped) },
				Before: func(a, b udpDrops) bool {
					return cmp.Or(cmp.Compare(b.rose, a.rose), cmp.Compare(b.total, a.total), cmp.Compare(a.socket, b.socket)) < 0
				},
				Labels: []string{"socket"},
				Part:   3,
				Key:    func(d udpDrops) []string { return []string{d.socket} },
				Columns: []Metric[udpDrops]{{
					Name:  "udp_socket_drops_total",
					Help:  "Datagrams dropped by the sockets of an address because the receive queue was full or the checksum was wrong, for the addresses with the latest drops. From sock_diag.",
					Value: func(d *udpDrops) Number { return number(d.total) },
				}},
			},
		},
	})
}

// udpOf returns a function that reads the UDP sockets of a network namespace.
func udpOf(n *kernel.Netns, top int) func(context.Context, *udp) error {
	walk := udpQueuesOf(n, top)
	history := udpHistory{known: map[uint32]udpKnown{}, totals: map[string]*udpDrops{}}
	return func(ctx context.Context, s *udp) error {
		v, err := walk(ctx)
		if err != nil {
			return err
		}
		s.queues = v.worth()
		s.dropped = history.note(v.drops)
		return nil
	}
}

// udpQueuesOf returns a function that walks the UDP sockets of a network namespace and
// keeps the fullest. Its result is valid until the next walk.
func udpQueuesOf(n *kernel.Netns, top int) func(context.Context) (*udpVisitor, error) {
	client := n.SockDiag()
	request := sockdiag.Request{Protocol: sockdiag.UDP, States: sockdiag.AllStates, Details: true}
	v := newUDPVisitor(top)
	return func(ctx context.Context) (*udpVisitor, error) {
		err := client.Walk(ctx, request, v)
		if errors.Is(err, sockdiag.ErrUDPNotSupported) {
			return nil, &NotSupportedError{Feature: sockdiag.ErrUDPNotSupported.Error(), Err: err}
		}
		if err != nil {
			return nil, err
		}
		return v, nil
	}
}

// udpVisitor keeps the fullest queues, one of the empty ones, and the drops.
type udpVisitor struct {
	count   uint64
	fullest top[udpQueue]
	// idle is the empty queue with the lowest port.
	idle     udpQueue
	idlePort uint16
	drops    map[uint32]udpKnown // by inode
}

// udpKnown is the number of datagrams that a socket has dropped.
type udpKnown struct {
	socket string
	drops  uint32
}

func newUDPVisitor(n int) *udpVisitor {
	return &udpVisitor{drops: map[uint32]udpKnown{}, fullest: top[udpQueue]{
		n: n, before: udpQueue.before,
		same: func(a, b udpQueue) bool { return a.socket == b.socket },
	}}
}

func (v *udpVisitor) Reset() {
	clear(v.drops)
	*v = udpVisitor{drops: v.drops, fullest: v.fullest}
	v.fullest.items = nil
}

// maxUDPDrops bounds the number of sockets with drops that are distinguished.
const maxUDPDrops = 4096

func (v *udpVisitor) Visit(s *sockdiag.Socket) {
	v.count++
	if s.Memory.Drops > 0 && s.Inode != 0 && len(v.drops) < maxUDPDrops {
		v.drops[s.Inode] = udpKnown{udpName(s), s.Memory.Drops}
	}
	q := udpQueue{used: uint64(s.Memory.Receive), limit: uint64(s.Memory.Limit)}
	idle := q.used == 0 && (v.idle.socket == "" || s.SourcePort < v.idlePort)
	if q.used > 0 && v.fullest.admits(q) || idle {
		q.socket = udpName(s)
		q.held = holding{sockets: []uint32{s.Inode}, cgroup: s.Cgroup, uid: number(s.UID)}
	}
	switch {
	case idle:
		v.idle, v.idlePort = q, s.SourcePort
	case q.used > 0:
		v.fullest.offer(q)
	}
}

// udpWorth is the share of its buffer from which a queue is listed in addition to the
// fullest. Otherwise a datagram that is about to be read would make a series for each
// port that a resolver sends from.
const udpWorth = 1. / 16

// worth returns the queues that are worth a series: the fullest, and the next ones if
// they are filled to udpWorth. If all are empty, that is the one of the lowest port,
// which is likely to stay.
func (v *udpVisitor) worth() []udpQueue {
	if len(v.fullest.items) == 0 {
		if v.idle.socket == "" {
			return nil
		}
		return []udpQueue{v.idle}
	}
	n := 1
	for n < len(v.fullest.items) && v.fullest.items[n].saturation() >= udpWorth {
		n++
	}
	return v.fullest.items[:n]
}

// udpName returns the address of a socket and, if it has a peer, that of the peer.
func udpName(s *sockdiag.Socket) string {
	if s.State == sockdiag.Established {
		return s.Source().String() + " → " + s.Destination().String()
	}
	return s.Source().String()
}

// udpHistory adds up the drops of the sockets of each address, so that the sum does not
// fall when one of them is closed.
type udpHistory struct {
	known   map[uint32]udpKnown // by inode
	totals  map[string]*udpDrops
	reading int
}

// note returns the addresses that have dropped something. The kernel's counters have 32
// bits. If one has fallen, the inode was reused by another socket.
func (h *udpHistory) note(drops map[uint32]udpKnown) []udpDrops {
	h.reading++
	for inode, now := range drops {
		by := now.drops
		if was := h.known[inode]; now.drops >= was.drops { // it may have been connected since
			by -= was.drops
		}
		total := h.totals[now.socket]
		if total == nil {
			total = &udpDrops{socket: now.socket}
			h.totals[now.socket] = total
		}
		if by > 0 {
			total.total += float64(by)
			total.rose = h.reading
		}
	}
	h.known = maps.Clone(drops)
	all := make([]udpDrops, 0, len(h.totals))
	for _, d := range h.totals {
		all = append(all, *d)
	}
	if len(all) > maxUDPDrops { // forget those that have not dropped anything for the longest time
		slices.SortFunc(all, func(a, b udpDrops) int { return cmp.Compare(b.rose, a.rose) })
		for _, d := range all[maxUDPDrops/2:] {
			delete(h.totals, d.socket)
		}
		all = all[:maxUDPDrops/2]
	}
	return all
}
