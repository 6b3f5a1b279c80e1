package collector

import (
	"cmp"
	"maps"
	"slices"
)

// grown returns by how much a counter grew, and remembers it. A number that is less than
// it was is of another thing, which began at 0; an absent one did not grow.
func grown(now Number, before *Number) (by float64) {
	if now.Present {
		if by = now.Value; now.Value >= before.Value {
			by -= before.Value
		}
		*before = now
	}
	return by
}

// forget leaves the n things of a history that were there last, once it has twice as
// many. What is not there may come back, or be there and not be seen.
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
