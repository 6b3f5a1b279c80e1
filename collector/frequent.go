package collector

import "slices"

// frequent counts how often each key occurs in a stream and finds the most frequent keys,
// in bounded memory. It uses the algorithm of Misra and Gries ("Finding repeated
// elements", 1982), which decreases every count when there are too many keys, so a count
// is never too high. Subtracting the median of all counts frees half of the room at once,
// and makes a count too low by less than 2 n / capacity after n additions.
type frequent[K comparable] struct {
	capacity int
	counts   map[K]uint32
	sorted   []uint32
}

func newFrequent[K comparable](capacity int) *frequent[K] {
	return &frequent[K]{capacity: capacity, counts: map[K]uint32{}}
}

func (f *frequent[K]) reset() { clear(f.counts) }

func (f *frequent[K]) add(key K) {
	f.counts[key]++
	if len(f.counts) > f.capacity {
		f.prune()
	}
}

func (f *frequent[K]) prune() {
	f.sorted = f.sorted[:0]
	for _, n := range f.counts {
		f.sorted = append(f.sorted, n)
	}
	slices.Sort(f.sorted)
	median := f.sorted[len(f.sorted)/2]
	for key, n := range f.counts {
		if n <= median {
			delete(f.counts, key)
		} else {
			f.counts[key] = n - median
		}
	}
}
