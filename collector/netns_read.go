package collector

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

const (
	// maxNamespaces bounds how many namespaces are looked at and remembered: any user
	// may make some.
	maxNamespaces = 4096
	// maxWitnesses is by how many of its processes a namespace is looked for: the first
	// may end, or leave it.
	maxWitnesses = 3
	// netnsPatience is how long a namespace may take until the others go on without it.
	netnsPatience = time.Second
)

// errMoved means that what was to lead to a namespace does not any more: the process
// has ended, or is elsewhere.
var errMoved = errors.New("no process is in it any more")

// A looker reads a namespace. Its error is errMoved where there is none any more, and
// kernel.ErrLost where the tour is at its end.
type looker func(context.Context, netnsPlace) (netnsReading, error)

// A netnsPlace is where a namespace was found: at processes, or at a mount.
type netnsPlace struct {
	// id is that of the namespace; at a mount it is the inode number of that.
	id   uint64
	pids []int
	path string
	// past is what the namespace was when it was last read.
	past netnsPast
	// fresh is set where what seldom changes is to be read again.
	fresh bool
}

// netnsSettings are the settings of a namespace.
type netnsSettings struct {
	timeWaitMax Number
	// ports counts the range that connect hands out.
	ports Number
}

// netnsReader looks at every network namespace but the host's. It keeps nothing of
// them open.
type netnsReader struct {
	*Scope
	conntrackMax kernel.File // one value for all, each of which may have as many
	mountinfo    kernel.File // of the host's mount namespace
	pods         *owner.Pods
	// looker returns what looks at namespaces on a tour.
	looker  func(*Scope, *kernel.Tour) looker
	history netnsHistory
	host    uint64 // the ID of the host's namespace

	mu sync.Mutex
	// hanging are the namespaces from which a visit has not come back.
	hanging map[uint64]bool
}

func newNetnsReader(k *Scope) *netnsReader {
	return &netnsReader{
		Scope:        k,
		conntrackMax: k.GlobalSysctl("net.netfilter.nf_conntrack_max"),
		mountinfo:    k.Proc("1/mountinfo"),
		pods:         owner.NewPods(k.PodsPath),
		looker:       func(k *Scope, t *kernel.Tour) looker { return newNetnsVisitor(k, t).look },
		history:      netnsHistory{of: map[uint64]*netnsPast{}},
		hanging:      map[uint64]bool{},
	}
}

func (r *netnsReader) read(ctx context.Context, s *namespaces) error {
	if err := r.View().Processes; err != nil {
		return err
	}
	places, crowded, err := r.find(ctx)
	if err != nil {
		return err
	}
	var p parse.Problems
	conntrackMax, err := sysctlNumber(r.conntrackMax)
	p.Add(err)

	there, missed := crowded, crowded
	var failed, unnamed error // the first one's
	r.history.begin()
	took := func(at netnsPlace, n netnsReading, err error) {
		if errors.Is(err, errMoved) {
			return
		}
		there++
		if err != nil {
			missed++
			failed = cmp.Or(failed, err)
			r.history.keep(at.id)
			return
		}
		if n.conntrack.Present && conntrackMax.Value > 0 {
			n.saturation[netnsConntrack] = number(n.conntrack.Value / conntrackMax.Value)
		}
		n.owner, err = r.pods.Owner(n.cgroup)
		unnamed = cmp.Or(unnamed, err)
		r.history.note(&n)
		s.all = append(s.all, n)
	}
	if err := r.visit(ctx, places, took); err != nil {
		return err
	}
	mounts := r.mounts()
	if err := r.visit(ctx, r.unseen(mounts, s.all), func(at netnsPlace, n netnsReading, err error) {
		known := n.id == r.host || slices.ContainsFunc(s.all, func(o netnsReading) bool { return o.id == n.id })
		if !known && !errors.Is(err, fs.ErrPermission) {
			took(at, n, err)
		}
	}); err != nil {
		return err
	}
	name(s.all, mounts)
	p.Add(unnamed)
	r.history.end()
	distinguish(s.all)
	s.count, s.unreadable, s.top, s.refused = number(there), number(missed), r.Top, r.history.refused
	if float64(missed) > maxUnreadable*float64(there) {
		if failed == nil {
			failed = fmt.Errorf("more than %d are not looked at", maxNamespaces)
		}
		p.Add(fmt.Errorf("%d of %d network namespaces cannot be read, the first: %w", missed, there, failed))
	}
	return p.Err()
}

// find finds the namespaces that have a process, and returns how many more processes
// were in none of them because there are so many.
func (r *netnsReader) find(ctx context.Context) (places []netnsPlace, crowded int, err error) {
	defer r.Place.Leave()
	r.host, err = r.ID(1)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrNotExist) {
		return nil, 0, &NotSupportedError{Feature: "network namespaces", Err: err}
	}
	if err != nil {
		return nil, 0, err
	}
	at := map[uint64]int{}
	err = eachProcess(r.ProcPath, func(pid int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		id, err := r.ID(pid)
		if err != nil || id == r.host {
			return nil // it has ended, or is in the host's
		}
		i, known := at[id]
		switch {
		case known && len(places[i].pids) < maxWitnesses:
			places[i].pids = append(places[i].pids, pid)
		case known:
		case len(places) == maxNamespaces:
			crowded++
		default:
			at[id] = len(places)
			past, fresh := r.history.last(id)
			places = append(places, netnsPlace{id: id, pids: []int{pid}, past: past, fresh: fresh})
		}
		return nil
	})
	return places, crowded, err
}

// mounts returns where namespaces are bound to files in the host's mount namespace, as
// this process reaches them. Who may not see that may not enter them either.
func (r *netnsReader) mounts() []parse.NetnsMount {
	b, err := r.mountinfo.Read()
	if err != nil {
		return nil
	}
	mounts := parse.NetnsMounts(b, maxNamespaces)
	if len(mounts) == 0 {
		return nil
	}
	// A mount has a number that no other one has in any mount namespace.
	first, _, _ := bytes.Cut(b, []byte("\n"))
	if own, err := os.ReadFile("/proc/self/mountinfo"); err == nil && bytes.HasPrefix(own, append(first, '\n')) {
		return mounts
	}
	for i := range mounts {
		mounts[i].Path = filepath.Join(r.ProcPath, "1/root", mounts[i].Path)
	}
	return mounts
}

// unseen returns the mounts of namespaces that were not seen at a process. Without the
// privilege to enter namespaces there are none, for it cannot be told which those are.
func (r *netnsReader) unseen(mounts []parse.NetnsMount, all []netnsReading) (places []netnsPlace) {
	seen := map[uint64]bool{}
	for i := range all {
		seen[all[i].mount] = true
		if !all[i].limited {
			return nil
		}
	}
	for _, m := range mounts {
		if !seen[m.Inode] {
			places = append(places, netnsPlace{id: m.Inode, path: m.Path})
		}
	}
	return places
}

// name names the namespaces that nobody owns by the file that they are bound to.
func name(all []netnsReading, mounts []parse.NetnsMount) {
	names := map[uint64]string{}
	for _, m := range mounts {
		names[m.Inode] = "name/" + filepath.Base(m.Path)
	}
	for i := range all {
		if n := &all[i]; n.owner.Name == "" && n.mount != 0 {
			n.owner.Name = names[n.mount]
		}
	}
}

// visit has each namespace looked at, and calls took with what came of it. A visit that
// does not come back, or ends its thread, is left behind with it, and the others get
// another one. It fails at the context's end alone.
func (r *netnsReader) visit(ctx context.Context, places []netnsPlace, took func(netnsPlace, netnsReading, error)) error {
	var open []netnsPlace
	for _, at := range places {
		if r.hangs(at.id) {
			took(at, netnsReading{}, errDeadline)
		} else {
			open = append(open, at)
		}
	}
	for len(open) > 0 {
		n, err := r.travel(ctx, open, took)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && n < len(open) {
			took(open[n], netnsReading{}, err)
			n++
		}
		open = open[n:]
	}
	return nil
}

// travel is visit up to the first that does not come back. It returns how many were
// dealt with.
func (r *netnsReader) travel(ctx context.Context, places []netnsPlace, took func(netnsPlace, netnsReading, error)) (int, error) {
	type result struct {
		reading netnsReading
		err     error
	}
	// Handed over one by one they would cost a change of threads each.
	var mu sync.Mutex
	results, left := make([]result, 0, len(places)), false
	ended := make(chan error, 1)
	go func() {
		ended <- r.Tour(func(t *kernel.Tour) error {
			look := r.looker(r.Scope, t)
			for _, at := range places {
				var res result
				if res.reading, res.err = look(ctx, at); errors.Is(res.err, kernel.ErrLost) {
					return res.err
				}
				mu.Lock()
				gone := left
				if !gone {
					results = append(results, res)
				}
				mu.Unlock()
				if gone {
					r.hang(at.id, false)
					return nil
				}
			}
			return nil
		})
	}()
	// leave takes what there is. A visit that is under way goes on without us.
	leave := func(underWay bool) int {
		mu.Lock()
		defer mu.Unlock()
		left = true
		for i, res := range results {
			took(places[i], res.reading, res.err)
		}
		if n := len(results); underWay && n < len(places) {
			r.hang(places[n].id, true)
		}
		return len(results)
	}
	progress := time.NewTicker(netnsPatience)
	defer progress.Stop()
	for before := -1; ; {
		select {
		case err := <-ended:
			return leave(false), err
		case <-ctx.Done():
			return leave(true), ctx.Err()
		case <-progress.C:
			mu.Lock()
			n := len(results)
			mu.Unlock()
			if n > before {
				before = n
				continue
			}
			if n = leave(true); n < len(places) {
				at := places[n]
				took(at, netnsReading{}, fmt.Errorf("that of %v: %w", cmp.Or(at.path, fmt.Sprint("processes ", at.pids)), errDeadline))
				n++
			}
			return n, nil
		}
	}
}

// hang notes whether a visit to a namespace is under way that nobody waits for.
func (r *netnsReader) hang(id uint64, hangs bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if hangs {
		r.hanging[id] = true
	} else {
		delete(r.hanging, id)
	}
}

func (r *netnsReader) hangs(id uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hanging[id]
}

// distinguish gives each namespace a name of its own. Of those that have the same, such
// as a pod in which somebody made another one, the first keeps it.
func distinguish(all []netnsReading) {
	taken := map[string]bool{}
	for i := range all {
		name := &all[i].owner.Name
		if *name = printable(*name); *name == "" || taken[*name] {
			*name = "inode/" + strconv.FormatUint(all[i].id, 10)
		}
		taken[*name] = true
	}
}

// netnsHistory remembers the counters of each namespace.
type netnsHistory struct {
	of      map[uint64]*netnsPast
	reading int // counts them
	refused [netnsCounterCount]Number
}

// netnsPast is a namespace as it was.
type netnsPast struct {
	counters [netnsCounterCount]Number
	clashes  Number
	udp      Number // sockets
	settings netnsSettings
	rose     int
	rise     float64
	reading  int // the last in which it was there
}

func (h *netnsHistory) begin() {
	h.reading++
	for i := range h.refused {
		h.refused[i] = h.refused[i].OrZero()
	}
}

// end forgets the namespaces that have ended.
func (h *netnsHistory) end() {
	for id, past := range h.of {
		if past.reading != h.reading {
			delete(h.of, id)
		}
	}
}

// keep remembers a namespace that is there and could not be read.
func (h *netnsHistory) keep(id uint64) {
	if past := h.of[id]; past != nil {
		past.reading = h.reading
	}
}

// freshEvery is how many readings what seldom changes is believed for. The kernel looks
// for a sysctl of a namespace among those of all, so reading them each time would take a
// time that grows with the square of the namespaces.
const freshEvery = 8

// last returns what a namespace was, and whether what seldom changes is to be read again.
func (h *netnsHistory) last(id uint64) (past netnsPast, fresh bool) {
	known := h.of[id]
	if known == nil {
		return netnsPast{}, true
	}
	return *known, (uint64(h.reading)+id)%freshEvery == 0
}

// note compares a namespace with what it was. All that one has counted that is new has
// happened since the last reading; at the first reading nobody knows when.
func (h *netnsHistory) note(n *netnsReading) {
	past := h.of[n.id]
	if past == nil {
		past = new(netnsPast)
		h.of[n.id] = past
	}
	grown := func(now Number, before *Number) (by float64) {
		if now.Present {
			// A number that is less than it was is of another namespace, which began at 0.
			if by = now.Value; now.Value >= before.Value {
				by -= before.Value
			}
			*before = now
		}
		return by
	}
	rise := 0.0
	var grew [netnsCounterCount]float64
	for i, now := range n.counters {
		grew[i] = grown(now, &past.counters[i])
		rise += grew[i]
	}
	grew[netnsConntrackDrops] = max(grew[netnsConntrackDrops]-grown(n.clashes, &past.clashes), 0)
	if h.reading > 1 {
		for i := range grew {
			h.refused[i].Value += grew[i]
		}
	}
	if rise > 0 {
		past.rose, past.rise = h.reading, rise
	}
	n.rose, n.rise = past.rose, past.rise
	past.udp, past.settings, past.reading = n.udp, n.settings, h.reading
}
