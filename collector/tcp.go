package collector

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// tcp is one reading of the TCP sockets of the host's network namespace.
type tcp struct {
	states [sockdiag.Closing + 1]Number
	// listeners is the number of addresses and ports with a listener. It includes
	// crowded, sockets that are counted individually because there are too many
	// addresses.
	listeners, crowded Number
	// queues yields the accept queues.
	queues iter.Seq[acceptQueue]
	// requests yields the queues of connection requests, nil if only listeners were read.
	requests iter.Seq[requestQueue]
	// holders finds the holders of some listeners.
	holders func(context.Context, []netip.AddrPort) []holding
}

// acceptQueue is the connections that wait to be accepted at an address, over all sockets
// of a SO_REUSEPORT group.
type acceptQueue struct {
	listener      netip.AddrPort
	length, limit uint64
	// worst is the socket of the group nearest to its limit: the kernel fills each queue
	// separately, so one stuck worker drops connections while the others' queues are
	// empty.
	worst singleQueue
}

func (q acceptQueue) saturation() float64 { return q.worst.saturation() }

// singleQueue is the accept queue of one socket.
type singleQueue struct{ length, limit uint64 }

// saturation divides by at least 1: with a backlog of 0 the kernel still lets one
// connection wait.
func (q singleQueue) saturation() float64 { return float64(q.length) / float64(max(q.limit, 1)) }

func (q acceptQueue) before(o acceptQueue) bool {
	if a, b := q.saturation(), o.saturation(); a != b {
		return a > b
	}
	return q.listener.Compare(o.listener) < 0
}

func tcpSpec() Spec {
	return define(Definition[tcp]{
		Name:   "tcp",
		Help:   "TCP sockets by state, accept queues and connection requests, by one walk of netlink sock_diag; established and time_wait come from counters.",
		Walk:   true,
		Open:   openTCP,
		Sample: func(k *Scope) func(context.Context, *tcp) error { return listenersOf(k.Host, k.Top) },
		Often:  true,
		Metrics: []Metric[tcp]{
			{
				Name:   "tcp_sockets",
				Help:   "TCP sockets in the host's network namespace, by state, in both address families. From sock_diag; established and time_wait are calculated from /proc/net/sockstat and sockstat6.",
				Labels: []string{"state"},
				Values: func(s *tcp, emit Emit) {
					for state := sockdiag.Established; state <= sockdiag.Closing; state++ {
						emit(s.states[state], state.String())
					}
				},
			},
			{
				Name:  "tcp_listeners",
				Help:  "Listening addresses and ports in the host's network namespace; a SO_REUSEPORT group counts once. From sock_diag.",
				Value: func(s *tcp) Number { return s.listeners },
			},
			{
				Name:  "tcp_listeners_crowded",
				Help:  fmt.Sprintf("Listening sockets beyond the first %d addresses and ports; each is counted individually, even in a SO_REUSEPORT group. From sock_diag.", maxListeners),
				Value: func(s *tcp) Number { return s.crowded },
			},
		},
		Lists: []Lister[tcp]{List[tcp, acceptQueue]{
			Items:  func(s *tcp) iter.Seq[acceptQueue] { return s.queues },
			Before: acceptQueue.before,
			Labels: []string{"listener"},
			Key:    func(q acceptQueue) []string { return []string{q.listener.String()} },
			Columns: []Metric[acceptQueue]{
				{
					Name:  "accept_queue_length",
					Help:  "Connections waiting to be accepted, for the listeners closest to their limit; a SO_REUSEPORT group is added up. From sock_diag.",
					Value: func(q *acceptQueue) Number { return number(q.length) },
				},
				{
					Name:  "accept_queue_limit",
					Help:  "Connections that may wait to be accepted at this listener: the backlog passed to listen, at most net.core.somaxconn. From sock_diag.",
					Value: func(q *acceptQueue) Number { return number(q.limit) },
				},
				{
					Name:  "accept_queue_saturation_ratio",
					Help:  "Accept queue length divided by its limit (by 1 if the limit is 0); for a SO_REUSEPORT group, of its fullest socket, because each socket has its own queue. From sock_diag.",
					Value: func(q *acceptQueue) Number { return number(q.saturation()) },
				},
			},
			Holders: func(ctx context.Context, s *tcp, of []acceptQueue) []holding {
				var at []netip.AddrPort
				for _, q := range of {
					at = append(at, q.listener)
				}
				return s.holders(ctx, at)
			},
			Limit: &ItemLimit[acceptQueue]{
				LimitInfo: LimitInfo{
					Resource: "accept_queue", Unit: Connections, WarningRatio: 0.7, CriticalRatio: 1,
					Effect: "New connections are dropped at the end of their handshake, and the peer retries or gives up.",
					Usage:  series("accept_queue_length"), Max: series("accept_queue_limit"), Share: series("accept_queue_saturation_ratio"),
					List: &ListInfo{
						Title: "Listeners with the fullest accept queue", Column: "listener",
						Note: "The connections of a SO_REUSEPORT group are added up. The bar and the percentage are those of its fullest socket, because each socket has its own queue.",
					},
					Proofs:  []Proof{{Counter: series("tcp_listen_overflows_total")}},
					SetWith: "net.core.somaxconn and the program's backlog",
					Sysctls: []Sysctl{{"net.core.somaxconn", Connections, true}},
					Sizing: Sizing{
						Needs: func(l Load) float64 {
							if l.Accepted == 0 {
								return 0
							}
							return l.Opens * l.Accepted / l.Tracked * l.Pause.Seconds()
						},
						Rule:    "incoming connections per second, times the longest time during which the program does not accept",
						Initial: "4,096; 128 before Linux 5.4",
						Objects: []Object{{"TCP", 2432}},
						Most:    forever,
						Settings: []Setting{
							{"in the program, if its own backlog is lower (it must be restarted)", backlogLine},
						},
					},
				},
				Used: func(q acceptQueue) Number { return number(q.worst.length) },
				Most: func(q acceptQueue) Number { return number(max(q.worst.limit, 1)) },
			},
		}, requestQueues()},
	})
}

// openTCP prepares the walk. The walk leaves out ESTABLISHED and TIME_WAIT, the two
// states that a busy host has by the million: the kernel counts them.
func openTCP(k *Scope) func(context.Context, *tcp) error {
	client := k.Host.SockDiag()
	request := sockdiag.Request{
		States: sockdiag.AllStates.Without(sockdiag.Established, sockdiag.TimeWait),
	}
	stat, stat6 := k.Host.File("sockstat"), k.Host.File("sockstat6")
	v := newTCPVisitor(k.Top)
	queues := newRequestLimits(k.Host)

	return func(ctx context.Context, s *tcp) error {
		if err := walk(ctx, client, request, v); err != nil {
			return err
		}
		// After the walk, so that they are as close as possible to what it counted.
		var p parse.Problems
		var ipv4 parse.Sockets
		b, err := optional(stat)
		p.Add(err)
		if b != nil {
			ipv4, err = parse.Sockstat(b, stat.Path(), 0)
			p.Add(err)
		}
		var ipv6 parse.FamilySockets // none without IPv6
		b, err = optional(stat6)
		p.Add(err)
		switch {
		case b != nil:
			ipv6, err = parse.Sockstat6(b, stat6.Path())
			p.Add(err)
		case err != nil:
			ipv6.TCP = parse.Unreadable()
		}
		v.fill(s, ipv4.TCP.Plus(ipv6.TCP.OrZero()), ipv4.TimeWait)
		s.holders = func(ctx context.Context, of []netip.AddrPort) []holding { return listenersHeld(ctx, client, of) }
		s.requests, err = queues.requests(v)
		p.Add(err)
		return p.Err()
	}
}

// listenersOf returns a function that walks only the listeners of a network namespace,
// which spares the kernel a walk of the large table. top bounds how many are kept when
// there are too many.
func listenersOf(n *kernel.Netns, top int) func(context.Context, *tcp) error {
	client := n.SockDiag()
	request := sockdiag.Request{States: sockdiag.MaskOf(sockdiag.Listen)}
	v := newTCPVisitor(top)
	return func(ctx context.Context, s *tcp) error {
		if err := walk(ctx, client, request, v); err != nil {
			return err
		}
		s.queues = v.all()
		return nil
	}
}

// listenersHeld returns the holder of the fullest socket of each listener, by another
// walk over the listeners.
func listenersHeld(ctx context.Context, client *sockdiag.Client, of []netip.AddrPort) []holding {
	v := &listenersHeldVisitor{of: of}
	if walk(ctx, client, sockdiag.Request{States: sockdiag.MaskOf(sockdiag.Listen), Details: true}, v) != nil {
		v.Reset() // then nobody is known
	}
	return v.held
}

// listenersHeldVisitor finds the fullest socket of each listener.
type listenersHeldVisitor struct {
	of      []netip.AddrPort
	held    []holding
	fullest []singleQueue
}

func (v *listenersHeldVisitor) Reset() {
	v.held, v.fullest = make([]holding, len(v.of)), make([]singleQueue, len(v.of))
}

func (v *listenersHeldVisitor) Visit(s *sockdiag.Socket) {
	i := slices.Index(v.of, s.Source())
	if i < 0 {
		return
	}
	queue := singleQueue{uint64(s.RecvQueue), uint64(s.SendQueue)}
	if h := &v.held[i]; len(h.sockets) == 0 || queue.saturation() > v.fullest[i].saturation() {
		v.fullest[i] = queue
		*h = holding{sockets: []uint32{s.Inode}, cgroup: s.Cgroup, uid: number(s.UID)}
	}
}

// walk walks sockets by sock_diag and returns its errors as those of a collector.
func walk(ctx context.Context, c *sockdiag.Client, r sockdiag.Request, v sockdiag.Visitor) error {
	err := c.Walk(ctx, r, v)
	if errors.Is(err, sockdiag.ErrNotSupported) {
		return &NotSupportedError{Feature: sockdiag.ErrNotSupported.Error(), Err: err}
	}
	return err
}

// tcpVisitor counts the sockets of a walk.
type tcpVisitor struct {
	states   [sockdiag.Closing + 1]uint64
	finWait2 uint64 // mini-sockets in FIN_WAIT2
	queues   map[netip.AddrPort]acceptQueue
	// asked counts connection requests by their destination. It is bounded like queues.
	asked map[netip.AddrPort]uint64
	// Any user may listen on half a million addresses of loopback. If queues is full,
	// each further socket counts as a queue of its own, and the fullest are kept.
	crowded uint64
	crowd   top[acceptQueue]
}

func newTCPVisitor(n int) *tcpVisitor {
	return &tcpVisitor{
		queues: map[netip.AddrPort]acceptQueue{},
		asked:  map[netip.AddrPort]uint64{},
		crowd: top[acceptQueue]{
			n: n, before: acceptQueue.before,
			same: func(a, b acceptQueue) bool { return a.listener == b.listener },
		},
	}
}

func (v *tcpVisitor) Reset() {
	clear(v.queues)
	clear(v.asked)
	v.crowd.items = v.crowd.items[:0]
	*v = tcpVisitor{queues: v.queues, asked: v.asked, crowd: v.crowd}
}

func (v *tcpVisitor) Visit(s *sockdiag.Socket) {
	v.states[s.State]++
	switch s.State {
	case sockdiag.FinWait2:
		if s.Timer == sockdiag.TimerTimeWait {
			v.finWait2++
		}
	case sockdiag.SynRecv:
		if at := s.Source(); v.asked[at] > 0 || len(v.asked) < maxListeners {
			v.asked[at]++
		}
	case sockdiag.Listen:
		at := s.Source()
		single := singleQueue{uint64(s.RecvQueue), uint64(s.SendQueue)}
		q, known := v.queues[at]
		if !known && len(v.queues) == maxListeners {
			v.crowded++
			v.crowd.offer(acceptQueue{at, single.length, single.limit, single})
			return
		}
		q.listener = at
		q.length += single.length
		q.limit += single.limit
		if q.worst == (singleQueue{}) || single.saturation() > q.worst.saturation() {
			q.worst = single
		}
		v.queues[at] = q
	default:
	}
}

// fill fills the snapshot. inuse counts the full sockets of every state except CLOSE,
// timeWait all mini-sockets, including those in FIN_WAIT2.
func (v *tcpVisitor) fill(s *tcp, inuse, timeWait Number) {
	walked := uint64(0)
	for state, count := range v.states {
		s.states[state] = number(count)
		// A connection request is not yet a socket.
		if sockdiag.State(state) != sockdiag.SynRecv {
			walked += count
		}
	}
	// The counters are read a moment after the walk, so a difference may come out
	// negative.
	notNegative := func(n Number) Number {
		n.Value = max(n.Value, 0)
		return n
	}
	s.states[sockdiag.Established] = notNegative(inuse.Minus(number(walked - v.finWait2)))
	s.states[sockdiag.TimeWait] = notNegative(timeWait.Minus(number(v.finWait2)))

	s.listeners, s.crowded = number(uint64(len(v.queues))+v.crowded), number(v.crowded)
	s.queues = v.all()
}

// all yields the accept queues.
func (v *tcpVisitor) all() iter.Seq[acceptQueue] {
	return func(yield func(acceptQueue) bool) {
		for _, q := range v.queues {
			if !yield(q) {
				return
			}
		}
		for _, q := range v.crowd.items {
			if !yield(q) {
				return
			}
		}
	}
}
