package dashboards

import (
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

const fleetUID = "sockpressure-fleet"

// The titles of panels that are linked to.
const (
	inTrouble    = "Nodes in trouble"
	theClusters  = "Clusters and jobs"
	nearestNodes = "Nodes nearest to one limit"
	refusing     = "Nodes that refuse"
	noAnswer     = "Exporters that do not answer"
	failing      = "Exporters with failing collectors"
	podsOfNode   = "Pods and namespaces nearest to their own limits"
)

// fleet returns the dashboard of all nodes. It reads the recording rules of
// alerts/fleet.rules.yml and the alerts: a handful of series for the fleet, a few
// thousand with one per node, and of the nodes' own series only those of the worst nodes.
func fleet(limits []collector.LimitInfo, books runbooks) dashboard {
	const chosen = "var-datasource=${datasource}&${job:queryparam}&${__url_time_range}"
	// here returns a link to a panel of this dashboard. It keeps the selections that are
	// not given.
	here := func(title string, choices ...string) string {
		parts := []string{"/d/" + fleetUID + "?" + chosen}
		for _, v := range []string{"cluster", "instance", "resource", "limit", "severity"} {
			set := "${" + v + ":queryparam}"
			for _, c := range choices {
				if strings.HasPrefix(c, v+"=") {
					set = "var-" + c
				}
			}
			parts = append(parts, set)
		}
		if title != "" {
			parts = append(parts, view(fleetUID, title))
		}
		return strings.Join(parts, "&")
	}
	// Without a label cluster there is no such field, and an empty selection matches
	// series without it.
	const node = "/d/" + nodeUID + "?var-datasource=${datasource}&var-cluster=${__data.fields.Cluster:percentencode}&var-job=${__data.fields.Job:percentencode}&var-instance=${__data.fields.Node:percentencode}&${__url_time_range}"
	toNode := offers(link("The node", node), link("Its pods", node+"&"+view(nodeUID, podsOfNode)))
	toRunbook := alert(
		link("Runbook", docs+"runbooks.md#${__value.raw}"),
		link("Runbook, from the node", "http://${__data.fields.Node}/runbooks#${__value.raw}"))
	const bars20 = "/d/" + nodeUID + "?var-datasource=${datasource}&var-cluster=${__field.labels.cluster}&var-job=${__field.labels.job}&var-instance=${__field.labels.instance}&${__url_time_range}"

	worst := nearest(`sort_desc(max by (resource) (`+fleetShare+`{resource=~"$resource"}))`, limits, func(resource string) []object {
		return []object{link("Its nodes", here(nearestNodes, "limit="+resource)), link("Runbook", books[resource])}
	})
	worst.title, worst.width, worst.height = "Nearest limits of the fleet", 7, 13
	worst.about = "Of each limit, the node that is nearest to it: the highest share of the last 5 minutes, in the colours of the limit's own levels. Over all nodes of the job, whatever is chosen as Instance. A click leads to the nodes, or to the runbook."

	// nodeBars returns a panel of the nodes and limits that a query finds, each in the
	// colours of its limit.
	nodeBars := func(title, about, expr string, width, height int) panel {
		p := nearest(expr, nil, nil)
		p.title, p.about, p.width, p.height = title, about, width, height
		p.queries[0].legend = "{{instance}} {{resource}} {{cluster}}"
		p.links = []object{link("The node", bars20)}
		for _, l := range limits {
			p.overrides = append(p.overrides, object{
				"matcher":    object{"id": "byRegexp", "options": "/ " + l.Resource + "( |$)/"},
				"properties": []object{ownLevels(l)},
			})
		}
		return p
	}
	// Some limits can be exceeded, TCP memory several times over: one such node would
	// flatten the lines of all others.
	const beyond = 1.2
	count := func(title, below, color, about, expr, leads string) panel {
		return panel{
			kind: one, title: title, about: about + " Click to list them.", unit: exact, width: 4, height: 4,
			base: below, steps: []step{{1, color}}, queries: []query{{"", expr}}, links: []object{link("Which ones", leads)},
		}
	}
	troubled := "topk(2 * $top, max by (" + ofLimit + ") (" + severity(`severity=~"$severity"`, `resource=~"$resource"`, theWorst) + "))"
	ofTroubled := func(labels, expr string) string {
		return "max by (" + labels + ") (" + expr + ") and on (" + ofLimit + ") " + troubled
	}
	severities := `severity=~"$severity",resource=~"$resource",` + theWorst

	return dashboard{
		uid: fleetUID, title: "Sockpressure / Fleet", from: "now-6h",
		about: "Nodes that are close to a kernel limit on sockets or memory, and nodes whose kernel already refuses. Needs all rules of alerts/.",
		variables: []variable{
			{name: "cluster", label: "Cluster", metric: nodeFailing, all: true},
			{name: "job", label: "Job", metric: nodeFailing, all: true},
			{name: "instance", label: "Instance", typed: ".+"}, // a list of ten thousand would not help
			{name: "resource", label: "Limit", metric: fleetShare, all: true},
			{name: "limit", label: "Nodes of", metric: fleetShare, of: "resource"},
			{name: "severity", label: "Severity", named: []string{"critical", "warning"}, all: true},
			{name: "top", label: "Nodes shown", named: []string{"20", "50", "200"}},
			{name: "worst", label: "Worst nodes", found: selecting(worstNodes(), everyNode()...), all: true},
		},
		annotations: []object{
			annotation("Critical alerts", "red", "{{alertname}}", "", "count by (alertname) ("+firing(`severity="critical"`)+")"),
			annotation("Kernel messages", "purple", "{{message}}", "", "sum by (message) (job_message:sockpressure_kernel_messages:increase5m) > 0"),
			annotationAt("Exporter restarts, of the worst nodes", "blue", "The exporter began", "{{instance}}", "process_start_time_seconds{"+theWorst+"} * 1000"),
		},
		rows: []row{
			{"", false, []panel{
				count("Nodes", "red", "green", "Nodes whose exporter answers.", "count("+nodeFailing+") or vector(0)", here(theClusters)),
				count("Not scraped", "green", "red", "Nodes whose exporter does not answer, or whose target was removed within the last hour. Their limits are not monitored.",
					nodesWith(lost), here(noAnswer)),
				count("Critical", "green", "red", "Nodes with a firing critical alert.", nodesWith(firing(`severity="critical"`)), here(inTrouble, "severity=critical", "resource=$__all")),
				count("Warning", "green", "orange", "Nodes with a firing warning.", nodesWith(firing(`severity="warning"`)), here(inTrouble, "severity=warning", "resource=$__all")),
				count("With refusals", "green", "orange", "Nodes whose kernel refused a connection, dropped a packet or killed a process within the last 5 minutes.",
					"count("+nodeRefuses+" > 0) or vector(0)", here(refusing)),
				count("With failing collectors", "green", "orange", "Nodes where a collector fails, so that some limits are not monitored.", "count("+nodeFailing+" > 0) or vector(0)", here(failing)),
			}},
			{"Trouble", false, []panel{
				{
					kind: table, title: inTrouble, unit: number, width: 17, height: 13,
					about: "Firing alerts of the worst nodes by node and limit, without those of severity info: critical ones first, then by usage. Alert is the most severe one of the limit. Held by and Pod name the largest holder, Part is its share of the usage. Click a node for its dashboard or its pods, an alert for its runbook.",
					empty: "while no alert fires, or if the alerts are not loaded",
					queries: []query{
						{"", troubled},
						{"", "topk by (" + ofLimit + ") (1, max by (" + ofLimit + ", alertname) (" + worstAlert(severities) + ")) and on (" + ofLimit + ") " + troubled},
						{"", "count by (" + ofLimit + ") (" + firing(`severity=~"critical|warning"`, severities) + ") and on (" + ofLimit + ") " + troubled},
						{"", ofTroubled(ofLimit, limitShare+"{"+theWorst+"}")},
						{"", ofTroubled(ofLimit+", process, pod", "sockpressure_saturation_holder_ratio{"+theWorst+"}")},
					},
					columns: []column{
						{"Value #A", "Severity"},
						{"instance", "Node"},
						{"resource", "Limit"},
						{"Value #D", "Used"},
						{"process", "Held by"},
						{"pod", "Pod"},
						{"Value #E", "Part"},
						{"alertname", "Alert"},
						{"Value #C", "Alerts"},
						{"cluster", "Cluster"},
						{"job", "Job"},
					},
					sorted: []string{"Severity", "Used"},
					overrides: append([]object{
						named("Severity", levels()...), named("Node", toNode), toRunbook,
						named("Used", property("unit", share)), named("Part", property("unit", share)),
					}, slices.Concat(unseen("Job"), wide(map[string]int{"Limit": 170, "Used": 65, "Part": 60, "Alerts": 55, "Held by": 95, "Pod": 130, "Alert": 200, "Cluster": 75}))...),
				},
				worst,
			}},
			{"Clusters", false, []panel{{
				kind: table, title: theClusters, unit: exact, width: 24, height: 7,
				about: "The tiles above by cluster and job, and the highest saturation of any limit. Click a cluster to select it.",
				queries: []query{
					{"", "count by (cluster, job) (" + nodeFailing + ")"},
					{"", "count by (cluster, job) (group by (" + ofNode + ") (" + firing(`severity="critical"`) + "))"},
					{"", "count by (cluster, job) (group by (" + ofNode + ") (" + firing(`severity="warning"`) + "))"},
					{"", "count by (cluster, job) (" + nodeRefuses + " > 0)"},
					{"", "count by (cluster, job) (group by (" + ofNode + ") (" + lost + "))"},
					{"", "count by (cluster, job) (" + nodeFailing + " > 0)"},
					{"", "max by (cluster, job) (" + fleetShare + ")"},
				},
				columns: []column{
					{"cluster", "Cluster"},
					{"job", "Job"},
					{"Value #A", "Nodes"},
					{"Value #B", "Critical"},
					{"Value #C", "Warning"},
					{"Value #D", "With refusals"},
					{"Value #E", "Not scraped"},
					{"Value #F", "Failing collectors"},
					{"Value #G", "Nearest"},
				},
				sorted: []string{"Critical", "Warning"},
				overrides: []object{
					named("Cluster", offers(link("This cluster only", here("", "cluster=${__value.raw}")))),
					named("Nearest", property("unit", share)),
					counted("Critical", colorCritical), counted("Warning", colorWarning), counted("With refusals", colorWarning),
					counted("Not scraped", colorCritical), counted("Failing collectors", colorWarning),
				},
			}}},
			{"Pods", false, []panel{
				{
					kind: table, title: "Worst pods", unit: share, width: 15, height: 9,
					about: "Pods, containers and other network namespaces of all nodes that are closest to a limit of their own namespace, from 25 % of it. Severities are those of the alert on pods. Click a pod for the pods of its node.",
					empty: "while no namespace other than a host's uses a quarter of a limit; all limits but conntrack_entries need CAP_SYS_ADMIN and CAP_SYS_PTRACE",
					queries: []query{
						{"", "topk(20, max by (" + ofLimit + ", netns, pod) (" + podShare + `{resource=~"$resource"}))`},
						{"", "max by (" + ofLimit + ", netns, pod) (" + podLevel(podShare) + ") and on (" + ofLimit + ", netns) topk(20, max by (" + ofLimit + ", netns) (" + podShare + `{resource=~"$resource"}))`},
					},
					columns: []column{
						{"Value #B", "Severity"},
						{"netns", "Network namespace"},
						{"pod", "Pod"},
						{"resource", "Limit"},
						{"Value #A", "Used"},
						{"instance", "Node"},
						{"cluster", "Cluster"},
						{"job", "Job"},
					},
					sorted: []string{"Severity", "Used"},
					overrides: append([]object{
						named("Severity", levels()...), named("Node", toNode),
						named("Network namespace", offers(link("It and the pods beside it", node+"&var-netns=${__value.raw:percentencode}&"+view(nodeUID, podsOfNode)))),
					}, slices.Concat(unseen("Job"), wide(map[string]int{"Network namespace": 200, "Limit": 140, "Used": 65, "Cluster": 80}))...),
				},
				{
					kind: lines, title: "Refused in pods", unit: perSecond, width: 9, height: 9, stacked: true,
					about:   "Refusals per second in network namespaces other than the hosts', by the limit that was reached. All nodes of the job, whatever Instance is set to.",
					queries: []query{{"{{resource}}", `sum by (resource) (job_resource:sockpressure_netns_refusals:rate5m)`}},
				},
			}},
			{"Over time", false, []panel{
				{
					kind: lines, title: "Nearest limits over time", unit: share, width: 12, height: 10, aside: true, cut: beyond,
					about:   "The 10 limits with the highest saturation now: for each, the highest of any node. All nodes of the job, whatever Instance is set to. Values far above the limit are cut off.",
					queries: []query{{"{{resource}}", atMost(10, "resource", fleetShare+`{resource=~"$resource"}`)}},
				},
				{
					kind: lines, title: "Worst nodes over time", unit: share, width: 12, height: 10, aside: true, cut: beyond,
					about:   "The 10 worst nodes, each by its highest saturation, whatever Limit is set to. Values far above the limit are cut off.",
					queries: []query{{"{{instance}} {{cluster}}", atMost(10, "cluster, instance", nodeShare+"{"+theWorst+"}")}},
				},
			}},
			{"Nodes by limit, and cgroups", true, []panel{
				nodeBars(nearestNodes, "The 20 nodes that are nearest to the one limit that is chosen above as Nodes of, by its own levels: the highest share of the last 5 minutes. A click leads to the node.",
					`sort_desc(topk(20, `+limitShare+`{resource=~"$limit"}))`, 12, 14),
				nodeBars("Limits of the worst nodes", "The 20 nearest limits of the worst nodes, each in its own colours. A click leads to the node.",
					`sort_desc(topk(20, `+limitShare+`{resource=~"$resource",`+theWorst+`}))`, 12, 14),
				{
					kind: table, title: "Cgroups of the worst nodes", unit: share, width: 24, height: 9,
					about:   "Pods, containers and units of the worst nodes that are closest to their memory limit.",
					empty:   "if no cgroup has a memory limit, or cgroups are not mounted",
					queries: []query{{"", "topk(20, max by (cgroup, pod, " + ofNode + ") (sockpressure_cgroup_memory_saturation_ratio{" + theWorst + "}))"}},
					columns: []column{{"cgroup", "Cgroup"}, {"pod", "Pod"}, {"Value", "Used"}, {"instance", "Node"}, {"cluster", "Cluster"}, {"job", "Job"}},
					sorted:  []string{"Used"},
					overrides: []object{
						named("Node", toNode), named("Used", append(colours(limits, "cgroup_memory"), property("custom.width", 65))...),
					},
				},
			}},
			{"Drops and refusals", true, []panel{
				{
					kind: lines, title: "Refusals by limit", unit: perSecond, width: 12, height: 12, stacked: true,
					about:   "Refusals, drops and kills per second, by the limit that was reached. Counters with other causes are included: reassembly also fails if a fragment was lost. A counter that two limits share (TCP memory and orphans, memory and low memory) counts for the one that was close. All nodes of the job, whatever Instance is set to.",
					queries: []query{{"{{resource}}", `sum by (resource) (job_resource:sockpressure_refusals:rate5m{resource=~"$resource"})`}},
				},
				{
					kind: table, title: refusing, unit: perSecond, width: 12, height: 12, base: "orange",
					about:   "The 20 nodes with the most refusals per second, over the last 5 minutes. Click a node for its dashboard, which shows them by limit.",
					empty:   "while no kernel refuses anything",
					queries: []query{{"", `topk(20, max by (` + ofNode + `) (` + nodeRefuses + ` > 0))`}},
					columns: []column{{"instance", "Node"}, {"Value", "Rate"}, {"cluster", "Cluster"}, {"job", "Job"}},
					sorted:  []string{"Rate"},
					overrides: []object{
						named("Node", toNode), named("Rate", bar(perSecond)...),
					},
				},
			}},
			{"Between scrapes", true, []panel{
				{
					kind: lines, title: "Peaks", unit: share, width: 12, height: 10, aside: true, cut: beyond,
					about:   "The 10 limits with the highest peaks now: for each, the highest of any node. A peak is the highest saturation within a minute, from samples between scrapes; it is 100% if a counter or a kernel message proves that the limit was reached. All nodes of the job, whatever Instance is set to.",
					queries: []query{{"{{resource}}", atMost(10, "resource", `job_resource:sockpressure_saturation_peak:max{resource=~"$resource"}`)}},
				},
				{
					kind: lines, title: "What the kernels logged", unit: number, width: 12, height: 10, aside: true,
					about:   "Kernel messages about limits and memory within 5 minutes, by message, over all nodes of the job. The alerts above name the nodes.",
					empty:   "if no exporter may read the kernel log (kernel.dmesg_restrict is 1 and CAP_SYSLOG is missing)",
					queries: []query{{"{{message}}", "sum by (message) (job_message:sockpressure_kernel_messages:increase5m)"}},
				},
			}},
			{"Exporters", true, []panel{
				{
					kind: table, title: noAnswer, unit: number, width: 12, height: 10,
					about:   "Nodes whose exporter does not answer or is no longer a target, at most 100. LostNearLimit: the limit has probably been reached.",
					empty:   "while all exporters answer",
					queries: []query{{"", "topk(100, max by (alertname, alertstate, " + ofNode + ") (" + lost + "))"}},
					columns: []column{{"instance", "Node"}, {"alertname", "Alert"}, {"alertstate", "State"}, {"cluster", "Cluster"}, {"job", "Job"}},
					sorted:  []string{"Alert", "Node"},
					overrides: []object{
						named("Node", toNode), toRunbook,
					},
				},
				{
					kind: table, title: failing, unit: number, width: 12, height: 10,
					about:     "Nodes where collectors fail, and the number of these, at most 100 nodes. The node's dashboard names them.",
					empty:     "while no collector fails",
					queries:   []query{{"", "topk(100, max by (" + ofNode + ") (" + nodeFailing + " > 0))"}},
					columns:   []column{{"instance", "Node"}, {"Value", "Collectors"}, {"cluster", "Cluster"}, {"job", "Job"}},
					sorted:    []string{"Collectors"},
					overrides: []object{named("Node", toNode)},
				},
			}},
		},
	}
}
