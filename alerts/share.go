package alerts

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// counted is an increase or a rate of a counter over 5 minutes.
var counted = regexp.MustCompile(`\b(increase|rate)\((sockpressure_[a-z0-9_]+_total)(\{[^}]*\})?\[5m\]\)`)

// share makes the rules of a group read each counter once. The rules of a limit ask for
// the same counters, each of which has a series for every node, and so do the recording
// rules for fleets. So where a counter is read more than once, the group of alerts that
// reads it most records its increase, and all rules of that group and the fleet rules read
// the record. The record leaves out counters that did not grow, which are most of them:
// rules must treat an increase that is absent as 0.
//
// The record is in the group of the alerts, so that record and alerts refer to the same
// time. Alerts of other groups read the counter itself.
func share(groups []Group) []Group {
	recorders := map[string]int{} // index of the group that records a counter
	reads := map[string][]string{}
	for i, g := range groups {
		for counter, own := range readsOf(g) {
			if most, ok := recorders[counter]; alerting(g) && (!ok || len(own) > len(readsOf(groups[most])[counter])) {
				recorders[counter] = i
			}
			if !alerting(g) {
				reads[counter] = append(reads[counter], own...)
			}
		}
	}
	records := make([][]Rule, len(groups))
	for _, counter := range slices.Sorted(maps.Keys(recorders)) {
		i := recorders[counter]
		all := slices.Concat(readsOf(groups[i])[counter], reads[counter])
		if len(all) < 2 {
			delete(recorders, counter)
			continue
		}
		matchers := all[0]
		if slices.ContainsFunc(all, func(other string) bool { return other != matchers }) {
			matchers = ""
		}
		records[i] = append(records[i], Rule{
			Record: grown(counter), Expr: "increase(" + counter + matchers + "[5m]) > 0",
			about: "each node where `" + counter + "` grew in the last 5 minutes: by how much",
		})
	}
	for i, g := range groups {
		rules := sharing(g.Rules, func(counter string) bool {
			recorder, ok := recorders[counter]
			return ok && (recorder == i || !alerting(g))
		})
		if len(records[i]) > 0 {
			records[i][0].Comment = "The counters that several rules read, where they grew in the last 5 minutes."
		}
		groups[i].Rules = slices.Concat(records[i], rules)
	}
	return groups
}

// alerting reports whether a group has alerts.
func alerting(g Group) bool {
	return slices.ContainsFunc(g.Rules, func(r Rule) bool { return r.Alert != "" })
}

// readsOf returns the matchers with which the rules of a group read each counter.
func readsOf(g Group) map[string][]string {
	all := map[string][]string{}
	for _, r := range g.Rules {
		for _, m := range counted.FindAllStringSubmatch(r.Expr, -1) {
			all[m[2]] = append(all[m[2]], m[3])
		}
	}
	return all
}

// sharing returns rules that read the records of some counters.
func sharing(rules []Rule, recorded func(counter string) bool) []Rule {
	rules = slices.Clone(rules)
	for i := range rules {
		rules[i].Expr = counted.ReplaceAllStringFunc(rules[i].Expr, func(s string) string {
			m := counted.FindStringSubmatch(s)
			switch {
			case !recorded(m[2]):
				return s
			case m[1] == "rate":
				return grown(m[2]) + m[3] + " / 300"
			default:
				return grown(m[2]) + m[3]
			}
		})
	}
	return rules
}

// grown returns the name of a counter's record.
func grown(counter string) string {
	labels := []string{"instance"}
	for _, m := range collector.Metrics() {
		if m.FullName() == counter {
			labels = append(labels, m.Labels...)
		}
	}
	return fmt.Sprintf("%s:%s:increase5m", strings.Join(labels, "_"), strings.TrimSuffix(counter, "_total"))
}
