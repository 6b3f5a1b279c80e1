package collector

import (
	"cmp"
	"maps"
	"slices"
)

// grown returns by how much a counter has grown since before, and stores its value there.
// A counter that has fallen was reset and began at 0. An absent one has not grown.
func grown(now Number, before *Number) (by float64) {
	if now.Present {
		if by = now.Value; now.Value >= before.Value {
			by -= before.Value
		}
		*before = now
	}
	return by
}

// forget keeps the n entries of a history that were seen last, once it has more than 2n.
// Entries that were not seen lately may return, or may exist without being visible.
func forget[T any](of map[uint64]T, n int, reading func(T) int) {
	if len(of) <= 2*n {
		return
	}
	surplus := len(of) - n
	ids := slices.SortedFunc(maps.Keys(of), func(a, b uint64) int { return cmp.Compare(reading(of[a]), reading(of[b])) })
	for _, id := range ids[:surplus] {
		delete(of, id)
	}
}
