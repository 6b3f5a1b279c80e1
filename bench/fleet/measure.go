package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v2"
)

// asked is a query of a panel or a rule.
type asked struct {
	group      string // of a rule
	interval   time.Duration
	name, expr string
	over       time.Duration // 0 for an instant query
}

// answer is what a query took, the minimum of some tries.
type answer struct {
	asked
	took   time.Duration
	cpu    time.Duration // of the engine, including garbage collection
	read   int           // samples, if the engine reports them
	series int
	bytes  int
	err    error
}

// readRules returns the expressions of the rule files, and what they record for each
// node.
func readRules(dir string) ([]asked, []recorded, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.rules.yml"))
	if err != nil || len(files) == 0 {
		return nil, nil, fmt.Errorf("%s has no rule files: %w", dir, err)
	}
	level := regexp.MustCompile(`>=? ([0-9.]+)\s*$`)
	resources := regexp.MustCompile(`resource=~?"([^"]+)"`)
	var all []asked
	var series []recorded
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		var content struct {
			Groups []struct {
				Name     string
				Interval string
				Rules    []struct {
					Record, Alert, Expr string
					Labels              map[string]string
				}
			}
		}
		if err := yaml.Unmarshal(b, &content); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, g := range content.Groups {
			interval, err := time.ParseDuration(g.Interval)
			if err != nil {
				return nil, nil, fmt.Errorf("%s: %w", file, err)
			}
			for _, r := range g.Rules {
				name := cmp.Or(r.Alert+" "+r.Labels["severity"], r.Record)
				if r.Record != "" {
					name = r.Record + " " + r.Labels["resource"]
				}
				all = append(all, asked{group: g.Name, interval: interval, name: strings.TrimPrefix(g.Name, "sockpressure-") + ": " + name, expr: r.Expr})
				switch perNode := strings.HasPrefix(r.Record, "instance:"); {
				case strings.HasSuffix(r.Record, ":left1m"): // a handful
				case strings.HasSuffix(r.Record, ":rising"):
					series = append(series, recorded{name: r.Record, from: 0.5})
				case slices.ContainsFunc(series, func(s recorded) bool { return s.name == r.Record }):
				case strings.HasSuffix(r.Record, ":increase5m"):
					counter := strings.Split(r.Record, ":")[1] + "_total"
					series = append(series, recorded{name: r.Record, counter: counter})
				case strings.HasSuffix(r.Record, ":sockpressure_refusals:rate5m"):
					series = append(series, recorded{name: r.Record, perNode: perNode, ill: true})
				case perNode || strings.HasPrefix(r.Record, "instance_resource:"):
					s := recorded{name: r.Record, perNode: perNode}
					if m := resources.FindStringSubmatch(r.Expr); m != nil && strings.HasSuffix(r.Record, ":max1m") {
						s.resources = strings.Split(m[1], "|")
					}
					// A rule over another recorded series has at most its series.
					for _, other := range series {
						if strings.Contains(r.Expr, other.name) {
							s.from = max(s.from, other.from)
						}
					}
					if m := level.FindStringSubmatch(r.Expr); m != nil && !perNode {
						if s.from, err = strconv.ParseFloat(m[1], 64); err != nil {
							return nil, nil, err
						}
					}
					series = append(series, s)
				}
			}
		}
	}
	return all, series, nil
}

// readPanels returns the queries of the dashboards, as Grafana sends them: for the fleet
// over all nodes and six hours, for a node over one hour.
func readPanels(dir, node string) ([]asked, error) {
	var all []asked
	for board, chosen := range map[string]struct {
		instance string
		over     time.Duration
	}{
		"fleet": {".+", 6 * time.Hour}, "node": {regexp.QuoteMeta(node), time.Hour},
	} {
		b, err := os.ReadFile(filepath.Join(dir, "sockpressure-"+board+".json"))
		if err != nil {
			return nil, err
		}
		type panel struct {
			Title   string
			Targets []struct {
				Expr    string
				Instant bool
			}
			Panels []json.RawMessage
		}
		var content struct{ Panels []json.RawMessage }
		if err := json.Unmarshal(b, &content); err != nil {
			return nil, err
		}
		values := strings.NewReplacer("$__range", chosen.over.String(), "$__rate_interval", "1m", "$__interval", "30s",
			"$cluster", ".*", "$job", ".+", "$instance", strings.ReplaceAll(chosen.instance, `\`, `\\`), "$resource", ".+",
			"$severity", "critical|warning", "$top", "20", "$worst", "node-000[0-1].*", "$netns", ".+")
		for waiting := content.Panels; len(waiting) > 0; {
			var p panel
			if err := json.Unmarshal(waiting[0], &p); err != nil {
				return nil, err
			}
			waiting = append(waiting[1:], p.Panels...)
			for _, target := range p.Targets {
				q := asked{name: board + ": " + p.Title, expr: values.Replace(target.Expr)}
				if !target.Instant {
					q.over = chosen.over
				}
				all = append(all, q)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b asked) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

// ask measures a query at the given time, the given number of times.
func (e *engine) ask(ctx context.Context, q asked, at time.Time, tries int) answer {
	a := answer{asked: q}
	values := url.Values{"query": {q.expr}, "time": {seconds(at)}}
	path := "/api/v1/query"
	if q.over > 0 {
		path = "/api/v1/query_range"
		step := 15 * time.Second
		if q.over > time.Hour {
			step = 30 * time.Second
		}
		values = url.Values{"query": {q.expr}, "start": {seconds(at.Add(-q.over))}, "end": {seconds(at)}, "step": {step.String()}}
	}
	values.Set("stats", "all")
	values.Set("nocache", "1") // VictoriaMetrics would answer the second time from memory
	for i := range tries {
		before, err := e.used()
		if err != nil {
			a.err = err
			return a
		}
		began := time.Now()
		body, err := get(ctx, e.query+path+"?"+values.Encode())
		took := time.Since(began)
		if err != nil {
			a.err = err
			return a
		}
		after, err := e.used()
		if err != nil {
			a.err = err
			return a
		}
		if i == 0 || took < a.took {
			a.took = took
		}
		if cpu := after.cpu - before.cpu; i == 0 || cpu < a.cpu {
			a.cpu = cpu
		}
		var result struct {
			Data struct {
				Result []json.RawMessage
				Stats  struct {
					Samples struct{ TotalQueryableSamples int }
				}
			}
		}
		if err := json.Unmarshal(body, &result); err != nil {
			a.err = err
			return a
		}
		a.series, a.bytes = len(result.Data.Result), len(body)
		a.read = result.Data.Stats.Samples.TotalQueryableSamples
	}
	return a
}

func seconds(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMilli())/1000, 'f', 3, 64) }

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %.300s", resp.Status, body)
	}
	return body, nil
}

// group is how long the evaluations of a group of rules took.
type group struct {
	name     string
	interval time.Duration
	took     []time.Duration
}

var (
	durationLine = regexp.MustCompile(`(?m)^prometheus_rule_group_(last_duration_seconds|interval_seconds|last_evaluation_timestamp_seconds)\{rule_group="[^"]*;([^";]+)"[^}]*\} (\S+)$`)
	vmLine       = regexp.MustCompile(`(?m)^vmalert_iteration_duration_seconds_(sum|count)\{[^}]*group="([^"]+)"[^}]*\} (\S+)$`)
	failureLine  = regexp.MustCompile(`(?m)^(?:prometheus_rule_evaluation_failures_total|vmalert_(?:alerting|recording)_rules_errors_total|vmalert_execution_errors_total)(?:\{[^}]*\})? ([0-9.e+]+)$`)
)

// watch follows the evaluation of rules for a while.
func (e *engine) watch(ctx context.Context, duration time.Duration) (groups map[string]*group, failures float64, err error) {
	groups = map[string]*group{}
	seen := map[string]string{}
	of := func(name string) *group {
		if groups[name] == nil {
			groups[name] = &group{name: name}
		}
		return groups[name]
	}
	for end := time.Now().Add(duration); ; {
		page, err := get(ctx, e.rules)
		if err != nil {
			return nil, 0, err
		}
		text := string(page)
		last, at, sum, count := map[string]float64{}, map[string]string{}, map[string]float64{}, map[string]float64{}
		for _, m := range durationLine.FindAllStringSubmatch(text, -1) {
			v, err := strconv.ParseFloat(m[3], 64)
			if err != nil {
				return nil, 0, err
			}
			switch m[1] {
			case "last_duration_seconds":
				last[m[2]] = v
			case "interval_seconds":
				of(m[2]).interval = time.Duration(v * float64(time.Second))
			default:
				at[m[2]] = m[3]
			}
		}
		for name, v := range last {
			if seen[name] != at[name] && v > 0 {
				seen[name] = at[name]
				of(name).took = append(of(name).took, time.Duration(v*float64(time.Second)))
			}
		}
		for _, m := range vmLine.FindAllStringSubmatch(text, -1) {
			v, err := strconv.ParseFloat(m[3], 64)
			if err != nil {
				return nil, 0, err
			}
			if m[1] == "sum" {
				sum[m[2]] = v
			} else {
				count[m[2]] = v
			}
		}
		for name, n := range count {
			if n > 0 {
				of(name).took = []time.Duration{time.Duration(sum[name] / n * float64(time.Second))}
			}
		}
		failures = 0
		for _, m := range failureLine.FindAllStringSubmatch(text, -1) {
			v, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				return nil, 0, err
			}
			failures += v
		}
		if time.Now().After(end) {
			return groups, failures, nil
		}
		select {
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		case <-time.After(5 * time.Second):
		}
	}
}
