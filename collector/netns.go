package collector

import (
	"cmp"
	"context"
	"iter"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// namespaces is one reading of the network namespaces other than the host's.
type namespaces struct {
	// count is the number of namespaces, unreadable how many of them could not be read.
	count, unreadable Number
	all               []netnsReading
	// refused is what the kernel has refused in them since the first reading, by the
	// index of the counter.
	refused [netnsCounterCount]Number
	top     int
}

// netnsReading is one reading of one namespace.
type netnsReading struct {
	id    uint64
	at    netnsPlace  // where it was found
	owner owner.Owner // no other owner has its name
	// inuse counts TCP sockets of both address families, udp UDP sockets, timeWait
	// mini-sockets.
	inuse, udp, timeWait, conntrack Number
	// others counts sockets that are neither TCP nor UDP, such as unix sockets.
	others Number
	// requested is the sum of the counters that rise while connection requests wait.
	requested  Number
	saturation [netnsLimitCount]Number
	// uses are what the saturations are made of.
	uses [netnsLimitCount]netnsUse
	// queues are the fullest accept queues. Their limits are known if limited is set.
	queues   []acceptQueue
	limited  bool
	counters [netnsCounterCount]Number
	// clashes is the part of the connection tracking drops that a full table did not
	// cause.
	clashes Number
	// claims are the owners that its processes claim, claim the one that was chosen. A
	// reading that did not ask the processes has claim alone.
	claims []owner.Claim
	claim  owner.Claim
	// settings are those that the saturation is computed from.
	settings netnsSettings
	// mount is the inode number of its mounts, 0 if it cannot be entered.
	mount uint64
	// rose is the last reading in which a counter rose, rise how much all rose then.
	rose int
	rise float64
}

// netnsUse is how much of a limit a namespace uses; if each of several things has the
// limit, the fullest of them, by its name.
type netnsUse struct {
	usage, limit float64
	item         string
}

// use sets how much of a limit the namespace uses. A backlog of 0 still lets one connection
// wait.
func (n *netnsReading) use(limit int, u netnsUse) {
	n.uses[limit] = u
	n.saturation[limit] = number(u.usage / max(u.limit, 1))
}

// The limits that each namespace has separately.
const (
	netnsConntrack = iota
	netnsTimeWait
	netnsAcceptQueue
	netnsPorts
	netnsRequestQueue
	netnsUnixQueue
	netnsUDPQueue
	netnsLimitCount
)

// A netnsLimit is a limit that each namespace has separately, by the name of the host's.
type netnsLimit struct {
	resource string
	// most is the highest level that it can cause there, as in the alerts. A single
	// reading cannot distinguish a burst, which fills an accept queue for a moment, from
	// a program that has stopped accepting, and among the queues of hundreds of pods one
	// is always in a burst. TIME_WAIT is capped by design.
	most Level
}

func netnsLimits() [netnsLimitCount]netnsLimit {
	return [netnsLimitCount]netnsLimit{
		netnsConntrack:    {"conntrack_entries", Critical},
		netnsTimeWait:     {"tcp_time_wait", Warning},
		netnsAcceptQueue:  {"accept_queue", Warning},
		netnsPorts:        {"ephemeral_ports", Critical},
		netnsRequestQueue: {"request_queue", Warning},
		netnsUnixQueue:    {"unix_accept_queue", Warning},
		netnsUDPQueue:     {"udp_receive_queue", Warning},
	}
}

// netnsRequestCounters returns the counters of the host that rise while connection requests wait: a
// SYN/ACK is retransmitted after a second, and a full queue is counted.
func netnsRequestCounters() []string {
	return []string{
		"tcp_syn_retransmits_total", "tcp_listen_overflows_total",
		"tcp_request_queue_full_drops_total", "tcp_request_queue_full_cookies_total",
	}
}

// netnsCounter is a row: a counter of each namespace.
type netnsCounter struct {
	// name is the name without "netns_", of the counters of the host that it sums up.
	name string
	of   []string
	// resource is the limit that was reached if the counter rises, empty if it also rises
	// for other reasons.
	resource string
	help     string
}

const (
	netnsCounterCount = 8
	// netnsConntrackDrops is the index of the counter that is not from netstat,
	// netnsUDPErrors that of the counter that is read only if there are UDP sockets.
	netnsConntrackDrops = netnsCounterCount - 1
	netnsUDPErrors      = netnsCounterCount - 2
)

func netnsCounters() [netnsCounterCount]netnsCounter {
	return [netnsCounterCount]netnsCounter{
		{"tcp_listen_overflows_total", []string{"tcp_listen_overflows_total"}, "accept_queue", "Connections dropped because the accept queue of their listener was full"},
		{"tcp_listen_drops_total", []string{"tcp_listen_drops_total"}, "", "Connections that a listener dropped for any reason, overflows included"},
		{"tcp_request_queue_full_drops_total", []string{"tcp_request_queue_full_drops_total"}, "request_queue", "Connection requests dropped because the queue was full and SYN cookies were off"},
		{"tcp_time_wait_overflows_total", []string{"tcp_time_wait_overflows_total"}, "tcp_time_wait", "Connections closed without TIME_WAIT because tcp_max_tw_buckets was reached"},
		{"tcp_aborts_on_memory_total", []string{"tcp_aborts_on_memory_total"}, "tcp_memory", "Connections reset because TCP memory was exhausted or there were too many orphans"},
		{"tcp_receive_queue_drops_total", []string{"tcp_receive_queue_drops_total"}, "", "Segments dropped because the receive queue could not grow"},
		netnsUDPErrors:      {"udp_receive_buffer_errors_total", []string{"udp_receive_buffer_errors_total", "udp6_receive_buffer_errors_total"}, "udp_receive_queue", "Datagrams (IPv4 and IPv6) dropped because the socket's receive buffer was full"},
		netnsConntrackDrops: {"conntrack_drops_total", nil, "conntrack_entries", "Packets dropped because a new connection could not be tracked"},
	}
}

func netnsSpec() Spec {
	const privileged = "; needs CAP_SYS_ADMIN and CAP_SYS_PTRACE."
	labels := []string{"netns", "namespace", "pod"}
	key := func(n *netnsReading) []string {
		if n == nil { // when the rows are checked
			return make([]string, len(labels))
		}
		return []string{n.owner.Name, n.owner.Namespace, n.owner.Pod}
	}
	// most returns a list of the namespaces that have the most of something.
	most := func(name, help string, of func(*netnsReading) Number) Lister[namespaces] {
		return List[namespaces, *netnsReading]{
			Items: func(s *namespaces) iter.Seq[*netnsReading] {
				return s.where(func(n *netnsReading) bool { return of(n).Value > 0 })
			},
			Before: func(a, b *netnsReading) bool {
				return cmp.Or(cmp.Compare(of(b).Value, of(a).Value), cmp.Compare(a.id, b.id)) < 0
			},
			Labels: labels,
			Key:    key,
			Columns: []Metric[*netnsReading]{{
				Name: name, Help: help,
				Value: func(n **netnsReading) Number { return of(*n) },
			}},
		}
	}
	var counters []Metric[*netnsReading]
	for i, c := range netnsCounters() {
		counters = append(counters, Metric[*netnsReading]{
			Name:  "netns_" + c.name,
			Help:  c.help + ", for the network namespaces where such a counter rose last.",
			Value: func(n **netnsReading) Number { return (*n).counters[i] },
		})
	}
	return define(Definition[namespaces]{
		Name:      "netns",
		Help:      "Network namespaces other than the host's, such as those of pods: sockets, refusals, and how close each is to its own limits.",
		Privilege: "Accept queues, the limits on TIME_WAIT and ephemeral ports, and namespaces without a process need CAP_SYS_ADMIN and CAP_SYS_PTRACE.",
		Walk:      true,
		Open: func(k *Scope) func(context.Context, *namespaces) error {
			return newNetnsReader(k).read
		},
		Metrics: []Metric[namespaces]{
			{
				Name:  "netns_namespaces",
				Help:  "Network namespaces other than the host's: those with a process and, if they may be entered, mounted ones.",
				Value: func(s *namespaces) Number { return s.count },
			},
			{
				Name:  "netns_unreadable",
				Help:  "Network namespaces other than the host's that could not be read.",
				Value: func(s *namespaces) Number { return s.unreadable },
			},
			{
				Name:   "netns_saturation_ratio",
				Help:   "Usage of a limit that applies per network namespace divided by the limit, for the namespaces closest to it, the host's excluded. All resources but conntrack_entries need CAP_SYS_ADMIN and CAP_SYS_PTRACE.",
				Labels: slices.Concat([]string{"resource"}, labels),
				Values: (*namespaces).saturations,
			},
			{
				Name:   "netns_refusals_total",
				Help:   "Refusals by the kernel in all network namespaces other than the host's since the exporter started, including namespaces that no longer exist, by the limit that was reached.",
				Labels: []string{"resource"},
				Values: func(s *namespaces, emit Emit) {
					for i, c := range netnsCounters() {
						if c.resource != "" {
							emit(s.refused[i], c.resource)
						}
					}
				},
			},
		},
		Lists: []Lister[namespaces]{
			most("netns_tcp_sockets_inuse", "TCP sockets in use, for the network namespaces with the most. From /proc/<pid>/net/sockstat and sockstat6.",
				func(n *netnsReading) Number { return n.inuse }),
			most("netns_tcp_time_wait", "Sockets in TIME_WAIT, and orphaned ones in FIN_WAIT2, for the network namespaces with the most. From /proc/<pid>/net/sockstat.",
				func(n *netnsReading) Number { return n.timeWait }),
			most("netns_conntrack_entries", "Connections tracked, for the network namespaces with the most. From /proc/<pid>/net/stat/nf_conntrack.",
				func(n *netnsReading) Number { return n.conntrack }),
			List[namespaces, netnsQueue]{
				Items:  (*namespaces).queues,
				Before: netnsQueue.before,
				Labels: append(slices.Clone(labels), "listener"),
				Key:    func(q netnsQueue) []string { return append(key(q.netnsReading), q.listener.String()) },
				Columns: []Metric[netnsQueue]{
					{
						Name:  "netns_accept_queue_length",
						Help:  "Connections waiting to be accepted, for the listeners closest to their limit in all network namespaces other than the host's. From sock_diag" + privileged,
						Value: func(q *netnsQueue) Number { return number(q.length) },
					},
					{
						Name: "netns_accept_queue_limit",
						Help: "Connections that may wait to be accepted at this listener. From sock_diag" + privileged,
						Value: func(q *netnsQueue) Number {
							if !q.limited {
								return Number{}
							}
							return number(q.limit)
						},
					},
				},
			},
			List[namespaces, *netnsReading]{
				Items: func(s *namespaces) iter.Seq[*netnsReading] {
					return s.where((*netnsReading).refused)
				},
				Before:  (*netnsReading).refusedLater,
				Labels:  labels,
				Key:     key,
				Columns: counters,
			},
		},
		Netns: (*namespaces).worst,
	})
}

// where yields the namespaces for which wanted returns true.
func (s *namespaces) where(wanted func(*netnsReading) bool) iter.Seq[*netnsReading] {
	return func(yield func(*netnsReading) bool) {
		for i := range s.all {
			if n := &s.all[i]; wanted(n) && !yield(n) {
				return
			}
		}
	}
}

// refused reports whether the kernel ever refused something in the namespace.
func (n *netnsReading) refused() bool {
	return slices.ContainsFunc(n.counters[:], func(c Number) bool { return c.Value > 0 })
}

// refusedLater reports whether n refused something later than o, or more at the same reading.
// So old refusals do not hide new ones.
func (n *netnsReading) refusedLater(o *netnsReading) bool {
	return cmp.Or(cmp.Compare(o.rose, n.rose), cmp.Compare(o.rise, n.rise), cmp.Compare(n.id, o.id)) < 0
}

// saturations emits, for each limit, the namespaces nearest to it.
func (s *namespaces) saturations(emit Emit) {
	for limit, l := range netnsLimits() {
		for _, n := range s.nearest(limit, s.top) {
			emit(n.saturation[limit], l.resource, n.owner.Name, n.owner.Namespace, n.owner.Pod)
		}
	}
}

// worst returns, for each limit, the namespace nearest to it.
func (s *namespaces) worst() (worst []NetnsLimit) {
	for limit, l := range netnsLimits() {
		for _, n := range s.nearest(limit, 1) {
			u := n.uses[limit]
			worst = append(worst, NetnsLimit{
				l.resource, n.owner.Name, parse.Printable(n.owner.Namespace), parse.Printable(n.owner.Pod),
				parse.Printable(u.item), u.usage, u.limit, n.saturation[limit].Value, l.most,
			})
		}
	}
	return worst
}

// nearest returns at most the given number of namespaces, those nearest to a limit,
// nearest first.
func (s *namespaces) nearest(limit, most int) []*netnsReading {
	nearest := top[*netnsReading]{n: most, before: func(a, b *netnsReading) bool {
		return cmp.Or(cmp.Compare(b.saturation[limit].Value, a.saturation[limit].Value), cmp.Compare(a.id, b.id)) < 0
	}}
	for n := range s.where(func(n *netnsReading) bool { return n.saturation[limit].Value > 0 }) {
		nearest.offer(n)
	}
	return nearest.items
}

// queues yields the accept queues of all namespaces that have waiting connections.
func (s *namespaces) queues() iter.Seq[netnsQueue] {
	return func(yield func(netnsQueue) bool) {
		for i := range s.all {
			for _, q := range s.all[i].queues {
				if q.length > 0 && !yield(netnsQueue{&s.all[i], q}) {
					return
				}
			}
		}
	}
}

// netnsQueue is an accept queue of a namespace.
type netnsQueue struct {
	*netnsReading
	acceptQueue
}

func (q netnsQueue) before(o netnsQueue) bool {
	if a, b := q.acceptQueue.saturation(), o.acceptQueue.saturation(); a != b {
		return a > b
	}
	return cmp.Or(cmp.Compare(o.length, q.length), cmp.Compare(q.id, o.id), q.listener.Compare(o.listener)) < 0
}
