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

// Spec is one collector, as listed by Specs: what it is, what it reads, and the
// metrics and limits that it makes of one reading.
type Spec struct {
	Name string
	// Help is one sentence on what the collector reads.
	Help string
	// Privilege describes what is missing without a privilege, and which privilege
	// that is. Empty means that any user gets everything.
	Privilege string
	// Walk marks a collector whose cost grows with the host's load. It is read
	// no more often than its share of a core allows (Config.MaxCPU).
	Walk bool
	// Often marks a collector of which samples are taken more often than of others once
	// the peak of one of its limits shows that there are bursts.
	Often   bool
	Metrics []MetricInfo
	Limits  []LimitInfo
	// LogLines are what the kernel logs of what the collector reads, besides those of
	// its limits.
	LogLines []LogLine
	// Holds are the limits, its own and others', of which the collector finds out who
	// holds the most.
	Holds []string

	// open prepares the collector's sources, sample those of what its limits need, nil
	// if that is the same.
	open, sample func(*Scope) reader
}

// Sampled reports whether the collector's limits are read between scrapes.
func (s Spec) Sampled() bool { return s.sample != nil || !s.Walk }

// A reader reads the sources of a collector once. Given metrics it makes no others
// but those of the limits.
type reader func(_ context.Context, metrics map[string]bool) (reading, error)

// MetricInfo describes a metric, the same for every scrape.
type MetricInfo struct {
	Name   string // without the common prefix
	Help   string
	Labels []string

	// values are the values of the labels that the row itself has, as far as they are
	// the same in every snapshot.
	values [][]string
	// limit is set where a limit refers to it.
	limit bool
	desc  *prometheus.Desc
}

// FullName returns the name as Prometheus sees it.
func (m *MetricInfo) FullName() string { return namespace + m.Name }

// Type is the type that the name tells: a counter ends in _total.
func (m *MetricInfo) Type() prometheus.ValueType {
	if strings.HasSuffix(m.Name, "_total") {
		return prometheus.CounterValue
	}
	return prometheus.GaugeValue
}

func (m *MetricInfo) describe() {
	m.desc = prometheus.NewDesc(m.FullName(), m.Help, m.Labels, nil)
}

// Metric is a row: one metric of a collector and how it is made from a snapshot
// of type S. A row without labels has a Value, a row with labels has Values.
type Metric[S any] struct {
	Name   string
	Help   string
	Labels []string
	Value  func(*S) Number
	Values func(*S, Emit)
}

// Emit adds one series to a metric; an absent number adds none.
type Emit func(n Number, labelValues ...string)

// List is a row: things of one kind, such as listeners, of which the first ones
// are shown, and how they are found in a snapshot of type S.
type List[S, T any] struct {
	// Items yields all of them, in any order, as long as the snapshot is new. It is nil
	// where they could not be read.
	Items func(*S) iter.Seq[T]
	// Before reports whether a is shown before b. Of two that neither is, the one
	// that was yielded first is.
	Before func(a, b T) bool
	// Labels and Key are the names and the values of the labels that tell the items
	// apart. Of items with the same key the first one is shown.
	Labels []string
	Key    func(T) []string
	// Columns are metrics of each item, with the labels that they have besides.
	Columns []Metric[T]
	// Limit is that which each item has for itself, nil if there is none.
	Limit *ItemLimit[T]
	// Part divides how many items are shown, for a list of what is seldom near its limit:
	// with 3 it is a third of --collector.top. 0 is all of them.
	Part int
	// Holders returns who holds each of some items that are near their limit. It may ask
	// the kernel again, and it may be nil.
	Holders func(context.Context, *S, []T) []holding
}

// ItemLimit is a row: a limit that each item of a list has for itself. That of
// the first item is the limit's reading.
type ItemLimit[T any] struct {
	LimitInfo
	// Used and Most are an item's usage and limit, where they are not the very
	// numbers of the metrics that LimitInfo refers to.
	Used, Most func(T) Number
}

// Limit is a row: one limit and how it is made from a snapshot. An absent number
// means that this kernel does not have the limit or does not enforce it.
type Limit[S any] struct {
	LimitInfo
	// Used and Most are the usage and the limit, where they are not the very numbers
	// of the metrics that LimitInfo refers to.
	Used, Most func(*S) Number
}

// Definition is a collector over snapshots of type S.
type Definition[S any] struct {
	Name      string
	Help      string
	Privilege string
	Walk      bool
	// Open prepares the sources and returns the function that fills a snapshot,
	// all zero at first, from them. It is called from one goroutine at a time. What
	// it could read is exported beside its error, unless that is a NotSupportedError:
	// a number that it could not read stays absent.
	Open func(*Scope) func(context.Context, *S) error
	// Sample is Open for what the limits need, in a time that does not grow with the
	// host's load. Between scrapes that is read. A collector without it is sampled by
	// Open if it is no Walk, and not at all if it is.
	Sample  func(*Scope) func(context.Context, *S) error
	Often   bool
	Metrics []Metric[S]
	Lists   []Lister[S]
	Limits  []Limit[S]
	// LogLines are what the kernel logs of it, besides those of the limits.
	LogLines []LogLine
	// Notes returns what a snapshot has for people besides its numbers. It may be nil.
	Notes func(*S) []Note
	// Netns returns the network namespaces other than the host's that are the nearest to
	// limits of their own, one of each limit. It may be nil.
	Netns func(*S) []NetnsLimit
	// Holders returns who holds the most of limits, those of other collectors too. It may
	// be nil.
	Holders func(*S) []holding
}

// A Lister is a List of items of any type.
type Lister[S any] interface {
	// define checks the list, adds its metrics and its limit to the spec, and returns
	// what tabulates it.
	define(*Spec) tabulator[S]
}

// tabulator adds to a table what a row makes of a snapshot.
type tabulator[S any] func(ctx context.Context, s *S, t *table)

// define makes a Spec of a definition: the type of the snapshot ends here. It
// panics where a row is wrong.
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
	for i := range spec.Metrics { // all are there, and none moves any more
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

// wrong stops a program one of whose rows is wrong.
func wrong(spec *Spec, format string, args ...any) {
	panic(fmt.Sprintf("collector %s: ", spec.Name) + fmt.Sprintf(format, args...))
}

// addMetric adds a metric to the spec and returns its place.
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

// check panics unless the row has what it is made by, and as many values as labels.
// It returns the label values of an empty snapshot.
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

// maxNamed is of how many items of a list it is found out who holds them.
const maxNamed = 3

// keyed is an item of a list with its label values.
type keyed[T any] struct {
	item T
	key  []string
}
