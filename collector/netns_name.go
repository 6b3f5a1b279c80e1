package collector

import (
	"cmp"
	"path/filepath"
	"strconv"

	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// chosen chooses the owner of a namespace from the claims of processes in it. A pod or a
// container takes precedence over a unit. If claims differ, for example while a process
// of another pod is in it, chosen returns the previous owner, had, if it is among them,
// or else the one that more than half of them name, or else none.
func chosen(claims []owner.Claim, had owner.Claim) owner.Claim {
	rank := func(c owner.Claim) int {
		if c.Kind == owner.Unit {
			return 1
		}
		if c.Kind != "" {
			return 2
		}
		return 0
	}
	best, of := 0, map[owner.Claim]int{}
	for _, c := range claims {
		best = max(best, rank(c))
	}
	all := 0
	for _, c := range claims {
		if rank(c) == best {
			of[c]++
			all++
		}
	}
	if of[had] > 0 {
		return had
	}
	for c, n := range of {
		if 2*n > all {
			return c
		}
	}
	return owner.Claim{}
}

// name names the namespaces that have no owner after the file that they are bound to.
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

// distinguish gives each namespace a unique name. If several would have the same name,
// for example in a pod that created another namespace, the one that had it last time
// keeps it, or else the first. Those without a name are named by their number: the one
// that lsns shows, if it can be read.
func (h *netnsHistory) distinguish(all []netnsReading) {
	taken := map[string]int{}
	for i := range all {
		n := &all[i]
		n.owner.Name = parse.Printable(n.owner.Name)
		if past := h.of[n.id]; n.owner.Name != "" && past != nil && past.name == n.owner.Name {
			taken[n.owner.Name] = i
		}
	}
	for i := range all {
		n := &all[i]
		if of, ok := taken[n.owner.Name]; n.owner.Name == "" || ok && of != i {
			n.owner.Name = "inode/" + strconv.FormatUint(cmp.Or(n.mount, n.id), 10)
		}
		taken[n.owner.Name] = i
		if past := h.of[n.id]; past != nil {
			past.name = n.owner.Name
		}
	}
}
