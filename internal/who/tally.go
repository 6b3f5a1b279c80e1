package who

import (
	"cmp"
	"slices"
)

const (
	// maxGroups bounds the groups that are kept: some 4 MB. Up to that many all numbers are
	// exact.
	maxGroups = 16384
	// maxHeld bounds what is kept of which process has how much of which group.
	maxHeld = 4 * maxGroups
)

// amount is how many things there are and how many bytes they take.
type amount struct{ count, bytes float64 }

func (a *amount) add(o amount) {
	a.count += o.count
	a.bytes += o.bytes
}

func (a *amount) subtract(o amount) {
	a.count = max(a.count-o.count, 0)
	a.bytes = max(a.bytes-o.bytes, 0)
}

func (a amount) times(f float64) amount { return amount{a.count * f, a.bytes * f} }

// key tells groups apart. A grouping sets what it goes by.
type key struct {
	from, to         [16]byte // addresses, an IPv4 one mapped into IPv6
	id               uint64   // a cgroup, a process, ...
	place            uint32   // of the network namespace
	user             uint32
	fromPort, toPort uint16
	kind, state      uint8
	out              bool // the connection was not accepted
	loose            bool // no process can have it: it has no inode
}

// mark is what the things of a group may have in common.
type mark struct {
	end
	cgroup uint64
}

// group is the things with one key.
type group struct {
	key
	amount
	score float64 // what it is kept for
	// mark is what most of the things have in common, if more than half have anything: the
	// vote of Boyer and Moore. Those that agree have at least votes of all that was cast.
	mark        mark
	votes, cast float64
	limit       float64 // of the group, 0 if it has none of its own
}

// tally counts things by group, in bounded memory, so that the largest groups come out. It
// is the algorithm of Misra and Gries, as collector's frequent: where there are too many,
// the half with the least is dropped, and what those had at most is taken from all.
type tally struct {
	most   int
	places map[key]uint32 // in groups
	groups []group
	held   map[holding]amount
	all    amount
	// dropped is by how much the score of a group can be too low.
	dropped float64
}

// holding is what a process has of a group.
type holding struct{ group, process uint32 }

func newTally(most int) *tally {
	return &tally{most: most, places: map[key]uint32{}, held: map[holding]amount{}}
}

// add counts things of a group and returns its place, which holds until the next one.
func (t *tally) add(k key, a amount, score float64) uint32 {
	t.all.add(a)
	at, known := t.places[k]
	if !known {
		if len(t.groups) == t.most {
			t.prune()
		}
		at = uint32(len(t.groups))
		t.groups = append(t.groups, group{key: k})
		t.places[k] = at
	}
	g := &t.groups[at]
	g.add(a)
	g.score += score
	return at
}

// vote counts what things have in common.
func (t *tally) vote(at uint32, m mark, weight float64) {
	g := &t.groups[at]
	g.cast += weight
	switch {
	case g.mark == m:
		g.votes += weight
	case g.votes < weight:
		g.mark, g.votes = m, weight-g.votes
	default:
		g.votes -= weight
	}
}

// agreed returns what more than half of a group has in common.
func (g *group) agreed() (mark, bool) { return g.mark, g.votes > 0 && 2*g.votes >= g.cast }

// hold counts things of a group that a process has.
func (t *tally) hold(at, process uint32, a amount) {
	h := holding{at, process}
	old, known := t.held[h]
	if !known && len(t.held) == maxHeld {
		return
	}
	old.add(a)
	t.held[h] = old
}

func (t *tally) prune() {
	scores := make([]float64, len(t.groups))
	for i, g := range t.groups {
		scores[i] = g.score
	}
	slices.Sort(scores)
	median := scores[len(scores)/2]
	t.dropped += median
	moved := make([]uint32, len(t.groups))
	kept := t.groups[:0]
	clear(t.places)
	for i, g := range t.groups {
		if g.score <= median {
			moved[i] = t.gone()
			continue
		}
		g.score -= median
		moved[i] = uint32(len(kept))
		t.places[g.key] = moved[i]
		kept = append(kept, g)
	}
	t.groups = kept
	held := make(map[holding]amount, len(t.held))
	for h, a := range t.held {
		if to := moved[h.group]; to != t.gone() {
			held[holding{to, h.process}] = a
		}
	}
	t.held = held
}

// gone is the place of what was dropped.
func (*tally) gone() uint32 { return ^uint32(0) }

// processHeld is what a process has of a group.
type processHeld struct {
	process uint32
	amount
}

// heldOf returns what processes have of each group, the one with the most first.
func (t *tally) heldOf() [][]processHeld {
	of := make([][]processHeld, len(t.groups))
	for h, a := range t.held {
		of[h.group] = append(of[h.group], processHeld{h.process, a})
	}
	for _, held := range of {
		slices.SortFunc(held, func(a, b processHeld) int {
			return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(b.count, a.count), cmp.Compare(a.process, b.process))
		})
	}
	return of
}
