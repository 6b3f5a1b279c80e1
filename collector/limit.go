package collector

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Unit is what a limit, or the number in a sysctl, counts.
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

// The units of sysctls besides.
const (
	Pages     Unit = "pages"
	Kibibytes Unit = "KiB"
	Percents  Unit = "percent"
)

// most is more than there can be of a unit on any machine: what is above it was
// not counted by a kernel.
func (u Unit) most() float64 {
	if u == Bytes {
		return 1 << 56 // of virtual memory too
	}
	return 1 << 40
}

// LimitInfo describes a limit that the kernel enforces: everything that is known
// of it without reading a host.
type LimitInfo struct {
	// Resource is the key of the limit: the label value of saturation_ratio, the
	// anchor in the documentation, the name in alerts.
	Resource string
	Unit     Unit
	// Effect is what the kernel does when the limit is reached.
	Effect string
	// WarningRatio and CriticalRatio are the saturation from which a person should
	// look at it, or act at once.
	WarningRatio, CriticalRatio float64

	// Usage and Max are the metrics of its usage and of itself, empty where there is
	// none that is just that. Those of a list are of its columns, or of a metric
	// without labels that is the same for all items.
	Usage, Max Series
	// Share is the metric of an item's saturation, where that is not Usage / Max.
	Share Series
	// Soft is the metric of a usage below the limit from which the kernel saves, empty
	// if there is none. That is a warning too, wherever it lies.
	Soft Series
	// List is of the things that have this limit each for itself, nil if there is but
	// one.
	List *ListInfo

	// Proofs are counters that tell that it was reached, besides the messages of LogLines.
	Proofs []Proof
	// Sysctls set the limit; SetWith describes other settings that do, in words.
	Sysctls []Sysctl
	SetWith string
	// LogLines are what the kernel logs when the limit is reached, empty if it logs
	// nothing.
	LogLines []LogLine
	// Sizing is what it takes, and what it costs, to set the limit for a load.
	Sizing
}

// ListInfo describes a list for people.
type ListInfo struct {
	// Labels tell the items apart. They are the labels of the List.
	Labels []string
	// OwnMax is set where each item has a limit of its own, and not all the same.
	OwnMax bool
	// Title is of the list, Column of the items' names, Note on how to read it where
	// its numbers do not say so.
	Title, Column, Note string
	// Hidden is a metric of this collector that counts what should be in the list and
	// cannot be seen, HiddenNote what to say after its number.
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

// WarnsFrom says for people from where the limit is a warning.
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
	// PerNetns is set where each network namespace has its own.
	PerNetns bool
}

// Series names the series of a metric that have certain label values.
type Series struct {
	Metric string   // without the common prefix
	Labels []string // names and values in turn
}

// series returns a Series.
func series(metric string, labels ...string) Series { return Series{metric, labels} }

// String writes the series as PromQL does.
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

// Name is what tells the series from others of its metric: its last label value.
func (s Series) Name() string {
	if len(s.Labels) == 0 {
		return s.Metric
	}
	return s.Labels[len(s.Labels)-1]
}

// addLimit adds a limit to the spec and returns its place.
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
	// values are those of the metric's last labels; they follow those of a
	// list's items, if keyed.
	values []string
	keyed  bool
}

// find finds the metric that a limit refers to. keys are the labels of the list
// that the limit belongs to, if it belongs to one.
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

// Item is one of the things that have a limit each for itself, at a
// reading.
type Item struct {
	// Key is its label values, in the order of ListInfo.Labels.
	Key []string
	// Usage and Limit are what is exported of it.
	Usage, Limit float64
	saturation   float64
	name         string
	// Holder is who holds it, nil where that is not known or it is far from its limit.
	Holder *Holder
}

// Saturation is how near the item is to its limit.
func (i Item) Saturation() float64 { return i.saturation }

// Name is the item's key in words.
func (i Item) Name() string { return cmp.Or(i.name, strings.Join(i.Key, " → ")) }

// itemName joins the key of an item with the given labels. The labels of a pod repeat
// what another one says.
func itemName(labels, key []string) string {
	var parts []string
	for i, part := range key {
		if labels[i] != "namespace" && labels[i] != "pod" {
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, " → ")
}

// LimitReading is a limit at a reading.
type LimitReading struct {
	*LimitInfo
	// Usage and Limit are those of the first item, if it has items.
	Usage, Limit float64
	// Items are the first of those that have this limit each for itself.
	Items []Item
	// Peak is the highest saturation of the last minute, absent where the limit is not
	// read between scrapes.
	Peak Number
	// Netns is the network namespace other than the host's that is nearest to a limit of
	// this kind of its own; nil where there is none, or its limit cannot be known.
	Netns *NetnsLimit
	// Holder is who holds the most of it, nil where that is not known or it is far from
	// its limit.
	Holder *Holder
	// Since is when it was first seen at its warning, zero while it is below; Full is how
	// long it takes to reach it at the pace of the last minute, 0 where it does not grow or
	// that is more than an hour.
	Since time.Time
	Full  time.Duration
	soft  Number
}

// NetnsLimit is a limit of a network namespace other than the host's.
type NetnsLimit struct {
	Resource string
	// Name is the label netns of the namespace, Namespace and Pod those of a pod.
	Name, Namespace, Pod string
	Saturation           float64
	// Most is the highest level that it can be worth.
	Most Level
}

// Title is the name, for people. One that is not the pod's own, but made in it, is
// called by its number.
func (l NetnsLimit) Title() string {
	if l.Pod != "" && strings.HasPrefix(l.Name, "inode/") {
		return l.Name + " of pod/" + l.Namespace + "/" + l.Pod
	}
	return l.Name
}

// Share writes the saturation in percent, for people.
func (l NetnsLimit) Share() string { return share(100 * l.Saturation) }

// Saturation is usage / limit.
func (l LimitReading) Saturation() float64 { return l.Usage / l.Limit }

// Worst is the saturation of the host or of another network namespace, the higher.
func (l LimitReading) Worst() float64 {
	if l.Netns != nil {
		return max(l.Saturation(), l.Netns.Saturation)
	}
	return l.Saturation()
}

// Warning is the saturation from which a person should look at it: WarningRatio, or
// that of Soft if that is less.
func (l LimitReading) Warning() float64 {
	if l.soft.Present {
		return min(l.WarningRatio, l.soft.Value/l.Limit)
	}
	return l.WarningRatio
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

// of returns what gives a number: the function if there is one, or the metric; nil
// if there is neither.
func of[S any](metric term, function func(*S) Number) func(*S, *table) Number {
	switch {
	case function != nil:
		return func(s *S, _ *table) Number { return function(s) }
	case metric.metric >= 0:
		return func(_ *S, t *table) Number { return t.value(metric) }
	}
	return nil
}

// define checks the limit of a list whose labels are keys, and returns what adds
// its reading, given the items that are shown, and returns these as the reading has
// them, nil for one that it has not.
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
