package collector

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// namespace is the prefix of every metric name.
const namespace = "sockpressure_"

// Spec is one collector, as listed by Specs: its name, what it reads, and the metrics and
// limits that it makes of one reading.
type Spec struct {
	Name string
	// Help is one sentence on what the collector reads.
	Help string
	// Privilege describes what is missing without a privilege, and names that privilege.
	// It is empty if any user gets everything.
	Privilege string
	// Walk marks a collector whose cost grows with the host's load. It is read no more
	// often than its share of a core allows (Config.MaxCPU).
	Walk bool
	// Often marks a collector that is sampled more often than others once the peak of one
	// of its limits shows bursts.
	Often   bool
	Metrics []MetricInfo
	Limits  []LimitInfo
	// LogLines are what the kernel logs about what the collector reads, other than the
	// lines of its limits.
	LogLines []LogLine
	// Holds are the limits, its own or others', whose largest holder the collector finds.
	Holds []string

	// open prepares the collector's sources, sample those that its limits need; nil if
	// that is the same.
	open, sample func(*Scope) reader
}

// Sampled reports whether the collector's limits are read between scrapes.
func (s Spec) Sampled() bool { return s.sample != nil || !s.Walk }

// A reader reads the sources of a collector once. If metrics is not nil, it makes only
// those metrics and those that limits need.
type reader func(_ context.Context, metrics map[string]bool) (reading, error)

// MetricInfo describes a metric. It is the same for every scrape.
type MetricInfo struct {
	Name   string // without the common prefix
	Help   string
	Labels []string

	// values are the label values that the row itself sets, as far as they are the same
	// in every snapshot.
	values [][]string
	// limit is set if a limit refers to the metric.
	limit bool
	desc  *prometheus.Desc
}

// FullName returns the name with the common prefix, as Prometheus sees it.
func (m *MetricInfo) FullName() string { return namespace + m.Name }

// Type returns the type that the name implies: a counter ends in _total.
func (m *MetricInfo) Type() prometheus.ValueType {
	if strings.HasSuffix(m.Name, "_total") {
		return prometheus.CounterValue
	}
	return prometheus.GaugeValue
}

func (m *MetricInfo) describe() {
	m.desc = prometheus.NewDesc(m.FullName(), m.Help, m.Labels, nil)
}

// Metric is a row: one metric of a collector and how it is made from a snapshot of type
// S. A row without labels has Value set, a row with labels has Values set.
type Metric[S any] struct {
	Name   string
	Help   string
	Labels []string
	Value  func(*S) Number
	Values func(*S, Emit)
}

// Emit adds one series to a metric, or none if the number is absent.
type Emit func(n Number, labelValues ...string)

// List is a row: items of one kind, such as listeners, of which the first are shown, and
// how they are found in a snapshot of type S.
type List[S, T any] struct {
	// Items returns an iterator over all items, in any order, that is valid until the
	// next snapshot. It returns nil if the items could not be read.
	Items func(*S) iter.Seq[T]
	// Before reports whether a is shown before b. If neither is before the other, the
	// item that was yielded first is shown first.
	Before func(a, b T) bool
	// Labels and Key return the names and the values of the labels that identify an item.
	// If several items have the same key, the first one is shown.
	Labels []string
	Key    func(T) []string
	// Columns are metrics of each item. Their labels are added to those of the list.
	Columns []Metric[T]
	// Limit is the limit that each item has separately, nil if there is none.
	Limit *ItemLimit[T]
	// Part divides the number of items shown, for a list of items that are seldom near
	// their limit: 3 means a third of --collector.top. 0 means all.
	Part int
	// Holders returns the largest holder of each of the given items, which are near their
	// limit. It may query the kernel again. It may be nil.
	Holders func(context.Context, *S, []T) []holding
}

// ItemLimit is a row: a limit that each item of a list has separately. The reading of the
// limit is that of the first item.
type ItemLimit[T any] struct {
	LimitInfo
	// Used and Most are an item's usage and limit, if they differ from the metrics that
	// LimitInfo refers to.
	Used, Most func(T) Number
}

// Limit is a row: one limit and how it is made from a snapshot. An absent number means
// that this kernel does not have the limit or does not enforce it.
type Limit[S any] struct {
	LimitInfo
	// Used and Most are the usage and the limit, if they differ from the metrics that
	// LimitInfo refers to.
	Used, Most func(*S) Number
}

// Definition is a collector over snapshots of type S.
type Definition[S any] struct {
	Name      string
	Help      string
	Privilege string
	Walk      bool
	// Open prepares the sources and returns a function that fills a snapshot, initially
	// zero, from them. That function is called from one goroutine at a time. What it
	// could read is exported even if it returns an error, unless that is a
	// NotSupportedError. A number that it could not read stays absent.
	Open func(*Scope) func(context.Context, *S) error
	// Sample is like Open, but for what the limits need, in a time that does not grow
	// with the host's load. It is read between scrapes. Without it, a collector is
	// sampled by Open, or not at all if it is a Walk.
	Sample  func(*Scope) func(context.Context, *S) error
	Often   bool
	Metrics []Metric[S]
	Lists   []Lister[S]
	Limits  []Limit[S]
	// LogLines are what the kernel logs about it, other than the lines of the limits.
	LogLines []LogLine
	// Notes returns the messages that a snapshot has for people. It may be nil.
	Notes func(*S) []Note
	// Netns returns the network namespaces other than the host's that are nearest to
	// their own limits, one for each limit. It may be nil.
	Netns func(*S) []NetnsLimit
	// Holders returns the largest holders of limits, also of other collectors' limits. It
	// may be nil.
	Holders func(*S) []holding
}

// A Lister is a List of items of any type.
type Lister[S any] interface {
	// define checks the list, adds its metrics and its limit to the spec, and returns its
	// tabulator.
	define(*Spec) tabulator[S]
}

// tabulator adds to a table what a row makes of a snapshot.
type tabulator[S any] func(ctx context.Context, s *S, t *table)

// define makes a Spec, which is independent of the snapshot's type, from a definition. It
// panics if a row is wrong.
func define[S any](d Definition[S]) Spec {
	spec := Spec{Name: d.Name, Help: d.Help, Privilege: d.Privilege, Walk: d.Walk, Often: d.Often}
	var rows []tabulator[S]
	for _, m := range d.Metrics {
		rows = append(rows, m.define(&spec))
	}
	for _, l := range d.Lists {
		rows = append(rows, l.define(&spec))
	}
	for _, l := range d.Limits {
		rows = append(rows, l.define(&spec))
	}
	for _, line := range d.LogLines {
		line.check(&spec)
	}
	spec.LogLines = d.LogLines
	if d.Holders != nil {
		for _, h := range d.Holders(new(S)) {
			spec.Holds = append(spec.Holds, h.resource)
		}
	}
	for i := range spec.Metrics { // complete: append no longer moves them
		spec.Metrics[i].describe()
	}
	prepare := func(open func(*Scope) func(context.Context, *S) error) func(*Scope) reader {
		return func(k *Scope) reader {
			read := open(k)
			return func(ctx context.Context, metrics map[string]bool) (reading, error) {
				s := new(S)
				err := read(ctx, s)
				if isNotSupported(err) {
					return reading{}, err
				}
				t := table{spec: &spec, top: k.Top, only: metrics}
				t.name = func(of []holding) []*Holder { return k.holders.name(ctx, of) }
				t.Add(err)
				for _, row := range rows {
					row(ctx, s, &t)
				}
				if d.Notes != nil {
					t.notes = d.Notes(s)
				}
				if d.Netns != nil {
					t.netns = d.Netns(s)
				}
				if d.Holders != nil && metrics == nil {
					of := d.Holders(s)
					t.holders = map[string]*Holder{}
					for i, who := range t.name(of) {
						if who != nil {
							t.holders[of[i].resource] = who
						}
					}
				}
				return t.reading, t.Err()
			}
		}
	}
	spec.open = prepare(d.Open)
	if d.Sample != nil {
		spec.sample = prepare(d.Sample)
	}
	return spec
}

// wrong panics because a row is wrong.
func wrong(spec *Spec, format string, args ...any) {
	panic(fmt.Sprintf("collector %s: ", spec.Name) + fmt.Sprintf(format, args...))
}

// addMetric adds a metric to the spec and returns its index.
func addMetric(spec *Spec, m MetricInfo) int {
	if m.Name == "" || m.Help == "" {
		wrong(spec, "metric %q, help %q: one is missing", m.Name, m.Help)
	}
	if slices.ContainsFunc(spec.Metrics, func(o MetricInfo) bool { return o.Name == m.Name }) {
		wrong(spec, "two rows of metric %s", m.Name)
	}
	spec.Metrics = append(spec.Metrics, m)
	return len(spec.Metrics) - 1
}

func (m Metric[S]) define(spec *Spec) tabulator[S] {
	at := addMetric(spec, MetricInfo{Name: m.Name, Help: m.Help, Labels: m.Labels, values: m.check(spec)})
	return func(_ context.Context, s *S, t *table) {
		if t.has(at) {
			m.each(s, t.emit(at))
		}
	}
}

// check panics unless the row has exactly one of Value and Values, and as many values as
// labels. It returns the label values of an empty snapshot.
func (m Metric[S]) check(spec *Spec) (all [][]string) {
	switch {
	case m.Value == nil && m.Values == nil, m.Value != nil && m.Values != nil:
		wrong(spec, "metric %s needs Value or Values", m.Name)
	case (m.Values != nil) != (len(m.Labels) > 0):
		wrong(spec, "metric %s: Values is for metrics with labels", m.Name)
	case m.Values != nil:
		m.Values(new(S), func(_ Number, values ...string) {
			if len(values) != len(m.Labels) {
				wrong(spec, "metric %s: %d label values for %d labels", m.Name, len(values), len(m.Labels))
			}
			all = append(all, values)
		})
	}
	return all
}

// each emits the series of a snapshot.
func (m Metric[S]) each(s *S, emit Emit) {
	if m.Value != nil {
		emit(m.Value(s))
	} else {
		m.Values(s, emit)
	}
}

func (l List[S, T]) define(spec *Spec) tabulator[S] {
	if l.Items == nil || l.Before == nil || l.Key == nil || len(l.Columns) == 0 {
		wrong(spec, "a list needs Items, Before, Key and Columns")
	}
	if n := len(l.Key(*new(T))); n != len(l.Labels) {
		wrong(spec, "list by %v: keys of %d values", l.Labels, n)
	}
	columns := make([]int, len(l.Columns))
	for i, c := range l.Columns {
		columns[i] = addMetric(spec, MetricInfo{
			Name: c.Name, Help: c.Help, Labels: slices.Concat(l.Labels, c.Labels), values: c.check(spec),
		})
	}
	limit := func(*table, []keyed[T]) []*Item { return nil }
	if l.Limit != nil {
		limit = l.Limit.define(spec, l.Labels)
	}
	if l.Holders != nil {
		if l.Limit == nil {
			wrong(spec, "list by %v: Holders are of a limit", l.Labels)
		}
		spec.Holds = append(spec.Holds, l.Limit.Resource)
	}
	return func(ctx context.Context, s *S, t *table) {
		items := l.Items(s)
		if items == nil {
			return // they could not be read
		}
		length := t.top
		if l.Part > 0 {
			length = t.top/l.Part + min(t.top%l.Part, 1)
		}
		first := top[keyed[T]]{
			n:      length,
			before: func(a, b keyed[T]) bool { return l.Before(a.item, b.item) },
			same:   func(a, b keyed[T]) bool { return slices.Equal(a.key, b.key) },
		}
		for item := range items {
			k := keyed[T]{item: item}
			if first.admits(k) {
				k.key = l.Key(item)
				for i := range k.key {
					k.key[i] = parse.Printable(k.key[i])
				}
				first.offer(k)
			}
		}
		for i, c := range l.Columns {
			emit := t.emit(columns[i])
			for _, k := range first.items {
				c.each(&k.item, func(n Number, values ...string) {
					emit(n, slices.Concat(k.key, values)...)
				})
			}
		}
		shown := limit(t, first.items)
		if l.Holders == nil || t.only != nil {
			return
		}
		var asked []T
		var of []*Item
		for i, item := range shown[:min(len(shown), maxNamed)] {
			if item != nil && near(item.saturation, l.Limit.WarningRatio) {
				asked, of = append(asked, first.items[i].item), append(of, item)
			}
		}
		if len(asked) > 0 {
			for i, who := range t.name(l.Holders(ctx, s, asked)) {
				of[i].Holder = who.of(of[i].Usage)
			}
		}
	}
}

// maxNamed is the number of items of a list for which the holder is determined.
const maxNamed = 3

// keyed is an item of a list with its label values.
type keyed[T any] struct {
	item T
	key  []string
}
