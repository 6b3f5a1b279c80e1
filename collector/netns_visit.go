package collector

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// netnsVisitor reads one namespace after another, by the readers that read the host's.
type netnsVisitor struct {
	*Scope
	tour                           *kernel.Tour
	sockstat, sockstat6, conntrack kernel.File
	timeWaitMax, portRange         kernel.File
	counters                       func(context.Context, *netstat) error
	listeners                      func(context.Context, *tcp) error
	ports                          func(context.Context, *ports) error
	// places are those of the counters of the host that each counter is the sum of.
	places [netnsCounterCount][]int
	lost   error // why it cannot go on
	buf    []byte
}

func newNetnsVisitor(k *Scope, t *kernel.Tour) *netnsVisitor {
	v := &netnsVisitor{
		Scope: k, tour: t,
		sockstat: t.File("sockstat"), sockstat6: t.File("sockstat6"), conntrack: t.File("stat/nf_conntrack"),
		timeWaitMax: t.Sysctl("net.ipv4.tcp_max_tw_buckets"), portRange: t.Sysctl("net.ipv4.ip_local_port_range"),
		counters:  netstatOf(t.Netns),
		listeners: listenersOf(t.Netns, k.Top),
		buf:       make([]byte, 4096),
	}
	for place, c := range netstatCounters() {
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

// look reads a namespace by the first of its processes that is still there.
func (v *netnsVisitor) look(ctx context.Context, at netnsPlace) (n netnsReading, err error) {
	err = errMoved
	for _, pid := range at.pids {
		if n, err = v.lookBy(ctx, at.id, pid); !errors.Is(err, errMoved) || v.lost != nil {
			break
		}
	}
	return n, err
}

// lookBy reads a namespace by a process. What it read is of that namespace if the
// process was there before and after.
func (v *netnsVisitor) lookBy(ctx context.Context, id uint64, pid int) (n netnsReading, err error) {
	v.lost = v.tour.Visit(pid, func(entered error) error {
		if !v.tour.At(id) {
			err = errMoved
			return nil
		}
		n = netnsReading{id: id, limited: entered == nil}
		err = v.read(ctx, pid, &n)
		if !v.tour.At(id) {
			err = errMoved
		}
		return nil
	})
	return n, err
}

// read reads the namespace that the tour is at. What it cannot read is named in the
// error, and the namespace is left out.
func (v *netnsVisitor) read(ctx context.Context, pid int, n *netnsReading) error {
	var p parse.Problems
	b, err := v.file(strconv.Itoa(pid) + "/cgroup")
	p.Add(err)
	n.cgroup = slices.Clone(b)

	v.readSockstat(n, &p)
	var counters netstat
	if err := v.counters(ctx, &counters); !isNotSupported(err) {
		p.Add(err)
	}
	for i, places := range v.places {
		for _, place := range places {
			if c := counters[place]; c.Present {
				n.counters[i] = n.counters[i].OrZero().Plus(c)
			}
		}
	}
	v.readConntrack(n, &p)
	if n.limited {
		v.readInside(ctx, n, &p)
	}
	return p.Err()
}

// file reads a small file of procfs, valid until the next one.
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
			sums[0] = value // the whole table's, in each row
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

// readInside reads what only a thread in the namespace sees.
func (v *netnsVisitor) readInside(ctx context.Context, n *netnsReading, p *parse.Problems) {
	most, err := sysctlNumber(v.timeWaitMax)
	p.Add(err)
	if most.Value > 0 && n.timeWait.Present {
		n.saturation[netnsTimeWait] = number(n.timeWait.Value / most.Value)
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
			n.saturation[netnsAcceptQueue] = number(n.queues[0].saturation())
		}
	}
	v.readPorts(ctx, n, p)
}

// readPorts walks the connections of the namespace if there are enough of them for a
// destination to hold half of the ports. The kernel's table of them is that of all
// namespaces, and the walk goes through all of it.
func (v *netnsVisitor) readPorts(ctx context.Context, n *netnsReading, p *parse.Problems) {
	b, err := optional(v.portRange)
	p.Add(err)
	if b == nil {
		return
	}
	low, high, err := parse.PortRange(b, v.portRange.Path())
	p.Add(err)
	if err != nil || n.inuse.Value+n.timeWait.Value < float64(high-low+1)/2 {
		return
	}
	if v.ports == nil {
		v.ports = portsOf(v.tour.Netns)
	}
	var held ports
	if err := v.ports(ctx, &held); err != nil {
		p.Add(err)
		return
	}
	used := uint32(0)
	for _, n := range held.tuples {
		used = max(used, n)
	}
	if held.limit.Value > 0 {
		n.saturation[netnsPorts] = number(float64(used) / held.limit.Value)
	}
}
