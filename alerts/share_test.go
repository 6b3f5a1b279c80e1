package alerts

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestShare checks which rules read a record if two groups of alerts and one of records
// read the same counter.
func TestShare(t *testing.T) {
	const counter = "sockpressure_neighbour_table_full_total"
	groups := share([]Group{
		{Name: "once", Rules: []Rule{{Alert: "A", Expr: "increase(" + counter + "[5m]) > 0"}}},
		{Name: "most", Rules: []Rule{
			{Alert: "B", Expr: `rate(` + counter + `{family="ipv4"}[5m]) > 1`},
			{Alert: "C", Expr: `increase(` + counter + `{family="ipv4"}[5m]) > 0 or increase(sockpressure_oom_kills_total[5m]) > 0`},
		}},
		{Name: "fleet", Rules: []Rule{{Record: "R", Expr: `rate(` + counter + `{family="ipv4"}[5m])`}}},
	})
	const record = "instance_family:sockpressure_neighbour_table_full:increase5m"
	want := []string{
		"A: increase(" + counter + "[5m]) > 0",
		record + `: increase(` + counter + `{family="ipv4"}[5m]) > 0`,
		`B: ` + record + `{family="ipv4"} / 300 > 1`,
		`C: ` + record + `{family="ipv4"} > 0 or increase(sockpressure_oom_kills_total[5m]) > 0`,
		`R: ` + record + `{family="ipv4"} / 300`,
	}
	var got []string
	for _, g := range groups {
		for _, r := range g.Rules {
			got = append(got, r.Alert+r.Record+": "+r.Expr)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestReadOnce checks that no group of alerts reads a counter in two rules, and that no rule
// would match an increase of 0, which is absent from the record.
func TestReadOnce(t *testing.T) {
	zero := regexp.MustCompile(`:increase5m(\{[^}]*\})?( / 300)? (==|<)`)
	for _, g := range Groups() {
		for counter, reads := range readsOf(g) {
			if alerting(g) && len(reads) > 1 {
				t.Errorf("%s reads %s %d times", g.Name, counter, len(reads))
			}
		}
		for _, r := range g.Rules {
			if zero.MatchString(r.Expr) {
				t.Errorf("%s, %s %s: compares an increase that may be absent: %s", g.Name, r.Alert, r.Severity, r.Expr)
			}
		}
	}
}
