package alerts

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// limit is a row of the table: what there is to say about a limit, from which its
// whole set of alerts is made. Its levels are those of the collector's row.
type limit struct {
	resource string
	// name and near are the alert's: SockPressure<name><near>.
	name, near string
	// summary is a static sentence. usage and effect go into the description: what of
	// the limit is used, after "{{ $labels.instance }}", and what happens at the limit.
	summary, usage, effect string
	comment                string

	// or is a second condition of the warning, unless one of both forms.
	or, unless string
	// raw levels are of the last scrape and not the highest of the last minute: for
	// what comes and goes within seconds, where a peak each minute is no harm.
	raw bool
	// hold is `for` of the near alerts, 90 s where it is empty.
	hold     map[string]string
	forecast forecasting

	// full is a summary of what the limit does when it is met, for limits whose
	// refusals the kernel does not count; it pages at fullAt at once.
	full, fullAt string
	// met are the alerts on what the kernel counts.
	met []Rule
}

// forecasting says what a limit's growth tells. Of most it tells something after a minute
// or two, and over hours: that is 0.
type forecasting int

const (
	// jumpy limits are taken by every program that starts: growth of less than three
	// minutes says little, and growth over hours nothing.
	jumpy forecasting = iota + 1
	// brief limits come and go within minutes.
	brief
	// ticket limits do no harm at once when they are met: nothing pages, nothing is foreseen.
	ticket
)

// theme is a group of limits that share a rule file.
type theme struct {
	name, comment string
	limits        []limit
	// others are rules that belong here and are of no single limit.
	others []Rule
}

func (l limit) alert(suffix string) string { return "SockPressure" + l.name + suffix }

// levels returns the row of the collector.
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

// saturation is the series of the rule's limits.
const saturation = "sockpressure_saturation_ratio{${resource}}"

// seen is a condition on the rule's limit beside a counter's: it was at its critical
// level within the last 5 minutes.
const seen = "ignoring (resource) max_over_time(" + saturation + "[5m]) >= ${critical}"

// rules makes the whole set of a limit.
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
		r.Expr = "max_over_time(" + saturation + "[1m]) >= ${" + severity + "}"
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
		r.Expr = saturation + " >= ${full}"
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

// held reports whether it can be known who holds the most of a limit.
func held(resource string) bool {
	return slices.ContainsFunc(collector.Specs(), func(s collector.Spec) bool { return slices.Contains(s.Holds, resource) })
}

// holder writes, in parentheses, who holds the most of what a matcher and its argument
// choose.
func holder(matcher, argument string) string {
	query := "topk(1, sockpressure_saturation_holder_ratio{cluster=%q,job=%q,instance=%q," + matcher + "})"
	return " {{- with printf `" + query + "` $labels.cluster $labels.job $labels.instance" + argument + ` | query }} (holder:` +
		`{{ with . | first | label "process" }} {{ . }}{{ end }}{{ with . | first | label "owner" }} {{ . }}{{ end }}` +
		`{{ with . | first | label "item" }}, {{ . }}{{ end }}) {{- end }}`
}

// limitGroups makes the groups of the themes, and the forecasts of all limits.
func limitGroups() []Group {
	var groups []Group
	by := map[forecasting][]string{}
	for _, t := range themes() {
		g := Group{Name: "sockpressure-" + t.name, Comment: t.comment}
		for _, l := range t.limits {
			g.Rules = append(g.Rules, l.rules()...)
			by[l.forecast] = append(by[l.forecast], l.resource)
		}
		g.Rules = append(g.Rules, t.others...)
		groups = append(groups, g)
	}
	return append(groups, forecasts(by)...)
}

// What forecasts read: ten thousand nodes have some 170,000 limits, and each look at all
// of them takes a fifth of a second or more. So what they have in common is recorded, of the
// limits that it is worth looking at: a quarter of all, and of these the few that grow.
const (
	used    = "instance_resource:sockpressure_saturation:used"
	rising  = "instance_resource:sockpressure_saturation:rising"
	left1m  = "instance_resource:sockpressure_saturation:left1m"
	left30s = "instance_resource:sockpressure_saturation:left30s"
	// Of each limit, the highest of the last day and of the last week: what is no higher
	// than what was harmless then is no growth. See otherGroups.
	dayAgo  = "instance_resource:sockpressure_saturation:max1d offset 5m"
	weekAgo = "instance_resource:sockpressure_saturation:max1w offset 2h"
)

// forecasts makes the rules on growth. Each compares a few points in time, which is
// cheaper than a regression over all between, and asks for growth in every part of
// the time it looks at: so a step, a start that is over, or noise does not fire.
func forecasts(by map[forecasting][]string) []Group {
	// unless usage is not above an earlier peak by half of the room that is left, which is
	// 3 * x - 2 * peak < 1: that peak was as high, and nothing came of it where it was below
	// harmless.
	unless := func(x, peak, harmless string) string {
		return "unless " + x + " < (1 + 2 * (" + peak + " < " + harmless + ")) / 3"
	}
	lines := func(all ...string) string { return strings.Join(all, "\n") }
	base := Rule{Alert: "SockPressureFillingFast", Severity: Warning, KeepFiringFor: "10m", Summary: "A kernel limit will be met within minutes."}
	describe := func(pace string) string {
		return "{{ $labels.instance }} uses {{ $value | humanizePercentage }} of the limit {{ $labels.resource }}, and " + pace +
			holder("resource=%q", " $labels.resource") + "."
	}
	never := by[ticket]
	slow := append(slices.Clone(by[jumpy]), by[brief]...)

	record := func(name, about, comment, expr string) Rule {
		return Rule{Record: name, Except: never, about: about, Comment: comment, Expr: expr}
	}
	// left is the time to the limit at the pace since a while ago: with x for usage now, y for
	// usage then, (1 - y) / (x - y) of these whiles after then.
	left := func(while, minutes string) string {
		y := used + " offset " + while
		return "((1 - " + y + ") / (" + saturation + " - " + y + ") - 1)" + minutes + " >= 0 < 8"
	}
	records := []Rule{
		record(used, "each node and limit that is used to a tenth or more; forecasts look back at these",
			"A limit that fills evenly in five minutes was above this three minutes before it is at 0.75.",
			saturation+" >= 0.1"),
		record(rising, "each node and limit that is used to a half or more and grew at the last scrape; forecasts are of these",
			"What grew at the last scrape, whatever the time between two.",
			saturation+" >= 0.5 < 1\nand idelta("+saturation+"[3m]) > 0"),
		record(left1m, "each node and limit that is met within 8 minutes at the pace of the last minute: the minutes left",
			"Minutes left, at the pace of the last minute. With x for usage now and y for usage a minute ago, the limit is met (1 - y) / (x - y) minutes after that.",
			left("1m", "")),
		record(left30s, "the same at the pace of the last half minute",
			"", left("30s", " / 2")),
	}

	sudden := base
	sudden.Labels, sudden.Except = map[string]string{"stage": forecast, "window": "2m"}, append(slices.Clone(never), slow...)
	sudden.Params = map[string]string{"from": "0.6", "fast": "0.72"}
	sudden.Description = describe("at the pace of the last minute or two meets it within 5")
	sudden.Comment = "A ticket: full within 5 minutes, growing for two, or for one where usage is above what bursts reach. From 0.9 on the levels tell."
	growing := rising + "{${resource}}"
	sudden.Expr = lines(
		growing+" >= ${from} < 0.9",
		"and (",
		"  "+left1m+" <= 5 and "+left1m+" offset 1m <= 6",
		"  or",
		"  "+growing+" >= ${fast} and "+left30s+" <= 5 and "+left30s+" offset 30s <= 5.5",
		")",
		unless(rising, dayAgo, "1"))

	waves := base
	waves.Labels, waves.Resources = map[string]string{"stage": forecast, "window": "3m"}, slow
	waves.Params = map[string]string{"from": "0.6", "fast": "0.75"}
	waves.Description = describe("at the pace of the last 3 minutes meets it within 5, or at that of the last within 2")
	waves.Comment = "The same for what programs take when they start, and what comes in waves: growing for three minutes, or about to be full."
	waves.Expr = lines(
		growing+" >= ${from} < 0.9",
		"and (",
		"  "+left1m+" <= 5 and "+left1m+" offset 1m <= 6 and "+left1m+" offset 2m <= 7",
		"  or",
		"  "+growing+" >= ${fast} and "+left30s+" <= 1.5 and "+left30s+" offset 30s <= 2",
		")",
		unless(rising, dayAgo, "1"))

	page := base
	page.Severity, page.KeepFiringFor, page.Labels, page.Except = Critical, "", map[string]string{"stage": forecast}, never
	page.Params, page.Description = map[string]string{"from": "0.75"}, describe("at the pace of each of the last 3 minutes meets it within 3")
	page.Comment = "The page: full within 3 minutes, growing for three. At 0.75 an even ramp of 5 minutes has more than one left."
	page.Expr = lines(
		growing+" >= ${from} < 1",
		"and "+left1m+" <= 3 and "+left1m+" offset 1m <= 4 and "+left1m+" offset 2m <= 5",
		unless(rising, dayAgo, "0.9"))

	hours := Rule{
		Alert: "SockPressureFillingUp", Severity: Warning, For: "15m", Summary: "A kernel limit will be met within hours.",
		Labels: map[string]string{"stage": forecast}, Except: sudden.Except, Params: map[string]string{"from": "0.5"},
		Description: describe("at the pace of the last hour meets it within the next 4"),
		Comment:     "Full within 4 hours: a leak, or a load that was not there in the last week.",
		Expr: lines(
			saturation+" >= ${from} < 1",
			">= (1 + 8 * "+used+" offset 30m) / 9",
			"and 10 * "+used+" offset 30m - 9 * "+used+" offset 1h >= 1",
			unless(used, weekAgo, "1")),
	}
	return []Group{
		{
			Name: "sockpressure-forecast", Rules: append(records, sudden, waves, page),
			Comment: `Limits that are not near yet, but will be met if usage goes on as it does now. What the alerts read is recorded before them, so that it is of the same moment. The last line of each leaves out usage that is not above an earlier peak by half of the room that is left: x < (1 + 2 * peak) / 3.`,
		},
		{
			Name: "sockpressure-forecast-hours", file: "forecast", Interval: "1m", Rules: []Rule{hours},
			Comment: "The same over hours, where a minute does not count. With x for usage now and y for usage half an hour ago, x >= (1 + 8 * y) / 9 says that growing on like this for eight times as long meets the limit.",
		},
	}
}

func number(v float64) string { return fmt.Sprint(v) }
