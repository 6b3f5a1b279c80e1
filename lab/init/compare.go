package main

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/byhand"
)

// compare notes by series where a page and two readings differ, and forgets what
// does not differ any more. What a collector read earlier, or not at all, is not
// compared.
func (g *guest) compare(page string, before, after byhand.Readings, differ map[string]string) error {
	values, err := parse(page)
	if err != nil {
		return err
	}
	// An unprivileged exporter is not shown the descriptors that the guest sees.
	old := func(series string) bool {
		c := g.from(series)
		return c != "" && (values[ofCollector("success", c)] != 1 || values[ofCollector("age_seconds", c)] > 0) ||
			g.Unprivileged && c == "process"
	}
	for series := range values {
		if !strings.Contains(series, "_scrape_collector_") && !strings.Contains(series, "_exporter_build_info") && !old(series) {
			g.seen[series] = true
		}
	}
	differences := byhand.Compare(values, longest, before, after)
	for series := range before.Or(after) {
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

// moving says which series the looking itself moves: it takes memory, TCP's too,
// for a moment, and the kernel counts a socket until a while after it was closed.
func moving(series string) bool {
	name := strings.TrimPrefix(series, "sockpressure_")
	if resource, ok := strings.CutPrefix(name, `saturation_ratio{resource="`); ok {
		name = resource
	}
	return slices.ContainsFunc([]string{"memory", "low_memory", "committed_memory", "tcp_memory", "sockets_used"}, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}

// about allows for what the looking moves: a twentieth, or a few sockets.
func about(v, read float64) bool {
	few := 0.0
	if read > 1 { // not a ratio
		few = 4
	}
	return math.Abs(v-read) <= max(read/20, few)
}

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

// from is the collector of a series, empty if it is none's.
func (g *guest) from(series string) string {
	family, _, _ := strings.Cut(series, "{")
	return cmp.Or(g.collectors[series], g.collectors[family])
}

func ofCollector(what, name string) string {
	return byhand.Series("scrape_collector_"+what, "collector", name)
}
