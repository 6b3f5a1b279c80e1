package main

import (
	"cmp"
	"math"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/byhand"
)

// compare records, by series, where a page and two readings differ, and removes what no
// longer differs. It does not compare what a collector read earlier, or not at all.
func (g *guest) compare(page string, before, after byhand.Readings, differ map[string]string) error {
	values, err := parsePage(page)
	if err != nil {
		return err
	}
	// An unprivileged exporter may not see the descriptors that the guest sees.
	old := func(series string) bool {
		c := g.from(series)
		return c != "" && (values[ofCollector("success", c)] != 1 || values[ofCollector("age_seconds", c)] > 0) ||
			g.Unprivileged && c == "process"
	}
	byHand := before.Or(after)
	for series := range values {
		if byHand.Covers(series) && !old(series) {
			g.seen[series] = true
		}
	}
	differences := byhand.Compare(values, longest, before, after)
	for series := range byHand {
		if old(series) {
			continue
		}
		v, shown := values[series]
		switch d, ok := differences[series]; {
		case ok && shown && moving(series) && (about(v, before[series]) || about(v, after[series])):
			g.agreed[series] = true
		case !ok:
			delete(differ, series)
			if shown {
				g.agreed[series] = true
			}
		case d.Hard && !moving(series):
			differ[series] = d.What
		}
	}
	return nil
}

// moving reports whether reading itself changes a series, because it takes memory and
// descriptors for a moment.
func moving(series string) bool {
	name := strings.TrimPrefix(series, "sockpressure_")
	return strings.HasPrefix(name, "memory") || name == `saturation_ratio{resource="memory"}` ||
		name == `process_open_file_descriptors{process="exporter"}`
}

// about allows for a change of 5 % by the reading itself.
func about(v, read float64) bool { return math.Abs(v-read) <= read/20 }

// collectorOf maps metrics, and the saturation of limits, to their collector.
func collectorOf() map[string]string {
	of := map[string]string{}
	for _, spec := range collector.Specs() {
		for _, m := range spec.Metrics {
			of["sockpressure_"+m.Name] = spec.Name
		}
		for _, l := range spec.Limits {
			of[byhand.Series("saturation_ratio", "resource", l.Resource)] = spec.Name
		}
	}
	return of
}

// from returns the collector of a series, or "".
func (g *guest) from(series string) string {
	family, _, _ := strings.Cut(series, "{")
	return cmp.Or(g.collectors[series], g.collectors[family])
}

func ofCollector(what, name string) string {
	return byhand.Series("scrape_collector_"+what, "collector", name)
}
