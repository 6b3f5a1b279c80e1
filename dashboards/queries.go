package dashboards

import (
	"fmt"
	"strings"
)

// What the queries of several panels have in common. What the rules record instead
// is to be changed here.

// The series of the fleet, each recorded by alerts/fleet.rules.yml.
const (
	nodeShare   = "instance:sockpressure_saturation:max5m"          // one a node
	limitShare  = "instance_resource:sockpressure_saturation:max5m" // one for each node and limit
	fleetShare  = "job_resource:sockpressure_saturation:max5m"      // one a limit
	nodeRefuses = "instance:sockpressure_refusals:rate5m"
	// One a node, and only while its exporter answers.
	nodeFailing = "instance:sockpressure_collectors_failing:count"
)

// ofNode are the labels of a node, ofLimit those of a limit on a node.
const (
	ofNode  = "cluster, job, instance"
	ofLimit = ofNode + ", resource"
)

// theWorst narrows a query to the nodes that the variable worst has found: where a
// query is of every node's series, reading these few costs next to nothing.
const theWorst = `instance=~"$worst"`

// firing are the alerts of a limit or of an exporter that fire.
func firing(matchers ...string) string {
	return "ALERTS{" + strings.Join(append([]string{`alertname=~"SockPressure.+"`, `alertstate="firing"`}, matchers...), ",") + "}"
}

// severity is how bad the alerts that fire are: 2 is critical, 1 is a warning.
func severity(matchers ...string) string {
	return "2 * " + firing(append([]string{`severity="critical"`}, matchers...)...) + " or " + firing(append([]string{`severity="warning"`}, matchers...)...)
}

// nodesWith counts the nodes of alerts.
func nodesWith(alerts string) string {
	return "count(group by (" + ofNode + ") (" + alerts + ")) or vector(0)"
}

// lost are the alerts of exporters that do not answer, which also know of those that
// are no target any more. They begin to be pending at once.
const lost = `ALERTS{alertname=~"SockPressure(ExporterDown|ExporterGone|LostNearLimit)",alertstate=~"pending|firing"}`

// worstAlert ranks the alerts that fire: what a kernel refuses already comes before
// what is near, and that before what is forecast.
func worstAlert(matchers ...string) string {
	of := func(rank int, more ...string) string {
		return fmt.Sprintf("%d * %s", rank, firing(append(more, matchers...)...))
	}
	return strings.Join([]string{
		of(6, `severity="critical"`, `stage="met"`), of(5, `severity="critical"`, `stage!~"met|forecast"`), of(4, `severity="critical"`, `stage="forecast"`),
		of(3, `severity="warning"`, `stage="met"`), of(2, `severity="warning"`, `stage!~"met|forecast"`), of(1, `severity="warning"`, `stage="forecast"`),
	}, " or ")
}

// worstNodes ranks nodes: those with critical alerts first, then those with warnings,
// and all by what they have of the limit that they are nearest to, which may be more
// than all of it.
func worstNodes() string {
	const share = "(1 - 1 / (1 + " + nodeShare + "))" // below 1, and the higher the higher that is
	alerts := "max by (" + ofNode + ") (" + severity(`severity=~"$severity"`, `resource=~"$resource"`) + ")"
	return fmt.Sprintf("topk($top, %s + on (%s) %s or on (%[2]s) %[1]s or on (%[2]s) topk($top, %[3]s))", alerts, ofNode, share)
}

// atMost is the highest of a series by labels, and of these the most lines that are
// the highest at the end of the time shown: topk by itself would choose anew at each
// step.
func atMost(most int, labels, series string) string {
	return fmt.Sprintf("max by (%[2]s) (%[3]s) and on (%[2]s) topk(%[1]d, max by (%[2]s) (%[3]s @ end()))", most, labels, series)
}

// highest leaves the most lines of an expression that came the highest within the
// time shown. It reads all of them: it is for what one node has.
func highest(most int, expr string) string {
	if strings.ContainsAny(expr, " (") {
		return fmt.Sprintf("%s and topk(%d, max_over_time((%[1]s)[$__range:1m] @ end()))", expr, most)
	}
	return fmt.Sprintf("%s and topk(%d, max_over_time(%[1]s[$__range] @ end()))", expr, most)
}

// The levels of the limits of pods, which are those of the alert SockPressureNetnsNearLimit:
// what fills for a moment and does little harm is no page.
const (
	podWarning, podCritical = 0.8, 0.95
	podPages                = `resource=~"conntrack_entries|ephemeral_ports"`
)

// podLevel is how bad shares of pods are: 2 is critical, 1 a warning, 0 neither.
func podLevel(shares string) string {
	return fmt.Sprintf("(%s{%s} >= bool %v) + (%[1]s{%[2]s} >= bool %[4]v) or %[1]s >= bool %[4]v", shares, podPages, podCritical, podWarning)
}

// podShare is of the worst 20 pods of each job and limit.
const podShare = "job_resource_netns:sockpressure_netns_saturation:top20"
