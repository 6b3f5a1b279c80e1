package dashboards

import "github.com/sockpressure/sockpressure_exporter/collector"

// fleet is the dashboard over all nodes. It reads the recording rules of
// alerts/fleet.rules.yml, the alerts and up, and no metric of a node itself: a
// handful of series for the fleet, one a node, and some for the nodes shown.
func fleet(limits []collector.LimitInfo, books runbooks) dashboard {
	worst := nearest(`sort_desc(max by (resource) (job_resource:sockpressure_saturation:max5m{resource=~"$resource"}))`, limits, books)
	worst.title, worst.width, worst.height = "Nearest limits of the fleet", 12, 12
	worst.about = "Of each limit, the node that is nearest to it: the highest share of the last 5 minutes. Over all nodes of the job, whatever is chosen as Instance. A click leads to the runbook."

	const toNode = "/d/sockpressure-node?var-datasource=${datasource}&${cluster:queryparam}&var-job=${__data.fields.Job:percentencode}&var-instance=${__data.fields.Node:percentencode}&${__url_time_range}"
	nodes := func(p panel, value, unit string) panel {
		p.kind, p.unit, p.height, p.sorted = table, unit, 12, append(p.sorted, value)
		if unit == share {
			p.top = 1
		}
		p.columns = []column{{"instance", "Node"}, {"cluster", "Cluster"}, {"job", "Job"}, {"resource", "Limit"}, {"Value", value}}
		p.overrides = []object{
			named("Node", links("The node", toNode)),
			named(value, bar(unit)...),
		}
		return p
	}
	// The kernel lets some limits be passed, TCP memory several times over: one node
	// would press the lines of all others to the ground.
	const beyond = 1.2
	count := func(title, below, color, about, expr string) panel {
		return panel{
			kind: one, title: title, about: about, unit: number, width: 4, height: 4,
			base: below, steps: []step{{1, color}}, queries: []query{{"", expr}},
		}
	}
	// A Prometheus scrapes other things too, and finds its exporters in a job of their
	// own or, by annotations, in one with others. There, one that is gone was an exporter
	// an hour, six or a day ago: looking at these times costs less than at all between.
	const known = "instance:sockpressure_saturation:max5m"
	const exporters = `(up{job=~".*sockpressure.*"} or up and on (cluster, job, instance) (` + known + " or " + known + " offset 1h or " + known + " offset 6h or " + known + " offset 1d))"

	return dashboard{
		uid: "sockpressure-fleet", title: "Sockpressure / Fleet", from: "now-6h",
		about: "Which nodes are near a kernel limit on sockets or memory, and which ones the kernel refuses already. Needs the recording rules of alerts/fleet.rules.yml.",
		variables: []variable{
			{"cluster", "Cluster", "instance:sockpressure_saturation:max5m", true},
			{"job", "Job", "instance:sockpressure_saturation:max5m", true},
			{"instance", "Instance", "instance:sockpressure_saturation:max5m", true},
			{"resource", "Limit", "job_resource:sockpressure_saturation:max5m", true},
		},
		rows: []row{
			{"", []panel{
				count("Nodes", "red", "green", "Nodes whose exporter answers.", "sum("+exporters+")"),
				count("Not scraped", "green", "red", "Nodes whose exporter does not answer: nothing is known of their limits.", "sum("+exporters+" == bool 0)"),
				count("Critical", "green", "red", "Nodes with a critical alert that fires.",
					`count(count by (cluster, job, instance) (ALERTS{alertname=~"SockPressure.+",alertstate="firing",severity="critical"})) or vector(0)`),
				count("Warning", "green", "orange", "Nodes with a warning that fires.",
					`count(count by (cluster, job, instance) (ALERTS{alertname=~"SockPressure.+",alertstate="firing",severity="warning"})) or vector(0)`),
				count("Refusing", "green", "orange", "Nodes where the kernel refused, dropped or killed within the last 5 minutes.",
					"count(instance:sockpressure_refusals:rate5m > 0) or vector(0)"),
				count("Blind", "green", "orange", "Nodes where a collector fails: some of their limits are not watched. The table of alerts names node and collector.",
					"count(instance:sockpressure_collectors_failing:count > 0) or vector(0)"),
			}},
			{"Alerts", []panel{{
				kind: table, title: "Alerts that fire", unit: number, width: 24, height: 9,
				about:     "The alerts of this bundle that fire, those for the record (info) left out: the nodes behind the numbers above, each limit by its own levels. A click on the alert leads to its runbook, on the node to its dashboard.",
				empty:     "while none fires, and where the alerts are not loaded",
				queries:   []query{{"", `max by (alertname, severity, resource, collector, cluster, instance, job) (ALERTS{alertname=~"SockPressure.+",alertstate="firing",severity!="info"})`}},
				columns:   []column{{"severity", "Severity"}, {"instance", "Node"}, {"alertname", "Alert"}, {"resource", "Limit"}, {"collector", "Collector"}, {"cluster", "Cluster"}, {"job", "Job"}},
				sorted:    []string{"Severity", "Alert"},
				overrides: []object{named("Alert", links("Runbook", docs+"runbooks.md#${__value.raw}")), named("Node", links("The node", toNode))},
			}}},
			{"Nearest limits", []panel{
				worst,
				nodes(panel{
					title: "Worst nodes", width: 12, base: "blue",
					about:   "The 20 limits of nodes that are nearest by their share, the highest of the last 5 minutes. Some limits are critical far below others (tcp_orphans at 50%): the alerts above go by each limit's own levels. A click on the node leads to its dashboard.",
					queries: []query{{"", `sort_desc(topk(20, instance_resource:sockpressure_saturation:max5m{resource=~"$resource"}))`}},
				}, "Share", share),
				{
					kind: lines, title: "Nearest limits over time", unit: share, width: 12, height: 10, cut: beyond,
					about:   "Of each limit, the node that is nearest to it. Over all nodes of the job, whatever is chosen as Instance. A limit that is passed by far leaves the panel at its top.",
					queries: []query{{"{{resource}}", `max by (resource) (job_resource:sockpressure_saturation:max5m{resource=~"$resource"})`}},
				},
				{
					kind: lines, title: "Worst nodes over time", unit: share, width: 12, height: 10, cut: beyond,
					about:   "The 10 nodes that came nearest to any limit within the time shown, whatever is chosen as Limit. A limit that is passed by far leaves the panel at its top.",
					queries: []query{{"{{instance}}", "instance:sockpressure_saturation:max5m and topk(10, max_over_time(instance:sockpressure_saturation:max5m[$__range] @ end()))"}},
				},
			}},
			{"Between scrapes", []panel{
				{
					kind: lines, title: "Peaks", unit: share, width: 12, height: 10, cut: beyond,
					about:   "Of each limit, the highest peak of any node: the highest share within a minute, by samples between scrapes; 100% also where a counter or a message of the kernel tells that the limit was reached. Over all nodes of the job, whatever is chosen as Instance.",
					queries: []query{{"{{resource}}", `max by (resource) (job_resource:sockpressure_saturation_peak:max{resource=~"$resource"})`}},
				},
				{
					kind: lines, title: "What the kernels logged", unit: number, width: 12, height: 10,
					about:   "Lines of the kernels' logs about limits and memory within 5 minutes, by what they say, of all nodes of the job together. The alerts above name the nodes.",
					empty:   "where no exporter may read the log: kernel.dmesg_restrict without CAP_SYSLOG",
					queries: []query{{"{{message}}", "sum by (message) (job_message:sockpressure_kernel_messages:increase5m)"}},
				},
			}},
			{"Pods", []panel{
				{
					kind: table, title: "Worst pods", unit: share, width: 12, height: 10,
					about:   "Pods, containers and other network namespaces that are nearest to a limit that each has for itself, of all nodes. A click on the node leads to its dashboard.",
					empty:   "where there are none; all but conntrack_entries needs exporters with CAP_SYS_ADMIN and CAP_SYS_PTRACE",
					queries: []query{{"", `max by (netns, resource, namespace, pod, instance, cluster, job) (topk(20, job_resource_netns:sockpressure_netns_saturation:top20{resource=~"$resource"}))`}},
					columns: []column{
						{"netns", "Network namespace"},
						{"resource", "Limit"},
						{"Value", "Share"},
						{"namespace", "Namespace"},
						{"pod", "Pod"},
						{"instance", "Node"},
						{"cluster", "Cluster"},
						{"job", "Job"},
					},
					sorted:    []string{"Share"},
					overrides: []object{named("Node", links("The node", toNode))},
				},
				{
					kind: lines, title: "Refused in pods", unit: perSecond, width: 12, height: 10, stacked: true,
					about:   "What the kernels refused a second in network namespaces besides the hosts', by the limit that was reached. Over all nodes of the job, whatever is chosen as Instance.",
					queries: []query{{"{{resource}}", `sum by (resource) (job_resource:sockpressure_netns_refusals:rate5m)`}},
				},
			}},
			{"Top of each limit", []panel{
				nodes(panel{
					title: "Top nodes of each limit", width: 24, base: "blue", sorted: []string{"Limit"},
					about:   "Of each limit chosen above, the 5 nodes that are nearest to it: the highest share of the last 5 minutes. A click on the node leads to its dashboard.",
					queries: []query{{"", `sort_desc(topk by (resource) (5, instance_resource:sockpressure_saturation:max5m{resource=~"$resource"}))`}},
				}, "Share", share),
			}},
			{"Drops and refusals", []panel{
				{
					kind: lines, title: "Refusals by limit", unit: perSecond, width: 12, height: 12, stacked: true,
					about:   "What the kernel refused, dropped or killed a second, by the limit that was met; request_queue is that of connection requests. Counters with causes besides the limit are in: reassembly failures are also of lost fragments. What TCP memory and orphans, or memory and low memory, have in common counts for the one that was near. Over all nodes of the job, whatever is chosen as Instance.",
					queries: []query{{"{{resource}}", `sum by (resource) (job_resource:sockpressure_refusals:rate5m{resource=~"$resource"})`}},
				},
				nodes(panel{
					title: "Nodes that refuse", width: 12, base: "orange",
					about:   "The 20 nodes and limits with the most refusals a second, over the last 5 minutes. A click on the node leads to its dashboard.",
					empty:   "while the kernel of no node refuses anything",
					queries: []query{{"", `sort_desc(topk(20, instance_resource:sockpressure_refusals:rate5m{resource=~"$resource"} > 0))`}},
				}, "Rate", perSecond),
			}},
		},
	}
}
