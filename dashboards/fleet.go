package dashboards

import (
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

const fleetUID = "sockpressure-fleet"

// The titles of panels that links lead to.
const (
	inTrouble    = "Nodes in trouble"
	theClusters  = "Clusters and jobs"
	nearestNodes = "Nodes nearest to one limit"
	refusing     = "Nodes that refuse"
	unheard      = "Exporters that do not answer"
	blind        = "Exporters that fail in part"
	podsOfNode   = "Pods and namespaces nearest to their own limits"
)

// fleet is the dashboard over all nodes. It reads the recording rules of
// alerts/fleet.rules.yml and the alerts: a handful of series for the fleet, a few
// thousand with one a node, and of a node itself only what the worst ones have.
func fleet(limits []collector.LimitInfo, books runbooks) dashboard {
	const chosen = "var-datasource=${datasource}&${job:queryparam}&${__url_time_range}"
	// here leads to a panel of this dashboard, with the choices that are not named.
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
	// Without a label cluster there is no such field, and an empty choice is of those without.
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

	// nodeBars are the nodes and limits that a query finds, each in its limit's own colours.
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
	// The kernel lets some limits be passed, TCP memory several times over: one node
	// would press the lines of all others to the ground.
	const beyond = 1.2
	count := func(title, below, color, about, expr, leads string) panel {
		return panel{
			kind: one, title: title, about: about + " A click leads to them.", unit: exact, width: 4, height: 4,
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
		about: "Which nodes are near a kernel limit on sockets or memory, and which ones the kernel refuses already. Needs the recording rules of alerts/fleet.rules.yml.",
		variables: []variable{
			{name: "cluster", label: "Cluster", metric: nodeBlind, all: true},
			{name: "job", label: "Job", metric: nodeBlind, all: true},
			{name: "instance", label: "Instance", typed: ".+"}, // a list of ten thousand helps nobody
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
				count("Nodes", "red", "green", "Nodes whose exporter answers.", "count("+nodeBlind+") or vector(0)", here(theClusters)),
				count("Not scraped", "green", "red", "Nodes whose exporter does not answer, or that are no target any more since an hour: nothing is known of their limits. The alerts know of them.",
					nodesWith(lost), here(unheard)),
				count("Critical", "green", "red", "Nodes with a critical alert that fires.", nodesWith(firing(`severity="critical"`)), here(inTrouble, "severity=critical", "resource=$__all")),
				count("Warning", "green", "orange", "Nodes with a warning that fires.", nodesWith(firing(`severity="warning"`)), here(inTrouble, "severity=warning", "resource=$__all")),
				count("Refusing", "green", "orange", "Nodes where the kernel refused, dropped or killed within the last 5 minutes.",
					"count("+nodeRefuses+" > 0) or vector(0)", here(refusing)),
				count("Blind", "green", "orange", "Nodes where a collector fails: some of their limits are not watched.", "count("+nodeBlind+" > 0) or vector(0)", here(blind)),
			}},
			{"Trouble", false, []panel{
				{
					kind: table, title: inTrouble, unit: number, width: 17, height: 13,
					about: "The alerts that fire, those for the record (info) left out, by node and limit, of the worst nodes: critical ones first, and of these the nearest to a limit. Alert is the worst one of the limit; Held by, Pod and Part are who holds the most of it. A click on the node leads to its dashboard or its pods, on the alert to its runbook.",
					empty: "while none fires, and where the alerts are not loaded",
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
				about: "The tiles above by cluster and job, and how near the nearest node of each is to any limit. A click chooses the cluster.",
				queries: []query{
					{"", "count by (cluster, job) (" + nodeBlind + ")"},
					{"", "count by (cluster, job) (group by (" + ofNode + ") (" + firing(`severity="critical"`) + "))"},
					{"", "count by (cluster, job) (group by (" + ofNode + ") (" + firing(`severity="warning"`) + "))"},
					{"", "count by (cluster, job) (" + nodeRefuses + " > 0)"},
					{"", "count by (cluster, job) (group by (" + ofNode + ") (" + lost + "))"},
					{"", "count by (cluster, job) (" + nodeBlind + " > 0)"},
					{"", "max by (cluster, job) (" + fleetShare + ")"},
				},
				columns: []column{
					{"cluster", "Cluster"},
					{"job", "Job"},
					{"Value #A", "Nodes"},
					{"Value #B", "Critical"},
					{"Value #C", "Warning"},
					{"Value #D", "Refusing"},
					{"Value #E", "Not scraped"},
					{"Value #F", "Blind"},
					{"Value #G", "Nearest"},
				},
				sorted: []string{"Critical", "Warning"},
				overrides: []object{
					named("Cluster", offers(link("This cluster only", here("", "cluster=${__value.raw}")))),
					named("Nearest", property("unit", share)),
					counted("Critical", colorCritical), counted("Warning", colorWarning), counted("Refusing", colorWarning),
					counted("Not scraped", colorCritical), counted("Blind", colorWarning),
				},
			}}},
			{"Pods", false, []panel{
				{
					kind: table, title: "Worst pods", unit: share, width: 15, height: 9,
					about: "Pods, containers and other network namespaces that are nearest to a limit that each has for itself, of all nodes, by the levels of the alert on pods. A click on the pod leads to the pods of its node.",
					empty: "where there are none; all but conntrack_entries needs exporters with CAP_SYS_ADMIN and CAP_SYS_PTRACE",
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
					about:   "What the kernels refused a second in network namespaces besides the hosts', by the limit that was reached. Over all nodes of the job, whatever is chosen as Instance.",
					queries: []query{{"{{resource}}", `sum by (resource) (job_resource:sockpressure_netns_refusals:rate5m)`}},
				},
			}},
			{"Over time", false, []panel{
				{
					kind: lines, title: "Nearest limits over time", unit: share, width: 12, height: 10, aside: true, cut: beyond,
					about:   "Of each of the 10 limits that are nearest now, the node that is nearest to it. Over all nodes of the job, whatever is chosen as Instance. A limit that is passed by far leaves the panel at its top.",
					queries: []query{{"{{resource}}", atMost(10, "resource", fleetShare+`{resource=~"$resource"}`)}},
				},
				{
					kind: lines, title: "Worst nodes over time", unit: share, width: 12, height: 10, aside: true, cut: beyond,
					about:   "The 10 worst nodes, by the limit that each is nearest to, whatever is chosen as Limit. A limit that is passed by far leaves the panel at its top.",
					queries: []query{{"{{instance}} {{cluster}}", atMost(10, "cluster, instance", nodeShare+"{"+theWorst+"}")}},
				},
			}},
			{"Nodes by limit, and control groups", true, []panel{
				nodeBars(nearestNodes, "The 20 nodes that are nearest to the one limit that is chosen above as Nodes of, by its own levels: the highest share of the last 5 minutes. A click leads to the node.",
					`sort_desc(topk(20, `+limitShare+`{resource=~"$limit"}))`, 12, 14),
				nodeBars("Limits of the worst nodes", "The 20 nearest limits of the worst nodes, each in its own colours. A click leads to the node.",
					`sort_desc(topk(20, `+limitShare+`{resource=~"$resource",`+theWorst+`}))`, 12, 14),
				{
					kind: table, title: "Control groups of the worst nodes", unit: share, width: 24, height: 9,
					about:   "Pods, containers and units of the worst nodes that are nearest to their limit of memory.",
					empty:   "where no control group has a limit, or they are not mounted",
					queries: []query{{"", "topk(20, max by (cgroup, pod, " + ofNode + ") (sockpressure_cgroup_memory_saturation_ratio{" + theWorst + "}))"}},
					columns: []column{{"cgroup", "Control group"}, {"pod", "Pod"}, {"Value", "Used"}, {"instance", "Node"}, {"cluster", "Cluster"}, {"job", "Job"}},
					sorted:  []string{"Used"},
					overrides: []object{
						named("Node", toNode), named("Used", append(colours(limits, "cgroup_memory"), property("custom.width", 65))...),
					},
				},
			}},
			{"Drops and refusals", true, []panel{
				{
					kind: lines, title: "Refusals by limit", unit: perSecond, width: 12, height: 12, stacked: true,
					about:   "What the kernel refused, dropped or killed a second, by the limit that was met; request_queue is that of connection requests. Counters with causes besides the limit are in: reassembly failures are also of lost fragments. What TCP memory and orphans, or memory and low memory, have in common counts for the one that was near. Over all nodes of the job, whatever is chosen as Instance.",
					queries: []query{{"{{resource}}", `sum by (resource) (job_resource:sockpressure_refusals:rate5m{resource=~"$resource"})`}},
				},
				{
					kind: table, title: refusing, unit: perSecond, width: 12, height: 12, base: "orange",
					about:   "The 20 nodes with the most refusals a second, over the last 5 minutes. A click on the node leads to its dashboard, which has them by limit.",
					empty:   "while the kernel of no node refuses anything",
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
					about:   "Of each of the 10 limits with the highest peaks now, the highest peak of any node: the highest share within a minute, by samples between scrapes; 100% also where a counter or a message of the kernel tells that the limit was reached. Over all nodes of the job, whatever is chosen as Instance.",
					queries: []query{{"{{resource}}", atMost(10, "resource", `job_resource:sockpressure_saturation_peak:max{resource=~"$resource"}`)}},
				},
				{
					kind: lines, title: "What the kernels logged", unit: number, width: 12, height: 10, aside: true,
					about:   "Lines of the kernels' logs about limits and memory within 5 minutes, by what they say, of all nodes of the job together. The alerts above name the nodes.",
					empty:   "where no exporter may read the log: kernel.dmesg_restrict without CAP_SYSLOG",
					queries: []query{{"{{message}}", "sum by (message) (job_message:sockpressure_kernel_messages:increase5m)"}},
				},
			}},
			{"Exporters", true, []panel{
				{
					kind: table, title: unheard, unit: number, width: 12, height: 10,
					about:   "Nodes whose exporter does not answer or is no target any more, 100 at most. Lost near a limit: what was about to happen has probably happened.",
					empty:   "while all answer",
					queries: []query{{"", "topk(100, max by (alertname, alertstate, " + ofNode + ") (" + lost + "))"}},
					columns: []column{{"instance", "Node"}, {"alertname", "Alert"}, {"alertstate", "State"}, {"cluster", "Cluster"}, {"job", "Job"}},
					sorted:  []string{"Alert", "Node"},
					overrides: []object{
						named("Node", toNode), toRunbook,
					},
				},
				{
					kind: table, title: blind, unit: number, width: 12, height: 10,
					about:     "Nodes where collectors fail, and how many of them, 100 nodes at most. The dashboard of the node has their names.",
					empty:     "while none fails",
					queries:   []query{{"", "topk(100, max by (" + ofNode + ") (" + nodeBlind + " > 0))"}},
					columns:   []column{{"instance", "Node"}, {"Value", "Collectors"}, {"cluster", "Cluster"}, {"job", "Job"}},
					sorted:    []string{"Collectors"},
					overrides: []object{named("Node", toNode)},
				},
			}},
		},
	}
}
