// Package who finds the holders of what a limit counts: processes, units, pods,
// listeners, peers, or other groups.
//
// The package is a table: rows has a row for every limit, with what its things can be
// grouped by and the function that reads them. Reading streams: a group is a few numbers,
// and sockets are not kept, however many there are. An inquiry runs once and can be
// stopped. It is independent of what the collectors keep open and remember.
package who

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
)

// Grouping is what things are grouped by.
type Grouping string

// The groupings.
const (
	ByProcess     Grouping = "process"
	ByUnit        Grouping = "unit"        // of systemd, or the container or pod
	ByPod         Grouping = "pod"         // of Kubernetes
	ByListener    Grouping = "listener"    // that accepted a connection, or the destination of one that was not accepted
	ByPeer        Grouping = "peer"        // the remote address, with the port if that is a service's
	BySource      Grouping = "source"      // address
	ByDestination Grouping = "destination" // address and port, and from which address
	ByState       Grouping = "state"
	ByKind        Grouping = "kind"
	ByInterface   Grouping = "interface"
)

// Groupings returns all groupings.
func Groupings() []Grouping {
	return []Grouping{ByProcess, ByUnit, ByPod, ByListener, ByPeer, BySource, ByDestination, ByState, ByKind, ByInterface}
}

// A Question describes what to find.
type Question struct {
	// Resource is the key of a limit.
	Resource string
	// By is what to group by; empty means what helps most for the resource.
	By Grouping
	// Top is the maximum number of groups to return.
	Top int
	// Netns is the network namespace to read, as in the label netns of the metrics, or
	// "host". Pod is the pod to read, as <namespace>/<pod>. If both are empty, all
	// namespaces that can be entered are read.
	Netns, Pod string
	// Cgroup is the cgroup to read, as in the label cgroup of the metrics, if the limit
	// is that of a cgroup; empty means all.
	Cgroup string
	// Progress, unless nil, is called now and then with the number of things read, and
	// the approximate total, 0 if that is not known.
	Progress func(read, about uint64, things string)
}

// hostNetns is the name of the host's network namespace.
const hostNetns = "host"

// Resources returns the limits that can be asked about.
func Resources() []string {
	var names []string
	for _, r := range rows() {
		names = append(names, r.resource)
	}
	return names
}

// PerNetns reports whether each network namespace has its own limit of this kind.
func PerNetns(resource string) bool {
	return slices.ContainsFunc(rows(), func(r row) bool { return r.resource == resource && r.perNetns })
}

// Check returns an error, in one line for people, if a question cannot be answered on any
// machine.
func Check(q Question) error {
	_, err := find(q)
	return err
}

func find(q Question) (*row, error) {
	all := rows()
	i := slices.IndexFunc(all, func(r row) bool { return r.resource == q.Resource })
	if i < 0 {
		return nil, fmt.Errorf("unknown resource %q: it is one of %s", q.Resource, strings.Join(Resources(), ", "))
	}
	r := &all[i]
	switch {
	case q.Netns != "" && q.Pod != "":
		return nil, errors.New("--netns and --pod cannot be combined")
	case q.Pod != "" && strings.Count(q.Pod, "/") != 1:
		return nil, fmt.Errorf("--pod=%s is not NAMESPACE/POD", q.Pod)
	case r.nobody == "" && q.By != "" && !slices.Contains(r.by, q.By):
		var can []string
		for _, by := range r.by {
			can = append(can, string(by))
		}
		return nil, fmt.Errorf("--by=%s does not apply to %s, which can be grouped by %s", q.By, r.resource, strings.Join(can, ", "))
	case r.machine && q.Netns+q.Pod != "":
		return nil, fmt.Errorf("--netns and --pod do not apply to %s, which is a limit of the whole machine", r.resource)
	}
	return r, nil
}

// Ask answers a question. If the context ends, Ask returns its error and what was found
// until then, if anything.
func Ask(ctx context.Context, k *collector.Scope, question Question) (*Answer, error) {
	r, err := find(question)
	if err != nil {
		return nil, err
	}
	q := &inquiry{Scope: k, Question: question, row: r, ctx: ctx, answer: &Answer{Resource: r.resource, Things: r.things, ByMemory: r.memory}}
	if r.nobody != "" {
		q.answer.Nobody = r.nobody
		return q.answer, nil
	}
	if q.By == "" {
		q.By = r.by[0]
		if r.choose != nil {
			q.By = r.choose(q)
		}
	}
	q.answer.By = q.By
	q.tally = newTally(maxGroups)
	if err := q.choosePlaces(); err != nil {
		return nil, err
	}
	err = r.read(q)
	if err != nil && ctx.Err() == nil {
		return nil, err
	}
	if ctx.Err() != nil {
		err = ctx.Err()
		q.answer.Stopped = true
	}
	q.answer.finish(q.Question.Top)
	return q.answer, err
}

// inquiry is the state of answering a question.
type inquiry struct {
	*collector.Scope
	Question
	row    *row
	ctx    context.Context //nolint:containedctx // it lasts as long as the inquiry
	answer *Answer
	tally  *tally

	// places are the network namespaces to read. The first is the host's.
	places    []place
	processes processTable
	groups    cgroups
}

// place is a network namespace. The first one is the host's.
type place struct {
	collector.FoundNetns
	// skipped is set if the question excludes it.
	skipped bool
}

// note adds a note to the answer, once.
func (q *inquiry) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(q.answer.Notes, text) {
		q.answer.Notes = append(q.answer.Notes, text)
	}
}

// choosePlaces finds the network namespaces that the question is about.
func (q *inquiry) choosePlaces() error {
	q.places = []place{{FoundNetns: collector.FoundNetns{Owner: owner.Owner{Name: hostNetns}}}}
	if q.row.machine {
		return nil
	}
	wanted := q.Netns
	if q.Pod != "" {
		wanted = string(owner.Pod) + "/" + q.Pod
	}
	if wanted == hostNetns {
		return nil
	}
	if q.row.processes && q.Pod != "" {
		return nil // the process itself names its owner
	}
	found, err := collector.FindNetns(q.ctx, q.Scope)
	if err != nil {
		if q.ctx.Err() != nil {
			return q.ctx.Err()
		}
		q.note("Network namespaces are missing: %v.", err)
	}
	q.places[0].skipped = wanted != ""
	known := wanted == ""
	for _, n := range found {
		is := wanted != "" && (n.Name == wanted || n.Name == "name/"+wanted) // as ip netns calls it
		q.places = append(q.places, place{n, wanted != "" && !is})
		known = known || is
	}
	if !known {
		if q.Pod != "" {
			return fmt.Errorf("pod %s has no network namespace of its own: if it uses the host's, see --by=pod --netns=host", q.Pod)
		}
		names := []string{hostNetns}
		for _, n := range found {
			names = append(names, n.Name)
		}
		if len(names) > 10 {
			names = append(names[:10], "...")
		}
		return fmt.Errorf("unknown network namespace %s: it is one of %s", q.Netns, strings.Join(names, ", "))
	}
	return nil
}

// netns returns the name of a place, empty for the host's.
func (q *inquiry) netns(at uint32) string {
	if at == 0 {
		return ""
	}
	return q.places[at].Name
}

// eachNetns calls visit at each place that the question is about, except those that are
// known to be empty: about returns how many things a place has. Places that cannot be
// entered or read are noted. It returns an error if none could be read.
func (q *inquiry) eachNetns(about func(*collector.FoundNetns) collector.Number, visit func(n *kernel.Netns, at uint32) error) error {
	var failed, last error
	read, closed, missing, example := 0, 0, 0.0, ""
	took := func(at int, err error) error {
		switch {
		case q.ctx.Err() != nil:
			return q.ctx.Err()
		case err == nil:
			read++
		default:
			last = fmt.Errorf("network namespace %s: %w", q.places[at].Name, err)
			if failed == nil {
				failed = last
			}
		}
		return nil
	}
	if !q.places[0].skipped {
		if err := took(0, visit(q.Host, 0)); err != nil {
			return err
		}
	}
	if len(q.places) == 1 {
		q.answer.Namespaces = read
		return failed
	}
	err := q.Tour(func(t *kernel.Tour) error {
		for i := 1; i < len(q.places); i++ {
			p := &q.places[i]
			if n := about(&p.FoundNetns); p.skipped || n.Present && n.Value == 0 {
				continue
			}
			if !p.Enterable {
				closed++
				missing += about(&p.FoundNetns).Value
				if example == "" {
					example = p.Name
				}
				continue
			}
			there, err := visitNetns(t, &p.FoundNetns, func() error { return visit(t.Netns, uint32(i)) })
			if errors.Is(err, kernel.ErrLost) {
				return err
			}
			if there {
				if err := took(i, err); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if q.ctx.Err() != nil {
		return q.ctx.Err()
	}
	if err != nil {
		q.note("Network namespaces are missing: %v.", err)
	}
	if closed > 0 {
		q.note("%s in %s, such as %s, are missing (entering them needs CAP_SYS_ADMIN and CAP_SYS_PTRACE).",
			some(missing, q.row.things), some(float64(closed), "network namespaces"), example)
	}
	if failed != nil {
		if read == 0 {
			return failed
		}
		q.note("Missing: %v.", failed)
	}
	q.answer.Namespaces = read
	return nil
}

// visitNetns runs visit in a namespace. there is false if the namespace no longer exists.
func visitNetns(t *kernel.Tour, n *collector.FoundNetns, visit func() error) (there bool, err error) {
	if n.Path != "" {
		err = t.VisitName(n.Path, visit)
		return !errors.Is(err, fs.ErrNotExist), err
	}
	for _, process := range n.Processes {
		err = t.Visit(process, func(entered error) error {
			if entered != nil || !t.At(n.ID) {
				return nil // it has ended, or is in another one
			}
			there = true
			return visit()
		})
		if there || err != nil {
			return there, err
		}
	}
	return false, nil
}
