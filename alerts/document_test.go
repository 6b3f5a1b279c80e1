package alerts

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

var update = flag.Bool("update", false, "write docs/alerts.md anew")

// introduction is the part of docs/alerts.md that is written by hand.
const introduction = `# Alerts

<!-- Generated from alerts/*.rules.yml and lab/recordings. Renew it with: go test ./alerts -update -->

The files alerts/*.rules.yml are plain rule files for Prometheus 2.42 or newer, one for each theme. Any of them works
without the others. Every alert has its section in [runbooks.md](runbooks.md).

` + "```yaml" + `
scrape_configs:
  - job_name: sockpressure # SockPressureExporterDown looks for this word in the name of the job
    scrape_interval: 15s
    static_configs:
      - targets: ["localhost:10058"]
rule_files:
  - /etc/prometheus/sockpressure/*.rules.yml
` + "```" + `

For a cluster with the Prometheus operator, ` + "`go run ./alerts/prometheusrule`" + ` writes the same rules as one
PrometheusRule object; ` + "`-namespace`" + ` and ` + "`-label`" + ` give it what your Prometheus selects rules by.
[alerts/alertmanager.yml](../alerts/alertmanager.yml) is an example for Alertmanager: routes by severity, and what
silences what.

## How they are made

- **Severity.** critical pages somebody, warning writes a ticket, info is for the record. The warning and the critical
  form of an alert have one name, so that one inhibit rule lets the page silence the ticket.
- **Stage.** near: usage has come close to the limit. forecast: it will, at this pace. met: the kernel refuses,
  drops or kills, by its own counters.
- **Levels** are those of [metrics.md](metrics.md), one by one: orphans hurt from a quarter of their limit on, TCP memory
  from the pressure threshold on, an accept queue at its limit and not before. A limit that is 0, unlimited or not
  enforced has no saturation, and raises no alert.
- **Time.** A limit can go from idle to full within ten minutes. So ` + "`for`" + ` is short: 30 s for levels that no burst
  reaches, 90 s for those of 70 percent, minutes for orphans and memory. What keeps an alert from going on and off
  is ` + "`keep_firing_for`" + `, and it also bridges scrapes that fail.
- **Counters** look back 5 minutes and fire at the first count, so they work with scrape intervals up to a minute. A
  counter that has causes besides the limit fires only if the limit was seen near as well: conntrack drops also rise
  with every failed insert, aborts on memory with orphans too, reassembly failures with lost fragments, OOM kills with
  a memory cgroup's own limit.

## The alerts

` + "`for`" + ` in the order of the severities.

`

// TestDocument holds docs/alerts.md to the rules and to the recordings, and the rules
// to their promise on those.
func TestDocument(t *testing.T) {
	const path = "../docs/alerts.md"
	got := document(t)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := read(t, path); got != want {
		gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
		for i := range min(len(gotLines), len(wantLines)) {
			if gotLines[i] != wantLines[i] {
				t.Fatalf("%s is stale (renew it with: go test ./alerts -update)\nline %d\nhas:  %s\ngets: %s", path, i+1, wantLines[i], gotLines[i])
			}
		}
		t.Fatalf("%s is stale (renew it with: go test ./alerts -update): %d lines, gets %d", path, len(wantLines), len(gotLines))
	}
}

func document(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	b.WriteString(introduction)
	rules := readRules(t)
	alertTable(&b, rules)

	b.WriteString("\n## Recording rules\n\nOf some 300 series a node, a dashboard over a fleet reads these only ([fleet.rules.yml](../alerts/fleet.rules.yml)).\n\n| series | of |\n|---|---|\n")
	seen := map[string]bool{}
	meaning := map[string]string{
		"instance_resource:sockpressure_saturation:max5m": "each node and limit: the highest saturation of the last 5 minutes",
		"instance:sockpressure_saturation:max5m":          "each node: that of its worst limit",
		"job_resource:sockpressure_saturation:max5m":      "each limit: that of its worst node",
		"instance_resource:sockpressure_refusals:rate5m":  "each node and limit: what the kernel refused, dropped or killed a second",
		"instance:sockpressure_refusals:rate5m":           "each node: all of it",
		"job_resource:sockpressure_refusals:rate5m":       "each limit: all nodes",
		"instance:sockpressure_collectors_failing:count":  "each node: collectors that fail",
	}
	for _, r := range rules {
		if r.Record != "" && !seen[r.Record] {
			seen[r.Record] = true
			if meaning[r.Record] == "" {
				t.Errorf("%s: docs/alerts.md does not say what it is", r)
			}
			fmt.Fprintf(&b, "| `%s` | %s |\n", r.Record, meaning[r.Record])
		}
	}
	if len(seen) != len(meaning) {
		t.Errorf("docs/alerts.md has %d recording rules, there are %d", len(meaning), len(seen))
	}

	b.WriteString("\n## Lead times\n\n")
	all := readRecordings(t)
	failures := slices.DeleteFunc(slices.Clone(all), func(r *recording.Recording) bool { return r.Refusal < 0 })
	if len(failures) == 0 {
		t.Fatal("lab/recordings has no failures: nothing to evaluate")
	}
	outcomes := judge(t, failures, step)
	for _, o := range outcomes {
		o.check(t)
	}
	leadTimes(&b, outcomes)
	return b.String()
}

// alertTable writes one row for each name.
func alertTable(b *strings.Builder, rules []rule) {
	b.WriteString("| alert | severity | stage | for | meaning |\n|---|---|---|---|---|\n")
	var names []string
	byName := map[string][]rule{}
	for _, r := range alertsOf(rules) {
		if byName[r.Alert] == nil {
			names = append(names, r.Alert)
		}
		byName[r.Alert] = append(byName[r.Alert], r)
	}
	for _, name := range names {
		var severities, holds []string
		for _, r := range byName[name] {
			if !slices.Contains(severities, r.Labels["severity"]) {
				severities = append(severities, r.Labels["severity"])
				holds = append(holds, cmp.Or(r.For, "0s"))
			}
		}
		first := byName[name][0]
		fmt.Fprintf(b, "| [%s](runbooks.md#%s) | %s | %s | %s | %s |\n", name, strings.ToLower(name),
			strings.Join(severities, ", "), first.Labels["stage"], strings.Join(holds, ", "), first.Annotations["summary"])
	}
}

// leadTimes writes what came of the recordings of failures.
func leadTimes(b *strings.Builder, outcomes []outcome) {
	var kernels, scenarios []string
	by := map[string]outcome{}
	for _, o := range outcomes {
		r := o.recording
		if !slices.Contains(kernels, r.Kernel) {
			kernels = append(kernels, r.Kernel)
		}
		if !slices.Contains(scenarios, r.Scenario) {
			scenarios = append(scenarios, r.Scenario)
		}
		by[instance(r)] = o
	}
	slices.SortFunc(kernels, compareVersions)
	slices.Sort(scenarios)

	table := func(title string, cell func(outcome) (text, note string)) {
		fmt.Fprintf(b, "| %s | %s | |\n|---|%s---|\n", title, strings.Join(kernels, " | "), strings.Repeat("---|", len(kernels)))
		for _, s := range scenarios {
			fmt.Fprintf(b, "| %s |", s)
			remark := ""
			for _, k := range kernels {
				text, note := "", ""
				if o, ok := by[k+"/"+s]; ok {
					text, note = cell(o)
				}
				fmt.Fprintf(b, " %s |", text)
				remark = cmp.Or(remark, note)
			}
			fmt.Fprintf(b, " %s |\n", remark)
		}
	}
	fmt.Fprintf(b, `Each failure was brought about on real kernels: a program drives one limit from idle to the first refusal, laid
out as ten minutes at a scrape every %s, and Prometheus's rule engine goes through what the exporter showed.
CI requires that a warning or a page fires at least %s before the first refusal, that what the kernel counts is told
within %s after it, and that a day of healthy hosts (idle, busy, bursts, page cache) raises no alert but info.

How long before the first refusal the first warning or page fired:

`, short(step), short(leadTime), short(toldAfter))
	table("scenario", func(o outcome) (text, note string) {
		if why := unforeseen(o.recording); why != "" {
			return "–", why
		}
		lead, ok := o.lead()
		if !ok {
			return "none", ""
		}
		return short(lead), ""
	})
	b.WriteString("\nHow long after it the counters raised their alert; where the kernel counts nothing, the page had to stand by then:\n\n")
	table("scenario", func(o outcome) (text, note string) {
		switch why := uncounted(o.recording); {
		case why != "" && o.critical != nil:
			return "page stood", why
		case why != "":
			return "none", why
		case o.met == nil:
			return "none", ""
		default:
			return short(o.met.first - o.refusal()), ""
		}
	})
}

// short writes a duration without the zeros at its end.
func short(d time.Duration) string {
	s := d.String()
	if d != 0 && strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// compareVersions puts 6.12 behind 6.1.
func compareVersions(a, b string) int {
	numbers := func(s string) []int {
		var all []int
		for _, part := range strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
			n, _ := strconv.Atoi(part)
			all = append(all, n)
		}
		return all
	}
	return cmp.Or(slices.Compare(numbers(a), numbers(b)), cmp.Compare(a, b))
}

// TestLeadTimeTables writes the tables for outcomes of all kinds.
func TestLeadTimeTables(t *testing.T) {
	at := func(step int) *firing { return &firing{first: time.Duration(step) * 15 * time.Second} }
	rec := func(kernel, scenario string) *recording.Recording {
		return &recording.Recording{Kernel: kernel, Scenario: scenario, Resource: scenario, Refusal: 44}
	}
	var b strings.Builder
	leadTimes(&b, []outcome{
		{rec("6.12", "tcp_memory"), at(34), at(40), at(45)},
		{rec("6.1", "tcp_memory"), nil, at(40), nil},
		{rec("6.12", "file_descriptors"), at(34), at(40), nil},
		{rec("6.12", "netdev_backlog"), nil, nil, at(44)},
	})
	want := `| scenario | 6.1 | 6.12 | |
|---|---|---|---|
| file_descriptors |  | 2m30s |  |
| netdev_backlog |  | – | a moment's length: over before a scrape sees it |
| tcp_memory | 1m | 2m30s |  |

How long after it the counters raised their alert; where the kernel counts nothing, the page had to stand by then:

| scenario | 6.1 | 6.12 | |
|---|---|---|---|
| file_descriptors |  | page stood | no counter |
| netdev_backlog |  | 0s |  |
| tcp_memory | none | 15s |  |
`
	if !strings.HasSuffix(b.String(), want) {
		t.Errorf("got\n%s", b.String())
	}
}
