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
	"strings"
	"sync"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

const (
	// maxNamespaces bounds how many namespaces are read and remembered, because any user
	// may create some.
	maxNamespaces = 4096
	// maxWitnesses is how many of its processes a namespace is looked for by: the first
	// may end, leave the namespace, or only visit it.
	maxWitnesses = 8
	// netnsPatience is how long reading a namespace may take before the others continue
	// without it: longer than one with a million sockets takes on a busy host.
	netnsPatience = 3 * time.Second
)

// errMoved means that a path to a namespace no longer leads to it: the process has ended
// or is in another one.
var errMoved = errors.New("it no longer has a process")

// A looker reads a namespace. It returns errMoved if the namespace no longer exists, and
// kernel.ErrLost if the tour has ended.
type looker func(context.Context, netnsPlace) (netnsReading, error)

// A netnsPlace is where a namespace was found: at processes, or at a mount.
type netnsPlace struct {
	// id is the ID of the namespace, or the inode number of the mount.
	id uint64
	// processes are some that are in it, named as for kernel.Tour.Visit.
	processes []string
	path      string
	// past is the namespace as it was last read.
	past netnsPast
	// fresh is set if values that seldom change are to be read again, turn if its
	// connection requests are to be read.
	fresh, turn bool
}

// netnsSettings are the settings of a namespace.
type netnsSettings struct {
	timeWaitMax Number
	// ports is the number of ports that connect may choose from.
	ports Number
}

// netnsReader reads every network namespace except the host's. It keeps nothing of them
// open.
type netnsReader struct {
	*Scope
	conntrackMax kernel.File // one value, for every namespace separately
	mountinfo    kernel.File // of the host's mount namespace
	pods         *owner.Pods
	// looker returns the function that reads namespaces on a tour.
	looker  func(*Scope, *kernel.Tour) looker
	history netnsHistory
	host    uint64 // the ID of the host's namespace
	found   netnsMemory

	mu sync.Mutex
	// hanging are the namespaces from which a visit has not returned.
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
	var failed, unnamed error                  // the first errors
	unread, hidden := map[uint64]bool{}, false // mounts of those that failed
	r.history.begin()
	took := func(at netnsPlace, n netnsReading, err error) {
		if errors.Is(err, errMoved) {
			return
		}
		there++
		if err != nil {
			missed++
			failed = cmp.Or(failed, err)
			for _, process := range at.processes {
				r.history.keep(at.id)
				mount, err := r.MountID(process)
				unread[mount], hidden = true, hidden || err != nil
			}
			return
		}
		if n.conntrack.Present && conntrackMax.Value > 0 {
			n.use(netnsConntrack, netnsUse{n.conntrack.Value, conntrackMax.Value, ""})
		}
		n.claim = cmp.Or(n.claim, chosen(n.claims, at.past.claim))
		n.owner, err = r.pods.Of(n.claim)
		unnamed = cmp.Or(unnamed, err)
		r.history.note(&n, at.processes)
		n.at = at
		s.all = append(s.all, n)
	}
	if err := r.visit(ctx, places, took); err != nil {
		return err
	}
	mounts := r.mounts()
	var unseen []netnsPlace
	if !hidden {
		unseen = r.unseen(mounts, s.all, unread)
	}
	if err := r.visit(ctx, unseen, func(at netnsPlace, n netnsReading, err error) {
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
	r.history.distinguish(s.all)
	s.count, s.unreadable, s.top, s.refused = number(there), number(missed), r.Top, r.history.refused
	if float64(missed) > maxUnreadable*float64(there) {
		if failed == nil {
			failed = fmt.Errorf("no more than %d are read", maxNamespaces)
		}
		p.Add(fmt.Errorf("%d of %d network namespaces cannot be read, first error: %w", missed, there, failed))
	}
	return p.Err()
}

// find finds the namespaces that have a process. crowded is the number of further
// processes outside these, left out because there are too many namespaces.
func (r *netnsReader) find(ctx context.Context) (places []netnsPlace, crowded int, err error) {
	defer r.Place.Leave()
	r.host, err = r.ID("1")
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrNotExist) {
		return nil, 0, &NotSupportedError{Feature: "network namespaces", Err: err}
	}
	if err != nil {
		return nil, 0, err
	}
	at := map[uint64]int{}
	r.found.begin(time.Now())
	err = procfile.EachProcess(r.ProcPath, func(pid int, inode uint64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		process, id, err := r.found.find(pid, inode, func() (string, uint64, error) {
			process := strconv.Itoa(pid)
			id, err := r.ID(process)
			if err != nil {
				return r.thread(process)
			}
			return process, id, nil
		})
		if err != nil || id == r.host {
			return nil // it has ended, or is in the host's
		}
		i, known := at[id]
		switch {
		case known && len(places[i].processes) < maxWitnesses:
			places[i].processes = append(places[i].processes, process)
		case known:
		case len(places) == maxNamespaces:
			crowded++
		default:
			at[id] = len(places)
			past, fresh := r.history.last(id)
			places = append(places, netnsPlace{id: id, processes: []string{process}, past: past, fresh: fresh, turn: r.history.turn(id)})
		}
		return nil
	})
	return places, crowded, err
}

// thread returns a thread of a process whose first thread has ended, and the network
// namespace of that thread.
func (r *netnsReader) thread(process string) (thread string, id uint64, err error) {
	threads, err := os.ReadDir(filepath.Join(r.ProcPath, process, "task"))
	if err != nil {
		return "", 0, err
	}
	err = fs.ErrNotExist
	for _, t := range threads {
		if t.Name() == process {
			continue
		}
		thread = process + "/task/" + t.Name()
		if id, err = r.ID(thread); err == nil {
			break
		}
	}
	return thread, id, err
}

// mounts returns the files that namespaces are bound to in the host's mount namespace, by
// the path at which this process reaches them. A process that may not see them may not
// enter the namespaces either.
func (r *netnsReader) mounts() []parse.NetnsMount {
	b, err := r.mountinfo.Read()
	if err != nil {
		return nil
	}
	mounts := parse.NetnsMounts(b, maxNamespaces)
	if len(mounts) == 0 {
		return nil
	}
	// The number of a mount is unique across mount namespaces.
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
// privilege to enter namespaces it returns none, because it cannot know which those are.
func (r *netnsReader) unseen(mounts []parse.NetnsMount, all []netnsReading, seen map[uint64]bool) (places []netnsPlace) {
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

// visit reads each namespace and calls took with the result. A visit that does not
// return, or that ends its thread, is abandoned together with its thread, and the others
// get a new one. visit returns an error only if ctx is done.
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

// travel does what visit does, up to the first visit that does not return. It returns how
// many places were dealt with.
func (r *netnsReader) travel(ctx context.Context, places []netnsPlace, took func(netnsPlace, netnsReading, error)) (int, error) {
	type result struct {
		reading netnsReading
		err     error
	}
	// Handing results over one by one would cost a thread switch each.
	var mu sync.Mutex
	results, left, over := make([]result, 0, len(places)), false, false
	ended := make(chan error, 1)
	go func() {
		ended <- r.Tour(func(t *kernel.Tour) error {
			var id uint64
			defer func() { // after a panic too
				mu.Lock()
				defer mu.Unlock()
				if over = true; left {
					r.hang(id, false)
				}
			}()
			look := r.looker(r.Scope, t)
			for _, at := range places {
				var res result
				id = at.id
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
					return nil
				}
			}
			return nil
		})
	}()
	// leave takes the results so far. A visit in progress continues without us.
	leave := func(underWay bool) int {
		mu.Lock()
		defer mu.Unlock()
		left = true
		for i, res := range results {
			took(places[i], res.reading, res.err)
		}
		if n := len(results); underWay && !over && n < len(places) {
			r.hang(places[n].id, true)
		}
		return len(results)
	}
	progress := time.NewTicker(netnsPatience / 4)
	defer progress.Stop()
	for before, since := 0, time.Now(); ; {
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
				before, since = n, time.Now()
			}
			if time.Since(since) < netnsPatience {
				continue
			}
			if n = leave(true); n < len(places) {
				at := places[n]
				took(at, netnsReading{}, fmt.Errorf("network namespace of %v: %w", cmp.Or(at.path, "process "+strings.Join(at.processes, ", ")), errDeadline))
				n++
			}
			return n, nil
		}
	}
}

// hang records whether an abandoned visit to a namespace is still in progress.
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
