package collector

// top keeps the n greatest of the items it is offered, the greatest first.
// Before says whether a stands before b, and must order any two items, or the
// choice would change from scrape to scrape.
type top[T any] struct {
	n      int
	before func(a, b T) bool
	items  []T
}

func (t *top[T]) offer(item T) {
	if len(t.items) == t.n {
		if t.n == 0 || !t.before(item, t.items[t.n-1]) {
			return
		}
		t.items = t.items[:t.n-1]
	}
	t.items = append(t.items, item)
	for i := len(t.items) - 1; i > 0 && t.before(t.items[i], t.items[i-1]); i-- {
		t.items[i], t.items[i-1] = t.items[i-1], t.items[i]
	}
}

// ofFirst is a number of the first item of a list, absent where the list is
// empty.
func ofFirst[T any](items []T, value func(T) float64) Number {
	if len(items) == 0 {
		return Number{}
	}
	return number(value(items[0]))
}
