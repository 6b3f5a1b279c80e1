package collector

import (
	"cmp"
	"context"
	"errors"
	"iter"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// unixSockets is one reading of the listening unix sockets.
type unixSockets struct {
	queues []unixQueue // those with waiting connections, or one
}

// unixQueue is the accept queue of a unix socket.
type unixQueue struct {
	path          string
	inode         uint32
	length, limit uint64
}

func (q unixQueue) saturation() float64 { return float64(q.length) / float64(max(q.limit, 1)) }

func (q unixQueue) before(o unixQueue) bool {
	return cmp.Or(cmp.Compare(o.saturation(), q.saturation()), cmp.Compare(q.path, o.path), cmp.Compare(q.inode, o.inode)) < 0
}

func unixSpec() Spec {
	return define(Definition[unixSockets]{
		Name: "unix",
		Help: "Accept queues of unix sockets, such as those of databases and container runtimes, by netlink sock_diag.",
		Walk: true,
		Open: func(k *Scope) func(context.Context, *unixSockets) error { return unixOf(k.Host, k.Top) },
		Lists: []Lister[unixSockets]{List[unixSockets, unixQueue]{
			Items: func(s *unixSockets) iter.Seq[unixQueue] {
				return func(yield func(unixQueue) bool) {
					for _, q := range s.queues {
						if !yield(q) {
							return
						}
					}
				}
			},
			Before: unixQueue.before,
			Labels: []string{"path"},
			Part:   3,
			Key:    func(q unixQueue) []string { return []string{q.path} },
			Columns: []Metric[unixQueue]{
				{
					Name:  "unix_accept_queue_length",
					Help:  "Connections waiting to be accepted, for the unix sockets closest to their limit; the path of an abstract socket begins with @, that of an unnamed one is its inode number. From sock_diag.",
					Value: func(q *unixQueue) Number { return number(q.length) },
				},
				{
					Name:  "unix_accept_queue_limit",
					Help:  "Connections that may wait to be accepted at this unix socket: the backlog passed to listen, at most net.core.somaxconn. From sock_diag.",
					Value: func(q *unixQueue) Number { return number(q.limit) },
				},
			},
			Holders: func(_ context.Context, _ *unixSockets, of []unixQueue) []holding {
				held := make([]holding, len(of))
				for i, q := range of {
					held[i].sockets = []uint32{q.inode}
				}
				return held
			},
			Limit: &ItemLimit[unixQueue]{
				LimitInfo: LimitInfo{
					Resource: "unix_accept_queue", Unit: Connections, WarningRatio: 0.7, CriticalRatio: 1,
					Effect: "connect blocks until the program accepts, or fails with EAGAIN on a non-blocking socket; nothing is counted or logged.",
					Usage:  series("unix_accept_queue_length"), Max: series("unix_accept_queue_limit"),
					List:    &ListInfo{Title: "Unix sockets with the fullest accept queue", Column: "path"},
					SetWith: "net.core.somaxconn and the program's backlog",
					Sysctls: []Sysctl{{"net.core.somaxconn", Connections, true}},
					Sizing: Sizing{
						Rule:    "connections opened per second, times the longest time during which the listening program does not accept",
						Initial: "4,096; 128 before Linux 5.4",
						Settings: []Setting{
							{"in the program, if its own backlog is lower (it must be restarted)", "listen(fd, %.0f); listen.backlog (php-fpm)"},
						},
						Objects: []Object{{"UNIX", 1152}, {"the queued message", 256}},
					},
				},
				Most: func(q unixQueue) Number { return number(max(q.limit, 1)) },
			},
		}},
	})
}

// unixOf returns a function that reads the unix sockets of a network namespace.
func unixOf(n *kernel.Netns, top int) func(context.Context, *unixSockets) error {
	client := n.SockDiag()
	v := newUnixVisitor(top)
	return func(ctx context.Context, s *unixSockets) error {
		err := client.WalkUnix(ctx, v)
		if errors.Is(err, sockdiag.ErrUnixNotSupported) {
			return &NotSupportedError{Feature: sockdiag.ErrUnixNotSupported.Error(), Err: err}
		}
		if err != nil {
			return err
		}
		if s.queues = v.fullest.items; len(s.queues) == 0 && v.count > 0 {
			s.queues = []unixQueue{v.idle}
		}
		return nil
	}
}

// unixVisitor keeps the fullest queues, and the first of the idle ones.
type unixVisitor struct {
	count   uint64
	fullest top[unixQueue]
	idle    unixQueue
}

func newUnixVisitor(n int) *unixVisitor {
	return &unixVisitor{fullest: top[unixQueue]{
		n: n, before: unixQueue.before,
		same: func(a, b unixQueue) bool { return a.path == b.path },
	}}
}

func (v *unixVisitor) Reset() {
	*v = unixVisitor{fullest: v.fullest}
	v.fullest.items = nil
}

func (v *unixVisitor) VisitUnix(s *sockdiag.UnixSocket) {
	v.count++
	q := unixQueue{s.String(), s.Inode, uint64(s.Queue), uint64(s.Backlog)}
	if q.length > 0 {
		v.fullest.offer(q)
	} else if v.idle.path == "" || q.path < v.idle.path {
		v.idle = q
	}
}
