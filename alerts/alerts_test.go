package alerts

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// TestNames fails for a rule that names a metric or a label that the exporter
// does not have: such a rule never fires, and nobody notices.
func TestNames(t *testing.T) {
	metrics, rules := exported(t), readRules(t)
	recorded := map[string]bool{}
	allLabels := []string{"job", "instance"}
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
		ownLabels := []string{"job", "instance"}
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
					if !slices.Contains(labels, m[0]) && m[0] != "job" && m[0] != "instance" {
						t.Errorf("%s: %s has no label %s", r, s.metric, m[0])
					}
					if m[0] == "resource" {
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
		// The queue of connection requests is no limit of the exporter's, since the
		// kernel does not show how full it is, but it refuses.
		if own := r.Labels["resource"]; own != "" && own != "request_queue" && !strings.Contains(own, "{{") {
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

// TestLevels: every limit has a warning and a critical alert under one name, at
// the levels of its row, which the status page and the check command use too.
func TestLevels(t *testing.T) {
	level := regexp.MustCompile(`^sockpressure_saturation_ratio\{resource=~?"([^"]+)"\} >= ([0-9.]+)`)
	found := map[string]map[string]float64{}
	names := map[string]string{}
	for _, r := range alertsOf(readRules(t)) {
		m := level.FindStringSubmatch(r.Expr)
		if m == nil || r.Labels["stage"] != "near" {
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
				t.Errorf("%s: %s has another such alert, or under another name", r, l.Resource)
			}
			found[l.Resource][severity] = value
		}
	}
	for _, l := range limits() {
		want := map[string]float64{"warning": l.Warning, "critical": l.Critical}
		if got := found[l.Resource]; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: alerts at %v, the row says %v", l.Resource, got, want)
		}
	}
}

// TestAnnotations holds the words of the alerts to the conventions.
func TestAnnotations(t *testing.T) {
	name := regexp.MustCompile(`^SockPressure[A-Z][A-Za-z]+$`)
	summaries := map[string]string{}
	for _, r := range alertsOf(readRules(t)) {
		if !name.MatchString(r.Alert) {
			t.Errorf("%s: name", r)
		}
		for key, values := range map[string][]string{
			"severity": {"critical", "warning", "info"},
			"stage":    {"near", "met", "forecast", ""},
		} {
			if !slices.Contains(values, r.Labels[key]) {
				t.Errorf("%s: %s is %q", r, key, r.Labels[key])
			}
		}
		for key := range r.Labels {
			if key != "severity" && key != "stage" && key != "resource" {
				t.Errorf("%s: label %s", r, key)
			}
		}
		summary, description := r.Annotations["summary"], r.Annotations["description"]
		if summary == "" || strings.Contains(summary, "{{") || !strings.HasSuffix(summary, ".") || strings.Count(summary, ".") > 1 {
			t.Errorf("%s: summary %q is no static sentence with a period", r, summary)
		}
		if other, ok := summaries[r.Alert]; ok && other != summary {
			t.Errorf("%s: another summary than that of the same name", r)
		}
		summaries[r.Alert] = summary
		if !strings.HasSuffix(description, ".") {
			t.Errorf("%s: description %q", r, description)
		}
		// What is absent has no value and no node.
		if !strings.HasPrefix(r.Expr, "absent(") && (!strings.Contains(description, "{{ $labels.instance }}") || !strings.Contains(description, "$value")) {
			t.Errorf("%s: the description lacks the node or the value", r)
		}
		if want := runbooks + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url %s, want %s", r, r.Annotations["runbook_url"], want)
		}
		if len(r.Annotations) != 3 {
			t.Errorf("%s: annotations %v", r, r.Annotations)
		}
		// A forecast alone flaps.
		if strings.Contains(r.Expr, "predict_linear") && (r.For == "" || !strings.Contains(r.Expr, ">= 0.")) {
			t.Errorf("%s: a forecast without a level or without for", r)
		}
	}
}

// TestRunbooks: a section for each alert and an alert for each section, in the
// same form.
func TestRunbooks(t *testing.T) {
	parts := regexp.MustCompile(`(?m)^### (SockPressure\w+)$`).Split(read(t, "../docs/runbooks.md"), -1)
	headings := regexp.MustCompile(`(?m)^### (SockPressure\w+)$`).FindAllStringSubmatch(read(t, "../docs/runbooks.md"), -1)
	sections := map[string]bool{}
	for i, h := range headings {
		if sections[h[1]] {
			t.Errorf("%s stands twice", h[1])
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

// TestRecordingRules holds their names to level:metric:operations.
func TestRecordingRules(t *testing.T) {
	name := regexp.MustCompile(`^(instance|instance_resource|job_resource):sockpressure_[a-z_]+:[a-z0-9]+$`)
	for _, r := range readRules(t) {
		if r.Record != "" && !name.MatchString(r.Record) {
			t.Errorf("%s: name", r)
		}
		if r.Record == "" && strings.Contains(r.Expr, ":sockpressure_") {
			t.Errorf("%s: an alert that stands on a recording rule is late by a round, and silent if that is not loaded", r)
		}
	}
}

// TestTests: every alert of every severity is seen to fire and seen to be silent
// in the unit tests, which promtool runs.
func TestTests(t *testing.T) {
	type samples struct {
		Expr       string
		EvalTime   string           `yaml:"eval_time"`
		ExpSamples []map[string]any `yaml:"exp_samples"`
	}
	var seen [2]map[string]bool
	seen[0], seen[1] = map[string]bool{}, map[string]bool{}
	files, err := filepath.Glob("tests/*.test.yml")
	if err != nil {
		t.Fatal(err)
	}
	of := regexp.MustCompile(`alertname="(\w+)",severity="(\w+)"`)
	for _, file := range files {
		var content struct {
			RuleFiles []string `yaml:"rule_files"`
			Interval  string   `yaml:"evaluation_interval"`
			Tests     []struct {
				Interval string
				Series   []map[string]string `yaml:"input_series"`
				Exprs    []samples           `yaml:"promql_expr_test"`
				Alerts   []map[string]any    `yaml:"alert_rule_test"`
			}
		}
		unmarshal(t, file, &content)
		for _, test := range content.Tests {
			for _, e := range test.Exprs {
				if m := of.FindStringSubmatch(e.Expr); m != nil {
					seen[min(len(e.ExpSamples), 1)][m[1]+" "+m[2]] = true
				}
			}
		}
	}
	for _, r := range alertsOf(readRules(t)) {
		for i, what := range []string{"silent", "fire"} {
			if !seen[i][r.Alert+" "+r.Labels["severity"]] {
				t.Errorf("%s: no unit test sees it %s", r, what)
			}
		}
	}
}
