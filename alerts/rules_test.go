package alerts

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// rule is an alerting or a recording rule.
type rule struct {
	Alert         string
	Record        string
	Expr          string
	For           string
	KeepFiringFor string `yaml:"keep_firing_for"`
	Labels        map[string]string
	Annotations   map[string]string

	file string
}

func (r rule) String() string {
	if r.Record != "" {
		return fmt.Sprintf("%s: %s{resource=%q}", r.file, r.Record, r.Labels["resource"])
	}
	return fmt.Sprintf("%s: %s, %s", r.file, r.Alert, r.Labels["severity"])
}

// readRules reads every rule file.
func readRules(t *testing.T) []rule {
	t.Helper()
	files, err := filepath.Glob("*.rules.yml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var rules []rule
	for _, file := range files {
		var content struct {
			Groups []struct {
				Name, Interval string
				Rules          []rule
			}
		}
		unmarshal(t, file, &content)
		for _, g := range content.Groups {
			for _, r := range g.Rules {
				r.file = file
				rules = append(rules, r)
			}
		}
	}
	return rules
}

func unmarshal(t *testing.T, file string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(read(t, file)), into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// alertsOf returns the alerting rules.
func alertsOf(rules []rule) []rule {
	return slices.DeleteFunc(slices.Clone(rules), func(r rule) bool { return r.Alert == "" })
}

// exported returns the labels of every metric that rules may name.
func exported() map[string][]string {
	metrics := map[string][]string{"up": nil, "ALERTS": {"alertname", "alertstate", "severity", "stage"}}
	for _, m := range collector.Metrics() {
		metrics[m.FullName()] = m.Labels
	}
	return metrics
}

// selector is a metric in an expression, with its label matchers.
type selector struct {
	metric   string
	matchers [][]string // label, operator, value
}

// expression is the names in an expression. parse is not a full parser: promtool has checked the
// syntax, and parse only classifies the words.
type expression struct {
	selectors []selector
	grouping  []string // labels of by, without, on and ignoring
	unknown   []string
}

func parse(expr string) expression {
	var (
		word     = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*`)
		braces   = regexp.MustCompile(`^\s*\{([^}]*)\}`)
		matcher  = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
		parens   = regexp.MustCompile(`^\s*\(([^)]*)\)`)
		call     = regexp.MustCompile(`^\s*(\(|by\b|without\b)`)
		skip     = regexp.MustCompile(`^("[^"]*"|\[[^\]]*\]|[0-9.]+[a-z0-9]*|.)`)
		grouping = []string{"by", "without", "on", "ignoring", "group_left", "group_right"}
		operator = []string{"and", "or", "unless", "bool", "offset"}
		found    expression
	)
	expr = strings.ReplaceAll(expr, "\n", " ")
	for expr != "" {
		w := word.FindString(expr)
		if w == "" {
			expr = expr[len(skip.FindString(expr)):]
			continue
		}
		expr = expr[len(w):]
		switch {
		case slices.Contains(grouping, w):
			m := parens.FindStringSubmatch(expr)
			found.grouping = append(found.grouping, strings.FieldsFunc(m[1], func(r rune) bool { return r == ',' || r == ' ' })...)
			expr = expr[len(m[0]):]
		case w == "up", w == "ALERTS", strings.HasPrefix(w, "sockpressure_"), strings.Contains(w, ":"):
			s := selector{metric: w}
			if m := braces.FindStringSubmatch(expr); m != nil {
				for _, parts := range matcher.FindAllStringSubmatch(m[1], -1) {
					s.matchers = append(s.matchers, parts[1:])
				}
				expr = expr[len(m[0]):]
			}
			found.selectors = append(found.selectors, s)
		case !slices.Contains(operator, w) && !call.MatchString(expr):
			found.unknown = append(found.unknown, w)
		}
	}
	return found
}

// TestParse checks parse with an expression that has all kinds of words.
func TestParse(t *testing.T) {
	got := fmt.Sprint(parse(`sum by (job, a) (rate(sockpressure_x_total{b="c",d=~"e|f"}[5m])) > 1.5 or on (g) level:y:rate5m unless up == bool 0 and nonsense`))
	want := `{[{sockpressure_x_total [[b = c] [d =~ e|f]]} {level:y:rate5m []} {up []}] [job a g] [nonsense]}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
