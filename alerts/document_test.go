package alerts

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

var (
	update   = flag.Bool("update", false, "write docs/alerts.md")
	simulate = flag.String("simulate", "", "with -update, repeat the simulations of \"recordings\", \"ramps\", \"spikes\" or \"hosts\"; up to an hour")
)

// TestDocument checks that docs/alerts.md agrees with the rules, the simulations and the
// recordings.
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
				t.Fatalf("%s is stale (to update: go test ./alerts -update)\nline %d\nhas:  %s\ngets: %s", path, i+1, wantLines[i], gotLines[i])
			}
		}
		t.Fatalf("%s is stale (to update: go test ./alerts -update): %d lines, gets %d", path, len(wantLines), len(gotLines))
	}
}

// document executes alerts.md.tmpl.
func document(t *testing.T) string {
	t.Helper()
	failures := slices.DeleteFunc(recordings(t, "*"), func(r *recording.Recording) bool { return r.Refusal < 0 })
	s := readSimulated(t)
	page, err := template.New("alerts.md.tmpl").Funcs(template.FuncMap{"join": strings.Join, "lower": strings.ToLower}).ParseFiles("alerts.md.tmpl")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	err = page.Execute(&b, struct {
		Version    string
		Alerts     []documentedAlert
		Recorded   []documentedSeries
		Ramps      []documentedRamps
		Spikes     documentedRamps
		Hosts      [][]string
		Recordings documentedRecordings
	}{
		strings.TrimSpace(read(t, "../VERSION")), documentAlerts(readRules(t)), documentSeries(t),
		documentRamps(s), documentSpikes(s), documentHosts(s), documentRecordings(judged(t, failures)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// simulated is the results of the simulations and of the recordings, as stored in testdata.
type simulated struct {
	// Leads are by resource, duration of the ramp and scrape interval.
	Leads map[string]leads
	// Spikes are by limit and scrape interval: when the first alert came, as a lead.
	Spikes map[string]time.Duration
	// Weeks are by host: how many alerts of each severity started to fire in a week.
	Weeks map[string]map[string]int
	// Recorded are by recording: when the ticket, the page and the report of the refusal first
	// fired.
	Recorded map[string][3]*time.Duration
}

// times returns when the warning, the page and the report of the refusal first fired.
func (o outcome) times() [3]*time.Duration {
	var times [3]*time.Duration
	for i, f := range []*firing{o.warning, o.critical, o.met} {
		if f != nil {
			times[i] = &f.first
		}
	}
	return times
}

// judged returns the stored outcomes of the recordings, which TestLeadTimes compares with those
// of the rules. With -update it evaluates the recordings that have none, or all of them with
// -simulate=recordings.
func judged(t *testing.T, failures []*recording.Recording) []outcome {
	t.Helper()
	s := readKept(t)
	if *update {
		before := s.Recorded
		s.Recorded = map[string][3]*time.Duration{}
		var missing []*recording.Recording
		for _, r := range failures {
			if times, ok := before[instance(r)]; ok && *simulate != "recordings" {
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
			t.Errorf("no stored outcome of %s: go test ./alerts -update", instance(r))
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

func spikeKey(resource string, scrape time.Duration) string {
	return fmt.Sprintf("%s, %s", resource, short(scrape))
}

// readSimulated reads the stored results, and repeats the simulations that -simulate names.
func readSimulated(t *testing.T) simulated {
	t.Helper()
	s := readKept(t)
	switch *simulate {
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
	case "spikes":
		s.Spikes = map[string]time.Duration{}
		for _, scrape := range scrapes() {
			for resource, lead := range simulateSpikes(t, scrape) {
				s.Spikes[spikeKey(resource, scrape)] = lead
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
		t.Fatalf("-simulate=%s: want recordings, ramps, spikes or hosts", *simulate)
	}
	s.keep(t)
	return s
}

// documentedAlert summarises all rules of one name.
type documentedAlert struct {
	Name            string
	Severities, For []string
	Stage, Summary  string
}

func documentAlerts(rules []rule) []documentedAlert {
	var all []documentedAlert
	for _, r := range alertsOf(rules) {
		at := slices.IndexFunc(all, func(a documentedAlert) bool { return a.Name == r.Alert })
		if at < 0 {
			at = len(all)
			all = append(all, documentedAlert{Name: r.Alert, Stage: r.Labels["stage"], Summary: r.Annotations["summary"]})
		}
		if a := &all[at]; !slices.Contains(a.Severities, r.Labels["severity"]) {
			a.Severities = append(a.Severities, r.Labels["severity"])
			a.For = append(a.For, cmp.Or(r.For, "0s"))
		}
	}
	return all
}

// documentedSeries describes all recording rules of one name.
type documentedSeries struct{ Name, About string }

func documentSeries(t *testing.T) []documentedSeries {
	t.Helper()
	var all []documentedSeries
	for _, g := range Groups() {
		for _, r := range g.Rules {
			s := documentedSeries{r.Record, r.about}
			if r.Record == "" || slices.Contains(all, s) {
				continue
			}
			if r.about == "" || slices.ContainsFunc(all, func(o documentedSeries) bool { return o.Name == r.Record }) {
				t.Errorf("%s: about is %q, want one description for all rules of this name", r.Record, r.about)
			}
			all = append(all, s)
		}
	}
	return all
}

// documentedRamps are the leads of each limit, a column for each duration of the ramp.
type documentedRamps struct {
	Scrape string
	Fills  []string
	Leads  [][]string
}

func documentRamps(s simulated) []documentedRamps {
	var all []documentedRamps
	for _, scrape := range scrapes() {
		ramps := documentedRamps{Scrape: short(scrape)}
		for _, fill := range fills() {
			ramps.Fills = append(ramps.Fills, short(fill))
		}
		for _, limit := range limits() {
			row := []string{limit.Resource}
			for _, fill := range fills() {
				cell := "not simulated"
				if l, ok := s.Leads[leadKey(limit.Resource, fill, scrape)]; ok {
					cell = show(l.Page) + " / " + show(l.Ticket)
				}
				row = append(row, cell)
			}
			ramps.Leads = append(ramps.Leads, row)
		}
		all = append(all, ramps)
	}
	return all
}

// documentSpikes returns how long after the refusal of a spike the first alert came, a column for
// each scrape interval, and the reason if none did.
func documentSpikes(s simulated) documentedRamps {
	spikes := documentedRamps{Scrape: short(spike)}
	for _, scrape := range scrapes() {
		spikes.Fills = append(spikes.Fills, short(scrape))
	}
	for _, limit := range limits() {
		row := []string{limit.Resource}
		for _, scrape := range scrapes() {
			cell := "not simulated"
			if lead, ok := s.Spikes[spikeKey(limit.Resource, scrape)]; ok && lead != never {
				cell = short(-lead)
			} else if ok {
				cell = "never"
			}
			row = append(row, cell)
		}
		spikes.Leads = append(spikes.Leads, append(row, untold(limit.Resource)))
	}
	return spikes
}

func documentHosts(s simulated) [][]string {
	var rows [][]string
	for _, h := range quietHosts() {
		w := s.Weeks[h.name]
		rows = append(rows, []string{h.about, strconv.Itoa(w[Critical]), strconv.Itoa(w[Warning]), strconv.Itoa(w[Info]), h.ticket})
	}
	return rows
}

// documentedRecordings are the results of the recordings of failures: a row for each scenario,
// with a column for each kernel and a note.
type documentedRecordings struct {
	Step, LeadTime, ToldAfter string
	Kernels                   []string
	Before, After             [][]string
}

func documentRecordings(outcomes []outcome) documentedRecordings {
	d := documentedRecordings{Step: short(step), LeadTime: short(leadTime), ToldAfter: short(toldAfter)}
	var scenarios []string
	by := map[string]outcome{}
	for _, o := range outcomes {
		r := o.recording
		if !slices.Contains(d.Kernels, r.Kernel) {
			d.Kernels = append(d.Kernels, r.Kernel)
		}
		if !slices.Contains(scenarios, r.Scenario) {
			scenarios = append(scenarios, r.Scenario)
		}
		by[instance(r)] = o
	}
	slices.SortFunc(d.Kernels, compareVersions)
	slices.Sort(scenarios)

	rows := func(cell func(outcome) (text, note string)) (rows [][]string) {
		for _, s := range scenarios {
			row, remark := []string{s}, ""
			for _, k := range d.Kernels {
				text, note := "", ""
				if o, ok := by[k+"/"+s]; ok {
					text, note = cell(o)
				}
				row = append(row, text)
				remark = cmp.Or(remark, note)
			}
			rows = append(rows, append(row, remark))
		}
		return rows
	}
	d.Before = rows(func(o outcome) (text, note string) {
		why := unforeseen(o.recording.Resource)
		if why != "" {
			return "–", why
		}
		if unpaged(o.recording.Resource) {
			why = "tickets only, by design"
		}
		return show(o.lead(o.critical)) + " / " + show(o.lead(o.warning)), why
	})
	d.After = rows(func(o outcome) (text, note string) {
		switch why := uncounted(o.recording); {
		case why != "" && o.critical != nil:
			return "page firing", why
		case why != "":
			return "none", why
		case o.met == nil:
			return "none", ""
		default:
			return short(o.met.first - o.refusal()), ""
		}
	})
	return d
}

// short formats a duration without trailing zero units: 1h, not 1h0m0s.
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

// compareVersions compares kernel versions by number: 6.12 is after 6.1.
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

// TestDocumentRecordings checks documentRecordings with outcomes of all kinds.
func TestDocumentRecordings(t *testing.T) {
	at := func(step int) *firing { return &firing{first: time.Duration(step) * 15 * time.Second} }
	rec := func(kernel, scenario string) *recording.Recording {
		return &recording.Recording{Kernel: kernel, Scenario: scenario, Resource: scenario, Refusal: 44}
	}
	got := documentRecordings([]outcome{
		{rec("6.12", "tcp_memory"), at(34), at(40), at(45)},
		{rec("6.1", "tcp_memory"), nil, at(40), nil},
		{rec("6.12", "file_descriptors"), at(34), at(40), nil},
		{rec("6.12", "netdev_backlog"), nil, nil, at(44)},
	})
	want := documentedRecordings{
		Step: "15s", LeadTime: "1m", ToldAfter: "1m", Kernels: []string{"6.1", "6.12"},
		Before: [][]string{
			{"file_descriptors", "", "1m / 2m30s", ""},
			{"netdev_backlog", "", "–", "lasts for microseconds, so scrapes do not see it"},
			{"tcp_memory", "1m / never", "1m / 2m30s", ""},
		},
		After: [][]string{
			{"file_descriptors", "", "page firing", "no counter"},
			{"netdev_backlog", "", "0s", ""},
			{"tcp_memory", "none", "15s", ""},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
}
