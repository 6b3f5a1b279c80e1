package dashboards

import (
	"fmt"
	"strings"
)

// What the queries of several panels have in common. To use other recording rules, change
// these.

// The series of the fleet, each recorded by alerts/fleet.rules.yml.
const (
	nodeShare   = "instance:sockpressure_saturation:max5m"          // one per node
	limitShare  = "instance_resource:sockpressure_saturation:max5m" // one per node and limit
	fleetShare  = "job_resource:sockpressure_saturation:max5m"      // one per limit
	nodeRefuses = "instance:sockpressure_refusals:rate5m"
	// One per node, and only while its exporter answers.
	nodeFailing = "instance:sockpressure_collectors_failing:count"
)

// ofNode are the labels of a node, ofLimit those of a limit on a node.
const (
	ofNode  = "cluster, job, instance"
	ofLimit = ofNode + ", resource"
)

// theWorst restricts a query to the nodes that the variable worst has found. If a query
// reads the series of every node, reading only these costs next to nothing.
const theWorst = `instance=~"$worst"`

// firing returns a selector of the firing alerts on a limit or an exporter.
func firing(matchers ...string) string {
	return "ALERTS{" + strings.Join(append([]string{`alertname=~"SockPressure.+"`, `alertstate="firing"`}, matchers...), ",") + "}"
}

// severity returns an expression for the severity of firing alerts: 2 is critical, 1 is a
// warning.
func severity(matchers ...string) string {
	return "2 * " + firing(append([]string{`severity="critical"`}, matchers...)...) + " or " + firing(append([]string{`severity="warning"`}, matchers...)...)
}

// nodesWith returns an expression for the number of nodes that have alerts.
func nodesWith(alerts string) string {
	return "count(group by (" + ofNode + ") (" + alerts + ")) or vector(0)"
}

// lost selects the alerts on exporters that do not answer, including those that are no
// longer targets. They are pending at once.
const lost = `ALERTS{alertname=~"SockPressure(ExporterDown|ExporterGone|LostNearLimit)",alertstate=~"pending|firing"}`

// worstAlert returns an expression that ranks firing alerts: what a kernel already
// refuses comes before what is near, and that before what is forecast.
func worstAlert(matchers ...string) string {
	of := func(rank int, more ...string) string {
		return fmt.Sprintf("%d * %s", rank, firing(append(more, matchers...)...))
	}
	return strings.Join([]string{
		of(6, `severity="critical"`, `stage="met"`), of(5, `severity="critical"`, `stage!~"met|forecast"`), of(4, `severity="critical"`, `stage="forecast"`),
		of(3, `severity="warning"`, `stage="met"`), of(2, `severity="warning"`, `stage!~"met|forecast"`), of(1, `severity="warning"`, `stage="forecast"`),
	}, " or ")
}

// worstNodes returns an expression that ranks nodes: those with critical alerts first,
// then those with warnings, and all by their share of the limit that they are nearest to,
// which may exceed 1.
func worstNodes() string {
	const share = "(1 - 1 / (1 + " + nodeShare + "))" // below 1, and increasing with the share
	alerts := "max by (" + ofNode + ") (" + severity(`severity=~"$severity"`, `resource=~"$resource"`) + ")"
	return fmt.Sprintf("topk($top, %s + on (%s) %s or on (%[2]s) %[1]s or on (%[2]s) topk($top, %[3]s))", alerts, ofNode, share)
}

// atMost returns an expression for the maximum of a series by labels, restricted to the
// given number of lines that are highest at the end of the time range: topk by itself
// would select again at each step.
func atMost(most int, labels, series string) string {
	return fmt.Sprintf("max by (%[2]s) (%[3]s) and on (%[2]s) topk(%[1]d, max by (%[2]s) (%[3]s @ end()))", most, labels, series)
}

// highest returns an expression for the given number of lines with the highest maximum
// within the time range. It reads all of them, so it is for the series of one node.
func highest(most int, expr string) string {
	if strings.ContainsAny(expr, " (") {
		return fmt.Sprintf("%s and topk(%d, max_over_time((%[1]s)[$__range:1m] @ end()))", expr, most)
	}
	return fmt.Sprintf("%s and topk(%d, max_over_time(%[1]s[$__range] @ end()))", expr, most)
}

// The levels of the limits of pods, the same as in the alert SockPressureNetnsNearLimit:
// limits that are reached only for a moment and do little harm do not page.
const (
	podWarning, podCritical = 0.8, 0.95
	podPages                = `resource=~"conntrack_entries|ephemeral_ports"`
)

// podLevel returns an expression for the level of pods' shares: 2 is critical, 1 a
// warning, 0 neither.
func podLevel(shares string) string {
	return fmt.Sprintf("(%s{%s} >= bool %v) + (%[1]s{%[2]s} >= bool %[4]v) or %[1]s >= bool %[4]v", shares, podPages, podCritical, podWarning)
}

// podShare is the shares of the worst 20 pods for each job and limit.
const podShare = "job_resource_netns:sockpressure_netns_saturation:top20"
