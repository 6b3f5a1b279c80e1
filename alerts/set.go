package alerts

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// limit is a row of the table: the texts and conditions from which the whole set of
// alerts of a limit is made. Its levels are those of the collector's row.
type limit struct {
	resource string
	// name and near are parts of the alert's name: SockPressure<name><near>.
	name, near string
	// summary is a static sentence. usage and effect go into the description: what is
	// used of the limit, after "{{ $labels.instance }}", and what happens at the limit.
	summary, usage, effect string
	comment                string

	// or is a second condition of the warning, and unless one of both severities.
	or, unless string
	// raw means that alerts use the saturation of the last scrape, not the highest of the
	// last minute. It is for limits whose usage changes within seconds, for which a peak
	// every minute is harmless.
	raw bool
	// hold is `for` of the near alerts by severity, 90 s if it is empty.
	hold     map[string]string
	forecast forecasting

	// full is the summary of an alert on reaching the limit, for limits whose refusals
	// the kernel does not count. It pages at fullAt at once.
	full, fullAt string
	// met are the alerts on what the kernel counts.
	met []Rule
}

// forecasting is what can be concluded from a limit's growth. For most limits, which have
// 0, growth matters after a minute or two, and over hours.
type forecasting int

const (
	// jumpy limits are used by every program that starts: growth of less than three
	// minutes shows little, and growth over hours nothing.
	jumpy forecasting = iota + 1
	// brief limits are used and released within minutes.
	brief
	// ticket limits cause no immediate harm when they are reached: there are no pages and
	// no forecasts.
	ticket
)

// theme is a group of limits that share a rule file.
type theme struct {
	name, comment string
	limits        []limit
	// others are rules that belong here but are not for a single limit.
	others []Rule
}

func (l limit) alert(suffix string) string { return "SockPressure" + l.name + suffix }

// levels returns the collector's row of a limit.
func levels(resource string) collector.LimitInfo {
	for _, s := range collector.Specs() {
		for _, l := range s.Limits {
			if l.Resource == resource {
				return l
			}
		}
	}
	return collector.LimitInfo{}
}

// saturation is the series of the rule's limits, and level the highest of the last minute,
// which the group of the limits' theme records where it is leastLevel or more. Together
// with what was recorded within 4 minutes it is the highest of the last 5.
const (
	saturation = "sockpressure_saturation_ratio{${resource}}"
	level      = "${levels}{${resource}}"
	leastLevel = 0.25
)

// levelsOf returns the name of the record of a theme's levels. Each theme has its own,
// because promtool takes two rules that record the same series for a mistake.
func levelsOf(theme string) string {
	return "instance_resource:sockpressure_" + theme + "_saturation:max1m"
}

// seen is an additional condition for an alert on a counter: the limit was at its
// critical level within the last 5 minutes.
const seen = "ignoring (resource) max_over_time(" + level + "[4m]) >= ${critical}"

// rules returns the whole set of rules for a limit.
func (l limit) rules() []Rule {
	info := levels(l.resource)
	params := map[string]string{"warning": number(info.WarningRatio), "critical": number(info.CriticalRatio), "full": l.fullAt}
	base := Rule{
		Summary:     l.summary,
		Description: "{{ $labels.instance }} " + l.usage + ". " + l.effect,
		Resources:   []string{l.resource},
		Params:      params,
	}
	var all []Rule
	for _, severity := range []string{Warning, Critical} {
		if l.forecast == ticket && severity == Critical {
			continue
		}
		r := base
		r.Alert, r.Severity, r.For, r.Labels = l.alert(l.near), severity, "90s", map[string]string{"stage": near, "resource": l.resource}
		if l.hold[severity] != "" {
			r.For = l.hold[severity]
		}
		r.Expr = level + " >= ${" + severity + "}"
		if l.raw {
			r.Expr = saturation + " >= ${" + severity + "}"
		}
		if severity == Warning {
			r.Comment = l.comment
			if l.or != "" {
				r.Expr += "\nor\n" + l.or
			}
		}
		if l.unless != "" {
			r.Expr += "\nunless " + l.unless
		}
		all = append(all, r)
	}
	if l.full != "" {
		r := base
		r.Alert, r.Severity, r.Labels = l.alert("UsedUp"), Critical, map[string]string{"stage": met, "resource": l.resource}
		r.Summary = l.full
		r.Comment = "The kernel counts no refusal, so what is full is taken for it, at once."
		r.Expr = level + " >= ${full}"
		all = append(all, r)
	}
	for _, r := range l.met {
		r.Resources = []string{l.resource}
		r = r.with(params)
		r.Labels = map[string]string{"stage": met, "resource": l.resource}
		all = append(all, r)
	}
	if held(l.resource) {
		for i := range all {
			all[i].Description = strings.TrimSuffix(all[i].Description, ".") + holder(fmt.Sprintf("resource=%q", l.resource), "") + "."
		}
	}
	return all
}

// held reports whether the largest holder of a limit can be known.
func held(resource string) bool {
	return slices.ContainsFunc(collector.Specs(), func(s collector.Spec) bool { return slices.Contains(s.Holds, resource) })
}

// holder returns a template that names, in parentheses, the largest holder of what a
// matcher and its argument select.
func holder(matcher, argument string) string {
	query := "topk(1, sockpressure_saturation_holder_ratio{cluster=%q,job=%q,instance=%q," + matcher + "})"
	return " {{- with printf `" + query + "` $labels.cluster $labels.job $labels.instance" + argument + ` | query }} (holder:` +
		`{{ with . | first | label "process" }} {{ . }}{{ end }}{{ with . | first | label "owner" }} {{ . }}{{ end }}` +
		`{{ with . | first | label "item" }}, {{ . }}{{ end }}) {{- end }}`
}

// limitGroups returns the groups of the themes, and the forecasts of all limits.
func limitGroups() []Group {
	var groups []Group
	by := map[forecasting][]string{}
	for _, t := range themes() {
		g := Group{Name: "sockpressure-" + t.name, Comment: t.comment}
		recorded := Rule{
			Record: levelsOf(t.name), Expr: "max_over_time(" + saturation + "[1m]) >= " + number(leastLevel),
			about: "each node and limit of the theme " + t.name + " that was at 25 % or more within the last minute: its maximum; alerts on levels read these",
		}
		for _, l := range t.limits {
			recorded.Resources = append(recorded.Resources, l.resource)
			by[l.forecast] = append(by[l.forecast], l.resource)
		}
		g.Rules = append(g.Rules, recorded)
		for _, l := range t.limits {
			g.Rules = append(g.Rules, l.rules()...)
		}
		g.Rules = append(g.Rules, t.others...)
		for i := range g.Rules {
			g.Rules[i].Expr = strings.ReplaceAll(g.Rules[i].Expr, "${levels}", levelsOf(t.name))
		}
		groups = append(groups, g)
	}
	return append(groups, forecasts(by)...)
}

// The series that forecasts read. Ten thousand nodes have some 170,000 limits, and each
// selector over all of them takes about half a second. So what the forecasts
// share is recorded once, for limits that are at least 10 % used, and the rest only for
// the few of these that grow.
const (
	used   = "instance_resource:sockpressure_saturation:used"
	rising = "instance_resource:sockpressure_saturation:rising"
	left1m = "instance_resource:sockpressure_saturation:left1m"
	// leastRising is the least value of rising.
	leastRising = 0.5
	// The maximum of each limit over the last day and the last week: usage that is no
	// higher than a harmless peak is not growth. See history.
	dayAgo  = "instance_resource:sockpressure_saturation:max1d offset 5m"
	weekAgo = "instance_resource:sockpressure_saturation:max1w offset 2h"
)

// forecasts returns the rules on growth. Each compares a few points in time, which is
// cheaper than a regression over all points between, and requires growth in every part of
// its period: so a step, a start that is over, or noise does not fire.
func forecasts(by map[forecasting][]string) []Group {
	// unless excludes usage that does not exceed an earlier peak by at least half of the
	// room that is left, which is 3 * x - 2 * peak < 1: the peak was about as high, and
	// was harmless if it was below harmless.
	unless := func(x, peak, harmless string) string {
		return "unless " + x + " < (1 + 2 * (" + peak + " < " + harmless + ")) / 3"
	}
	lines := func(all ...string) string { return strings.Join(all, "\n") }
	base := Rule{Alert: "SockPressureFillingFast", Severity: Warning, KeepFiringFor: "10m", Summary: "A kernel limit will be reached within minutes."}
	describe := func(pace string) string {
		return "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of the limit {{ $labels.resource }}, and " + pace +
			holder("resource=%q", " $labels.resource") + "."
	}
	never := by[ticket]
	slow := append(slices.Clone(by[jumpy]), by[brief]...)

	record := func(name, about, comment, expr string) Rule {
		return Rule{Record: name, Except: never, about: about, Comment: comment, Expr: expr}
	}
	const y = used + " offset 1m"
	records := []Rule{
		record(used, "each node and limit at 10 % or more; forecasts look back at these",
			"A limit that fills evenly in five minutes is above this three minutes before it reaches 0.75.",
			saturation+" >= 0.1"),
		record(rising, "each node and limit at 50 % or more that grew since the previous evaluation; forecasts use these",
			"Limits that grew since the previous evaluation. If scrapes are further apart, that is true once after each.",
			saturation+" >= "+number(leastRising)+" < 1\n> "+used+" offset 15s"),
		record(left1m, "each node and limit that will be reached within 8 minutes at the rate of the last minute: the minutes left",
			"Minutes left, at the rate of the last minute. With x for usage now and y for usage a minute ago, the limit is reached (1 - y) / (x - y) minutes after that minute began.",
			"((1 - "+y+") / (("+saturation+" >= 0.1) - "+y+") - 1) >= 0 < 8"),
	}

	sudden := base
	sudden.Labels, sudden.Except = map[string]string{"stage": forecast, "window": "2m"}, append(slices.Clone(never), slow...)
	sudden.Params = map[string]string{"from": "0.6", "fast": "0.72"}
	sudden.Description = describe("will reach it within 5 minutes at the rate of the last one or two")
	sudden.Comment = "A ticket: full within 5 minutes, growing for two minutes, or for one minute if usage is above what bursts reach. With x for usage now and y for usage 30 s ago, x >= (1 + 10 * y) / 11 means that growing at this rate for ten times as long reaches the limit. From 0.9 on, the level alerts take over."
	growing := rising + "{${resource}}"
	sudden.Expr = lines(
		growing+" >= ${from} < 0.9",
		"and (",
		"  "+left1m+" <= 5 and "+left1m+" offset 1m <= 6",
		"  or",
		"  "+growing+" >= ${fast} >= (1 + 10 * "+used+" offset 30s) / 11 and "+left1m+" <= 5 and "+left1m+" offset 30s < 8",
		")",
		unless(rising, dayAgo, "1"))

	waves := base
	waves.Labels, waves.Resources = map[string]string{"stage": forecast, "window": "3m"}, slow
	waves.Params = map[string]string{"from": "0.6", "fast": "0.75"}
	waves.Description = describe("will reach it within 5 minutes at the rate of the last 3, or within 2 at the rate of the last one")
	waves.Comment = "The same for limits whose usage jumps at program starts or comes in waves: growing for three minutes, or about to be full, which is within 90 s at the rate of the last 30: x >= (1 + 3 * y) / 4."
	waves.Expr = lines(
		growing+" >= ${from} < 0.9",
		"and (",
		"  "+left1m+" <= 5 and "+left1m+" offset 1m <= 6 and "+left1m+" offset 2m <= 7",
		"  or",
		"  "+growing+" >= ${fast} >= (1 + 3 * "+used+" offset 30s) / 4 and "+left1m+" <= 1.5 and "+left1m+" offset 30s <= 4",
		")",
		unless(rising, dayAgo, "1"))

	page := base
	page.Severity, page.KeepFiringFor, page.Labels, page.Except = Critical, "", map[string]string{"stage": forecast}, never
	page.Params, page.Description = map[string]string{"from": "0.75"}, describe("will reach it within 3 minutes at the rate of each of the last 3")
	page.Comment = "The page: full within 3 minutes, growing for three. At 0.75, an even ramp of 5 minutes has more than one minute left."
	page.Expr = lines(
		growing+" >= ${from} < 1",
		"and "+left1m+" <= 3 and "+left1m+" offset 1m <= 4 and "+left1m+" offset 2m <= 5",
		unless(rising, dayAgo, "0.9"))

	hours := Rule{
		Alert: "SockPressureFillingUp", Severity: Warning, For: "15m", Summary: "A kernel limit will be reached within hours.",
		Labels: map[string]string{"stage": forecast}, Except: sudden.Except, Params: map[string]string{"from": "0.5"},
		Description: describe("will reach it within 4 hours at the rate of the last hour"),
		Comment:     "Full within 4 hours: a leak, or a load that did not occur in the last week.",
		Expr: lines(
			saturation+" >= ${from} < 1",
			">= (1 + 8 * "+used+" offset 30m) / 9",
			"and 10 * "+used+" offset 30m - 9 * "+used+" offset 1h >= 1",
			unless(used, weekAgo, "1")),
	}
	return []Group{
		{
			Name: "sockpressure-forecast", Rules: append(records, sudden, waves, page),
			Comment: `Limits that are not close yet, but will be reached at the present rate. The series that the alerts read are recorded first in the same group, so that they refer to the same time. The last line of each alert excludes usage that is not above an earlier peak by half of the remaining headroom: x < (1 + 2 * peak) / 3.`,
		},
		{
			Name: "sockpressure-hours", file: "forecast", Interval: "1m", Rules: []Rule{hours},
			Comment: "The same over hours, where a minute does not matter. With x for usage now and y for usage half an hour ago, x >= (1 + 8 * y) / 9 means that growing at this rate for eight times as long reaches the limit.",
		},
	}
}

func number(v float64) string { return fmt.Sprint(v) }
