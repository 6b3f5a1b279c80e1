// Package alerts makes the alert bundle: rules for Prometheus from one table of limits
// (limits.go), from a set of templates that applies to every limit (set.go), and from
// rules on other things (other.go); share.go records what several of them read. Command
// alerts/generate writes them as rule files, as a PrometheusRule object and as the data
// (rules.json) from which the Helm chart and the Jsonnet mixin are made; regenerate them
// with
//
//	go generate ./alerts
//
// A Config changes thresholds, durations, severities and labels, and disables rules. It
// has the same fields for all of these forms.
package alerts

import (
	"maps"
	"slices"
	"strings"
)

//go:generate go run ./generate -dir=. -format=files
//go:generate go run ./generate -format=json -out=rules.json
//go:generate go run ./generate -format=prometheusrule -out=../deploy/kubernetes/prometheus-operator/prometheusrule.yaml
//go:generate go test . -run=^TestDocument$ -update

// Severities: a page, a ticket, and information that is only recorded.
const (
	Critical = "critical"
	Warning  = "warning"
	Info     = "info"
)

// Stages of an alert on a limit: usage is close to the limit, usage will be close, and
// the kernel refuses, drops or kills. Rules that are not on a limit have no stage.
const (
	near     = "near"
	forecast = "forecast"
	met      = "met"
)

// Rule is an alerting or a recording rule before a Config is applied. Expr has ${NAME}
// for each of its Params, ${resource} for a matcher of its Resources, ${select} for the
// user's matchers, and ${page} for the user's name of the severity critical.
type Rule struct {
	Record string `json:"record,omitempty"`
	Alert  string `json:"alert,omitempty"`
	// Comment is for readers of the rule file.
	Comment string `json:"comment,omitempty"`
	Expr    string `json:"expr"`
	// Params are PromQL expressions, mostly numbers.
	Params map[string]string `json:"params,omitempty"`
	// Resources are the limits that the rule is about, empty if it is about none.
	Resources []string `json:"resources,omitempty"`
	// Except are the limits that a rule about all others excludes.
	Except        []string `json:"except,omitempty"`
	For           string   `json:"for,omitempty"`
	KeepFiringFor string   `json:"keepFiringFor,omitempty"`
	// Labels are all labels of a recording rule, and those of an alert other than
	// severity.
	Labels      map[string]string `json:"labels,omitempty"`
	Severity    string            `json:"severity,omitempty"`
	Summary     string            `json:"summary,omitempty"`
	Description string            `json:"description,omitempty"`

	// about describes, in docs/alerts.md, the series of a recording rule.
	about string
}

// Group is a group of rules, which Prometheus evaluates in order.
type Group struct {
	Name     string `json:"name"`
	Comment  string `json:"comment,omitempty"`
	Interval string `json:"interval"`
	Rules    []Rule `json:"rules"`

	// file is the name of its rule file, without ".rules.yml".
	file string
}

// Groups returns all rules.
func Groups() []Group {
	all := share(append(limitGroups(), otherGroups()...))
	for i := range all {
		if all[i].Interval == "" {
			all[i].Interval = "15s"
		}
		if all[i].file == "" {
			all[i].file = strings.TrimPrefix(all[i].Name, "sockpressure-")
		}
		for j := range all[i].Rules {
			all[i].Rules[j].finish()
		}
	}
	return all
}

// themeOf returns the theme of a limit.
func themeOf(resource string) string {
	for _, t := range themes() {
		if slices.ContainsFunc(t.limits, func(l limit) bool { return l.resource == resource }) {
			return t.name
		}
	}
	return ""
}

// Runbook returns the name of the alert that warns about a limit. The section of
// docs/runbooks.md with that name is the limit's.
func Runbook(resource string) string {
	for _, t := range themes() {
		for _, l := range t.limits {
			if l.resource == resource {
				return l.alert(l.near)
			}
		}
	}
	return ""
}

// finish fills in what all rules have in common.
func (r *Rule) finish() {
	r.Expr = selecting(strings.TrimSpace(r.Expr))
	r.Comment = strings.TrimSpace(r.Comment)
	r.Description = strings.ReplaceAll(strings.Join(strings.Fields(r.Description), " "), "{{ $labels.instance }}", who)
	used := map[string]string{}
	for name, value := range r.Params {
		if strings.Contains(r.Expr, "${"+name+"}") {
			used[name] = value
		}
	}
	r.Params = used
	if r.Alert != "" && r.KeepFiringFor == "" {
		r.KeepFiringFor = hold(r.Severity)
	}
}

// who names the node in a description, and its cluster if there is one.
const who = "{{ with $labels.cluster }}{{ . }}/{{ end }}{{ $labels.instance }}"

// hold returns how long an alert continues after its condition has ended. Nothing that
// creates a ticket fires and resolves more than once per hour; a page ends sooner,
// because the person who was paged waits for it.
func hold(severity string) string {
	if severity == Critical {
		return "15m"
	}
	return "1h"
}

// with returns the rule with additional parameters.
func (r Rule) with(params map[string]string) Rule {
	r.Params = maps.Clone(r.Params)
	if r.Params == nil {
		r.Params = map[string]string{}
	}
	maps.Copy(r.Params, params)
	return r
}
