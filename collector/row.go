package collector

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// namespace is the prefix of every metric name.
const namespace = "sockpressure_"

// Spec is one collector, as listed by Specs: what it is, what it reads, and the
// rows of metrics and limits that it makes of one reading.
type Spec struct {
	Name string
	// Help is one sentence on what the collector reads.
	Help string
	// Privilege says what is missing without a privilege, and which privilege
	// that is. Empty means that any user gets everything.
	Privilege string
	// Walk marks a collector whose cost grows with the host's load. It is read
	// no more often than its share of a core allows (Config.MaxCPU).
	Walk    bool
	Metrics []MetricInfo
	Limits  []LimitInfo

	// open prepares the collector's sources. What it returns reads them once.
	open func(*Kernel) func(context.Context) (reading, error)
}

// MetricInfo describes a metric, the same for every scrape.
type MetricInfo struct {
	Name   string // without the common prefix
	Help   string
	Labels []string

	desc *prometheus.Desc
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

// Unit is what a limit counts.
type Unit string

// The units of limits.
const (
	Bytes       Unit = "bytes"
	Sockets     Unit = "sockets"
	Connections Unit = "connections"
	Ports       Unit = "ports"
	Descriptors Unit = "descriptors"
	Entries     Unit = "entries"
	Packets     Unit = "packets"
)

// most is more than there can be of a unit on any machine: what is above it was
// not counted by a kernel.
func (u Unit) most() float64 {
	if u == Bytes {
		return 1 << 56 // of virtual memory too
	}
	return 1 << 40
}

// LimitInfo describes a limit that the kernel enforces.
type LimitInfo struct {
	// Resource is the key of the limit: the label value of saturation_ratio, the
	// anchor in the documentation, the name in alerts.
	Resource string
	Unit     Unit
	// Effect is what the kernel does when the limit is met.
	Effect string
	// Sysctl is what moves the limit.
	Sysctl string
	// Warning and Critical are the saturation from which a person should look at
	// it, or act at once.
	Warning, Critical float64
	// Mark is the kernel's name of a usage below the limit from which it saves, empty
	// if there is none. That is a warning too, wherever it lies.
	Mark string
}

// Number is a value that may be absent: a kernel without the field, or a file
// that this user may not read, leaves the zero Number, and nothing is exported.
type Number struct {
	Value   float64
	Present bool
	// bad is set where a kernel file has the field and no number in it.
	bad bool
}

// number returns a Number that is present.
func number[T int | uint64 | uint32 | float64](v T) Number {
	return Number{Value: float64(v), Present: true}
}

// times scales a number, for instance from pages to bytes.
func (n Number) times(factor float64) Number {
	n.Value *= factor
	return n
}

// minus subtracts numbers, and is absent where one of them is.
func (n Number) minus(others ...Number) Number {
	for _, o := range others {
		n.Value -= o.Value
		n.Present = n.Present && o.Present
	}
	return n
}

// plus adds numbers, and is absent where one of them is.
func (n Number) plus(o Number) Number {
	return Number{Value: n.Value + o.Value, Present: n.Present && o.Present}
}

// orZero is the number, or 0 where it is absent: for a term that a kernel without
// the field does not have.
func (n Number) orZero() Number {
	if !n.Present {
		return Number{Present: !n.bad}
	}
	return n
}

// larger returns the larger of two numbers that is present.
func larger(a, b Number) Number {
	if !a.Present || b.Present && b.Value > a.Value {
		return b
	}
	return a
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

// Limit is a row: one limit and how its usage is made from a snapshot. Both
// functions give an absent number where this kernel does not have the limit or
// does not enforce it.
type Limit[S any] struct {
	LimitInfo
	Usage func(*S) Number
	Limit func(*S) Number
	// Saves is the usage at LimitInfo.Mark, nil if there is none.
	Saves func(*S) Number
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
	Open    func(*Kernel) func(context.Context, *S) error
	Metrics []Metric[S]
	Limits  []Limit[S]
}

// sample is one series of a reading.
type sample struct {
	metric *MetricInfo
	value  float64
	labels []string
}

// LimitReading is a limit as it stood at a reading.
type LimitReading struct {
	*LimitInfo
	Usage, Limit float64
	saves        Number
}

// Saturation is usage / limit.
func (l LimitReading) Saturation() float64 { return l.Usage / l.Limit }

// Warning is the saturation from which a person should look at it: LimitInfo's, or
// that of its Mark if that is less.
func (l LimitReading) Warning() float64 {
	if l.saves.Present {
		return min(l.LimitInfo.Warning, l.saves.Value/l.Limit)
	}
	return l.LimitInfo.Warning
}

// reading is what one read of a collector gave.
type reading struct {
	samples []sample
	limits  []LimitReading
}

// define makes a Spec of a definition: the type of the snapshot ends here.
func define[S any](d Definition[S]) Spec {
	spec := Spec{
		Name: d.Name, Help: d.Help, Privilege: d.Privilege, Walk: d.Walk,
		Metrics: make([]MetricInfo, len(d.Metrics)),
		Limits:  make([]LimitInfo, len(d.Limits)),
	}
	for i, m := range d.Metrics {
		spec.Metrics[i] = MetricInfo{Name: m.Name, Help: m.Help, Labels: m.Labels}
		spec.Metrics[i].describe()
	}
	for i, l := range d.Limits {
		spec.Limits[i] = l.LimitInfo
	}

	spec.open = func(k *Kernel) func(context.Context) (reading, error) {
		read := d.Open(k)
		return func(ctx context.Context) (reading, error) {
			s := new(S)
			err := read(ctx, s)
			if _, ok := errors.AsType[*NotSupportedError](err); ok {
				return reading{}, err
			}
			var p problems
			p.add(err)
			return tabulate(s, d, spec, &p), p.err()
		}
	}
	return spec
}

// tabulate makes the samples and limits of a snapshot. What cannot be is left out,
// and said.
func tabulate[S any](s *S, d Definition[S], spec Spec, p *problems) reading {
	var r reading
	for i, m := range d.Metrics {
		info := &spec.Metrics[i]
		first := len(r.samples)
		emit := func(n Number, labelValues ...string) {
			if len(labelValues) != len(info.Labels) {
				panic(fmt.Sprintf("%s: %d label values for %d labels", info.Name, len(labelValues), len(info.Labels)))
			}
			if !n.Present {
				return
			}
			for i := range labelValues {
				labelValues[i] = printable(labelValues[i])
			}
			for _, other := range r.samples[first:] {
				if slices.Equal(other.labels, labelValues) {
					p.add(fmt.Errorf("%s: the kernel shows %q twice, and only the first is exported", info.Name, labelValues))
					return
				}
			}
			r.samples = append(r.samples, sample{info, n.Value, labelValues})
		}
		if m.Value != nil {
			emit(m.Value(s))
		} else {
			m.Values(s, emit)
		}
	}
	for i, l := range d.Limits {
		usage, limit := l.Usage(s), l.Limit(s)
		// A limit of 0 means that there is none.
		if !usage.Present || !limit.Present || limit.Value <= 0 {
			continue
		}
		if !(usage.Value >= 0 && usage.Value <= l.Unit.most()) {
			p.add(fmt.Errorf("%s: there cannot be %v %s", l.Resource, usage.Value, l.Unit))
			continue
		}
		reading := LimitReading{LimitInfo: &spec.Limits[i], Usage: usage.Value, Limit: limit.Value}
		if l.Saves != nil {
			reading.saves = l.Saves(s)
		}
		r.limits = append(r.limits, reading)
	}
	return r
}

// printable returns a label value as people may see it in a terminal, a browser or
// a message: what is not UTF-8, and what would move the cursor, give commands or
// turn the direction of writing, becomes a question mark. Programs give themselves
// names of any bytes.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if ' ' <= r && r <= '~' { // nearly every one
			return r
		}
		if r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '?'
		}
		return r
	}, s)
}
