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

// step is the time between two steps of a recording, as it is laid out here.
const step = 15 * time.Second

// firing is an alert that fired, and when it first and last did.
type firing struct {
	name, severity, stage, resource, instance string

	first, last time.Duration
}

// node is what one exporter showed, step by step.
type node struct {
	instance string
	series   []recording.Series
}

// steps is for how long the node was seen.
func (n node) steps() int {
	longest := 0
	for _, s := range n.series {
		longest = max(longest, len(s.Values))
	}
	return longest
}

// evaluate has Prometheus's own rule engine, as promtool runs it, go through
// the rules over what the nodes showed. It returns all alerts that fired.
//
// promtool only says whether its tests hold. So it is told to expect that nothing
// fires, and its complaint is what we want to know.
func evaluate(t *testing.T, rules []rule, interval time.Duration, nodes []node) []firing {
	t.Helper()
	needs.Check(t, "promtool")
	var wanted []string // what the rules read: the page has more
	for _, r := range rules {
		for _, s := range parse(r.Expr).selectors {
			wanted = append(wanted, s.metric)
		}
	}

	steps := 0
	var b strings.Builder
	b.WriteString("rule_files:\n")
	files, err := filepath.Glob("*.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		path, err := filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "  - %s\n", path)
	}
	fmt.Fprintf(&b, "evaluation_interval: %s\ntests:\n  - interval: %s\n    input_series:\n", interval, step)
	for _, n := range nodes {
		steps = max(steps, n.steps())
		fmt.Fprintf(&b, "      - series: 'up{job=\"sockpressure\",instance=%q}'\n        values: '1x%d'\n", n.instance, n.steps()-1)
		for _, s := range n.series {
			name, labels, _ := strings.Cut(strings.TrimSuffix(s.Name, "}"), "{")
			if !slices.Contains(wanted, name) {
				continue
			}
			if labels != "" {
				labels = "," + labels
			}
			series := fmt.Sprintf(`%s{job="sockpressure",instance=%q%s}`, name, n.instance, labels)
			fmt.Fprintf(&b, "      - series: '%s'\n        values: '%s'\n", strings.ReplaceAll(series, "'", "''"), notation(s.Values))
		}
	}
	end := time.Duration(steps-1) * step
	b.WriteString("    promql_expr_test:\n")
	for _, f := range []string{"min", "max"} {
		fmt.Fprintf(&b, "      - expr: %s_over_time(timestamp(ALERTS{alertstate=\"firing\"})[%ds:%ds])\n        eval_time: %ds\n        exp_samples: []\n",
			f, int(end.Seconds())+1, int(interval.Seconds()), int(end.Seconds()))
	}

	file := filepath.Join(t.TempDir(), "rules.test.yml")
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

// parseFirings reads promtool's complaint.
func parseFirings(t *testing.T, out string) []firing {
	t.Helper()
	got := regexp.MustCompile(`(?m)^\s+got: (.*)$`).FindAllStringSubmatch(out, -1)
	if len(got) != 2 {
		t.Fatalf("promtool: %s", out)
	}
	sample := regexp.MustCompile(`\{([^}]*)\} ([0-9.E+-]+)`)
	label := regexp.MustCompile(`(\w+)="([^"]*)"`)
	var firings []firing
	for i, line := range got {
		for _, m := range sample.FindAllStringSubmatch(line[1], -1) {
			seconds, err := strconv.ParseFloat(m[2], 64)
			if err != nil {
				t.Fatalf("promtool: %s", line[1])
			}
			var f firing
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
			at := time.Duration(seconds * float64(time.Second))
			if i == 0 {
				f.first, f.last = at, at
				firings = append(firings, f)
				continue
			}
			for j := range firings {
				seen := firings[j]
				seen.first, seen.last = 0, 0
				if seen == f {
					firings[j].last = at
				}
			}
		}
	}
	if len(firings) == 0 {
		t.Fatalf("promtool: %s", out)
	}
	return firings
}

// notation writes values as promtool reads them: 1 1 1 is 1x2, and _ is absent.
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

// TestNotation holds the writing of values to promtool's notation.
func TestNotation(t *testing.T) {
	nan := math.NaN()
	got := notation([]float64{1, 1, 1, 0.5, nan, 1e12, nan, nan, 2})
	if want := "1x2 0.5 _ 1000000000000 _x2 2"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
