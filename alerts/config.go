package alerts

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Config changes the rules. The zero Config leaves them unchanged. The Helm chart's value
// prometheusRule.config and the mixin's _config have the same fields.
type Config struct {
	// Select is added to every selector: matchers such as `env="prod"`.
	Select string `yaml:"select"`
	// RunbookURL is the prefix of a runbook's URL. The lower-case name of the alert
	// follows it.
	RunbookURL string `yaml:"runbookURL"`
	// Interval is the interval of the groups of alerts. Lead times assume 15 s.
	Interval string `yaml:"interval"`
	// Labels and Annotations are added to every alert.
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
	// Severities renames severities.
	Severities map[string]string `yaml:"severities"`

	Scope `yaml:",inline"`
	// Jobs has the changes for some scrape jobs, by name.
	Jobs map[string]Scope `yaml:"jobs"`
}

// Scope is a set of changes to rules. If several apply to a rule, the last one in the
// order of the fields takes precedence.
type Scope struct {
	// Resources are changes by limit. A rule about several limits can only be disabled
	// for one of them.
	Resources map[string]Change `yaml:"resources"`
	// Alerts are changes by name, "SockPressureOOMKill", or by name and severity,
	// "SockPressureOOMKill/critical", which takes precedence.
	Alerts map[string]Change `yaml:"alerts"`
}

// Change is a change to some rules. Fields that are nil or empty change nothing.
type Change struct {
	Enabled       *bool             `yaml:"enabled"`
	For           string            `yaml:"for"`
	KeepFiringFor string            `yaml:"keepFiringFor"`
	Severity      string            `yaml:"severity"`
	Labels        map[string]string `yaml:"labels"`
	// Params are thresholds: numbers, also in strings.
	Params map[string]any `yaml:"params"`
}

// DefaultRunbookURL is the prefix of the runbooks in this repository.
const DefaultRunbookURL = "https://github.com/sockpressure/sockpressure_exporter/blob/main/docs/runbooks.md#"

// Output is a rule in the format of Prometheus.
type Output struct {
	Record        string            `json:"record,omitempty" yaml:"record,omitempty"`
	Alert         string            `json:"alert,omitempty" yaml:"alert,omitempty"`
	Expr          string            `json:"expr" yaml:"expr"`
	For           string            `json:"for,omitempty" yaml:"for,omitempty"`
	KeepFiringFor string            `json:"keep_firing_for,omitempty" yaml:"keep_firing_for,omitempty"`
	Labels        map[string]string `json:"labels,omitempty" yaml:"labels,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty" yaml:"annotations,omitempty"`

	comment string
}

// OutputGroup is a group in the format of Prometheus.
type OutputGroup struct {
	Name     string   `json:"name" yaml:"name"`
	Interval string   `json:"interval" yaml:"interval"`
	Rules    []Output `json:"rules" yaml:"rules"`

	comment, file string
}

// Apply returns the rules for a Config. It returns an error for names and parameters that
// no rule has, and for values that make no valid rule.
func (c Config) Apply(groups []Group) ([]OutputGroup, error) {
	if err := c.check(groups); err != nil {
		return nil, err
	}
	jobs := slices.Sorted(maps.Keys(c.Jobs))
	var quoted []string
	for _, j := range jobs {
		quoted = append(quoted, regexp.QuoteMeta(j))
	}
	others := ""
	if len(jobs) > 0 {
		others = fmt.Sprintf("job!~%q", strings.Join(quoted, "|"))
	}
	var all []OutputGroup
	for _, g := range groups {
		all = appendGroup(all, c.group(g, g.Name, others, c.Scope, true))
	}
	for _, j := range jobs {
		for _, g := range groups {
			all = appendGroup(all, c.group(g, g.Name+"-"+j, fmt.Sprintf("job=%q", j), c.under(c.Jobs[j]), false))
		}
	}
	return all, nil
}

func appendGroup(all []OutputGroup, g OutputGroup) []OutputGroup {
	if len(g.Rules) == 0 {
		return all
	}
	return append(all, g)
}

// under returns c's changes with those of a job applied on top.
func (c Config) under(s Scope) Scope {
	merged := Scope{Resources: map[string]Change{}, Alerts: map[string]Change{}}
	for to, from := range map[*map[string]Change][2]map[string]Change{
		&merged.Resources: {c.Resources, s.Resources}, &merged.Alerts: {c.Alerts, s.Alerts},
	} {
		maps.Copy(*to, from[0])
		for name, change := range from[1] {
			(*to)[name] = (*to)[name].and(change)
		}
	}
	return merged
}

// and returns the change with another one applied on top.
func (c Change) and(o Change) Change {
	if o.Enabled != nil {
		c.Enabled = o.Enabled
	}
	for to, from := range map[*string]string{&c.For: o.For, &c.KeepFiringFor: o.KeepFiringFor, &c.Severity: o.Severity} {
		if from != "" {
			*to = from
		}
	}
	c.Labels, c.Params = over(c.Labels, o.Labels), over(c.Params, o.Params)
	return c
}

// change returns what is different in a rule.
func (s Scope) change(r Rule) Change {
	var c Change
	if len(r.Resources) == 1 {
		c = s.Resources[r.Resources[0]]
	}
	return c.and(s.Alerts[r.Alert]).and(s.Alerts[r.Alert+"/"+r.Severity])
}

func over[V any](a, b map[string]V) map[string]V {
	m := map[string]V{}
	maps.Copy(m, a)
	maps.Copy(m, b)
	return m
}

// group returns a group for what matchers select. Recording rules are for all jobs,
// except those in a group of alerts, which read them.
func (c Config) group(g Group, name, matchers string, s Scope, recording bool) OutputGroup {
	out := OutputGroup{Name: name, Interval: g.Interval, comment: g.Comment, file: g.file}
	matchers = strings.Trim(c.Select+","+matchers, ",")
	hasAlerts := alerting(g)
	if hasAlerts && c.Interval != "" && g.Interval == "15s" {
		out.Interval = c.Interval
	}
	for _, r := range g.Rules {
		if r.Record != "" {
			own := matchers
			if !hasAlerts {
				own = c.Select
			}
			if hasAlerts || recording {
				out.Rules = append(out.Rules, Output{Record: r.Record, Expr: r.expand(own, nil), Labels: r.Labels, comment: r.Comment})
			}
			continue
		}
		off := func(resource string) bool {
			enabled := s.Resources[resource].Enabled
			return enabled != nil && !*enabled
		}
		narrowed := r
		narrowed.Resources = slices.DeleteFunc(slices.Clone(r.Resources), off)
		if len(r.Except) > 0 {
			narrowed.Except = slices.Clone(r.Except)
			for _, resource := range slices.Sorted(maps.Keys(s.Resources)) {
				if off(resource) && !slices.Contains(r.Except, resource) {
					narrowed.Except = append(narrowed.Except, resource)
				}
			}
		}
		change := s.change(r)
		if change.Enabled != nil && !*change.Enabled || len(r.Resources) > 0 && len(narrowed.Resources) == 0 {
			continue
		}
		o := Output{
			Alert: r.Alert, For: r.For, KeepFiringFor: r.KeepFiringFor, comment: r.Comment,
			Expr:   strings.ReplaceAll(narrowed.expand(matchers, change.Params), "${page}", cmp.Or(c.Severities[Critical], Critical)),
			Labels: over(over(r.Labels, c.Labels), change.Labels),
			Annotations: over(map[string]string{
				"summary": r.Summary, "description": r.Description,
				"runbook_url": cmp.Or(c.RunbookURL, DefaultRunbookURL) + strings.ToLower(r.Alert),
			}, c.Annotations),
		}
		severity := cmp.Or(change.Severity, r.Severity)
		o.Labels["severity"] = cmp.Or(c.Severities[severity], severity)
		o.For, o.KeepFiringFor = cmp.Or(change.For, o.For), cmp.Or(change.KeepFiringFor, o.KeepFiringFor)
		out.Rules = append(out.Rules, o)
	}
	return out
}

// expand fills in the placeholders of an expression.
func (r Rule) expand(matchers string, changed map[string]any) string {
	resource := fmt.Sprintf("resource=~%q", strings.Join(r.Resources, "|"))
	switch {
	case len(r.Except) > 0:
		resource = fmt.Sprintf("resource!~%q", strings.Join(r.Except, "|"))
	case len(r.Resources) == 1:
		resource = fmt.Sprintf("resource=%q", r.Resources[0])
	}
	if matchers != "" {
		matchers += ","
	}
	expr := strings.ReplaceAll(strings.ReplaceAll(r.Expr, "${select}", matchers), "${resource}", resource)
	for name, value := range r.Params {
		if v, ok := changed[name]; ok {
			value = fmt.Sprint(v)
		}
		expr = strings.ReplaceAll(expr, "${"+name+"}", value)
	}
	return strings.ReplaceAll(strings.ReplaceAll(expr, ",}", "}"), "{}", "")
}

// selecting adds a placeholder for matchers to every selector of an expression.
func selecting(expr string) string {
	selector := regexp.MustCompile(`\b((?:[a-z_]+:)?sockpressure_[a-z0-9_]+(?::[a-z0-9]+)?|up|ALERTS)\b(\{?)`)
	return selector.ReplaceAllStringFunc(expr, func(s string) string {
		name, braced := strings.CutSuffix(s, "{")
		if braced {
			return name + "{${select}"
		}
		return name + "{${select}}"
	})
}
