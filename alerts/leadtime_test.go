package alerts

import (
	"fmt"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

// For every limit that fills within 5 minutes or more, the rules guarantee that a page fires at
// least leadTime before the kernel first refuses, and that an alert reports the refusal within
// toldAfter.
const (
	leadTime  = time.Minute
	toldAfter = time.Minute
)

// outcome is the alerts that the rules raise on a recording of a failure.
type outcome struct {
	recording *recording.Recording
	// The first warning, the first page and the first alert on a counter of the kernel; nil if
	// there was none.
	warning, critical, met *firing
}

// refusal is when the kernel first refused.
func (o outcome) refusal() time.Duration { return time.Duration(o.recording.Refusal) * step }

// lead is how long before the refusal an alert fired, negative if after, never if it
// did not.
func (o outcome) lead(f *firing) time.Duration {
	if f == nil {
		return never
	}
	return o.refusal() - f.first
}

// unforeseen returns the reason why no alert can come before the refusal, if there is one.
func unforeseen(resource string) string {
	switch resource {
	case "netdev_backlog":
		return "lasts for microseconds, so scrapes do not see it"
	case "cgroup_memory":
		return "normal close to the limit, so only minutes of it write a ticket"
	case "request_queue", "udp_receive_queue":
		return "briefly full without harm, so only minutes of it write a ticket"
	}
	return ""
}

// unpaged reports whether a limit raises tickets only.
func unpaged(resource string) bool {
	for _, t := range themes() {
		for _, l := range t.limits {
			if l.resource == resource {
				return l.forecast == ticket
			}
		}
	}
	return false
}

// uncounted returns the reason why no alert reports the refusal, if the kernel does not count it.
// Then the page must be firing.
func uncounted(r *recording.Recording) string {
	switch r.Resource {
	case "ephemeral_ports", "file_descriptors", "process_file_descriptors", "committed_memory", "threads", "unix_accept_queue":
		return "no counter"
	case "udp_memory":
		if r.Get("sockpressure_udp_memory_errors_total") == nil {
			return "no counter before 5.11"
		}
	}
	return ""
}

// judge evaluates the rules on each recording, at an interval.
func judge(t *testing.T, recordings []*recording.Recording, interval time.Duration) []outcome {
	t.Helper()
	var firings []firing
	// promtool allows 10,000 samples per query, and one vector has some 20 limits of each node.
	for some := range slices.Chunk(recordings, 48) {
		nodes := make([]node, len(some))
		for i, r := range some {
			nodes[i] = node{instance(r), r.Series}
		}
		firings = append(firings, run{tick: step, interval: interval, nodes: nodes}.evaluate(t)...)
	}
	outcomes := make([]outcome, len(recordings))
	for i, r := range recordings {
		o := outcome{recording: r}
		for _, f := range firings {
			ours := f.resource == r.Resource && r.Resource != "" ||
				f.name == "SockPressureRequestQueueFull" && r.Resource == ""
			if f.instance != instance(r) || !ours {
				continue
			}
			switch {
			case f.stage == met:
				o.met = earlier(o.met, f)
			case f.severity == Warning:
				o.warning = earlier(o.warning, f)
			case f.severity == Critical:
				o.critical = earlier(o.critical, f)
			}
		}
		outcomes[i] = o
	}
	return outcomes
}

func earlier(a *firing, b firing) *firing {
	if a == nil || b.first < a.first {
		return &b
	}
	return a
}

func instance(r *recording.Recording) string { return r.Kernel + "/" + r.Scenario }

// check fails if the outcome breaks the guarantees.
func (o outcome) check(t *testing.T) {
	t.Helper()
	r := o.recording
	if unforeseen(r.Resource) == "" {
		first := o.critical
		if unpaged(r.Resource) {
			first = o.warning
		}
		if lead := o.lead(first); lead < leadTime {
			t.Errorf("%s: the page comes %s before the refusal, the ticket %s", instance(r), show(lead), show(o.lead(o.warning)))
		}
	}
	told := o.met
	if uncounted(r) != "" {
		told = o.critical
	}
	if told == nil || told.first > o.refusal()+toldAfter || told.last < o.refusal() {
		t.Errorf("%s: refused at %s (%s), reported by %+v", instance(r), o.refusal(), r.Refused, told)
	}
}

// readRecordings reads the recordings of the lab: those of all kernels in CI, those of one kernel
// elsewhere.
func readRecordings(t *testing.T) []*recording.Recording {
	t.Helper()
	if needs.InCI() {
		return recordings(t, "*")
	}
	return recordings(t, "6.12")
}

func recordings(t *testing.T, kernels string) []*recording.Recording {
	t.Helper()
	files, err := filepath.Glob("../lab/recordings/" + kernels + "/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []*recording.Recording
	for _, file := range files {
		r, err := recording.Read(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

// TestLeadTimes checks the guaranteed lead times on recordings of real kernels.
func TestLeadTimes(t *testing.T) {
	t.Parallel()
	failures := slices.DeleteFunc(readRecordings(t), func(r *recording.Recording) bool { return r.Refusal < 0 })
	if len(failures) == 0 {
		t.Fatal("lab/recordings has no failures: nothing to evaluate")
	}
	kept := readKept(t).Recorded
	for _, o := range judge(t, failures, step) {
		o.check(t)
		if !reflect.DeepEqual(o.times(), kept[instance(o.recording)]) {
			t.Errorf("%s: docs/alerts.md is out of date: go test ./alerts -update -simulate=recordings", instance(o.recording))
		}
	}
}

// TestSilence checks that no warning and no page fires on repeated recordings of healthy hosts.
func TestSilence(t *testing.T) {
	t.Parallel()
	healthy := slices.DeleteFunc(readRecordings(t), func(r *recording.Recording) bool { return r.Refusal >= 0 })
	if len(healthy) == 0 {
		t.Fatal("lab/recordings has no healthy host: nothing to evaluate")
	}
	silence(t, healthy)
}

// silence fails for every warning and page that healthy hosts raise: in half an hour or,
// in CI, in two hours evaluated at every step and in a day evaluated every two minutes.
func silence(t *testing.T, healthy []*recording.Recording) {
	t.Helper()
	if needs.InCI() {
		silent(t, healthy, 2*time.Hour, step)
		silent(t, healthy, 24*time.Hour, 2*time.Minute)
		return
	}
	silent(t, healthy, 30*time.Minute, step)
}

func silent(t *testing.T, healthy []*recording.Recording, duration, interval time.Duration) {
	t.Helper()
	// A few at a time: a day of one host is some hundred thousand samples.
	for some := range slices.Chunk(healthy, 4) {
		t.Run(fmt.Sprintf("%s every %s from %s", short(duration), short(interval), instance(some[0])), func(t *testing.T) {
			t.Parallel()
			nodes := make([]node, len(some))
			for i, r := range some {
				nodes[i] = node{instance(r), repeated(r, int(duration/step))}
			}
			for _, f := range (run{tick: step, interval: interval, nodes: nodes}).evaluate(t) {
				if f.severity != Info {
					t.Errorf("%s: %s (%s, %s) fires from %s on", f.instance, f.name, f.severity, f.resource, f.first)
				}
			}
		})
	}
}

// repeated repeats a recording until it has a number of steps. A gauge shows the same values
// again, a counter continues from its last value.
func repeated(r *recording.Recording, steps int) []recording.Series {
	all := make([]recording.Series, len(r.Series))
	for i, s := range r.Series {
		name, _, _ := strings.Cut(s.Name, "{")
		grown := 0.0
		if strings.HasSuffix(name, "_total") {
			if first, last := s.Values[0], s.Values[len(s.Values)-1]; !math.IsNaN(last - first) {
				grown = last - first
			}
		}
		values := make([]float64, steps)
		for j := range values {
			values[j] = s.Values[j%len(s.Values)] + grown*float64(j/len(s.Values))
		}
		all[i] = recording.Series{Name: s.Name, Values: values}
	}
	return all
}

// TestSwings checks that a limit that is at 70 % for a moment every ten minutes, with counters
// that do not change, raises no warning and no page.
func TestSwings(t *testing.T) {
	t.Parallel()
	up := []float64{0.1, 0.25, 0.4, 0.55, 0.7, 0.7, 0.5, 0.3, 0.1, 0.05}
	r := &recording.Recording{Kernel: "ideal", Scenario: "burst", Steps: 40, Refusal: -1}
	for _, l := range limits() {
		values := make([]float64, r.Steps)
		for i := range values {
			values[i] = 0.05
		}
		copy(values[10:], up)
		r.Series = append(r.Series, recording.Series{Name: fmt.Sprintf("sockpressure_saturation_ratio{resource=%q}", l.Resource), Values: values})
	}
	silence(t, []*recording.Recording{r})
}
