package collector

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// netnsVisitor reads one namespace after another, with the readers that also read the
// host's.
type netnsVisitor struct {
	*Scope
	tour                           *kernel.Tour
	sockstat, sockstat6, conntrack kernel.File
	timeWaitMax, portRange         kernel.File
	tcpCounters, udpCounters       func(context.Context, *netstat) error
	listeners                      func(context.Context, *tcp) error
	ports                          func(context.Context, *ports) error
	requests                       func(context.Context) (netnsUse, error)
	unix                           func(context.Context, *unixSockets) error
	udp                            func(context.Context) (*udpVisitor, error)
	// places are, for each counter, the indexes of the host's counters that it sums up.
	places [netnsCounterCount][]int
	// requestCounters are the indexes of netnsRequestCounters.
	requestCounters []int
	buf             []byte
	// brief is set if only the numbers of sockets and connections are wanted.
	brief bool
}

func newNetnsVisitor(k *Scope, t *kernel.Tour) *netnsVisitor {
	v := &netnsVisitor{
		Scope: k, tour: t,
		sockstat: t.File("sockstat"), sockstat6: t.File("sockstat6"), conntrack: t.File("stat/nf_conntrack"),
		timeWaitMax: t.Sysctl("net.ipv4.tcp_max_tw_buckets"), portRange: t.Sysctl("net.ipv4.ip_local_port_range"),
		tcpCounters: netstatOf(t.Netns, "netstat"), udpCounters: netstatOf(t.Netns, "snmp", "snmp6"),
		listeners: listenersOf(t.Netns, k.Top),
		// Only the fullest is reported.
		unix: unixOf(t.Netns, 1), udp: udpQueuesOf(t.Netns, 1),
		buf: make([]byte, 4096),
	}
	for place, c := range netstatCounters() {
		if slices.Contains(netnsRequestCounters(), c.name) {
			v.requestCounters = append(v.requestCounters, place)
		}
		for i, n := range netnsCounters() {
			for _, name := range n.of {
				if name == c.name {
					v.places[i] = append(v.places[i], place)
				}
			}
		}
	}
	return v
}

// look reads a namespace through the first of its processes that still exists.
func (v *netnsVisitor) look(ctx context.Context, at netnsPlace) (n netnsReading, err error) {
	if at.path != "" {
		return v.lookMounted(ctx, at)
	}
	err = errMoved
	for _, process := range at.processes {
		if n, err = v.lookBy(ctx, at, process); !errors.Is(err, errMoved) {
			break
		}
	}
	return n, err
}

// lookBy reads a namespace through a process. The reading is valid if the process was in
// that namespace before and after.
func (v *netnsVisitor) lookBy(ctx context.Context, at netnsPlace, process string) (n netnsReading, err error) {
	lost := v.tour.Visit(process, func(entered error) error {
		if !v.tour.At(at.id) {
			err = errMoved
			return nil
		}
		n = netnsReading{id: at.id, limited: entered == nil, settings: at.past.settings}
		if n.limited {
			n.mount, _ = v.MountID(process)
		}
		// The same processes in the same namespace have the same owner.
		if !at.fresh && at.past.settled(at.processes) {
			n.claim = at.past.claim
		} else {
			n.claims, err = v.claims(at)
		}
		err = errors.Join(err, v.read(ctx, at, &n))
		if !v.tour.At(at.id) {
			err = errMoved
		}
		return nil
	})
	return n, cmp.Or(lost, err)
}

// claims returns the owners that the processes in a namespace claim.
func (v *netnsVisitor) claims(at netnsPlace) (claims []owner.Claim, err error) {
	for _, process := range at.processes {
		if id, err := v.ID(process); err != nil || id != at.id {
			continue
		}
		b, err := v.file(process + "/cgroup")
		if procfile.IsGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		claim := owner.Claimed(b)
		if id, err := v.ID(process); err == nil && id == at.id {
			claims = append(claims, claim)
		}
	}
	return claims, nil
}

// lookMounted reads a namespace that is bound to a file.
func (v *netnsVisitor) lookMounted(ctx context.Context, at netnsPlace) (n netnsReading, err error) {
	var here error
	err = v.tour.VisitName(at.path, func() error {
		n = netnsReading{limited: true, mount: at.id}
		if n.id, here = v.tour.ID(); here == nil {
			here = v.read(ctx, at, &n)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) { // it is no longer mounted
		err = errMoved
	}
	return n, cmp.Or(err, here)
}

// read reads the namespace that the tour is at. Its error names everything that could not
// be read; then the namespace is left out.
func (v *netnsVisitor) read(ctx context.Context, at netnsPlace, n *netnsReading) error {
	var p parse.Problems
	v.readSockstat(n, &p)
	if v.brief {
		v.readConntrack(n, &p)
		return p.Err()
	}
	p.Add(v.count(ctx, v.tcpCounters, n))
	if n.udp.Value > 0 || at.past.udp.Value > 0 || at.fresh {
		p.Add(v.count(ctx, v.udpCounters, n))
	} else {
		n.counters[netnsUDPErrors] = at.past.counters[netnsUDPErrors]
	}
	v.readConntrack(n, &p)
	if n.limited {
		v.readTCP(ctx, at, n, &p)
		v.readQueues(ctx, n, &p)
	}
	return p.Err()
}

// count reads counters of a network namespace.
func (v *netnsVisitor) count(ctx context.Context, read func(context.Context, *netstat) error, n *netnsReading) error {
	var counters netstat
	err := read(ctx, &counters)
	if isNotSupported(err) {
		return nil
	}
	for i, places := range v.places {
		for _, place := range places {
			if c := counters[place]; c.Present {
				n.counters[i] = n.counters[i].OrZero().Plus(c)
			}
		}
	}
	for _, place := range v.requestCounters {
		if c := counters[place]; c.Present {
			n.requested = n.requested.OrZero().Plus(c)
		}
	}
	return err
}

// file reads a small file of procfs. The result is valid until the next call.
func (v *netnsVisitor) file(name string) ([]byte, error) {
	path := filepath.Join(v.ProcPath, name)
	v.Place.Enter(&path)
	defer v.Place.Leave()
	return procfile.ReadOnce(path, v.buf)
}

func (v *netnsVisitor) readSockstat(n *netnsReading, p *parse.Problems) {
	b, err := optional(v.sockstat)
	p.Add(err)
	if b == nil {
		return
	}
	ipv4, err := parse.Sockstat(b, v.sockstat.Path(), 0)
	p.Add(err)
	var ipv6 parse.FamilySockets // none without IPv6
	b, err = optional(v.sockstat6)
	p.Add(err)
	if b != nil {
		ipv6, err = parse.Sockstat6(b, v.sockstat6.Path())
		p.Add(err)
	}
	n.inuse, n.timeWait = ipv4.TCP.Plus(ipv6.TCP.OrZero()), ipv4.TimeWait
	n.udp = ipv4.UDP.Plus(ipv6.UDP.OrZero())
	n.others = ipv4.Used.Minus(n.inuse).Minus(n.udp)
}

func (v *netnsVisitor) readConntrack(n *netnsReading, p *parse.Problems) {
	b, err := optional(v.conntrack)
	p.Add(err)
	if b == nil {
		return
	}
	var sums [3]uint64
	lost, err := parse.CPUTable(b, v.conntrack.Path(), []string{"entries", "drop", "insert_failed"}, func(_, column int, value uint64) {
		if column == 0 {
			sums[0] = value // that of the whole table, in each row
		} else {
			sums[column] += value
		}
	})
	p.Add(err)
	for i, into := range []*Number{&n.conntrack, &n.counters[netnsConntrackDrops], &n.clashes} {
		if !lost[i] {
			*into = number(sums[i])
		}
	}
}

// readTCP reads the TCP values that are visible only from within the namespace.
func (v *netnsVisitor) readTCP(ctx context.Context, at netnsPlace, n *netnsReading, p *parse.Problems) {
	if n.inuse.Value+n.timeWait.Value == 0 {
		return // no sockets, so no limit matters
	}
	if at.fresh || n.settings == (netnsSettings{}) {
		p.Add(v.readSettings(&n.settings))
	}
	if most := n.settings.timeWaitMax; most.Value > 0 && n.timeWait.Present {
		n.use(netnsTimeWait, netnsUse{n.timeWait.Value, most.Value, ""})
	}

	var listening tcp
	if err := v.listeners(ctx, &listening); !isNotSupported(err) {
		p.Add(err)
	}
	if listening.queues != nil {
		fullest := top[acceptQueue]{n: v.Top, before: acceptQueue.before}
		for q := range listening.queues {
			fullest.offer(q)
		}
		n.queues = fullest.items
		if len(n.queues) > 0 {
			worst := n.queues[0].worst
			n.use(netnsAcceptQueue, netnsUse{float64(worst.length), float64(worst.limit), n.queues[0].listener.String()})
		}
	}
	if n.hasRequests(&at.past) && len(n.queues) > 0 {
		fullest := at.past.requests // until it is its turn
		if at.turn {
			var err error
			fullest, err = v.readRequests(ctx)
			p.Add(err)
		}
		if fullest.usage > 0 {
			n.use(netnsRequestQueue, fullest)
		}
	}

	// The kernel has one table of connections for all namespaces, and a walk goes through
	// all of it. So it is skipped if there are too few connections for one destination to
	// hold half of the ports.
	if ports := n.settings.ports; ports.Present && n.inuse.Value+n.timeWait.Value >= ports.Value/2 {
		worst, err := v.readPorts(ctx)
		p.Add(err)
		if worst.usage > 0 {
			n.use(netnsPorts, worst)
		}
	}
}

// readQueues reads the queues of unix and UDP sockets, if there are any.
func (v *netnsVisitor) readQueues(ctx context.Context, n *netnsReading, p *parse.Problems) {
	if n.others.Value > 0 {
		var s unixSockets
		if err := v.unix(ctx, &s); !isNotSupported(err) {
			p.Add(err)
		}
		if len(s.queues) > 0 {
			q := s.queues[0]
			n.use(netnsUnixQueue, netnsUse{float64(q.length), float64(q.limit), q.path})
		}
	}
	if n.udp.Value > 0 {
		s, err := v.udp(ctx)
		if !isNotSupported(err) {
			p.Add(err)
		}
		if s != nil && len(s.fullest.items) > 0 {
			q := s.fullest.items[0]
			n.use(netnsUDPQueue, netnsUse{float64(q.used), float64(q.limit), q.socket})
		}
	}
}

// readRequests returns the fullest queue of connection requests.
func (v *netnsVisitor) readRequests(ctx context.Context) (netnsUse, error) {
	if v.requests == nil {
		v.requests = requestsOf(v.tour.Netns)
	}
	return v.requests(ctx)
}

func (v *netnsVisitor) readSettings(s *netnsSettings) (err error) {
	var p parse.Problems
	s.timeWaitMax, err = sysctlNumber(v.timeWaitMax)
	p.Add(err)
	b, err := optional(v.portRange)
	p.Add(err)
	if b != nil {
		low, high, err := parse.PortRange(b, v.portRange.Path())
		p.Add(err)
		if err == nil {
			s.ports = number(int(high) - int(low) + 1)
		}
	}
	return p.Err()
}

// readPorts returns the pair of address and destination that holds the most ephemeral
// ports.
func (v *netnsVisitor) readPorts(ctx context.Context) (netnsUse, error) {
	if v.ports == nil {
		v.ports = portsOf(v.tour.Netns)
	}
	var held ports
	if err := v.ports(ctx, &held); err != nil || held.limit.Value == 0 {
		return netnsUse{}, err
	}
	worst := netnsUse{limit: held.limit.Value}
	var pair tuple
	for t, used := range held.tuples {
		if float64(used) > worst.usage {
			worst.usage, pair = float64(used), t
		}
	}
	if worst.usage > 0 {
		worst.item = pair.from() + " → " + pair.to().String()
	}
	return worst, nil
}
