package collector

import (
	"fmt"
	"slices"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// sample is one series of a reading.
type sample struct {
	metric *MetricInfo
	value  float64
	labels []string
}

// series returns the name and labels of a sample's series.
func (s sample) series() Series {
	named := Series{Metric: s.metric.Name}
	for i, label := range s.metric.Labels {
		named.Labels = append(named.Labels, label, s.labels[i])
	}
	return named
}

// reading is the result of one read of a collector.
type reading struct {
	samples []sample
	limits  []LimitReading
	notes   []Note
	netns   []NetnsLimit
	holders map[string]*Holder // by resource
}

// Note is a message of the kernel, for people.
type Note struct {
	// Message is the label value of kernel_messages_total.
	Message string
	// Resources are the limits that the message is about; none for other messages.
	Resources []string
	// Text is the line, or what it says.
	Text string
	At   time.Time
}

// table is a reading that is being made from a snapshot, and its problems.
type table struct {
	reading
	parse.Problems
	spec *Spec
	top  int // bounds every list
	// name determines the holders of holdings.
	name func([]holding) []*Holder
	// only is the set of metrics that are made, in addition to those of limits; nil for
	// all.
	only map[string]bool
}

// has reports whether the metric at an index of the spec is made.
func (t *table) has(metric int) bool {
	info := &t.spec.Metrics[metric]
	return t.only == nil || info.limit || t.only[info.Name]
}

// emit returns a function that adds series to the metric at an index of the spec.
func (t *table) emit(metric int) Emit {
	info := &t.spec.Metrics[metric]
	first := len(t.samples)
	return func(n Number, labelValues ...string) {
		if !n.Present {
			return
		}
		for i := range labelValues {
			labelValues[i] = parse.Printable(labelValues[i])
		}
		for _, other := range t.samples[first:] {
			if slices.Equal(other.labels, labelValues) {
				t.Add(fmt.Errorf("%s: the kernel lists %q twice; only the first is exported", info.Name, labelValues))
				return
			}
		}
		t.samples = append(t.samples, sample{info, n.Value, labelValues})
	}
}

// value returns the number of a series; for a metric of a list, that of the item with the
// given key. It is absent if it was not exported.
func (t *table) value(of term, key ...string) Number {
	if of.metric < 0 {
		return Number{}
	}
	if !of.keyed {
		key = nil
	}
	info := &t.spec.Metrics[of.metric]
	for _, s := range t.samples {
		if s.metric == info && slices.Equal(s.labels[:len(key)], key) && slices.Equal(s.labels[len(key):], of.values) {
			return number(s.value)
		}
	}
	return Number{}
}

// addLimit adds the reading of a limit, if the limit is enforced and both numbers are
// present.
func (t *table) addLimit(limit int, usage, most, soft Number, items []Item) {
	info := &t.spec.Limits[limit]
	// A limit of 0 means that there is none.
	if !usage.Present || !most.Present || most.Value <= 0 {
		return
	}
	if !(usage.Value >= 0 && usage.Value <= info.Unit.most()) {
		t.Add(fmt.Errorf("%s: %v %s is out of range", info.Resource, usage.Value, info.Unit))
		return
	}
	t.limits = append(t.limits, LimitReading{LimitInfo: info, Usage: usage.Value, Limit: most.Value, Items: items, soft: soft})
}
