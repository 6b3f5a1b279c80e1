package alerts

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// TestNames checks that rules name only metrics and labels that the exporter has. A rule that
// names another one never fires, and nobody notices.
func TestNames(t *testing.T) {
	metrics, rules := exported(), readRules(t)
	recorded := map[string]bool{}
	allLabels := []string{"cluster", "job", "instance"}
	for _, r := range rules {
		if r.Record != "" {
			recorded[r.Record] = true
		}
	}
	for _, labels := range metrics {
		allLabels = append(allLabels, labels...)
	}

	printf := regexp.MustCompile(`printf "([^"]*)" \$labels`)
	label := regexp.MustCompile(`\$labels\.(\w+)`)
	for _, r := range rules {
		texts := []string{r.Expr}
		for _, m := range printf.FindAllStringSubmatch(r.Annotations["description"], -1) {
			texts = append(texts, strings.ReplaceAll(m[1], "%q", `"a"`))
		}
		ownLabels := []string{"cluster", "job", "instance"}
		for _, text := range texts {
			e := parse(text)
			if len(e.selectors) == 0 || len(e.unknown) > 0 {
				t.Errorf("%s: %q names no metric, or names %q", r, text, e.unknown)
			}
			for _, s := range e.selectors {
				labels, ok := metrics[s.metric]
				if strings.Contains(s.metric, ":") {
					labels, ok = allLabels, recorded[s.metric]
				}
				if !ok {
					t.Errorf("%s: there is no metric %s", r, s.metric)
				}
				ownLabels = append(ownLabels, labels...)
				for _, m := range s.matchers {
					if !slices.Contains(labels, m[0]) && !slices.Contains([]string{"cluster", "job", "instance"}, m[0]) {
						t.Errorf("%s: %s has no label %s", r, s.metric, m[0])
					}
					// Refusals in namespaces are also counted for queues that are not limits.
					if m[0] == "resource" && s.metric != "sockpressure_netns_refusals_total" {
						checkResources(t, r, m[1], m[2])
					}
				}
			}
			for _, l := range e.grouping {
				if !slices.Contains(allLabels, l) {
					t.Errorf("%s: there is no label %s", r, l)
				}
			}
		}
		for _, text := range []string{r.Annotations["description"], r.Labels["resource"]} {
			for _, m := range label.FindAllStringSubmatch(text, -1) {
				if !slices.Contains(ownLabels, m[1]) {
					t.Errorf("%s: the alert has no label %s", r, m[1])
				}
			}
		}
		if own := r.Labels["resource"]; own != "" && !strings.Contains(own, "{{") {
			checkResources(t, r, "=", own)
		}
	}
}

// checkResources fails if a matcher names a resource that does not exist.
func checkResources(t *testing.T, r rule, operator, value string) {
	t.Helper()
	alternatives := []string{regexp.QuoteMeta(value)}
	if strings.HasSuffix(operator, "~") {
		alternatives = strings.Split(value, "|")
	}
	for _, a := range alternatives {
		whole := regexp.MustCompile("^(?:" + a + ")$")
		if !slices.ContainsFunc(limits(), func(l collector.LimitInfo) bool { return whole.MatchString(l.Resource) }) {
			t.Errorf("%s: there is no resource %q", r, a)
		}
	}
}

// limits lists the limits of all collectors.
func limits() []collector.LimitInfo {
	var all []collector.LimitInfo
	for _, s := range collector.Specs() {
		all = append(all, s.Limits...)
	}
	return all
}

// TestLevels checks that every limit has a warning and a critical alert of one name, at the
// ratios of its LimitInfo, which the status page and the check command use too.
func TestLevels(t *testing.T) {
	level := regexp.MustCompile(`(?:saturation:max1m|sockpressure_saturation_ratio)\{resource="([^"]+)"\} >= ([0-9.]+)`)
	found := map[string]map[string]float64{}
	names := map[string]string{}
	for _, r := range alertsOf(readRules(t)) {
		m := level.FindStringSubmatch(r.Expr)
		if m == nil || r.Labels["stage"] != near {
			continue
		}
		value, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		whole := regexp.MustCompile("^(?:" + m[1] + ")$")
		for _, l := range limits() {
			if !whole.MatchString(l.Resource) {
				continue
			}
			if found[l.Resource] == nil {
				found[l.Resource] = map[string]float64{}
				names[l.Resource] = r.Alert
			}
			severity := r.Labels["severity"]
			if _, twice := found[l.Resource][severity]; twice || names[l.Resource] != r.Alert {
				t.Errorf("%s: %s has two alerts of this severity, or alerts of two names", r, l.Resource)
			}
			found[l.Resource][severity] = value
		}
	}
	for _, l := range limits() {
		want := map[string]float64{"warning": l.WarningRatio, "critical": l.CriticalRatio}
		if unpaged(l.Resource) { // tickets only, by design
			delete(want, "critical")
		}
		if got := found[l.Resource]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: alerts at %v, want %v", l.Resource, got, want)
		}
	}
}

// TestAnnotations checks the names, labels and annotations of the alerts.
func TestAnnotations(t *testing.T) {
	name := regexp.MustCompile(`^SockPressure[A-Z][A-Za-z]+$`)
	summaries := map[string]string{}
	for _, r := range alertsOf(readRules(t)) {
		if !name.MatchString(r.Alert) {
			t.Errorf("%s: name", r)
		}
		for key, values := range map[string][]string{
			"severity": {Critical, Warning, Info},
			"stage":    {near, met, forecast, ""},
		} {
			if !slices.Contains(values, r.Labels[key]) {
				t.Errorf("%s: %s is %q", r, key, r.Labels[key])
			}
		}
		for key := range r.Labels {
			if !slices.Contains([]string{"severity", "stage", "resource", "window"}, key) {
				t.Errorf("%s: label %s", r, key)
			}
		}
		summary, description := r.Annotations["summary"], r.Annotations["description"]
		if summary == "" || strings.Contains(summary, "{{") || !strings.HasSuffix(summary, ".") || strings.Count(summary, ".") > 1 {
			t.Errorf("%s: summary %q is no static sentence with a period", r, summary)
		}
		if other, ok := summaries[r.Alert]; ok && other != summary {
			t.Errorf("%s: summary differs from that of another rule of this name", r)
		}
		summaries[r.Alert] = summary
		if !strings.HasSuffix(description, ".") {
			t.Errorf("%s: description %q", r, description)
		}
		// An alert on absence has no value and no node.
		if !strings.HasPrefix(r.Expr, "absent(") && (!strings.Contains(description, "{{ $labels.instance }}") || !strings.Contains(description, "$value")) {
			t.Errorf("%s: the description lacks the node or the value", r)
		}
		if want := DefaultRunbookURL + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url %s, want %s", r, r.Annotations["runbook_url"], want)
		}
		if len(r.Annotations) != 3 {
			t.Errorf("%s: annotations %v", r, r.Annotations)
		}
		// keep_firing_for prevents flapping: alerts below critical fire at most once an hour.
		if r.KeepFiringFor == "" || r.Labels["severity"] != Critical && r.KeepFiringFor != "1h" && r.Labels["stage"] != forecast && !strings.HasPrefix(r.Alert, "SockPressureExporter") {
			t.Errorf("%s: keep_firing_for is %q", r, r.KeepFiringFor)
		}
	}
}

// TestRunbooks checks that docs/runbooks.md has one section for each alert, no other sections,
// and the same form in all of them.
func TestRunbooks(t *testing.T) {
	parts := regexp.MustCompile(`(?m)^### (SockPressure\w+)$`).Split(read(t, "../docs/runbooks.md"), -1)
	headings := regexp.MustCompile(`(?m)^### (SockPressure\w+)$`).FindAllStringSubmatch(read(t, "../docs/runbooks.md"), -1)
	sections := map[string]bool{}
	for i, h := range headings {
		if sections[h[1]] {
			t.Errorf("%s has two sections", h[1])
		}
		sections[h[1]] = true
		at := 0
		for _, part := range []string{"**Meaning.**", "**Impact.**", "**Diagnosis.**", "**Mitigation.**"} {
			next := strings.Index(parts[i+1][at:], part)
			if next < 0 {
				t.Errorf("%s: no %s in its place", h[1], part)
				continue
			}
			at += next
		}
	}
	for _, r := range alertsOf(readRules(t)) {
		if !sections[r.Alert] {
			t.Errorf("docs/runbooks.md has no section %s", r.Alert)
			sections[r.Alert] = true
		}
	}
	for name := range sections {
		if !slices.ContainsFunc(alertsOf(readRules(t)), func(r rule) bool { return r.Alert == name }) {
			t.Errorf("docs/runbooks.md: there is no alert %s", name)
		}
	}
}

// TestCommands checks the commands of the runbooks: bash parses them, a value for sysctl is
// computed from the host's or is a switch, and no command reads all sockets or all descriptors.
func TestCommands(t *testing.T) {
	text := read(t, "../docs/runbooks.md")
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(blocks) < 40 {
		t.Fatalf("%d blocks of commands", len(blocks))
	}
	made := regexp.MustCompile(`=("?\$\(|"\$\{|\$2|1\b|3$)`)
	for _, b := range blocks {
		cmd := exec.CommandContext(t.Context(), "bash", "-n")
		cmd.Stdin = strings.NewReader(b[1])
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s\n%s", b[1], out)
		}
		for line := range strings.Lines(b[1]) {
			line = strings.TrimSpace(line)
			for _, m := range regexp.MustCompile(`sysctl -w "?[^=]+(=.*)`).FindAllStringSubmatch(line, -1) {
				if !made.MatchString(m[1]) {
					t.Errorf("a value that is not computed from the host's: %s", line)
				}
			}
			for _, bad := range []string{"pgrep -o", "sort -k 3,3nr /proc/slabinfo", "netstat ", "cat /proc/net/tcp", "ss -tan"} {
				if strings.Contains(line, bad) {
					t.Errorf("%s: %s", bad, line)
				}
			}
			if strings.Contains(line, "conntrack -L") && !strings.Contains(line, "head -n 20000") {
				t.Errorf("the whole table: %s", line)
			}
			if regexp.MustCompile(`ss -\w*p\w*( |$)`).MatchString(line) && !strings.Contains(line, "sport = :PORT") {
				t.Errorf("the descriptors of every process: %s", line)
			}
		}
	}
}

// TestRecordingRules checks that the names of recording rules have the form
// level:metric:operations, and that alerts read only what their own group records.
func TestRecordingRules(t *testing.T) {
	name := regexp.MustCompile(`^(instance|instance_(resource|family|message|kind|resource_netns)|job_message|job_resource|job_resource_netns):sockpressure_[a-z0-9_]+:[a-z0-9]+$`)
	for _, g := range Groups() {
		own := map[string]bool{}
		for _, r := range g.Rules {
			if r.Record != "" {
				if !name.MatchString(r.Record) {
					t.Errorf("%s: name", r.Record)
				}
				own[r.Record] = true
				continue
			}
			// The last unless of a forecast only suppresses it, so it may read series of other
			// groups.
			alone := regexp.MustCompile(`\nunless [^\n]*:sockpressure_[^\n]*$`).ReplaceAllString(r.Expr, "")
			if r.For >= "15m" && g.Interval != "15s" { // one evaluation late does not matter
				continue
			}
			for _, s := range parse(alone).selectors {
				if strings.Contains(s.metric, ":") && !own[s.metric] {
					t.Errorf("%s: an alert on a series that another group records is one evaluation late, and silent if that group is not loaded", r.Alert)
				}
			}
		}
	}
}
