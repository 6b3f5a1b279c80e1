package who

import (
	"cmp"
	"strconv"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// listenerVisitor makes a group of each listening socket, because the kernel fills the
// queue of each socket of a SO_REUSEPORT group separately.
type listenerVisitor struct {
	*inquiry
	place uint32
}

func (v *listenerVisitor) Reset() {}

func (v *listenerVisitor) Visit(s *sockdiag.Socket) {
	k := key{place: v.place, from: local(s), fromPort: s.SourcePort, id: uint64(s.Inode), user: s.UID}
	limit := float64(max(s.SendQueue, 1)) // one connection may wait at a backlog of 0
	at := v.tally.add(k, amount{count: float64(s.RecvQueue)}, float64(s.RecvQueue)/limit)
	g := &v.tally.groups[at]
	g.limit = float64(s.SendQueue)
	g.vote(s.Cgroup, 1)
}

// readAcceptQueues answers by the listeners of each network namespace, or by the
// connections that wait to be accepted.
func readAcceptQueues(q *inquiry) error {
	if q.By == ByPeer {
		return readSockets(sockets{
			protocol: sockdiag.TCP, about: tcpSockets,
			// Accepted connections have an inode, and closed ones are in another state.
			states: sockdiag.MaskOf(sockdiag.Established, sockdiag.CloseWait),
			keep:   func(s *sockdiag.Socket) bool { return s.Inode == 0 },
			mini:   true,
		})(q)
	}
	v := &listenerVisitor{inquiry: q}
	about := func(n *collector.FoundNetns) collector.Number { return n.TCP }
	err := q.eachNetns(about, func(n *kernel.Netns, at uint32) error {
		v.place = at
		return n.SockDiag().Walk(q.ctx, sockdiag.Request{States: sockdiag.MaskOf(sockdiag.Listen), Details: true}, v)
	})
	if err != nil {
		return err
	}
	return q.addListeners(func(g *group) string { return address(g.from, g.fromPort) })
}

// unixVisitor makes a group of each listening unix socket.
type unixVisitor struct {
	*inquiry
	place uint32
	paths map[key]string
}

func (v *unixVisitor) Reset() {}

func (v *unixVisitor) VisitUnix(s *sockdiag.UnixSocket) {
	k := key{place: v.place, id: uint64(s.Inode)}
	waiting := float64(s.Queue)
	at := v.tally.add(k, amount{count: waiting}, waiting/float64(max(s.Backlog, 1)))
	v.tally.groups[at].limit = float64(s.Backlog)
	if len(v.paths) < maxGroups || s.Queue > 0 {
		v.paths[k] = s.String()
	}
}

// readUnixQueues answers by the listening unix sockets of each network namespace. The
// kernel's answer does not name the clients that wait.
func readUnixQueues(q *inquiry) error {
	v := &unixVisitor{inquiry: q, paths: map[key]string{}}
	unknown := func(*collector.FoundNetns) (n collector.Number) { return n }
	err := q.eachNetns(unknown, func(n *kernel.Netns, at uint32) error {
		v.place = at
		return n.SockDiag().WalkUnix(q.ctx, v)
	})
	if err != nil {
		return err
	}
	return q.addListeners(func(g *group) string {
		return cmp.Or(v.paths[g.key], "inode/"+strconv.FormatUint(g.id, 10))
	})
}

// addListeners adds a group for each listener, by its inode and with the programs that
// have it open, or for each owner of listeners.
func (q *inquiry) addListeners(title func(g *group) string) error {
	q.answer.Count, q.answer.TooLow = q.tally.all.count, q.tally.dropped
	inodes := map[uint32]bool{}
	for _, g := range q.tally.groups {
		inodes[uint32(g.id)] = true
	}
	holders, err := q.findHolders(inodes)
	if q.By != ByListener {
		var parts []part
		for i := range q.tally.groups {
			g := &q.tally.groups[i]
			p := part{group: g, amount: g.amount}
			if h := holders[uint32(g.id)]; len(h) > 0 {
				p.process = q.processes.list[h[0]]
			}
			g.id = g.cgroup
			parts = append(parts, p)
		}
		q.addOwners(parts)
		return err
	}
	for i := range q.tally.groups {
		t := &q.tally.groups[i]
		g := Group{
			Who: title(t), Netns: q.netns(t.place), Count: t.count, Limit: t.limit, score: t.score,
		}
		of := map[*process]amount{}
		var whose string
		for _, h := range holders[uint32(t.id)] {
			p := q.processes.list[h]
			of[p] = t.amount
			if whose == "" {
				q.withOwner(p)
				whose = cmp.Or(p.owner.Name, p.cgroup)
				g.Namespace, g.Pod = p.owner.Namespace, p.owner.Pod
				g.User = q.user(p.user)
			}
		}
		if whose == "" {
			o, cgroup := q.socketOwner(t.cgroup)
			whose, g.Namespace, g.Pod = cmp.Or(o.Name, cgroup), o.Namespace, o.Pod
			if t.fromPort != 0 { // for a unix socket the kernel reports no user
				g.User = q.user(t.user)
			}
		}
		g.Unit = whose
		q.nameProcesses(&g, of)
		q.answer.add(g)
	}
	return err
}
