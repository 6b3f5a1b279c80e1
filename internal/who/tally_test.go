package who

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestTally checks that counts are exact if there is room for all groups. Otherwise the
// largest groups are kept, with counts that are too low by at most the amount dropped.
func TestTally(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, most := range []int{10_000, 64} {
		tl := newTally(most)
		want := map[uint64]amount{}
		processes := map[holding]float64{} // by the ID of the group
		for range 20_000 {
			// A few IDs are frequent, and thousands occur once or twice.
			id := uint64(random.IntN(8))
			if random.IntN(2) == 0 {
				id = 100 + uint64(random.IntN(5000))
			}
			a := amount{1, float64(random.IntN(100))}
			w := want[id]
			w.add(a)
			want[id] = w
			at := tl.add(key{id: id}, a, a.count)
			tl.hold(at, uint32(id%3)).add(a)
			processes[holding{uint32(id), uint32(id % 3)}]++
		}
		sum := amount{}
		for w := range maps.Values(want) {
			sum.add(w)
		}
		if tl.all != sum {
			t.Errorf("%d groups: %v of %v", most, tl.all, sum)
		}
		if exact := tl.dropped == 0; exact != (most > 5008) || tl.dropped > 2*20_000/float64(most) {
			t.Errorf("%d groups: %v were dropped", most, tl.dropped)
		}
		held := tl.heldOf()
		for id := range uint64(8) {
			at := slices.IndexFunc(tl.groups, func(g group) bool { return g.id == id })
			if at < 0 {
				t.Fatalf("%d groups: %d is missing", most, id)
			}
			g, w := tl.groups[at], want[id]
			if g.count > w.count || g.count < w.count-tl.dropped || tl.dropped == 0 && g.amount != w {
				t.Errorf("%d groups: %d has %v of %v", most, id, g.amount, w)
			}
			if h := held[at]; len(h) != 1 || uint64(h[0].process) != id%3 || h[0].count > processes[holding{uint32(id), h[0].process}] || h[0].count < g.count {
				t.Errorf("%d groups: %d is held by %+v", most, id, h)
			}
		}
	}
}

// TestBallot checks that the cgroup with more than half of the votes is chosen, and none if
// there is none.
func TestBallot(t *testing.T) {
	for _, c := range []struct {
		cast []float64 // by cgroup
		want uint64
	}{
		{[]float64{0, 0, 9, 1}, 2},
		{[]float64{0, 5, 0, 0}, 1},
		{[]float64{0, 3, 3, 3}, 0},
		{[]float64{0, 0, 0, 0}, 0},
	} {
		// Start with each of the cgroups.
		for shift := range 4 {
			var b ballot
			for i := range 4 {
				cgroup := (i + shift) % 4
				if c.cast[cgroup] > 0 {
					b.vote(uint64(cgroup), c.cast[cgroup])
				}
			}
			if id, ok := b.agreed(); ok != (c.want > 0) || ok && id != c.want {
				t.Errorf("%v from %d: %v, %v", c.cast, shift, id, ok)
			}
		}
	}
}

// TestDistributeSmall checks that sockets in groups too small for a sample are given to the
// process that should have more, up to the number that it has.
func TestDistributeSmall(t *testing.T) {
	crawler := &process{pid: 2, open: 10_000, looked: 100}
	q := &inquiry{answer: new(Answer), tally: newTally(maxGroups)}
	q.processes.list = []*process{crawler}
	for i := range 10_000 {
		at := q.tally.add(key{id: 7, out: true, fromPort: uint16(i + 1)}, amount{1, 10}, 1)
		if i%100 == 0 {
			q.tally.hold(at, 0).add(amount{1, 10})
		}
	}
	q.tally.add(key{id: 7, loose: true}, amount{50, 500}, 1) // no process can have these
	q.tally.add(key{id: 8, fromPort: 1}, amount{30, 300}, 1) // of another owner
	got := map[*process]amount{}
	for _, p := range q.distribute() {
		a := got[p.process]
		a.add(p.amount)
		got[p.process] = a
	}
	if n := got[crawler]; n.count < 9999 || n.count > 10_001 || n.bytes < 99_990 || n.bytes > 100_010 {
		t.Errorf("the crawler has %+v", n)
	}
	if n := got[nil]; n != (amount{80, 800}) {
		t.Errorf("nobody has %+v", n)
	}
}

// TestHolders checks the table against a map.
func TestHolders(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	var h holders
	want := map[uint32]uint32{}
	for range 50_000 {
		inode := 1 + uint32(random.IntN(60_000))*uint32(1+random.IntN(3)*100_000)
		if inode == 0 {
			continue
		}
		process := uint32(random.IntN(1000))
		h.set(inode, process)
		want[inode] = process
	}
	if h.n != len(want) {
		t.Errorf("%d entries of %d", h.n, len(want))
	}
	for inode, process := range want {
		if got, ok := h.find(inode); !ok || got != process {
			t.Fatalf("%d is held by %d (%v), want %d", inode, got, ok, process)
		}
	}
	if _, ok := h.find(4_000_000_000); ok {
		t.Error("an inode that is not in the table was found")
	}
	if _, ok := new(holders).find(1); ok {
		t.Error("an empty table has an inode")
	}
}

// TestDistribute checks how groups are divided among processes: what was found and what a
// sample of only one process stands for are exact, and what samples do not account for belongs
// to nobody.
func TestDistribute(t *testing.T) {
	whole := &process{pid: 1, open: 10, looked: 10}
	big, large := &process{pid: 2, open: 10_000, looked: 100}, &process{pid: 3, open: 30_000, looked: 100}
	type counts map[*process]float64
	for name, c := range map[string]struct {
		group     float64
		held      counts
		want      counts // nil is nobody
		estimated bool
	}{
		"whole":                   {10, counts{whole: 10}, counts{whole: 10}, false},
		"whole and others":        {15, counts{whole: 10}, counts{whole: 10, nil: 5}, false},
		"one sample":              {9700, counts{big: 100}, counts{big: 9700}, false},
		"one sample and whole":    {9710, counts{big: 100, whole: 10}, counts{big: 9700, whole: 10}, false},
		"two samples":             {40_000, counts{big: 100, large: 100}, counts{big: 10_000, large: 30_000}, true},
		"more than a sample says": {50_000, counts{big: 100}, counts{big: 10_000, nil: 40_000}, true},
		"a bit less":              {9900, counts{big: 100}, counts{big: 9900}, false},
	} {
		q := &inquiry{answer: new(Answer), tally: newTally(10)}
		at := q.tally.add(key{}, amount{c.group, 10 * c.group}, c.group)
		for p, n := range c.held {
			q.processes.list = append(q.processes.list, p)
			q.tally.hold(at, uint32(len(q.processes.list)-1)).add(amount{n, 10 * n})
		}
		got, sum := counts{}, 0.0
		for _, p := range q.distribute() {
			got[p.process] += p.count
			sum += p.count
			if p.bytes < 9.99*p.count || p.bytes > 10.01*p.count {
				t.Errorf("%s: %+v", name, p)
			}
			if p.process != nil && p.process != whole && p.estimated != c.estimated {
				t.Errorf("%s: estimated is %t", name, p.estimated)
			}
		}
		if sum < c.group-1e-6 || sum > c.group+1e-6 || len(got) != len(c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		for p, n := range c.want {
			if got[p] < n-1e-6 || got[p] > n+1e-6 {
				t.Errorf("%s: %v, want %v", name, got, c.want)
			}
		}
	}
}
