package who

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// sockets selects the sockets that a limit counts.
type sockets struct {
	protocol sockdiag.Protocol
	states   sockdiag.Mask
	// keep reports whether a socket in one of these states is counted. nil keeps all.
	keep func(s *sockdiag.Socket) bool
	// ephemeral is set if only sockets that hold a port of the range of connect are
	// counted. The size of the range is the limit of each group.
	ephemeral bool
	// mini is set for TIME_WAIT mini-sockets, for which the kernel keeps only the
	// addresses.
	mini bool
	// about returns how many sockets of a network namespace the walk will read.
	about func(*collector.FoundNetns) collector.Number
}

func tcpSockets(n *collector.FoundNetns) collector.Number { return n.TCP.Plus(n.TimeWait) }
func udpSockets(n *collector.FoundNetns) collector.Number { return n.UDP }

// socketKey returns a function that returns the key of a socket's group.
func socketKey(by Grouping) func(v *socketVisitor, s *sockdiag.Socket, e end) key {
	switch by {
	case ByListener:
		return func(v *socketVisitor, _ *sockdiag.Socket, e end) key {
			return key{place: v.place, from: e.addr, fromPort: e.port, out: e.out}
		}
	case ByPeer:
		return func(v *socketVisitor, s *sockdiag.Socket, e end) key {
			k := key{place: v.place, to: s.Destination16()}
			if e.out {
				k.toPort = s.DestinationPort // for an accepted connection it is ephemeral
			}
			return k
		}
	case BySource:
		return func(v *socketVisitor, s *sockdiag.Socket, _ end) key {
			return key{place: v.place, from: s.Source16()}
		}
	case ByDestination:
		return func(v *socketVisitor, s *sockdiag.Socket, _ end) key {
			return key{place: v.place, from: s.Source16(), to: s.Destination16(), toPort: s.DestinationPort}
		}
	case ByState:
		return func(_ *socketVisitor, s *sockdiag.Socket, _ end) key {
			return key{state: uint8(s.State)}
		}
	default: // those of processes and their cgroups
		return func(v *socketVisitor, s *sockdiag.Socket, e end) key {
			// The purpose of a connection distinguishes the processes of a cgroup. There
			// can be very many destinations; then they count as one.
			if e.out && len(v.tally.groups) > maxGroups/2 {
				e = end{out: true}
			}
			return key{id: s.Cgroup, user: s.UID, loose: s.Inode == 0, from: e.addr, fromPort: e.port, out: e.out}
		}
	}
}

// byOwner reports whether groups are made of processes and cgroups.
func (by Grouping) byOwner() bool { return by == ByProcess || by == ByUnit || by == ByPod }

// socketVisitor counts the sockets of a walk.
type socketVisitor struct {
	*inquiry
	sockets
	key       func(v *socketVisitor, s *sockdiag.Socket, e end) key
	listening *listening
	place     uint32
	ports     *portSet // of an ephemeral limit
	limits    map[uint32]float64
	owners    bool
	memory    bool

	read, expected uint64
	begun          uint64 // value of read when the walk began
	torn           bool
}

// Reset is called before a walk. A walk that starts over cannot undo what it has counted.
func (v *socketVisitor) Reset() {
	if v.read > v.begun {
		v.torn = true
	}
}

func (v *socketVisitor) Visit(s *sockdiag.Socket) {
	if v.torn {
		return
	}
	if v.read++; v.read%(1<<14) == 0 && v.Progress != nil {
		v.Progress(v.read, v.expected, "sockets")
	}
	if v.keep != nil && !v.keep(s) {
		return
	}
	var e end
	if v.protocol == sockdiag.UDP {
		e = udpEnd(s)
	} else {
		e = v.listening.end(s)
	}
	if v.ephemeral && (!e.out || !v.ports[s.SourcePort]) {
		return
	}
	a := amount{count: 1}
	score := 1.0
	if !v.mini {
		a.bytes = float64(s.Memory.Charged())
	}
	if v.memory {
		score = a.bytes
	}
	at := v.tally.add(v.key(v, s, e), a, score)
	if !v.owners && s.Cgroup != 0 {
		v.tally.groups[at].vote(s.Cgroup, score)
	}
	if s.Inode != 0 {
		if process, ok := v.processes.inodes.find(s.Inode); ok {
			v.tally.hold(at, process).add(a)
		}
	}
}

// readSockets answers by a walk over the sockets of each network namespace.
func readSockets(src sockets) func(*inquiry) error {
	return func(q *inquiry) error {
		q.answer.HasMemory = !src.mini
		v := &socketVisitor{
			inquiry: q, sockets: src, key: socketKey(q.By), listening: new(listening),
			limits: map[uint32]float64{}, owners: q.By.byOwner(), memory: q.row.memory,
		}
		var err error
		if !src.mini && !q.row.loose {
			sample := sampled
			if q.By == ByProcess {
				sample = sampledWell
			}
			err = q.lookAtDescriptors(sample)
		}
		if err == nil {
			err = v.walk()
		}
		q.answer.Count, q.answer.Memory = q.tally.all.count, q.tally.all.bytes
		q.answer.TooLow = q.tally.dropped
		if v.owners {
			q.addOwners(q.distribute())
		} else {
			q.addSocketGroups(v)
		}
		return err
	}
}

// walk visits the sockets of all network namespaces.
func (v *socketVisitor) walk() error {
	for i := range v.places {
		if p := &v.places[i]; !p.skipped && (i == 0 || p.Enterable) {
			if i == 0 {
				p.FoundNetns = v.hostCounts()
			}
			v.expected += uint64(v.about(&p.FoundNetns).Value)
		}
	}
	clients := map[*kernel.Netns]*sockdiag.Client{} // two: the host's, and the tour's
	return v.eachNetns(v.about, func(n *kernel.Netns, at uint32) error {
		c := clients[n]
		if c == nil {
			c = n.SockDiag()
			clients[n] = c
		}
		v.place = at
		r := sockdiag.Request{Protocol: v.protocol, States: v.states, Details: true}
		if v.protocol == sockdiag.TCP {
			listeners := sockdiag.Request{States: sockdiag.MaskOf(sockdiag.Listen)}
			if err := c.Walk(v.ctx, listeners, v.listening); err != nil {
				return err
			}
		}
		if v.ephemeral {
			ports, err := ephemeralPorts(n, v.listening)
			if err != nil {
				return err
			}
			v.ports, v.limits[at] = ports, float64(ports.size())
			if r.Ports = ports.ranges(sockdiag.MaxRanges); len(r.Ports) == 0 {
				return nil
			}
		}
		v.begun = v.read
		err := c.Walk(v.ctx, r, v)
		if v.torn {
			v.torn = false
			return fmt.Errorf("the walk was interrupted, and some sockets are missing")
		}
		return err
	})
}

// hostCounts returns the numbers of sockets in the host's network namespace.
func (q *inquiry) hostCounts() (n collector.FoundNetns) {
	n.Name = hostNetns
	f, f6 := q.Host.File("sockstat"), q.Host.File("sockstat6")
	if b, err := f.Read(); err == nil {
		if s, err := parse.Sockstat(b, f.Path(), 0); err == nil {
			n.TCP, n.UDP, n.TimeWait = s.TCP, s.UDP, s.TimeWait
		}
	}
	if b, err := f6.Read(); err == nil {
		if s, err := parse.Sockstat6(b, f6.Path()); err == nil {
			n.TCP, n.UDP = n.TCP.Plus(s.TCP), n.UDP.Plus(s.UDP)
		}
	}
	return n
}

// A part is the part of a group that belongs to one process, or for which no process was
// found.
type part struct {
	group   *group
	process *process // nil if none was found
	amount
	estimated bool
}

// fewHeavy is the minimum number of sockets with memory that a sample must have to show
// how much memory the others have. With fewer, all sockets are assumed to have the same.
const fewHeavy = 30

// opener is the cgroup and user that opened sockets, as far as the kernel reports them.
type opener struct {
	cgroup uint64
	user   uint32
}

// unseen is the sockets of an opener for which no process was found in their own group,
// and the sampled processes that have any sockets of that opener.
type unseen struct {
	amount
	order []*process
	of    map[*process]*sampledPart
}

// sampledPart is how many sockets of an opener a process should have, according to its
// sample, other than those that were seen, and how many were given to it.
type sampledPart struct{ expected, given float64 }

// distribute divides the groups by process. The sockets of a group have one opener and
// one purpose. Sockets found by inode count exactly. The rest belongs to processes that
// were sampled: to those that have something in the group, each according to what its
// sample represents, which is exact if there is only one. What that leaves over, for
// example of groups that are too small for a sample, goes to processes that have
// something of the same opener and should have more.
func (q *inquiry) distribute() []part {
	var parts []part
	left := map[opener]*unseen{}
	var order []opener
	for i, held := range q.tally.heldOf() {
		g := &q.tally.groups[i]
		o := opener{g.id, g.user}
		u := left[o]
		if u == nil {
			u = &unseen{of: map[*process]*sampledPart{}}
			left[o] = u
			order = append(order, o)
		}
		rest := g.amount
		var partly []part
		var expected amount
		few := false
		for _, h := range held {
			p := q.processes.list[h.process]
			rest.subtract(h.amount)
			found := part{group: g, process: p, amount: h.amount}
			if p.weight() == 1 {
				parts = append(parts, found)
				continue
			}
			partly = append(partly, found)
			more := h.times(p.weight() - 1)
			expected.add(more)
			few = few || h.heavy < fewHeavy
			if u.of[p] == nil {
				u.of[p] = new(sampledPart)
				u.order = append(u.order, p)
			}
			u.of[p].expected += more.count
		}
		missed := accountedFor(&rest, expected.count)
		for _, p := range partly {
			more := p.times(p.process.weight() - 1)
			share := more.count / expected.count
			u.of[p.process].given += rest.count * share
			p.count += rest.count * share
			if !few && expected.bytes > 0 {
				share = more.bytes / expected.bytes
			}
			p.bytes += rest.bytes * share
			p.estimated = len(partly) > 1 || missed.count > 0
			parts = append(parts, p)
		}
		if g.loose && missed.count > 0 {
			parts = append(parts, part{group: g, amount: missed})
		} else {
			u.add(missed)
		}
	}
	for _, o := range order {
		parts = append(parts, left[o].parts(o)...)
	}
	return parts
}

// accountedFor subtracts from rest what samples representing the expected number of
// things do not account for, and returns it. Their error is assumed to be a tenth.
func accountedFor(rest *amount, expected float64) (missed amount) {
	if expected >= 0.9*rest.count {
		return amount{}
	}
	missed = *rest
	missed.subtract(rest.times(expected / rest.count))
	rest.subtract(missed)
	return missed
}

// parts gives what is left over of an opener to the processes that should have more.
func (u *unseen) parts(o opener) (parts []part) {
	if u.count == 0 {
		return nil
	}
	// The sockets are of several groups, which have nothing in common.
	g := &group{key: key{id: o.cgroup, user: o.user, out: true}}
	wanting := 0.0
	for _, s := range u.of {
		wanting += max(s.expected-s.given, 0)
	}
	rest := u.amount
	missed := accountedFor(&rest, wanting)
	for _, p := range u.order {
		if s := u.of[p]; s.expected > s.given {
			parts = append(parts, part{g, p, rest.times((s.expected - s.given) / wanting), len(u.of) > 1 || missed.count > 0})
		}
	}
	if missed.count > 0 {
		parts = append(parts, part{group: g, amount: missed})
	}
	return parts
}

// addOwners adds a group for each process, unit or pod that has parts.
func (q *inquiry) addOwners(parts []part) {
	type entry struct {
		Group
		of    map[*process]amount
		marks map[end]float64
	}
	entries := map[string]*entry{}
	var order []string
	// What a sample represents is known exactly if all of it goes into one group.
	of := map[*group]string{}
	split := map[*group]bool{}
	groups := make([]Group, len(parts))
	nameOf := func(g Group) string { return fmt.Sprint(g.Who, "\x00", g.PID, "\x00", g.User, "\x00", g.Unit) }
	for i, p := range parts {
		groups[i] = q.ownerGroup(p)
		if !p.estimated && p.process != nil {
			continue
		}
		if name, known := of[p.group]; known && name != nameOf(groups[i]) {
			split[p.group] = true
		} else {
			of[p.group] = nameOf(groups[i])
		}
	}
	for i, p := range parts {
		g := groups[i]
		name := nameOf(g)
		e := entries[name]
		if e == nil {
			e = &entry{Group: g, of: map[*process]amount{}, marks: map[end]float64{}}
			entries[name] = e
			order = append(order, name)
		}
		e.Count += p.count
		e.Memory += p.bytes
		e.Estimated = e.Estimated || p.estimated && split[p.group]
		if p.process != nil {
			a := e.of[p.process]
			a.add(p.amount)
			e.of[p.process] = a
		}
		if what := (end{p.group.from, p.group.fromPort, p.group.out}); what != (end{out: true}) {
			e.marks[what] += q.answer.measure(Group{Count: p.count, Memory: p.bytes})
		}
	}
	for _, name := range order {
		e := entries[name]
		e.score = q.answer.measure(e.Group)
		for end, weight := range e.marks {
			if 2*weight >= e.score && weight > 0 {
				e.Mostly = end.String()
			}
		}
		if q.By != ByProcess {
			q.nameProcesses(&e.Group, e.of)
		}
		q.answer.add(e.Group)
	}
}

// ownerGroup returns the group that a part belongs to, without numbers.
func (q *inquiry) ownerGroup(p part) (g Group) {
	whose, cgroup := q.socketOwner(p.group.id)
	if p.process != nil {
		q.withOwner(p.process)
		if p.process.owner.Name != "" || whose.Name == "" {
			whose, cgroup = p.process.owner, p.process.cgroup
		}
		g.PID, g.User = p.process.pid, q.user(p.process.user)
	} else if !p.group.loose {
		g.User = q.user(p.group.user)
	}
	g.Unit, g.Namespace, g.Pod = cmp.Or(whose.Name, cgroup), whose.Namespace, whose.Pod
	switch q.By {
	case ByProcess:
		switch {
		case p.process != nil:
			g.Who = p.process.label()
		case p.group.loose:
			g.Who = "no process"
		default:
			g.Who = "not found"
		}
	case ByPod:
		g.Who = "in no pod"
		if g.Pod != "" {
			g.Who = g.Namespace + "/" + g.Pod
		}
		g.PID, g.User, g.Unit = 0, "", ""
	default:
		g.Who = g.Unit
		if g.Who == "" || g.Who == "/" {
			g.Who = "in no unit"
			if g.User != "" {
				g.Who += ", user " + g.User
			}
		}
		g.PID, g.User, g.Unit = 0, "", ""
	}
	return g
}

// label returns the name and PID of a process.
func (p *process) label() string { return fmt.Sprintf("%s[%d]", p.name, p.pid) }

// shownProcesses is how many processes of a group are named.
const shownProcesses = 2

// nameProcesses names the processes that have the most of a group.
func (q *inquiry) nameProcesses(g *Group, of map[*process]amount) {
	var all []*process
	for p := range of {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *process) int {
		x, y := of[a], of[b]
		return cmp.Or(cmp.Compare(q.answer.measure(Group{Count: y.count, Memory: y.bytes}), q.answer.measure(Group{Count: x.count, Memory: x.bytes})),
			cmp.Compare(y.count, x.count), cmp.Compare(a.pid, b.pid))
	})
	for _, p := range all[:min(len(all), shownProcesses)] {
		g.Processes = append(g.Processes, p.label())
	}
	g.MoreProcesses = max(len(all)-shownProcesses, 0)
}

// addSocketGroups adds the groups of a walk that are not made of processes.
func (q *inquiry) addSocketGroups(v *socketVisitor) {
	for i, held := range q.tally.heldOf() {
		t := &q.tally.groups[i]
		g := Group{Count: t.count, Memory: t.bytes, score: t.score, Netns: q.netns(t.place)}
		switch q.By {
		case ByListener:
			g.Who = end{t.from, t.fromPort, t.out}.String()
		case ByPeer:
			if g.Who = address(t.to, t.toPort); unspecified(t.to) {
				g.Who = "nobody, listening"
			}
		case BySource:
			g.Who = address(t.from, 0)
		case ByDestination:
			g.Who = address(t.from, 0) + " → " + address(t.to, t.toPort)
		default:
			g.Who = sockdiag.State(t.state).String()
		}
		of := map[*process]amount{}
		for _, h := range held {
			p := q.processes.list[h.process]
			of[p] = h.times(p.weight())
		}
		q.nameProcesses(&g, of)
		if id, ok := t.agreed(); ok && q.By != ByState {
			whose, cgroup := q.socketOwner(id)
			g.Unit, g.Namespace, g.Pod = cmp.Or(whose.Name, cgroup), whose.Namespace, whose.Pod
		}
		if v.ephemeral && q.By == ByDestination {
			g.Limit = v.limits[t.place]
		}
		q.answer.add(g)
	}
}
