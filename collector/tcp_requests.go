package collector

import (
	"cmp"
	"context"
	"iter"
	"net/netip"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// requestQueue is the connections to a listener whose handshake is in progress: those in
// SYN_RECV.
type requestQueue struct {
	listener      netip.AddrPort
	length, limit uint64
}

func (q requestQueue) saturation() float64 { return float64(q.length) / float64(max(q.limit, 1)) }

func (q requestQueue) before(o requestQueue) bool {
	return cmp.Or(cmp.Compare(o.saturation(), q.saturation()), q.listener.Compare(o.listener)) < 0
}

// requestQueues returns the list of the request queues.
func requestQueues() Lister[tcp] {
	return List[tcp, requestQueue]{
		Items:  func(s *tcp) iter.Seq[requestQueue] { return s.requests },
		Before: requestQueue.before,
		Labels: []string{"listener"},
		Part:   3,
		Key:    func(q requestQueue) []string { return []string{q.listener.String()} },
		Columns: []Metric[requestQueue]{
			{
				Name:  "request_queue_length",
				Help:  "Connections in SYN_RECV (handshake not complete), for the listeners closest to their limit; a SO_REUSEPORT group is added up. From sock_diag.",
				Value: func(q *requestQueue) Number { return number(q.length) },
			},
			{
				Name:  "request_queue_limit",
				Help:  "Connections that may be in SYN_RECV at this listener. The backlog passed to listen, at most net.core.somaxconn and, while net.ipv4.tcp_syncookies is 0, three quarters of net.ipv4.tcp_max_syn_backlog.",
				Value: func(q *requestQueue) Number { return number(q.limit) },
			},
		},
		Holders: func(ctx context.Context, s *tcp, of []requestQueue) []holding {
			var at []netip.AddrPort
			for _, q := range of {
				at = append(at, q.listener)
			}
			return s.holders(ctx, at)
		},
		Limit: &ItemLimit[requestQueue]{
			LimitInfo: LimitInfo{
				Resource: "request_queue", Unit: Connections, WarningRatio: 0.7, CriticalRatio: 1,
				Effect: "New connections are answered with a SYN cookie, or dropped if net.ipv4.tcp_syncookies is 0: \"TCP: Possible SYN flooding on port\".",
				Usage:  series("request_queue_length"), Max: series("request_queue_limit"),
				List: &ListInfo{Title: "Listeners with the most connection requests", Column: "listener"},
				Proofs: []Proof{
					{Counter: series("tcp_request_queue_full_drops_total")},
					{Counter: series("tcp_request_queue_full_cookies_total")},
				},
				SetWith: "the program's backlog, net.core.somaxconn, and without SYN cookies net.ipv4.tcp_max_syn_backlog",
				Sysctls: []Sysctl{{"net.core.somaxconn", Connections, true}, {"net.ipv4.tcp_max_syn_backlog", Connections, true}},
				LogLines: []LogLine{{
					// Linux 6.2 added the address.
					Message: "tcp_syn_flooding",
					Pattern: `TCP: (?:\w+: )?[Pp]ossible SYN flooding on port (?P<port>\S*\d)\. `,
				}},
				Sizing: Sizing{
					Needs: func(l Load) float64 {
						if l.Accepted == 0 {
							return 0
						}
						return l.Opens * l.Accepted / l.Tracked * handshake
					},
					Rule:    "incoming connections per second, times the 0.25 s that a handshake with a distant client takes",
					Initial: "same as `accept_queue`",
					Objects: []Object{{"request_sock_TCP", 312}},
					Most:    forever,
					Alone:   true,
					Settings: []Setting{
						{"in the program, if its own backlog is lower (it must be restarted)", backlogLine},
					},
				},
			},
			Most: func(q requestQueue) Number { return number(max(q.limit, 1)) },
		},
	}
}

// requestLimits are the settings, other than the backlog, that bound a queue of requests.
type requestLimits struct{ cookies, most kernel.File }

func newRequestLimits(n *kernel.Netns) *requestLimits {
	return &requestLimits{n.Sysctl("net.ipv4.tcp_syncookies"), n.Sysctl("net.ipv4.tcp_max_syn_backlog")}
}

// requestsOf returns a function that reads how full the fullest queue of a network
// namespace is. It walks the kernel's whole table of connections.
func requestsOf(n *kernel.Netns) func(context.Context) (netnsUse, error) {
	client, limits, v := n.SockDiag(), newRequestLimits(n), newTCPVisitor(0)
	request := sockdiag.Request{States: sockdiag.MaskOf(sockdiag.Listen, sockdiag.SynRecv)}
	return func(ctx context.Context) (fullest netnsUse, err error) {
		if err := walk(ctx, client, request, v); err != nil {
			return netnsUse{}, err
		}
		queues, err := limits.requests(v)
		if queues == nil {
			return netnsUse{}, err
		}
		most := 0.0
		for q := range queues {
			if s := q.saturation(); s > most {
				most, fullest = s, netnsUse{float64(q.length), float64(q.limit), q.listener.String()}
			}
		}
		return fullest, err
	}
}

// requests returns the queues that a walk has found, nil if their limit is not known. A
// request belongs to the listener on its address, or else to one on all addresses of its
// family, or else to one on all addresses of both families.
//
// The kernel compares a socket's number of requests in SYN_RECV with its backlog
// (inet_csk_reqsk_queue_is_full). Without SYN cookies it reserves the last quarter of
// tcp_max_syn_backlog for peers that it knows (tcp_conn_request); the requests that it
// drops for that reason are counted only as drops of the listener.
func (r *requestLimits) requests(v *tcpVisitor) (iter.Seq[requestQueue], error) {
	var p parse.Problems
	cookies, err := sysctlNumber(r.cookies)
	p.Add(err)
	off := cookies.Present && cookies.Value == 0
	var most Number
	if off {
		most, err = sysctlNumber(r.most)
		p.Add(err)
	}
	if cookies.IsUnreadable() || most.IsUnreadable() {
		return nil, p.Err()
	}
	limit := func(backlog uint64) uint64 {
		if off && most.Present {
			return min(backlog, uint64(most.Value)-uint64(most.Value)/4)
		}
		return backlog
	}
	length := map[netip.AddrPort]uint64{}
	for at, n := range v.asked {
		for _, addr := range []netip.Addr{at.Addr(), anyOf(at.Addr()), netip.IPv6Unspecified()} {
			if listener := netip.AddrPortFrom(addr, at.Port()); v.queues[listener].listener.IsValid() {
				length[listener] += n
				break
			}
		}
	}
	return func(yield func(requestQueue) bool) {
		var first requestQueue
		for at, q := range v.queues {
			r := requestQueue{at, length[at], limit(q.limit)}
			if r.length > 0 && !yield(r) {
				return
			}
			if !first.listener.IsValid() || at.Compare(first.listener) < 0 {
				first = r
			}
		}
		// Without requests, one listener represents all, with an empty queue.
		if len(length) == 0 && first.listener.IsValid() {
			yield(first)
		}
	}, p.Err()
}

// anyOf returns the unspecified address of a family.
func anyOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
