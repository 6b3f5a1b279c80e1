package collector

// top keeps the n greatest of the items it is offered, the greatest first. before reports
// whether a comes before b, and must order any two items, or the choice would change from
// scrape to scrape. If same, which may be nil, reports that items are the same, only the
// greatest of them is kept.
type top[T any] struct {
	n      int
	before func(a, b T) bool
	same   func(a, b T) bool
	items  []T
}

// admits reports whether the item is among the n greatest, without comparing it to items
// that are the same.
func (t *top[T]) admits(item T) bool {
	return len(t.items) < t.n || t.n > 0 && t.before(item, t.items[t.n-1])
}

func (t *top[T]) offer(item T) {
	if !t.admits(item) {
		return
	}
	out := len(t.items) // index of the item to remove
	if t.same != nil {
		for i, other := range t.items {
			if t.same(other, item) {
				out = i
			}
		}
	}
	switch {
	case out < len(t.items):
		if !t.before(item, t.items[out]) {
			return
		}
	case len(t.items) < t.n:
		t.items = append(t.items, item)
	default:
		out = t.n - 1
	}
	i := out
	for ; i > 0 && t.before(item, t.items[i-1]); i-- {
		t.items[i] = t.items[i-1]
	}
	t.items[i] = item
}
