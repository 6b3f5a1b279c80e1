package alerts

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

// step is the time between two steps of a recording, as the tests replay it.
const step = 15 * time.Second

// firing is an alert that fired, when it first and last did, and how many times it started to.
type firing struct {
	name, severity, stage, resource, instance string

	first, last time.Duration
	times       int
}

// node is the series of one exporter, with a value for each tick of a run.
type node struct {
	instance string
	series   []recording.Series
}

func (n node) ticks() int {
	longest := 0
	for _, s := range n.series {
		longest = max(longest, len(s.Values))
	}
	return longest
}

// run is an evaluation of the rules on nodes.
type run struct {
	tick     time.Duration // between two values of a series
	interval time.Duration // between two evaluations
	nodes    []node
	// only lists the files whose rules are evaluated, all if empty.
	only []string
}

// evaluate runs the rules on the series of the nodes with promtool, which uses the rule engine of
// Prometheus, and returns all alerts that fired.
//
// promtool only reports whether its tests pass. So the test expects that nothing fires, and the
// message of its failure lists what did.
func (r run) evaluate(t *testing.T) []firing {
	t.Helper()
	if testing.Short() {
		t.Skip("promtool is slow")
	}
	needs.Check(t, "promtool")
	patterns := r.only
	if len(patterns) == 0 {
		patterns = []string{"*"}
	}
	var files []string
	for _, p := range patterns {
		found, err := filepath.Glob(p + ".rules.yml")
		if err != nil || len(found) == 0 {
			t.Fatal(p, err)
		}
		files = append(files, found...)
	}
	wanted := map[string]bool{"up": true} // metrics that the rules read; the page has more
	for _, rule := range readRules(t) {
		for _, s := range parse(rule.Expr).selectors {
			wanted[s.metric] = true
		}
	}

	ticks := 0
	var b strings.Builder
	b.WriteString("rule_files:\n  - observer.yml\n")
	for _, file := range files {
		path, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "  - %s\n", path)
	}
	b.WriteString("group_eval_order:\n")
	for _, g := range Groups() {
		if len(r.only) == 0 || slices.Contains(r.only, g.file) {
			fmt.Fprintf(&b, "  - %s\n", g.Name)
		}
	}
	b.WriteString("  - observer\n")
	fmt.Fprintf(&b, "evaluation_interval: %s\ntests:\n  - interval: %s\n    input_series:\n", r.interval, r.tick)
	for _, n := range r.nodes {
		ticks = max(ticks, n.ticks())
		up := false
		for _, s := range n.series {
			name, labels, _ := strings.Cut(strings.TrimSuffix(s.Name, "}"), "{")
			up = up || name == "up"
			if !wanted[name] {
				continue
			}
			if labels != "" {
				labels = "," + labels
			}
			series := fmt.Sprintf(`%s{instance=%q%s}`, name, n.instance, labels)
			if !strings.Contains(labels, ",job=") {
				series = strings.Replace(series, "{", `{job="sockpressure",`, 1)
			}
			fmt.Fprintf(&b, "      - series: '%s'\n        values: '%s'\n", strings.ReplaceAll(series, "'", "''"), notation(s.Values))
		}
		if !up {
			fmt.Fprintf(&b, "      - series: 'up{job=\"sockpressure\",instance=%q}'\n        values: '1x%d'\n", n.instance, n.ticks()-1)
		}
	}
	end := time.Duration(ticks-1) * r.tick
	b.WriteString("    promql_expr_test:\n")
	for _, name := range []string{"first", "last", "times"} {
		fmt.Fprintf(&b, "      - expr: test:%s\n        eval_time: %ds\n        exp_samples: []\n", name, int(end.Seconds()))
	}

	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "observer.yml"), []byte(observer(r.interval)), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "rules.test.yml")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "promtool", "test", "rules", file).CombinedOutput()
	if err == nil {
		return nil // nothing fired
	}
	if exit := new(exec.ExitError); !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return parseFirings(t, string(out))
}

// observer returns rules that record when each alert first and last fired, and how many times it
// started to.
func observer(interval time.Duration) string {
	before := fmt.Sprintf("offset %ds", int(interval.Seconds()))
	return strings.NewReplacer("FIRING", `ALERTS{alertstate="firing"}`, "BEFORE", before).Replace(`groups:
  - name: observer
    rules:
      - record: test:first
        expr: test:first BEFORE or timestamp(FIRING)
      - record: test:last
        expr: timestamp(FIRING) or test:last BEFORE
      - record: test:times
        expr: (test:times BEFORE or 0 * test:first) + ((FIRING unless FIRING BEFORE) or 0 * test:first)
`)
}

// parseFirings parses the message of a failed test of promtool.
func parseFirings(t *testing.T, out string) []firing {
	t.Helper()
	got := regexp.MustCompile(`(?m)^\s+got: (.*)$`).FindAllStringSubmatch(out, -1)
	if len(got) != 3 {
		t.Fatalf("promtool: %s", out)
	}
	sample := regexp.MustCompile(`\{__name__="test:\w+", ([^}]*)\} ([0-9.E+-]+)`)
	label := regexp.MustCompile(`(\w+)="([^"]*)"`)
	by := map[string]*firing{}
	var order []string
	for i, line := range got {
		for _, m := range sample.FindAllStringSubmatch(line[1], -1) {
			value, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				t.Fatalf("promtool: %s", line[1])
			}
			f := by[m[1]]
			if f == nil {
				f = new(firing)
				for _, l := range label.FindAllStringSubmatch(m[1], -1) {
					switch l[1] {
					case "alertname":
						f.name = l[2]
					case "severity":
						f.severity = l[2]
					case "stage":
						f.stage = l[2]
					case "resource":
						f.resource = l[2]
					case "instance":
						f.instance = l[2]
					}
				}
				by[m[1]] = f
				order = append(order, m[1])
			}
			at := time.Duration(value * float64(time.Second))
			switch i {
			case 0:
				f.first = at
			case 1:
				f.last = at
			case 2:
				f.times = int(value)
			}
		}
	}
	var firings []firing
	for _, key := range order {
		firings = append(firings, *by[key])
	}
	if len(firings) == 0 {
		t.Fatalf("promtool: %s", out)
	}
	return firings
}

// notation formats values in the notation of promtool: 1 1 1 is 1x2, and _ is an absent value.
func notation(values []float64) string {
	var b strings.Builder
	for i := 0; i < len(values); {
		n := 1
		for i+n < len(values) && (values[i+n] == values[i] || math.IsNaN(values[i+n]) && math.IsNaN(values[i])) {
			n++
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		switch absent := math.IsNaN(values[i]); {
		case absent && n == 1:
			b.WriteByte('_')
		case absent:
			fmt.Fprintf(&b, "_x%d", n)
		case n == 1:
			b.WriteString(strconv.FormatFloat(values[i], 'f', -1, 64))
		default:
			fmt.Fprintf(&b, "%sx%d", strconv.FormatFloat(values[i], 'f', -1, 64), n-1)
		}
		i += n
	}
	return b.String()
}

// TestNotation checks notation with repeated and absent values.
func TestNotation(t *testing.T) {
	nan := math.NaN()
	got := notation([]float64{1, 1, 1, 0.5, nan, 1e12, nan, nan, 2})
	if want := "1x2 0.5 _ 1000000000000 _x2 2"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
