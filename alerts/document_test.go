package alerts

import (
	"cmp"
	"encoding/json"
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

var (
	update = flag.Bool("update", false, "write docs/alerts.md anew")
	anew   = flag.String("simulate", "", "with -update, simulate anew what docs/alerts.md has of \"recordings\", \"ramps\" or \"hosts\"; up to an hour")
)

// introduction is the part of docs/alerts.md that is written by hand.
func introduction(t *testing.T) string {
	return strings.ReplaceAll(read(t, "testdata/introduction.md"), "$VERSION", strings.TrimSpace(read(t, "../VERSION")))
}

// TestDocument holds docs/alerts.md to the rules and to the recordings.
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
	b.WriteString(introduction(t))
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
		"instance_resource:sockpressure_saturation:max1h": "each node and limit: the highest of an hour, from few points; forecasts compare with these",
		"instance_resource:sockpressure_saturation:max1d": "the same of a day",
		"instance_resource:sockpressure_saturation:max1w": "the same of a week",
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

	simulations(t, &b)
	b.WriteString("\n## Recordings of real kernels\n\n")
	all := recordings(t, "*")
	failures := slices.DeleteFunc(slices.Clone(all), func(r *recording.Recording) bool { return r.Refusal < 0 })
	if len(failures) == 0 {
		b.WriteString("Nothing has been recorded yet.\n")
		return b.String()
	}
	leadTimes(&b, judged(t, failures))
	return b.String()
}

// simulated is what came of ramps and of weeks of quiet hosts, as kept in testdata.
type simulated struct {
	// Leads are by resource, duration of the ramp and scrape interval.
	Leads map[string]leads
	// Weeks are by host: how many alerts of each severity began to fire in a week.
	Weeks map[string]map[string]int
	// Recorded are by recording: when the ticket, the page and what tells of the refusal first
	// fired.
	Recorded map[string][3]*time.Duration
}

// times are those of an outcome that are kept.
func (o outcome) times() [3]*time.Duration {
	var times [3]*time.Duration
	for i, f := range []*firing{o.warning, o.critical, o.met} {
		if f != nil {
			times[i] = &f.first
		}
	}
	return times
}

// judged is what came of the recordings: what is kept of them, which TestLeadTimes holds
// to what they do. With -update the new ones are added, or all are made anew.
func judged(t *testing.T, failures []*recording.Recording) []outcome {
	t.Helper()
	s := readKept(t)
	if *update {
		before := s.Recorded
		s.Recorded = map[string][3]*time.Duration{}
		var missing []*recording.Recording
		for _, r := range failures {
			if times, ok := before[instance(r)]; ok && *anew != "recordings" {
				s.Recorded[instance(r)] = times
			} else {
				missing = append(missing, r)
			}
		}
		for _, o := range judge(t, missing, step) {
			s.Recorded[instance(o.recording)] = o.times()
		}
		s.keep(t)
	}
	var outcomes []outcome
	for _, r := range failures {
		times, ok := s.Recorded[instance(r)]
		if !ok {
			t.Errorf("nothing is kept of %s: go test ./alerts -update", instance(r))
		}
		o := outcome{recording: r}
		for i, to := range []**firing{&o.warning, &o.critical, &o.met} {
			if times[i] != nil {
				*to = &firing{first: *times[i]}
			}
		}
		outcomes = append(outcomes, o)
	}
	return outcomes
}

const kept = "testdata/simulated.json"

func readKept(t *testing.T) simulated {
	t.Helper()
	var s simulated
	if err := json.Unmarshal([]byte(read(t, kept)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s simulated) keep(t *testing.T) {
	t.Helper()
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func leadKey(resource string, fill, scrape time.Duration) string {
	return fmt.Sprintf("%s, %s, %s", resource, short(fill), short(scrape))
}

// readSimulated reads what was simulated, or simulates it anew.
func readSimulated(t *testing.T) simulated {
	t.Helper()
	s := readKept(t)
	switch *anew {
	case "", "recordings":
		return s
	case "ramps":
		for _, scrape := range scrapes() {
			for _, fill := range fills() {
				for resource, l := range simulateRamps(t, fill, scrape) {
					s.Leads[leadKey(resource, fill, scrape)] = l
				}
			}
		}
	case "hosts":
		s.Weeks = map[string]map[string]int{}
		for _, f := range simulateHosts(t, 7*24*time.Hour, 5*time.Minute) {
			if s.Weeks[f.instance] == nil {
				s.Weeks[f.instance] = map[string]int{}
			}
			s.Weeks[f.instance][f.severity] += f.times
		}
	default:
		t.Fatalf("-simulate=%s: want recordings, ramps or hosts", *anew)
	}
	s.keep(t)
	return s
}

// simulations writes the tables of lead times and of false alarms.
func simulations(t *testing.T, b *strings.Builder) {
	t.Helper()
	s := readSimulated(t)
	b.WriteString(`
## Lead times

Of a limit that fills evenly from 20 percent: how long before the refusal the page / the ticket fires, at the worst phase
of scrapes, evaluations (every 15 s) and ramp. A minus is after it. CI requires a page a minute before the refusal for
every ramp of 5 minutes and longer that is scraped every 15 s, a page or a ticket before it for one of 2 minutes, and an
alert that tells of it within two scrapes at any pace.
`)
	for _, scrape := range scrapes() {
		fmt.Fprintf(b, "\nScraped every %s:\n\n| limit |", short(scrape))
		for _, fill := range fills() {
			fmt.Fprintf(b, " %s |", short(fill))
		}
		fmt.Fprintf(b, "\n|---|%s\n", strings.Repeat("---|", len(fills())))
		for _, l := range limits() {
			fmt.Fprintf(b, "| %s |", l.Resource)
			for _, fill := range fills() {
				cell := "not simulated"
				if l, ok := s.Leads[leadKey(l.Resource, fill, scrape)]; ok {
					cell = show(l.Page) + " / " + show(l.Ticket)
				}
				fmt.Fprintf(b, " %s |", cell)
			}
			b.WriteString("\n")
		}
	}
	b.WriteString(`
## False alarms

What healthy hosts raise in a simulated week, scraped every minute and evaluated every five; CI simulates a day of each,
scraped every 15 s and evaluated every minute. Nobody is paged, and no alert fires and resolves more than once an hour; a
ticket is said to be right where usage is at a warning level, or where a process was killed.

| host | pages | tickets | for the record | |
|---|---|---|---|---|
`)
	for _, h := range quietHosts() {
		w := s.Weeks[h.name]
		fmt.Fprintf(b, "| %s | %d | %d | %d | %s |\n", h.about, w[Critical], w[Warning], w[Info], h.ticket)
	}
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
CI requires that the page fires at least %s before the first refusal, that what the kernel counts is told
within %s after it, and that a day of healthy hosts (idle, busy, bursts, page cache) raises no alert but info.

How long before the first refusal the page / the ticket fired:

`, short(step), short(leadTime), short(toldAfter))
	table("scenario", func(o outcome) (text, note string) {
		why := unforeseen(o.recording.Resource)
		if why != "" {
			return "–", why
		}
		if unpaged(o.recording.Resource) {
			why = "a ticket is all that it is worth"
		}
		return show(o.lead(o.critical)) + " / " + show(o.lead(o.warning)), why
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
| file_descriptors |  | 1m / 2m30s |  |
| netdev_backlog |  | – | a moment's length: over before a scrape sees it |
| tcp_memory | 1m / never | 1m / 2m30s |  |

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
