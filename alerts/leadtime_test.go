package alerts

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

// What is promised of every limit: a warning or a page fires this long before the
// kernel first refuses, and what it does then is told this soon.
const (
	leadTime  = time.Minute
	toldAfter = time.Minute
)

// outcome is what the rules made of a recording of a failure.
type outcome struct {
	recording *recording.Recording
	// Of the first warning, the first page and the first alert on what the kernel
	// counts; nil if there was none.
	warning, critical, met *firing
}

// refusal is when the kernel first refused.
func (o outcome) refusal() time.Duration { return time.Duration(o.recording.Refusal) * step }

// lead is how long before the refusal the first alert fired, negative if after.
func (o outcome) lead() (lead time.Duration, ok bool) {
	for _, f := range []*firing{o.warning, o.critical} {
		if f != nil {
			lead, ok = max(lead, o.refusal()-f.first), true
		}
	}
	return lead, ok
}

// unforeseen says why nothing can come before the refusal, if so.
func unforeseen(r *recording.Recording) string {
	switch r.Resource {
	case "":
		return "the kernel does not show how full the queue of requests is"
	case "netdev_backlog":
		return "a moment's length: over before a scrape sees it"
	}
	return ""
}

// uncounted says why nothing tells of the refusal, if so: the kernel counts none.
// The page must stand then.
func uncounted(r *recording.Recording) string {
	switch r.Resource {
	case "ephemeral_ports", "file_descriptors", "process_file_descriptors", "committed_memory":
		return "no counter"
	case "udp_memory":
		if r.Get("sockpressure_udp_memory_errors_total") == nil {
			return "no counter before 5.11"
		}
	}
	return ""
}

// judge finds what the rules made of each recording, evaluated at an interval.
func judge(t *testing.T, recordings []*recording.Recording, interval time.Duration) []outcome {
	t.Helper()
	nodes := make([]node, len(recordings))
	for i, r := range recordings {
		nodes[i] = node{instance(r), r.Series}
	}
	firings := evaluate(t, readRules(t), interval, nodes)
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
			case f.stage == "met":
				o.met = earlier(o.met, f)
			case f.severity == "warning":
				o.warning = earlier(o.warning, f)
			case f.severity == "critical":
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

// check fails where the promise is broken.
func (o outcome) check(t *testing.T) {
	t.Helper()
	r := o.recording
	if unforeseen(r) == "" {
		if lead, ok := o.lead(); !ok || lead < leadTime {
			t.Errorf("%s: the first alert comes %s before the refusal (fired: %t)", instance(r), lead, ok)
		}
	}
	told := o.met
	if uncounted(r) != "" {
		told = o.critical
	}
	if told == nil || told.first > o.refusal()+toldAfter || told.last < o.refusal() {
		t.Errorf("%s: refused at %s (%s), and what tells of it is %+v", instance(r), o.refusal(), r.Refused, told)
	}
}

// readRecordings reads what the lab recorded of real kernels.
func readRecordings(t *testing.T) []*recording.Recording {
	t.Helper()
	files, err := filepath.Glob("../lab/recordings/*/*.txt")
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

// TestSilence repeats what healthy hosts showed, in CI for a day. Nobody may be
// called.
func TestSilence(t *testing.T) {
	healthy := slices.DeleteFunc(readRecordings(t), func(r *recording.Recording) bool { return r.Refusal >= 0 })
	if len(healthy) == 0 {
		t.Fatal("lab/recordings has no healthy host: nothing to evaluate")
	}
	silence(t, healthy)
}

// silence fails for every warning and page that healthy hosts raise in two hours
// evaluated every minute; in CI at every step, and in a day evaluated every minute.
func silence(t *testing.T, healthy []*recording.Recording) {
	t.Helper()
	needs.Check(t, "promtool")
	if !needs.InCI() {
		silent(t, healthy, 2*time.Hour, time.Minute)
		return
	}
	silent(t, healthy, 2*time.Hour, step)
	if !testing.Short() {
		silent(t, healthy, 24*time.Hour, time.Minute)
	}
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
			for _, f := range evaluate(t, readRules(t), interval, nodes) {
				if f.severity != "info" {
					t.Errorf("%s: %s (%s, %s) fires from %s on", f.instance, f.name, f.severity, f.resource, f.first)
				}
			}
		})
	}
}

// repeated lays a recording end to end. A gauge shows the same again, a counter
// goes on from where it was.
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

// ramp is an ideal recording: four idle steps, a limit that fills within ten
// minutes from the given level, and a counter that moves from then on.
func ramp(resource, counter string, from float64) *recording.Recording {
	const idle, fill, after = 4, 40, 8
	r := &recording.Recording{
		Kernel: "ideal", Scenario: resource, Resource: resource,
		Steps: idle + fill + after, Refusal: idle + fill, Refused: "refused",
	}
	saturation, counts := make([]float64, r.Steps), make([]float64, r.Steps)
	for i := range r.Steps {
		full := float64(min(max(i-idle, 0), fill)) / fill
		saturation[i] = from + (1-from)*full
		counts[i] = float64(max(i-r.Refusal+1, 0))
	}
	if resource != "" {
		r.Series = append(r.Series, recording.Series{Name: fmt.Sprintf("sockpressure_saturation_ratio{resource=%q}", resource), Values: saturation})
	}
	if counter != "" {
		r.Series = append(r.Series, recording.Series{Name: counter, Values: counts})
	}
	return r
}

// TestRamps holds the rules to their promise on limits that fill evenly within
// ten minutes, whatever the lab recorded.
func TestRamps(t *testing.T) {
	counters := map[string]string{
		"conntrack_entries": "sockpressure_conntrack_drops_total",
		"tcp_memory":        "sockpressure_tcp_receive_queue_drops_total",
		"tcp_orphans":       "sockpressure_tcp_aborts_on_memory_total",
		"tcp_time_wait":     "sockpressure_tcp_time_wait_overflows_total",
		"accept_queue":      "sockpressure_tcp_listen_overflows_total",
		"udp_memory":        "sockpressure_udp_memory_errors_total",
		"ip_fragments_ipv4": "sockpressure_ip_reassembly_failures_total",
		"ip_fragments_ipv6": "sockpressure_ip6_reassembly_failures_total",
		"neighbours_ipv4":   `sockpressure_neighbour_table_full_total{family="ipv4"}`,
		"neighbours_ipv6":   `sockpressure_neighbour_table_full_total{family="ipv6"}`,
		"netdev_backlog":    "sockpressure_netdev_backlog_drops_total",
		"memory":            "sockpressure_oom_kills_total",
		"low_memory":        "sockpressure_oom_kills_total",
	}
	var ramps []*recording.Recording
	for _, l := range limits() {
		for _, from := range []float64{0, 0.2} {
			r := ramp(l.Resource, counters[l.Resource], from)
			r.Kernel += fmt.Sprintf("-%v", from)
			ramps = append(ramps, r)
		}
	}
	ramps = append(ramps, ramp("", "sockpressure_tcp_request_queue_full_cookies_total", 0))
	for _, o := range judge(t, ramps, step) {
		o.check(t)
		lead, _ := o.lead()
		t.Logf("%-35s %s", instance(o.recording), lead)
	}

	// The same for who scrapes and evaluates once a minute: there is less time, but
	// some, and what the kernel counts is told at the next scrape but one.
	for _, r := range ramps {
		thin(r, int(time.Minute/step))
	}
	for _, o := range judge(t, ramps, time.Minute) {
		if lead, ok := o.lead(); unforeseen(o.recording) == "" && (!ok || lead < leadTime/2) {
			t.Errorf("%s, scraped once a minute: the first alert comes %s before the refusal", instance(o.recording), lead)
		}
		if uncounted(o.recording) == "" && (o.met == nil || o.met.first > o.refusal()+2*time.Minute) {
			t.Errorf("%s, scraped once a minute: what tells of the refusal is %+v", instance(o.recording), o.met)
		}
	}
}

// thin leaves every nth step of a recording, as a longer scrape interval does.
func thin(r *recording.Recording, n int) {
	for _, s := range r.Series {
		for i := range s.Values {
			if i%n != 0 {
				s.Values[i] = math.NaN()
			}
		}
	}
}

// TestSwings: a limit that is used to 70 percent for a moment every ten minutes,
// with counters that do not move, calls nobody.
func TestSwings(t *testing.T) {
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
