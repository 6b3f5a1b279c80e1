package collector

import (
	"context"
	"iter"
	"slices"
	"strings"
	"testing"
)

// TestWrongRows checks that define panics on an invalid row with a message that names it.
func TestWrongRows(t *testing.T) {
	type thing struct{ name string }
	type snapshot struct{ n Number }
	value := func(s *snapshot) Number { return s.n }
	info := LimitInfo{
		Resource: "things", Unit: Entries, Effect: "It ends.", SetWith: "the test", WarningRatio: 0.5, CriticalRatio: 0.9,
		Usage: series("things"), Max: series("things_limit", "kind", "hard"),
	}
	list := List[snapshot, thing]{
		Items:   func(*snapshot) iter.Seq[thing] { return slices.Values([]thing{}) },
		Before:  func(a, b thing) bool { return a.name < b.name },
		Labels:  []string{"name"},
		Key:     func(t thing) []string { return []string{t.name} },
		Columns: []Metric[thing]{{Name: "thing_size", Help: "Size.", Value: func(*thing) Number { return number(1) }}},
		Limit: &ItemLimit[thing]{LimitInfo: LimitInfo{
			Resource: "size", Unit: Entries, Effect: "It ends.", SetWith: "the test", WarningRatio: 0.5, CriticalRatio: 0.9,
			Usage: series("thing_size"), Max: series("things"), List: &ListInfo{Title: "Things", Column: "thing"},
		}},
	}
	right := func() Definition[snapshot] {
		limit := *list.Limit
		l := list
		l.Limit, l.Columns = &limit, slices.Clone(list.Columns)
		return Definition[snapshot]{
			Name: "test",
			Open: func(*Scope) func(context.Context, *snapshot) error {
				return func(context.Context, *snapshot) error { return nil }
			},
			Metrics: []Metric[snapshot]{
				{Name: "things", Help: "Things.", Value: value},
				{Name: "things_limit", Help: "Limits.", Labels: []string{"kind"}, Values: func(s *snapshot, emit Emit) {
					emit(s.n, "soft")
					emit(s.n, "hard")
				}},
			},
			Lists:  []Lister[snapshot]{l},
			Limits: []Limit[snapshot]{{LimitInfo: info}},
		}
	}
	define(right())

	for want, change := range map[string]func(d *Definition[snapshot]){
		"things needs Value or Values":                                 func(d *Definition[snapshot]) { d.Metrics[0].Value = nil },
		"things_limit needs Value or Values":                           func(d *Definition[snapshot]) { d.Metrics[1].Value = value },
		"things: Values is for metrics with labels":                    func(d *Definition[snapshot]) { d.Metrics[0].Labels = []string{"kind"} },
		"1 label values for 2 labels":                                  func(d *Definition[snapshot]) { d.Metrics[1].Labels = []string{"kind", "other"} },
		"two rows of metric things":                                    func(d *Definition[snapshot]) { d.Metrics[1] = d.Metrics[0] },
		`help ""`:                                                      func(d *Definition[snapshot]) { d.Metrics[0].Help = "" },
		"two rows of limit things":                                     func(d *Definition[snapshot]) { d.Limits = append(d.Limits, d.Limits[0]) },
		"is not described":                                             func(d *Definition[snapshot]) { d.Limits[0].Effect = "" },
		"warns from 0.95 and is critical from 0.9":                     func(d *Definition[snapshot]) { d.Limits[0].WarningRatio = 0.95 },
		"sockpressure_nothing, which this collector does not have":     func(d *Definition[snapshot]) { d.Limits[0].Usage = series("nothing") },
		"but things_limit has labels":                                  func(d *Definition[snapshot]) { d.Limits[0].Max = series("things_limit") },
		"a series that is never exported":                              func(d *Definition[snapshot]) { d.Limits[0].Max = series("things_limit", "kind", "other") },
		"has no usage or no limit":                                     func(d *Definition[snapshot]) { d.Limits[0].Max = Series{} },
		"a list needs Items, Before, Key and Columns":                  changeList(func(l *List[snapshot, thing]) { l.Columns = nil }),
		"keys of 1 values":                                             changeList(func(l *List[snapshot, thing]) { l.Labels = []string{"name", "other"} }),
		"does not say what it is a list of":                            changeList(func(l *List[snapshot, thing]) { l.Limit.List = nil }),
		"needs metrics of its usage and of itself":                     changeList(func(l *List[snapshot, thing]) { l.Limit.Usage = Series{} }),
		"metric thing_size needs Value or Values":                      changeList(func(l *List[snapshot, thing]) { l.Columns[0].Value = nil }),
		"sockpressure_thing_sizes, which this collector does not have": changeList(func(l *List[snapshot, thing]) { l.Limit.Usage = series("thing_sizes") }),
	} {
		t.Run(want, func(t *testing.T) {
			d := right()
			change(&d)
			defer func() {
				if said, _ := recover().(string); !strings.Contains(said, want) || !strings.HasPrefix(said, "collector test: ") {
					t.Errorf("it panicked with %q", said)
				}
			}()
			define(d)
		})
	}
}

func changeList[S, T any](change func(*List[S, T])) func(*Definition[S]) {
	return func(d *Definition[S]) {
		l := d.Lists[0].(List[S, T])
		change(&l)
		d.Lists[0] = l
	}
}

// TestList checks that a list exports its first items in order, only the first of those with
// the same key, and each against its limit, and that the reading of the limit is that of the
// first item.
func TestList(t *testing.T) {
	type thing struct {
		name       string
		used, most float64
	}
	type snapshot struct{ things []thing }
	spec := define(Definition[snapshot]{
		Name: "test",
		Open: func(*Scope) func(context.Context, *snapshot) error {
			return func(_ context.Context, s *snapshot) error {
				s.things = []thing{{"a", 1, 10}, {"b", 9, 10}, {"c", 5, 10}, {"b", 2, 10}, {"c", 8, 10}, {"d\x1b", 4, 0}}
				return nil
			}
		},
		Lists: []Lister[snapshot]{List[snapshot, thing]{
			Items:  func(s *snapshot) iter.Seq[thing] { return slices.Values(s.things) },
			Before: func(a, b thing) bool { return a.used > b.used },
			Labels: []string{"name"},
			Key:    func(t thing) []string { return []string{t.name} },
			Columns: []Metric[thing]{
				{Name: "used", Help: "Used.", Value: func(t *thing) Number { return number(t.used) }},
				{Name: "most", Help: "Most.", Labels: []string{"kind"}, Values: func(t *thing, emit Emit) { emit(number(t.most), "hard") }},
			},
			Limit: &ItemLimit[thing]{LimitInfo: LimitInfo{
				Resource: "things", Unit: Entries, Effect: "It ends.", SetWith: "the test", WarningRatio: 0.5, CriticalRatio: 0.9,
				Usage: series("used"), Max: series("most", "kind", "hard"), List: &ListInfo{Title: "Things", Column: "thing"},
			}},
		}},
	})
	r, err := spec.open(&Scope{Top: 3})(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range r.samples {
		got = append(got, strings.Join(append([]string{s.metric.Name}, s.labels...), " "))
	}
	want := []string{"used b", "used c", "used d?", "most b hard", "most c hard", "most d? hard"}
	if !slices.Equal(got, want) {
		t.Errorf("series %q, want %q", got, want)
	}
	l := r.limits[0]
	if len(r.limits) != 1 || l.Usage != 9 || l.Limit != 10 || len(l.Items) != 3 {
		t.Fatalf("%+v", r.limits)
	}
	for i, want := range []Item{{Usage: 9, Limit: 10, saturation: 0.9, name: "b"}, {Usage: 8, Limit: 10, saturation: 0.8, name: "c"}, {Usage: 4, saturation: 4, name: "d?"}} {
		if got := l.Items[i]; got.Name() != want.Name() || got.Usage != want.Usage || got.Limit != want.Limit || got.Saturation() != want.saturation {
			t.Errorf("item %+v, want %+v", got, want)
		}
	}
}
