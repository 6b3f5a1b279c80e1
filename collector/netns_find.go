package collector

import (
	"cmp"
	"context"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
)

// A FoundNetns is a network namespace other than the host's. It holds nothing open.
type FoundNetns struct {
	// ID is what kernel.Machine.ID returns for a process in it, or 0 if it cannot be
	// known.
	ID uint64
	// Owner is the owner of the namespace. No other namespace has its name.
	owner.Owner
	// Processes are some that were in it, named as for kernel.Tour.Visit. If it has none,
	// Path is its name for kernel.Tour.VisitName.
	Processes []string
	Path      string
	// Enterable is set if this process may enter it.
	Enterable bool
	// TCP and UDP count sockets of both address families, TimeWait mini-sockets, and
	// Conntrack tracked connections.
	TCP, TimeWait, UDP, Conntrack Number
}

// FindNetns finds the network namespaces other than the host's, sorted by name. If some
// could not be read, it returns an error and the others. In a copy of a procfs there are
// none.
func FindNetns(ctx context.Context, k *Scope) ([]FoundNetns, error) {
	r := newNetnsReader(k)
	r.looker = func(k *Scope, t *kernel.Tour) looker {
		v := newNetnsVisitor(k, t)
		v.brief = true
		return v.look
	}
	var s namespaces
	err := r.read(ctx, &s)
	if isNotSupported(err) {
		err = nil
	}
	var found []FoundNetns
	for i := range s.all {
		n := &s.all[i]
		found = append(found, FoundNetns{
			ID: n.id, Owner: n.owner, Processes: n.at.processes, Path: n.at.path, Enterable: n.limited,
			TCP: n.inuse, TimeWait: n.timeWait, UDP: n.udp, Conntrack: n.conntrack,
		})
	}
	slices.SortFunc(found, func(a, b FoundNetns) int { return cmp.Compare(a.Name, b.Name) })
	return found, err
}
