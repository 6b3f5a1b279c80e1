package byhand

import (
	"maps"
	"testing"
)

// TestCompare checks series whose values are inside and outside of the range of the two
// readings. The end-to-end tests compare the other readings with the running kernel.
func TestCompare(t *testing.T) {
	before, after, page := Readings{}, Readings{}, Readings{}
	const none = -1
	set := func(b, v, a float64, name string, labels ...string) {
		for r, v := range map[*Readings]float64{&before: b, &page: v, &after: a} {
			if v != none {
				r.Set(v, name, labels...)
			}
		}
	}
	set(1, 2, 3, "between")
	set(3, 2, 1, "falling")
	set(1./3, 1./3+1e-15, 1./3, "rounded")
	set(4, 4, 9, "as_before")
	set(4, 9, 9, "as_after")
	set(none, 7, 7, "came")
	set(7, none, none, "went")
	set(8, none, 8, "memory_slab_bytes", "cache", "not chosen")
	set(5, 5, 5, "full", "b", "2", "a", "1")
	set(5, 5, 5, "full", "a", "2")
	set(5, none, 5, "full", "a", "3")

	set(1, 4, 3, "above")
	set(1, 2, 1, "hard")
	set(1, none, 1, "hard_missing")
	set(1, none, 2, "missing")
	set(none, 6, 7, "came_otherwise")
	set(5, 5, 5, "short", "a", "1")
	set(5, none, 5, "short", "a", "2")

	want := map[string]bool{
		"sockpressure_above": false, "sockpressure_hard": true, "sockpressure_hard_missing": true, "sockpressure_missing": false,
		"sockpressure_came_otherwise": false, `sockpressure_short{a="2"}`: true,
	}
	got := map[string]bool{}
	for series, d := range Compare(page, 2, before, after) {
		got[series] = d.Hard
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, not %v", got, want)
	}
	if s := `sockpressure_full{a="1",b="2"}`; page[s] != 5 {
		t.Errorf("no %s in %v", s, page)
	}
}

// TestErrors checks that an invalid file gives an error, not a panic or a wrong value.
func TestErrors(t *testing.T) {
	for what, read := range map[string]func(*pass){
		"no number":  func(p *pass) { p.numbers("/proc/version") },
		"too short":  func(p *pass) { p.decimal(p.lines("/proc/version")[0].at(1000)) },
		"a folder":   func(p *pass) { p.text("/proc") },
		"no address": func(p *pass) { p.address("7F0000:1") },
	} {
		p := newPass()
		read(p)
		if r, err := p.result(); err == nil || r != nil {
			t.Errorf("%s: %v, %v", what, r, err)
		}
	}
}
