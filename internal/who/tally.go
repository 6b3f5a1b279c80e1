package who

import (
	"cmp"
	"encoding/binary"
	"slices"
)

const (
	// maxGroups bounds the groups that are kept, to some 4 MB. Up to that many groups all
	// numbers are exact.
	maxGroups = 16384
	// maxHeld bounds how many pairs of a process and a group are kept.
	maxHeld = 4 * maxGroups
)

// amount is a number of things and the bytes that they take.
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

// key identifies a group. A grouping sets the fields that it groups by.
type key struct {
	from, to         [16]byte // addresses, an IPv4 one mapped into IPv6
	id               uint64   // a cgroup, a process, ...
	place            uint32   // index of the network namespace
	user             uint32
	fromPort, toPort uint16
	kind, state      uint8
	out              bool // the connection was not accepted
	loose            bool // no process can have it: it has no inode
}

// recentKeys is a power of two.
const recentKeys = 1 << 10

// hash returns the index of a key in tally.recent. It uses the fields that usually
// differ.
func (k *key) hash() uint32 {
	h := binary.LittleEndian.Uint32(k.from[12:]) + uint32(k.fromPort)<<8
	h = h*31 + binary.LittleEndian.Uint32(k.to[12:]) + uint32(k.toPort)<<8
	h = h*31 + uint32(k.id) + k.user + k.place + uint32(k.kind) + uint32(k.state)
	return h * 2654435769 >> 22 // Knuth's multiplier
}

// group is the things with one key.
type group struct {
	key
	amount
	score float64 // by which groups are kept
	ballot
	limit float64 // of the group, 0 if it has none of its own
}

// ballot is the cgroup that at least half of a group's things belong to, if there is
// one, found by the majority vote of Boyer and Moore. At least votes of cast agree.
type ballot struct {
	cgroup      uint64
	votes, cast float64
}

// vote counts a cgroup.
func (b *ballot) vote(cgroup uint64, weight float64) {
	b.cast += weight
	switch {
	case b.cgroup == cgroup:
		b.votes += weight
	case b.votes < weight:
		b.cgroup, b.votes = cgroup, weight-b.votes
	default:
		b.votes -= weight
	}
}

// agreed returns the cgroup that at least half of the things belong to.
func (b *ballot) agreed() (cgroup uint64, ok bool) {
	return b.cgroup, b.votes > 0 && 2*b.votes >= b.cast
}

// tally counts things by group in bounded memory, and finds the largest groups. It uses
// the algorithm of Misra and Gries, like frequent of package collector: when there are
// too many groups, the half with the least is dropped, and the maximum of those is
// subtracted from all.
type tally struct {
	most   int
	places map[key]uint32 // indexes in groups
	groups []group
	held   map[holding]*portion
	all    amount
	// recent caches the indexes of groups that were added to, by the hash of their key.
	// It avoids most lookups in the map.
	recent [recentKeys]uint32
	// dropped is the maximum by which the score of a group can be too low.
	dropped float64
}

// holding identifies a process's part of a group.
type holding struct{ group, process uint32 }

func newTally(most int) *tally {
	return &tally{most: most, places: map[key]uint32{}, held: map[holding]*portion{}}
}

// add counts things of a group and returns the group's index, which is valid until the
// next call.
func (t *tally) add(k key, a amount, score float64) uint32 {
	t.all.add(a)
	recent := &t.recent[k.hash()]
	at, known := *recent, int(*recent) < len(t.groups) && t.groups[*recent].key == k
	if !known {
		at, known = t.places[k]
	}
	if !known {
		if len(t.groups) == t.most {
			t.prune()
		}
		at = uint32(len(t.groups))
		t.groups = append(t.groups, group{key: k})
		t.places[k] = at
	}
	*recent = at
	g := &t.groups[at]
	g.add(a)
	g.score += score
	return at
}

// portion is the part of a group that a process was seen to have.
type portion struct {
	amount
	heavy int // how many of those have any bytes
}

func (p *portion) add(a amount) {
	p.amount.add(a)
	if a.bytes > 0 {
		p.heavy++
	}
}

// hold returns a process's part of a group, for adding to it.
func (t *tally) hold(at, process uint32) *portion {
	h := holding{at, process}
	p := t.held[h]
	if p == nil {
		p = new(portion)
		if len(t.held) < maxHeld {
			t.held[h] = p
		}
	}
	return p
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
	held := make(map[holding]*portion, len(t.held))
	for h, p := range t.held {
		if to := moved[h.group]; to != t.gone() {
			held[holding{to, h.process}] = p
		}
	}
	t.held = held
}

// gone returns the index of dropped groups.
func (*tally) gone() uint32 { return ^uint32(0) }

// processHeld is a process's part of a group.
type processHeld struct {
	process uint32
	*portion
}

// heldOf returns the parts that processes have of each group, largest first.
func (t *tally) heldOf() [][]processHeld {
	of := make([][]processHeld, len(t.groups))
	for h, p := range t.held {
		of[h.group] = append(of[h.group], processHeld{h.process, p})
	}
	for _, held := range of {
		slices.SortFunc(held, func(a, b processHeld) int {
			return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(b.count, a.count), cmp.Compare(a.process, b.process))
		})
	}
	return of
}
