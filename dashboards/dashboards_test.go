package dashboards

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"

	"github.com/sockpressure/sockpressure_exporter/alerts"
	"github.com/sockpressure/sockpressure_exporter/collector"
)

var update = flag.Bool("update", false, "write the dashboards")

// TestFresh checks that the committed dashboards are those that are generated.
func TestFresh(t *testing.T) {
	files, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		if *update {
			if err := os.WriteFile(name, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is out of date: go test ./dashboards -update (%v)", name, err)
		}
	}
	have, err := filepath.Glob("*.json")
	if err != nil || len(have) != len(files) {
		t.Errorf("%v, want %d files (%v)", have, len(files), err)
	}
}

// A board is a dashboard as Grafana reads it, with the fields that the tests use.
type board struct {
	UID, Title, Description, Timezone string
	Tags                              []string
	SchemaVersion                     int
	GraphTooltip                      int
	Editable                          *bool
	Inputs                            any `json:"__inputs"`
	Templating                        struct{ List []variableJSON }
	Annotations                       struct{ List []annotationJSON }
	Panels                            []panelJSON
}

// all lists the rows and the panels, including those inside rows.
func (b board) all() []panelJSON {
	var all []panelJSON
	for _, p := range b.Panels {
		all = append(append(all, p), p.Panels...)
	}
	return all
}

type variableJSON struct {
	Name, Label, Type, AllValue string
	Datasource                  sourceJSON
	Query                       any
	Multi, IncludeAll           bool
	Refresh, Hide               int
}

type annotationJSON struct {
	Name       string
	Datasource sourceJSON
	Target     targetJSON
}

type sourceJSON struct{ Type, UID string }

type panelJSON struct {
	ID                       int
	Type, Title, Description string
	Collapsed                bool
	Datasource               sourceJSON
	Targets                  []targetJSON
	Panels                   []panelJSON
	Transformations          []struct {
		Options struct {
			Include      struct{ Names []string }
			RenameByName map[string]string
		}
	}
	Options struct {
		SortBy []struct{ DisplayName string }
	}
	GridPos     struct{ X, Y, W, H int }
	FieldConfig struct {
		Defaults struct {
			Unit  string
			Links []linkJSON
		}
		Overrides []overrideJSON
	}
}

type linkJSON struct{ Title, URL string }

type overrideJSON struct {
	Matcher    struct{ ID, Options string }
	Properties []struct {
		ID    string
		Value json.RawMessage
	}
}

// links returns the data links of an override.
func (o overrideJSON) links(t *testing.T) []linkJSON {
	t.Helper()
	var all []linkJSON
	for _, p := range o.Properties {
		if p.ID == "links" {
			if err := json.Unmarshal(p.Value, &all); err != nil {
				t.Error(err)
			}
		}
	}
	return all
}

type targetJSON struct {
	RefID, Expr, LegendFormat, Format string
	Instant                           bool
	Datasource                        sourceJSON
}

// boards reads the committed files, not the generated ones.
func boards(t *testing.T) []board {
	t.Helper()
	files, err := filepath.Glob("*.json")
	if err != nil || len(files) != 2 {
		t.Fatal(files, err)
	}
	var all []board
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var b board
		if err := json.Unmarshal(text, &b); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if file != b.UID+".json" {
			t.Errorf("%s has uid %s", file, b.UID)
		}
		all = append(all, b)
	}
	return all
}

// TestLint checks the dashboards against the rules of Grafana's own linter, and those of file
// provisioning.
func TestLint(t *testing.T) {
	for _, b := range boards(t) {
		if b.Title == "" || b.Description == "" || b.SchemaVersion != 42 || b.Timezone != "utc" || b.GraphTooltip != 1 ||
			len(b.Tags) != 1 || b.Editable == nil || *b.Editable || b.Inputs != nil || len(b.UID) > 40 {
			t.Errorf("%s: head", b.UID)
		}
		lintVariables(t, b)
		for _, a := range b.Annotations.List {
			a.Target.Datasource = a.Datasource // The query has none of its own.
			lintTarget(t, b.UID+": annotation", a.Target)
		}
		ids, titles := map[int]bool{}, map[string]bool{}
		for _, p := range b.all() {
			where := b.UID + ": " + p.Title
			if ids[p.ID] || titles[p.Title] || p.Title == "" || strings.Contains(p.Title, "_") && !strings.Contains(p.Title, "TIME_WAIT") || p.Collapsed != (len(p.Panels) > 0) {
				t.Errorf("%s: duplicate id or title, a title that is not in words, or panels inside a row that is not folded", where)
			}
			ids[p.ID], titles[p.Title] = true, true
			if p.Type == "row" {
				continue
			}
			if !strings.HasSuffix(p.Description, ".") || strings.Contains(p.Description, "  ") || p.FieldConfig.Defaults.Unit == "" || len(p.Targets) == 0 {
				t.Errorf("%s: description %q, unit %q, %d queries", where, p.Description, p.FieldConfig.Defaults.Unit, len(p.Targets))
			}
			lintSource(t, where, p.Datasource)
			legends := map[string]bool{}
			for _, target := range p.Targets {
				lintTarget(t, where, target)
				if p.Type == "timeseries" && (legends[target.LegendFormat] || target.LegendFormat == "") {
					t.Errorf("%s: legend %q", where, target.LegendFormat)
				}
				legends[target.LegendFormat] = true
			}
		}
		lintPlaces(t, b.UID, b.Panels)
		for _, p := range b.Panels {
			lintPlaces(t, b.UID, p.Panels)
		}
	}
}

func lintVariables(t *testing.T, b board) {
	t.Helper()
	if len(b.Templating.List) < 3 {
		t.Fatalf("%s: %d variables", b.UID, len(b.Templating.List))
	}
	for i, v := range b.Templating.List {
		if i == 0 {
			if v.Type != "datasource" || v.Name != "datasource" || v.Label != "Data source" || v.Query != "prometheus" {
				t.Errorf("%s: %+v", b.UID, v)
			}
			continue
		}
		if i < 4 && (v.Name != []string{"", "cluster", "job", "instance"}[i] || v.Label != []string{"", "Cluster", "Job", "Instance"}[i]) {
			t.Errorf("%s: variable %s, %s", b.UID, v.Name, v.Label)
		}
		if v.Type == "custom" || v.Type == "textbox" && b.UID == fleetUID && v.Name == "instance" {
			continue
		}
		found := strings.HasPrefix(variableQuery(v), "query_result(")
		if v.Type != "query" || !v.Multi || v.Refresh != 2 || found != (v.Hide == 2) || found != (v.AllValue == "") {
			t.Errorf("%s: %+v", b.UID, v)
		}
		every := map[bool]string{true: ".*", false: ".+"}[v.Name == "cluster" || v.Name == "resource"]
		if q := variableQuery(v); !found && v.AllValue != every || strings.Contains(q, `cluster=~"$cluster"`) != (v.Name != "cluster") || strings.Contains(q, `,job=~"$job"`) != (v.Name != "job" && v.Name != "cluster") {
			t.Errorf("%s: variable %s: %s does not select job, or all of it is %q", b.UID, v.Name, q, v.AllValue)
		}
		lintSource(t, b.UID+": "+v.Name, v.Datasource)
	}
}

func lintSource(t *testing.T, where string, s sourceJSON) {
	t.Helper()
	if s != (sourceJSON{"prometheus", "${datasource}"}) {
		t.Errorf("%s: data source %v", where, s)
	}
}

func lintTarget(t *testing.T, where string, target targetJSON) {
	t.Helper()
	lintSource(t, where, target.Datasource)
	for _, s := range selectors(target.Expr) {
		// A record of a job covers all its nodes, so there is no node to choose.
		if node := strings.Contains(s.matchers, `instance=~"$instance"`) || strings.Contains(s.matchers, theWorst); node == strings.HasPrefix(s.metric, "job_") || !strings.Contains(s.matchers, `cluster=~"$cluster",job=~"$job"`) {
			t.Errorf("%s: %s{%s} does not select cluster, job and instance", where, s.metric, s.matchers)
		}
		if strings.HasSuffix(s.before, "max_over_time(") && strings.HasPrefix(s.after, "[$__range] @ end()") {
			continue
		}
		if atEnd := strings.HasPrefix(s.after, " @ end()"); atEnd {
			continue
		}
		counter := strings.HasSuffix(s.metric, "_total")
		if counter != strings.HasPrefix(s.after, "[") || counter && !regexp.MustCompile(`(rate|increase)\($`).MatchString(s.before) {
			t.Errorf("%s: %s: want rate or increase if it is a counter, and only then", where, s.metric)
		}
	}
	for _, m := range regexp.MustCompile(`(\w+)\([^()[]*(\[[^\]]*\])`).FindAllStringSubmatch(target.Expr, -1) {
		if (m[2] == "[$__range]") != (m[1] == "max_over_time") || m[1] != "max_over_time" && m[2] != "[$__rate_interval]" {
			t.Errorf("%s: %s", where, m[0])
		}
	}
}

// lintPlaces checks that panels are inside the grid and do not overlap.
func lintPlaces(t *testing.T, uid string, panels []panelJSON) {
	t.Helper()
	taken := map[[2]int]string{}
	for _, p := range panels {
		g := p.GridPos
		if g.X < 0 || g.X+g.W > 24 || g.W == 0 || g.H == 0 {
			t.Errorf("%s: %s: place %v", uid, p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%s: %s overlaps %s", uid, p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}

// selector is a metric in an expression.
type selector struct{ metric, matchers, before, after string }

// selectors returns the metrics of an expression, without the keywords of PromQL.
func selectors(expr string) []selector {
	blank := regexp.MustCompile(`"[^"]*"|\[\w+\]|\boffset \w+|\b(by|without|on|ignoring|group_left|group_right) *\([^)]*\)`)
	masked := blank.ReplaceAllStringFunc(expr, func(s string) string { return strings.Repeat(" ", len(s)) })
	word := regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^}]*\})?`)
	keywords := []string{"and", "or", "unless", "bool"}
	var found []selector
	for _, at := range word.FindAllStringIndex(masked, -1) {
		name, rest, _ := strings.Cut(expr[at[0]:at[1]], "{")
		after := expr[at[1]:]
		if slices.Contains(keywords, name) || strings.HasPrefix(strings.TrimSpace(masked[at[1]:]), "(") || strings.HasSuffix(masked[:at[0]], "$") ||
			regexp.MustCompile(`^(by|without|on|ignoring)$`).MatchString(name) || regexp.MustCompile(`^[0-9]`).MatchString(name) {
			continue
		}
		found = append(found, selector{name, strings.TrimSuffix(rest, "}"), expr[:at[0]], after})
	}
	return found
}

// TestSelectors checks selectors with an expression that has all kinds of words.
func TestSelectors(t *testing.T) {
	got := selectors(`sum by (x) (rate(a_total{b=~"c|d"}[$__rate_interval])) > bool 2^62 and ignoring (y) (l:m:n5m or vector(0)) - up`)
	var names []string
	for _, s := range got {
		names = append(names, s.metric+" "+s.matchers)
	}
	if want := []string{`a_total b=~"c|d"`, "l:m:n5m ", "up "}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}

// TestNames checks that queries name only metrics, labels and resources that exist. The panel of
// another query would be empty without an apparent reason.
func TestNames(t *testing.T) {
	metrics := exported()
	var all []string
	for _, labels := range metrics {
		all = append(all, labels...)
	}
	for name := range recorded(t) {
		metrics[name] = all
	}
	metrics["ALERTS"] = []string{"alertname", "alertstate", "severity", "stage", "resource", "collector", "pod"}

	matcher := regexp.MustCompile(`(\w+) *(?:=~|!~|!=|=) *"([^"]*)"`)
	grouping := regexp.MustCompile(`\b(?:by|without|on|ignoring) *\(([^)]*)\)`)
	legend := regexp.MustCompile(`\{\{(\w+)\}\}`)
	for _, b := range boards(t) {
		for _, q := range queries(b) {
			labels := []string{"cluster", "job", "instance"}
			found := selectors(q.expr)
			if len(found) == 0 {
				t.Errorf("%s: no metric in %s", q, q.expr)
			}
			for _, s := range found {
				own, ok := metrics[s.metric]
				if !ok {
					t.Errorf("%s: there is no metric %s", q, s.metric)
				}
				labels = append(labels, own...)
				for _, m := range matcher.FindAllStringSubmatch(s.matchers, -1) {
					if m[1] != "cluster" && m[1] != "job" && m[1] != "instance" && !slices.Contains(own, m[1]) {
						t.Errorf("%s: %s has no label %s", q, s.metric, m[1])
					}
					if m[1] != "resource" || strings.HasPrefix(m[2], "$") {
						continue
					}
					for resource := range strings.SplitSeq(m[2], "|") {
						if !slices.ContainsFunc(limits(), func(l collector.LimitInfo) bool { return l.Resource == resource }) {
							t.Errorf("%s: there is no limit %s", q, resource)
						}
					}
				}
			}
			for _, m := range grouping.FindAllStringSubmatch(q.expr, -1) {
				for l := range strings.SplitSeq(m[1], ",") {
					if !slices.Contains(labels, strings.TrimSpace(l)) {
						t.Errorf("%s: there is no label %s", q, l)
					}
				}
			}
			for _, m := range legend.FindAllStringSubmatch(q.legend, -1) {
				if !slices.Contains(labels, m[1]) {
					t.Errorf("%s: the legend names %s", q, m[1])
				}
			}
		}
	}
}

// TestColumns checks that tables show, sort by and format only columns that their queries return.
func TestColumns(t *testing.T) {
	by := regexp.MustCompile(`\b(?:max|count|topk) by *\(([^)]*)\) *\(`)
	for _, b := range boards(t) {
		for _, p := range b.all() {
			if p.Type != "table" {
				continue
			}
			where := b.UID + ": " + p.Title
			var fields []string
			for _, target := range p.Targets {
				of := by.FindAllStringSubmatch(target.Expr, -1)
				if len(of) == 0 {
					t.Errorf("%s: %s has no grouping", where, target.Expr)
				}
				for _, m := range of {
					fields = append(fields, strings.Split(m[1], ", ")...)
				}
				if len(p.Targets) > 1 {
					fields = append(fields, "Value #"+target.RefID)
				} else {
					fields = append(fields, "Value")
				}
			}
			var names []string
			for _, field := range p.Transformations[0].Options.Include.Names {
				if !slices.Contains(fields, field) {
					t.Errorf("%s: no query returns %s", where, field)
				}
				names = append(names, p.Transformations[len(p.Transformations)-1].Options.RenameByName[field])
			}
			for _, o := range p.FieldConfig.Overrides {
				if !slices.Contains(names, o.Matcher.Options) {
					t.Errorf("%s: an override of %s", where, o.Matcher.Options)
				}
			}
			for _, s := range p.Options.SortBy {
				if !slices.Contains(names, s.DisplayName) {
					t.Errorf("%s: sorted by %s", where, s.DisplayName)
				}
			}
		}
	}
}

// TestReach checks that the fleet dashboard reads recording rules and alerts only, except for the
// few nodes in the variable worst, and that the node dashboard reads no recording rule.
func TestReach(t *testing.T) {
	for _, b := range boards(t) {
		for _, q := range queries(b) {
			for _, s := range selectors(q.expr) {
				of := strings.Contains(s.metric, ":") || b.UID == fleetUID && strings.Contains(s.matchers, theWorst)
				if s.metric != "ALERTS" && of != (b.UID == fleetUID) {
					t.Errorf("%s reads %s", q, s.metric)
				}
			}
		}
	}
}

// TestLimits checks that each limit has a panel with its runbook on the node dashboard, and that
// the bars of a limit have the limit's own levels.
func TestLimits(t *testing.T) {
	for _, b := range boards(t) {
		for _, l := range limits() {
			for _, p := range b.all() {
				own := func(o overrideJSON) bool {
					return o.Matcher.Options == l.Resource || o.Matcher.ID == "byRegexp" && strings.Contains(o.Matcher.Options, " "+l.Resource+"(")
				}
				i := slices.IndexFunc(p.FieldConfig.Overrides, own)
				if p.Type != "bargauge" {
					continue
				}
				if i < 0 {
					t.Errorf("%s: %s has no levels for %s", b.UID, p.Title, l.Resource)
					continue
				}
				var levels struct{ Steps []struct{ Value float64 } }
				for _, property := range p.FieldConfig.Overrides[i].Properties {
					if property.ID == "thresholds" {
						unmarshalJSON(t, property.Value, &levels)
					}
				}
				if len(levels.Steps) != 3 || levels.Steps[1].Value != l.WarningRatio || levels.Steps[2].Value != l.CriticalRatio {
					t.Errorf("%s: %s: %s has the levels %v", b.UID, p.Title, l.Resource, levels)
				}
			}
			i := slices.IndexFunc(b.all(), func(p panelJSON) bool { return strings.HasPrefix(p.Description, l.Resource+". ") })
			if b.UID == nodeUID && (i < 0 || !strings.Contains(b.all()[i].Description, "/docs/runbooks.md#sockpressure")) {
				t.Errorf("%s: no panel of %s with a runbook", b.UID, l.Resource)
			}
		}
	}
	for resource := range measures() {
		if !slices.ContainsFunc(limits(), func(l collector.LimitInfo) bool { return l.Resource == resource }) {
			t.Errorf("there is no limit %s", resource)
		}
	}
}

// TestNewLimit checks that a limit without an entry in any table is still on the node dashboard.
func TestNewLimit(t *testing.T) {
	d := node(append(limits(), collector.LimitInfo{Resource: "novelty", Unit: collector.Entries, WarningRatio: 0.5, CriticalRatio: 0.75}), nil)
	for _, r := range d.rows {
		for _, p := range r.panels {
			if p.title == "Novelty" && r.title == "Other limits" && p.unit == share && p.queries[0].expr == `sockpressure_saturation_ratio{resource="novelty"}` {
				return
			}
		}
	}
	t.Error("no panel for the new limit")
}

func unmarshalJSON(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Error(err)
	}
}

// TestLinks checks that each tile, each bar, and each node and alert in a table has a link, and
// that links lead to existing panels of these dashboards or to existing runbooks.
func TestLinks(t *testing.T) {
	books, err := os.ReadFile("../docs/runbooks.md")
	if err != nil {
		t.Fatal(err)
	}
	headings := strings.ToLower(string(books))
	ids := map[string]map[string]string{}
	for _, b := range boards(t) {
		ids[b.UID] = map[string]string{}
		for _, p := range b.all() {
			if p.Type != "row" {
				ids[b.UID][strconv.Itoa(p.ID)] = p.Title
			}
		}
	}
	check := func(where string, links []linkJSON) {
		for _, l := range links {
			to := regexp.MustCompile(`^/d/([\w-]+)\?`).FindStringSubmatch(l.URL)
			panel := regexp.MustCompile(`viewPanel=(\d+)$`).FindStringSubmatch(l.URL)
			_, anchor, _ := strings.Cut(l.URL, "runbooks.md#")
			switch {
			case to != nil && ids[to[1]] == nil, panel != nil && ids[to[1]][panel[1]] == "", strings.Contains(l.URL, "<<"):
				t.Errorf("%s: %s has no target: %s", where, l.Title, l.URL)
			case to != nil && !strings.Contains(l.URL, "var-datasource=${datasource}"), to != nil && !strings.Contains(l.URL, "${__url_time_range}"):
				t.Errorf("%s: %s lacks the data source or the time range: %s", where, l.Title, l.URL)
			case to == nil && anchor == "" && !strings.Contains(l.URL, "/runbooks#"):
				t.Errorf("%s: %s leads to neither a dashboard nor a runbook: %s", where, l.Title, l.URL)
			case anchor != "" && anchor != "${__value.raw}" && !strings.Contains(headings, "### "+anchor+"\n"):
				t.Errorf("%s: there is no runbook %s", where, anchor)
			}
		}
	}
	for _, b := range boards(t) {
		for _, p := range b.all() {
			where := b.UID + ": " + p.Title
			check(where, p.FieldConfig.Defaults.Links)
			linked := map[string]bool{}
			for _, o := range p.FieldConfig.Overrides {
				links := o.links(t)
				check(where, links)
				linked[o.Matcher.Options] = linked[o.Matcher.Options] || len(links) > 0
			}
			switch p.Type {
			case "stat":
				if len(p.FieldConfig.Defaults.Links) != 1 || !strings.Contains(p.FieldConfig.Defaults.Links[0].URL, "viewPanel=") {
					t.Errorf("%s: the tile does not lead to what it counts", where)
				}
			case "bargauge":
				for _, l := range limits() {
					if len(p.FieldConfig.Defaults.Links) == 0 && !linked[l.Resource] {
						t.Errorf("%s: the bar of %s has no link", where, l.Resource)
					}
				}
			case "table":
				for _, name := range p.Transformations[len(p.Transformations)-1].Options.RenameByName {
					if (name == "Alert" || name == "Node" && b.UID == fleetUID) && !linked[name] {
						t.Errorf("%s: %s has no link", where, name)
					}
				}
			}
		}
	}
}

// TestPodLevels checks that pods are coloured by the levels of SockPressureNetnsNearLimit.
func TestPodLevels(t *testing.T) {
	found := 0
	for _, g := range alerts.Groups() {
		for _, r := range g.Rules {
			if r.Alert != "SockPressureNetnsNearLimit" {
				continue
			}
			found++
			want := map[string]string{alerts.Warning: fmt.Sprint(podWarning), alerts.Critical: fmt.Sprint(podCritical)}[r.Severity]
			if r.Params[r.Severity] != want || r.Severity == alerts.Critical && !strings.Contains(r.Expr, podPages) {
				t.Errorf("%s is from %v: %s", r.Severity, r.Params, r.Expr)
			}
		}
	}
	if found != 2 {
		t.Errorf("%d alerts on pods", found)
	}
}

// TestFolded checks that all rows of the node dashboard but the first are folded, so that they
// run no queries until they are opened, and that no panel of the fleet dashboard reads every
// limit of every node.
func TestFolded(t *testing.T) {
	for _, b := range boards(t) {
		rows := 0
		for _, p := range b.Panels {
			if p.Type != "row" {
				if rows > 0 && b.UID == nodeUID {
					t.Errorf("%s: %s is in an open row", b.UID, p.Title)
				}
				continue
			}
			rows++
		}
		for _, p := range b.all() {
			for _, target := range p.Targets {
				for _, s := range selectors(target.Expr) {
					if b.UID == fleetUID && strings.HasPrefix(s.metric, "instance_resource:") && !strings.Contains(s.matchers, theWorst) && !strings.Contains(s.matchers, `"$limit"`) {
						t.Errorf("%s: %s reads the limits of all nodes", b.UID, p.Title)
					}
				}
			}
		}
		if rows < 6 {
			t.Errorf("%s has %d rows", b.UID, rows)
		}
	}
}

// TestAnnotations checks that both dashboards mark alerts, kernel messages and restarts.
func TestAnnotations(t *testing.T) {
	for _, b := range boards(t) {
		var words []string
		for _, a := range b.Annotations.List {
			words = append(words, a.Name+": "+a.Target.Expr)
		}
		all := strings.Join(words, "\n")
		for _, want := range []string{"ALERTS{", "kernel_messages", "process_start_time_seconds"} {
			if !strings.Contains(all, want) {
				t.Errorf("%s does not mark %s: %s", b.UID, want, all)
			}
		}
	}
}

func limits() []collector.LimitInfo {
	var all []collector.LimitInfo
	for _, s := range collector.Specs() {
		all = append(all, s.Limits...)
	}
	return all
}

// TestProvisioning checks the example files for Grafana's provisioning.
func TestProvisioning(t *testing.T) {
	var sources struct {
		APIVersion  int `yaml:"apiVersion"`
		Datasources []struct {
			Name, UID, Type, Access, URL string
			IsDefault                    bool              `yaml:"isDefault"`
			JSONData                     map[string]string `yaml:"jsonData"`
		}
	}
	unmarshal(t, "provisioning/datasources/sockpressure.yml", &sources)
	if d := sources.Datasources; sources.APIVersion != 1 || len(d) != 1 || d[0].Type != "prometheus" || d[0].URL == "" {
		t.Errorf("%+v", sources)
	}
	var providers struct {
		APIVersion int `yaml:"apiVersion"`
		Providers  []struct {
			Name, Type, Folder    string
			DisableDeletion       bool `yaml:"disableDeletion"`
			AllowUIUpdates        bool `yaml:"allowUiUpdates"`
			UpdateIntervalSeconds int  `yaml:"updateIntervalSeconds"`
			Options               struct{ Path string }
		}
	}
	unmarshal(t, "provisioning/dashboards/sockpressure.yml", &providers)
	if p := providers.Providers; providers.APIVersion != 1 || len(p) != 1 || p[0].Type != "file" || !filepath.IsAbs(p[0].Options.Path) {
		t.Errorf("%+v", providers)
	}
}

func unmarshal(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// asked is a query of a dashboard, with its place.
type asked struct{ board, place, expr, legend string }

func (a asked) String() string { return a.board + ": " + a.place }

// queries lists the queries of the panels, annotations and variables of a dashboard. That of a
// variable is an expression that finds the same series.
func queries(b board) []asked {
	var all []asked
	for _, v := range b.Templating.List[1:] {
		if v.Type != "query" {
			continue
		}
		if expr, ok := strings.CutPrefix(variableQuery(v), "query_result("); ok {
			all = append(all, asked{b.UID, "variable " + v.Name, strings.TrimSuffix(expr, ")"), ""})
			continue
		}
		m := regexp.MustCompile(`^label_values\((.*), (\w+)\)$`).FindStringSubmatch(variableQuery(v))
		if m == nil {
			m = []string{"", "", ""} // reported as a query without a metric
		}
		all = append(all, asked{b.UID, "variable " + v.Name, "group by (" + m[2] + ") (" + m[1] + ")", ""})
	}
	for _, a := range b.Annotations.List {
		all = append(all, asked{b.UID, "annotation " + a.Name, a.Target.Expr, ""})
	}
	for _, p := range b.all() {
		for _, target := range p.Targets {
			all = append(all, asked{b.UID, p.Title, target.Expr, target.LegendFormat})
		}
	}
	return all
}

// variableQuery returns the query of a variable, empty if its values are listed.
func variableQuery(v variableJSON) string {
	q, _ := v.Query.(map[string]any)
	text, _ := q["query"].(string)
	return text
}

// exported returns the labels of every metric that queries may name.
func exported() map[string][]string {
	metrics := map[string][]string{"up": nil, "process_start_time_seconds": nil}
	for _, m := range collector.Metrics() {
		metrics[m.FullName()] = m.Labels
	}
	return metrics
}

// recorded reads the names of the recording rules.
func recorded(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../alerts/fleet.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct{ Rules []struct{ Record string } }
	}
	if err := yaml.Unmarshal(text, &rules); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			names[r.Record] = true
		}
	}
	if len(names) < 5 {
		t.Fatal(slices.Collect(maps.Keys(names)))
	}
	return names
}
