package collector

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
)

// Unit is the unit of a limit or of the number in a sysctl.
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
	Threads     Unit = "threads"
)

// Units that only sysctls have.
const (
	Pages     Unit = "pages"
	Kibibytes Unit = "KiB"
	Percents  Unit = "percent"
)

// most returns more than there can be of a unit on any machine. A higher number was not
// counted by a kernel.
func (u Unit) most() float64 {
	if u == Bytes {
		return 1 << 56 // also of virtual memory
	}
	return 1 << 40
}

// LimitInfo describes a limit that the kernel enforces: everything that is known about it
// without reading a host.
type LimitInfo struct {
	// Resource is the key of the limit: the label value of saturation_ratio, the anchor
	// in the documentation, the name in alerts.
	Resource string
	Unit     Unit
	// Effect is what the kernel does when the limit is reached.
	Effect string
	// WarningRatio and CriticalRatio are the saturations at which a person should look at
	// the limit, or act at once.
	WarningRatio, CriticalRatio float64

	// Usage and Max are the metrics of the usage and of the limit, empty if there is no
	// metric with exactly that value. Those of a list are columns of the list, or a
	// metric without labels that is the same for all items.
	Usage, Max Series
	// Share is the metric of an item's saturation, if it is not Usage / Max.
	Share Series
	// Soft is the metric of a usage below the limit from which the kernel starts to save,
	// empty if there is none. Reaching it is a warning, even if it is below WarningRatio.
	Soft Series
	// List describes the items, if each has this limit separately. It is nil for a single
	// limit.
	List *ListInfo

	// Proofs are counters that show that the limit was reached, in addition to LogLines.
	Proofs []Proof
	// Sysctls set the limit. SetWith describes, in words, other settings that do.
	Sysctls []Sysctl
	SetWith string
	// LogLines are what the kernel logs when the limit is reached, empty if it logs
	// nothing.
	LogLines []LogLine
	// Sizing is how to set the limit for a load, and what that costs.
	Sizing
}

// ListInfo describes a list for people.
type ListInfo struct {
	// Labels are the labels that identify the items. They are those of the List.
	Labels []string
	// OwnMax is set if each item has its own limit, which may differ from the others'.
	OwnMax bool
	// Title is the title of the list, Column the heading of the items' names, and Note
	// how to read the list if its numbers do not explain themselves.
	Title, Column, Note string
	// Hidden is a metric of this collector that counts what should be in the list but
	// cannot be seen, HiddenNote the text to put after its number.
	Hidden     Series
	HiddenNote string
}

// SetBy returns, for people, what sets the limit.
func (l *LimitInfo) SetBy() string {
	if l.SetWith != "" {
		return l.SetWith
	}
	names := make([]string, len(l.Sysctls))
	for i, s := range l.Sysctls {
		names[i] = s.Name
	}
	return strings.Join(names, ", ")
}

// WarnsFrom describes, for people, the saturation from which the limit is a warning.
func (l *LimitInfo) WarnsFrom(format func(ratio float64) string) string {
	warning := format(l.WarningRatio)
	if l.Soft.Metric != "" {
		warning += " or " + l.Soft.Name() + ", whichever is lower"
	}
	return warning
}

// Sysctl is a setting of the kernel.
type Sysctl struct {
	Name string // with dots
	Unit Unit
	// PerNetns is set if each network namespace has its own value.
	PerNetns bool
}

// Series names the series of a metric that have certain label values.
type Series struct {
	Metric string   // without the common prefix
	Labels []string // names and values in turn
}

func series(metric string, labels ...string) Series { return Series{metric, labels} }

// String formats the series as in PromQL.
func (s Series) String() string {
	if len(s.Labels) == 0 {
		return namespace + s.Metric
	}
	var pairs []string
	for pair := range slices.Chunk(s.Labels, 2) {
		pairs = append(pairs, fmt.Sprintf("%s=%q", pair[0], pair[1]))
	}
	return namespace + s.Metric + "{" + strings.Join(pairs, ",") + "}"
}

// Name returns the last label value, which distinguishes the series from others of its
// metric, or the metric if there are no labels.
func (s Series) Name() string {
	if len(s.Labels) == 0 {
		return s.Metric
	}
	return s.Labels[len(s.Labels)-1]
}

// addLimit adds a limit to the spec and returns its index.
func addLimit(spec *Spec, l LimitInfo) int {
	switch {
	case l.Resource == "" || l.Unit == "" || l.Effect == "" || l.SetBy() == "":
		wrong(spec, "limit %+v is not described", l)
	case !(l.WarningRatio > 0 && l.WarningRatio < l.CriticalRatio && l.CriticalRatio <= 1):
		wrong(spec, "limit %s warns from %v and is critical from %v", l.Resource, l.WarningRatio, l.CriticalRatio)
	case slices.ContainsFunc(spec.Limits, func(o LimitInfo) bool { return o.Resource == l.Resource }):
		wrong(spec, "two rows of limit %s", l.Resource)
	}
	for _, line := range l.LogLines {
		line.check(spec)
	}
	spec.Limits = append(spec.Limits, l)
	return len(spec.Limits) - 1
}

// A term is where the number of a series is found in a table.
type term struct {
	metric int // -1 for none
	// values are the values of the metric's last labels. If keyed is set, they follow the
	// label values of a list's items.
	values []string
	keyed  bool
}

// find finds the metric that a limit refers to. keys are the labels of the list that the
// limit belongs to, if any.
func find(spec *Spec, resource string, s Series, keys []string) term {
	if s.Metric == "" {
		return term{metric: -1}
	}
	at := slices.IndexFunc(spec.Metrics, func(m MetricInfo) bool { return m.Name == s.Metric })
	if at < 0 || len(s.Labels)%2 != 0 {
		wrong(spec, "limit %s refers to %v, which this collector does not have", resource, s)
	}
	m := &spec.Metrics[at]
	m.limit = true
	t := term{metric: at}
	var names []string
	for pair := range slices.Chunk(s.Labels, 2) {
		names, t.values = append(names, pair[0]), append(t.values, pair[1])
	}
	labels := m.Labels
	if len(keys) > 0 && len(labels) >= len(keys) && slices.Equal(labels[:len(keys)], keys) {
		t.keyed, labels = true, labels[len(keys):]
	}
	if !slices.Equal(labels, names) {
		wrong(spec, "limit %s refers to %v, but %s has labels %v", resource, s, m.Name, m.Labels)
	}
	if len(names) > 0 && !slices.ContainsFunc(m.values, func(v []string) bool { return slices.Equal(v, t.values) }) {
		wrong(spec, "limit %s refers to %v, a series that is never exported", resource, s)
	}
	return t
}

// Item is a reading of one of the items that have a limit each.
type Item struct {
	// Key is its label values, in the order of ListInfo.Labels.
	Key []string
	// Usage and Limit are the values that are exported.
	Usage, Limit float64
	saturation   float64
	name         string
	// Holder is the largest holder, nil if it is not known or the item is far from its
	// limit.
	Holder *Holder
}

// Saturation returns how near the item is to its limit.
func (i Item) Saturation() float64 { return i.saturation }

// Name returns the item's name, or its key in words.
func (i Item) Name() string { return cmp.Or(i.name, strings.Join(i.Key, " → ")) }

// itemName joins the parts of a key, except the labels of a pod, which repeat what
// another label says.
func itemName(labels, key []string) string {
	var parts []string
	for i, part := range key {
		if labels[i] != "namespace" && labels[i] != "pod" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, " → ")
}

func (l Limit[S]) define(spec *Spec) tabulator[S] {
	at := addLimit(spec, l.LimitInfo)
	usage, most, soft := find(spec, l.Resource, l.Usage, nil), find(spec, l.Resource, l.Max, nil), find(spec, l.Resource, l.Soft, nil)
	used, limit := of(usage, l.Used), of(most, l.Most)
	if used == nil || limit == nil {
		wrong(spec, "limit %s has no usage or no limit", l.Resource)
	}
	return func(_ context.Context, s *S, t *table) {
		t.addLimit(at, used(s, t), limit(s, t), t.value(soft), nil)
	}
}

// of returns a function that gives a number: function if it is not nil, else the value of
// the metric, nil if there is neither.
func of[S any](metric term, function func(*S) Number) func(*S, *table) Number {
	switch {
	case function != nil:
		return func(s *S, _ *table) Number { return function(s) }
	case metric.metric >= 0:
		return func(_ *S, t *table) Number { return t.value(metric) }
	}
	return nil
}

// define checks the limit of a list whose labels are keys. It returns a function that
// adds the limit's reading to a table, given the items that are shown, and returns these
// as Items of the reading, nil for items that it does not have.
func (l *ItemLimit[T]) define(spec *Spec, keys []string) func(t *table, items []keyed[T]) []*Item {
	if l.List == nil || l.List.Title == "" || l.List.Column == "" {
		wrong(spec, "limit %s does not say what it is a list of", l.Resource)
	}
	list := *l.List
	list.Labels = keys
	l.List = &list
	at := addLimit(spec, l.LimitInfo)
	find(spec, l.Resource, list.Hidden, nil)
	usage, limit := find(spec, l.Resource, l.Usage, keys), find(spec, l.Resource, l.Max, keys)
	find(spec, l.Resource, l.Share, keys)
	list.OwnMax = limit.keyed
	if usage.metric < 0 || limit.metric < 0 {
		wrong(spec, "limit %s needs metrics of its usage and of itself", l.Resource)
	}
	return func(t *table, listed []keyed[T]) []*Item {
		if len(listed) == 0 {
			if !limit.keyed { // one for all
				t.addLimit(at, number(0), t.value(limit), Number{}, nil)
			}
			return nil
		}
		items, shown := make([]Item, 0, len(listed)), make([]*Item, len(listed))
		var first struct{ used, most Number }
		for i, k := range listed {
			exported, bound := t.value(usage, k.key...), t.value(limit, k.key...)
			used, most := exported, bound
			if l.Used != nil {
				used = l.Used(k.item)
			}
			if l.Most != nil {
				most = l.Most(k.item)
			}
			if i == 0 {
				first.used, first.most = used, most
			}
			if exported.Present && bound.Present && used.Present && most.Present {
				items = append(items, Item{Key: k.key, name: itemName(keys, k.key), Usage: exported.Value, Limit: bound.Value, saturation: used.Value / cmp.Or(most.Value, 1)})
				shown[i] = &items[len(items)-1]
			}
		}
		t.addLimit(at, first.used, first.most, Number{}, items)
		return shown
	}
}
