package alerts

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// otherGroups returns the rules that are not for a single limit: sockets and packets
// below the limits, the exporter itself, and recording rules for fleets and forecasts.
func otherGroups() []Group {
	return []Group{drops(), kernelLog(), namespaces(), lost(), exporter(), fleet(), history()}
}

// drops returns alerts on counters of losses that concern a program or a CPU, not a limit
// of the host. All of these counters rise on healthy hosts too, so the alerts are on
// rates.
func drops() Group {
	counter := func(name, counter, rate, hold, summary, what string) Rule {
		return Rule{
			Alert: "SockPressure" + name, Severity: Warning, For: hold,
			Expr: counter + " > ${rate}", Params: map[string]string{"rate": rate}, Summary: summary,
			Description: `{{ $labels.instance }} ` + what,
		}
	}
	return Group{
		Name: "sockpressure-drops", Interval: "30s",
		Comment: "Losses at single sockets and CPUs, by their rate. Some losses are normal.",
		Rules: []Rule{
			counter("UDPReceiveErrors", udpDrops("rate"),
				"10", "5m", "Datagrams are dropped because a program does not read them fast enough.",
				`drops {{ $value | printf "%.0f" }} datagrams per second at full receive buffers of UDP sockets.`),
			counter("TCPReceivePruned", "rate(sockpressure_tcp_receive_pruned_total[5m])", "10", "5m",
				"Received segments are dropped because receive buffers are full.",
				`drops {{ $value | printf "%.0f" }} received segments per second because compacting a socket's receive buffer did not free enough.`),
			counter("TCPBacklogDropping", "rate(sockpressure_tcp_backlog_drops_total[5m])", "10", "5m",
				"Segments are dropped because the backlog of a busy socket is full.",
				`drops {{ $value | printf "%.0f" }} segments per second at the backlog of a socket that its program is using.`),
			counter("TCPMemallocDropping", "rate(sockpressure_tcp_memalloc_drops_total[5m])", "0.1", "",
				"Segments are dropped because they arrived in the emergency reserve of memory.",
				`drops {{ $value | printf "%.1f" }} segments per second that arrived in the kernel's emergency reserve.`),
			counter("NetdevTimeSqueezed", "rate(sockpressure_netdev_time_squeezes_total[5m])", "100", "15m",
				"CPUs do not finish their polling rounds for received packets.",
				`had packets left at the end of {{ $value | printf "%.0f" }} polling rounds per second (net.core.netdev_budget, netdev_budget_usecs).`),
		},
	}
}

// kernelLog returns alerts on kernel messages, and on limits reached between scrapes.
func kernelLog() Group {
	said := func(messages string) string {
		return `increase(sockpressure_kernel_messages_total{message=~"` + messages + `"}[5m])`
	}
	const watched = `resource=~"conntrack_entries|file_descriptors|neighbours_ipv4|neighbours_ipv6|tcp_memory|threads|udp_memory"`
	return Group{
		Name: "sockpressure-kernel", file: "kernel",
		Comment: "Kernel messages (collector kmsg), and limits that were reached between two scrapes (--collector.sample-interval).",
		Rules: []Rule{
			{
				Alert: "SockPressureFileMaxReached", Severity: Critical, Labels: map[string]string{"stage": met, "resource": "file_descriptors"},
				Comment: "There is no counter, and the kernel logs it only at each new maximum.",
				Expr:    said("file_max_reached") + " > 0",
				Summary: "The machine ran out of file descriptors.",
				Description: `The kernel of {{ $labels.instance }} logged {{ $value | printf "%.0f" }} times in the last 5 minutes that
					fs.file-max was reached: open, socket and accept fail with ENFILE for every process without CAP_SYS_ADMIN.`,
			},
			{
				Alert: "SockPressureKernelLoggedLimit", Severity: Warning, Labels: map[string]string{"stage": met},
				Comment: "The messages of the other limits. Nearly all of them also have counters, with alerts that\nassess the severity. SYN floods are left out: with cookies they do little harm, and the\ncounters cover them.",
				Expr:    said(strings.Join(limitMessages("file_max_reached", "oom_kill", "tcp_syn_flooding"), "|")) + " > 0",
				Summary: "The kernel logged that a limit was reached.",
				Description: `The kernel of {{ $labels.instance }} logged {{ $labels.message }} {{ $value | printf "%.0f" }} times in the last 5
					minutes. Rate limits suppress most such lines.`,
			},
			{
				Alert: "SockPressureKernelAllocationFailing", Severity: Warning,
				Comment: "A few failures of large or atomic allocations are normal: their callers retry.",
				Expr:    said("(page|slab|vmap)_allocation_failure") + " > ${count}", Params: map[string]string{"count": "10"},
				Summary: "Memory allocations of the kernel fail.",
				Description: `The kernel of {{ $labels.instance }} logged {{ $labels.message }} {{ $value | printf "%.0f" }} times in the last 5
					minutes: packets may be dropped, or calls fail with ENOMEM.`,
			},
			{
				Alert: "SockPressureHungTask", Severity: Warning,
				Expr:    said("hung_task") + " > 0",
				Summary: "Tasks are blocked in the kernel.",
				Description: `The kernel of {{ $labels.instance }} logged {{ $value | printf "%.0f" }} times in the last 5 minutes that a task was
					blocked for longer than kernel.hung_task_timeout_secs, for example because of memory reclaim or a disk that does not respond.`,
			},
			{
				Alert: "SockPressureReachedBetweenScrapes", Severity: Warning, Labels: map[string]string{"stage": met},
				Comment: "Accept queues and CPU backlogs are briefly full on healthy hosts, and so are TIME_WAIT and\nfragments by design, so these are left out.",
				Expr: `sockpressure_saturation_peak_ratio{` + watched + `} >= 1
unless max_over_time(` + used + `{` + watched + `}[2m]) >= 0.9`,
				Summary: "A limit was reached between two scrapes.",
				Description: `{{ $labels.instance }}: {{ $labels.resource }} was at {{ $value | humanizePercentage }} of its limit within the last
					minute, between two scrapes.`,
			},
		},
	}
}

// quarterOfNetns is the record of the limits of network namespaces that are at leastLevel
// or more.
const quarterOfNetns = "instance_resource_netns:sockpressure_netns_saturation:quarter"

// namespaces returns alerts on the network namespaces other than the host's, such as
// those of pods. Their names are in the labels netns, namespace and pod.
func namespaces() Group {
	const (
		refusals = "increase(sockpressure_netns_refusals_total"
		where    = `{{ with $labels.pod }}pod {{ $labels.namespace }}/{{ . }}{{ else }}{{ $labels.netns }}{{ end }} on {{ $labels.instance }}`
	)
	near := Rule{
		Alert: "SockPressureNetnsNearLimit", Labels: map[string]string{"stage": near},
		Summary: "A pod, or another network namespace, is close to a limit of its own.",
		Description: `{{ $labels.resource }} of ` + where + ` is at {{ $value | humanizePercentage }} of the limit
			of its network namespace.`,
	}
	ticket, page := near, near
	ticket.Severity, ticket.For, ticket.Params = Warning, "5m", map[string]string{"warning": "0.8"}
	ticket.Comment = "A burst fills a queue for a moment without harm; a program that has stopped accepting keeps\nit full for minutes. A UDP queue that does not change belongs to a program that never reads\nit. TIME_WAIT is left out because some pods run at the limit by design, and request queues\nbecause SYN cookies work without them."
	ticket.Expr = quarterOfNetns + `{resource=~"accept_queue|conntrack_entries|ephemeral_ports|udp_receive_queue|unix_accept_queue"} >= ${warning}
unless changes(sockpressure_netns_saturation_ratio{resource="udp_receive_queue"}[10m]) == 0`
	page.Severity, page.For, page.Params = Critical, "2m", map[string]string{"critical": "0.95"}
	page.Comment = "Connections of the pod fail or will fail soon."
	page.Expr = quarterOfNetns + `{resource=~"conntrack_entries|ephemeral_ports"} >= ${critical}`
	return Group{
		Name: "sockpressure-netns", file: "netns", Interval: "1m",
		Comment: "Network namespaces other than the host's, such as those of pods (collector netns). A node has more of these than limits of its own, and no alert here fires within a minute of its first evaluation, so the interval is longer.",
		Rules: []Rule{
			{
				Record: quarterOfNetns, Expr: "sockpressure_netns_saturation_ratio >= " + number(leastLevel),
				about:   "each limit of a network namespace other than the host's at 25 % or more; alerts and the worst 20 read these",
				Comment: "The limits that are at a quarter or more.",
			},
			ticket, page,
			{
				Alert: "SockPressureNetnsRefusing", Severity: Warning, For: "1m", Labels: map[string]string{"stage": met},
				Comment: "The sum over all namespaces of a node, including those that no longer exist, so a pod that\nfails within a minute counts. Every start and every burst causes a few overflows.",
				Expr: refusals + `{resource=~"accept_queue|request_queue|tcp_memory"}[5m]) > ${count}
or
` + refusals + `{resource="conntrack_entries"}[5m]) > 0`,
				Params:  map[string]string{"count": "20"},
				Summary: "The kernel refuses connections of pods or other network namespaces.",
				Description: `The kernel of {{ $labels.instance }} refused {{ $value | printf "%.0f" }} times in the last 5 minutes because
					{{ $labels.resource }} was exhausted in a network namespace other than the host's. The sockpressure_netns_* counters name the pods affected last.`,
			},
		},
	}
}

// limitMessages returns the kernel messages of limits, with exceptions.
func limitMessages(except ...string) []string {
	var messages []string
	for _, s := range collector.Specs() {
		for _, l := range s.Limits {
			for _, line := range l.LogLines {
				if !slices.Contains(except, line.Message) && !slices.Contains(messages, line.Message) {
					messages = append(messages, line.Message)
				}
			}
		}
	}
	return messages
}

// same are the labels that identify an exporter, and alive is a series that it has as
// long as it answers.
const (
	same  = "on (cluster, job, instance)"
	alive = "sockpressure_host_network_namespace" // one series per node
)

// fires returns an expression for whether an alert is already firing. The alert then
// sustains itself.
func fires(alert, window string) string {
	return `last_over_time(ALERTS{alertname="` + alert + `",alertstate="firing"}[` + window + `])`
}

// lost returns the alert on exporters that pages, the only one.
func lost() Group {
	return Group{
		Name: "sockpressure-lost", file: "exporter",
		Comment: "Nodes that stopped answering close to a limit.",
		Rules: []Rule{
			{
				Alert: "SockPressureLostNearLimit", Severity: Critical, For: "2m", KeepFiringFor: "5m",
				Comment: "A node that fails at its limit does not answer scrapes, so its page would resolve. If a page\nwas pending or firing, this alert fires until the node answers again, for a day at most.\nPages of a pod do not count.",
				Expr: `(
  group by (cluster, job, instance) (
    max_over_time(ALERTS{alertname=~"SockPressure.+",alertname!~"SockPressure(LostNearLimit|Netns.+)",instance!="",severity="${page}",stage=~"near|forecast|met"}[10m])
  )
  or
  group by (cluster, job, instance) (` + fires("SockPressureLostNearLimit", "10m") + `)
)
unless ` + same + ` (` + alive + ` or up == 1)
unless ` + same + ` (ALERTS{alertname="SockPressureLostNearLimit",alertstate="firing"} offset 1d)`,
				Summary: "A node was close to a limit and stopped answering.",
				Description: `{{ $labels.instance }} had a page for a kernel limit when its exporter stopped answering
					({{ $value | printf "%.0f" }} node): the limit was probably reached.`,
			},
		},
	}
}

func exporter() Group {
	return Group{
		Name: "sockpressure-exporter", Interval: "1m",
		Comment: "The exporter itself: limits that it does not see are not monitored. No alert here fires within minutes, and a node has many collectors, so the interval is longer.",
		Rules: []Rule{
			{
				Alert: "SockPressureExporterDown", Severity: Warning, For: "5m", KeepFiringFor: "10m",
				Comment: "By the name of the scrape job or, in a job of another name, if the target was an exporter 15\nminutes or an hour ago.",
				Expr: `up{job=~".*sockpressure.*"} == 0
or
up == 0
and ` + same + ` (
  ` + alive + ` offset 15m
  or
  ` + alive + ` offset 1h
  or
  ` + fires("SockPressureExporterDown", "10m") + `
)`,
				Summary: "The exporter cannot be scraped.",
				Description: `{{ $labels.instance }} has not answered for 5 minutes (up is {{ $value }}). No other alert of this
					bundle can fire for it.`,
			},
			{
				Alert: "SockPressureExporterGone", Severity: Warning, For: "10m",
				Comment: "It was a target an hour ago. Disable this alert where nodes are created and removed\nautomatically.",
				Expr: `group by (cluster, job, instance) (
  ` + alive + ` offset 15m
  or
  ` + alive + ` offset 1h
  or
  up{job=~".*sockpressure.*"} offset 1h
)
unless ` + same + ` (` + alive + ` or up)`,
				Summary: "A node's exporter was removed from Prometheus's targets.",
				Description: `{{ $labels.instance }} was scraped an hour ago ({{ $value }} target) and has since
					been removed from Prometheus's targets. No other alert of this bundle can fire for it.`,
			},
			{
				Alert: "SockPressureExporterAbsent", Severity: Warning, For: "15m",
				Expr:    "absent(" + alive + ` or up{job=~".*sockpressure.*"})`,
				Summary: "No exporter is scraped.",
				Description: `Prometheus has had no target and no series of an exporter for 15 minutes. No other alert of this
					bundle can fire.`,
			},
			{
				Alert: "SockPressureCollectorFailing", Severity: Warning, For: "10m",
				Comment: "Success stays 1 if this kernel does not have what the collector reads. That is\nscrape_collector_supported, which needs no alert.",
				Expr:    "sockpressure_scrape_collector_success == 0",
				Summary: "A collector of the exporter fails.",
				Description: `{{ $labels.instance }}: collector {{ $labels.collector }} has failed for 10 minutes (success is
					{{ $value }}). Its limits are not monitored.`,
			},
			{
				Alert: "SockPressureCollectorStale", Severity: Info, For: "10m",
				Expr: "sockpressure_scrape_collector_age_seconds > ${age}", Params: map[string]string{"age": "300"},
				Summary: "A collector of the exporter returns old values.",
				Description: `{{ $labels.instance }}: the values of collector {{ $labels.collector }} are
					{{ $value | humanizeDuration }} old, because its walks take longer than --collector.max-cpu allows.`,
			},
			{
				Alert: "SockPressureProcessesUnreadable", Severity: Warning, For: "15m",
				Comment: "A few unreadable processes are normal; more than that are all processes of a user or a\ncontainer.",
				Expr:    "sockpressure_processes_unreadable > ${count}", Params: map[string]string{"count": "10"},
				Summary: "The exporter may not read the descriptors of many processes.",
				Description: `{{ $labels.instance }} has {{ $value }} processes whose descriptors its exporter may not read. One of
					them may be at its limit without process_file_descriptors showing it.`,
			},
			{
				Alert: "SockPressureWrongNetworkNamespace", Severity: Warning, For: "5m",
				Expr:    "sockpressure_host_network_namespace == 0",
				Summary: "The exporter does not see the host's network namespace.",
				Description: `{{ $labels.instance }} runs outside the host's network namespace and may not enter it, or takes a
					container for the host (the metric is {{ $value }}): the host's sysctls and sockets are not monitored.`,
			},
			{
				Alert: "SockPressureWrongView", Severity: Warning, For: "15m",
				Expr:    `sockpressure_host_view{view!="network"} == 0`,
				Summary: "The exporter does not see the whole host.",
				Description: `{{ $labels.instance }}: the exporter's view of {{ $labels.view }} is a container's, not the
					host's (the metric is {{ $value }}), so the limits that depend on it are not monitored.`,
			},
		},
	}
}

// refusals returns recording rules for what the kernel refuses, drops or kills, by the
// limit that is reached.
func refusals() []Rule {
	seen := func(resource string, level float64) string {
		return fmt.Sprintf("ignoring (resource)\nmax_over_time(%s{resource=%q}[4m]) >= %v", levelsOf(themeOf(resource)), resource, level)
	}
	orphans, lowMemory := seen("tcp_orphans", levels("tcp_orphans").WarningRatio), seen("low_memory", levels("low_memory").WarningRatio)
	family := func(family string) string {
		return `sum without (family) (rate(sockpressure_neighbour_table_full_total{family="` + family + `"}[5m]))`
	}
	const (
		aborts = "rate(sockpressure_tcp_aborts_on_memory_total[5m])"
		drops  = "rate(sockpressure_tcp_receive_queue_drops_total[5m])"
		kills  = "rate(sockpressure_oom_kills_total[5m])"
		udp    = "rate(sockpressure_udp_memory_errors_total[5m])"
		udp6   = "rate(sockpressure_udp6_memory_errors_total[5m])"
	)
	all := []struct{ comment, resource, expr string }{
		{
			"A connection that could not be inserted counts as a drop but is not a refusal.",
			"conntrack_entries", "rate(sockpressure_conntrack_drops_total[5m])\n- (1.25 * rate(sockpressure_conntrack_insert_failures_total[5m]) or 0 * rate(sockpressure_conntrack_drops_total[5m]))\n> 0",
		},
		{
			"Orphans also cause resets for lack of memory, and the buffer of a single socket also causes\ndropped data. The saturation tells them apart, as in the alerts.",
			"tcp_memory",
			"(\n  " + aborts + " + " + drops + "\n  or " + aborts + "\n  or " + drops + "\n)\nand " + seen("tcp_memory", levels("tcp_memory").CriticalRatio) +
				"\nor\n" + aborts + "\nunless " + orphans,
		},
		{"", "tcp_orphans", aborts + "\nand " + orphans},
		{"", "tcp_time_wait", "rate(sockpressure_tcp_time_wait_overflows_total[5m])"},
		{"", "accept_queue", "rate(sockpressure_tcp_listen_overflows_total[5m])"},
		{
			"A SYN cookie is not a refusal.",
			"request_queue", "rate(sockpressure_tcp_request_queue_full_drops_total[5m])",
		},
		{"", "udp_receive_queue", udpDrops("rate")},
		{
			"", "udp_memory", udp + " + " + udp6 + "\nor " + udp + "\nor " + udp6,
		},
		{"", "ip_fragments_ipv4", "rate(sockpressure_ip_reassembly_failures_total[5m])"},
		{"", "ip_fragments_ipv6", "rate(sockpressure_ip6_reassembly_failures_total[5m])"},
		{"", "neighbours_ipv4", family("ipv4")},
		{"", "neighbours_ipv6", family("ipv6")},
		{"", "netdev_backlog", "rate(sockpressure_netdev_backlog_drops_total[5m])"},
		{"", "memory", kills + "\nunless " + lowMemory},
		{"", "low_memory", kills + "\nand " + lowMemory},
	}
	var rules []Rule
	for _, r := range all {
		rules = append(rules, Rule{
			Record: "instance_resource:sockpressure_refusals:rate5m", Comment: r.comment, Expr: r.expr,
			about:  "each node and limit that refuses, drops or kills: how often per second",
			Labels: map[string]string{"resource": r.resource},
		})
	}
	rules[0].Comment = "What the kernel refuses, drops or kills, by the limit that was reached. Counters with other\ncauses are included, because a dashboard should rather show too much. " + rules[0].Comment
	return rules
}

func fleet() Group {
	rules := []Rule{
		{
			Record: "instance_resource:sockpressure_saturation:max5m", Expr: "max_over_time(sockpressure_saturation_ratio[5m])",
			about:   "each node and limit: the highest saturation of the last 5 minutes",
			Comment: "The maximum over the last 5 minutes, so that a dashboard with coarse steps shows it.",
		},
		{
			Record: "instance:sockpressure_saturation:max5m",
			about:  "each node: saturation of its worst limit",
			Expr:   "max without (resource) (instance_resource:sockpressure_saturation:max5m)",
		},
		{
			Record: "job_resource:sockpressure_saturation:max5m",
			about:  "each limit: saturation of its worst node",
			Expr:   "max by (cluster, job, resource) (instance_resource:sockpressure_saturation:max5m)",
		},
	}
	var refused []string // limits with refusals that the kernel counts
	for _, r := range refusals() {
		rules = append(rules, r)
		refused = append(refused, r.Labels["resource"])
	}
	rules = append(
		rules,
		Rule{
			Record: "instance:sockpressure_refusals:rate5m",
			about:  "each node that refuses: refusals of all limits",
			Expr:   "sum without (resource) (instance_resource:sockpressure_refusals:rate5m)",
		},
		Rule{
			Record: "job_resource:sockpressure_refusals:rate5m",
			about:  "each limit: refusals of all nodes",
			Expr:   "sum by (cluster, job, resource) (instance_resource:sockpressure_refusals:rate5m)\nor\n0 * job_resource:sockpressure_saturation:max5m{resource=~\"" + strings.Join(refused, "|") + "\"}",
		},
		Rule{
			Record: "instance:sockpressure_collectors_failing:count",
			about:  "each node: number of failing collectors",
			Expr:   "sum without (collector) (sockpressure_scrape_collector_success == bool 0)",
		},
		Rule{
			Record: "job_resource:sockpressure_saturation_peak:max",
			about:  "each limit: the highest peak of all nodes",
			Expr:   "max by (cluster, job, resource) (sockpressure_saturation_peak_ratio)",
		},
		Rule{
			Record: "job_message:sockpressure_kernel_messages:increase5m",
			about:  "each kernel message: lines of all nodes",
			Expr:   "sum by (cluster, job, message) (increase(sockpressure_kernel_messages_total[5m]))\nor\n0 * count by (cluster, job, message) (sockpressure_kernel_messages_total)",
		},
		Rule{
			Record: "job_resource_netns:sockpressure_netns_saturation:top20",
			about:  "each limit per network namespace: of the pods or other namespaces at 25 % or more, the 20 closest to it",
			Expr:   "topk by (cluster, job, resource) (20, " + quarterOfNetns + ")",
		},
		Rule{
			Record: "job_resource:sockpressure_netns_refusals:rate5m",
			about:  "each limit: refusals per second in network namespaces other than the hosts'",
			Expr:   "sum by (cluster, job, resource) (rate(sockpressure_netns_refusals_total[5m]))\nor\n0 * count by (cluster, job, resource) (sockpressure_netns_refusals_total)",
		},
	)
	return Group{
		Name: "sockpressure-fleet", Interval: "1m", Rules: rules,
		Comment: `Recording rules for fleets: of about 300 series per node, those that a dashboard over ten thousand nodes needs. What is refused, logged, and close to a limit in pods is read from what the groups of alerts record.

  job_resource:...       the worst of all nodes of a job, 17 series for each
  job_message:...        what the kernels of a job logged, 17 series for each
  job_resource_netns:... of the pods of a job at 25 % or more, the worst 20 for each limit
  instance:...           at most one series a node
  instance_resource:...  one series for each node and limit; for the nodes chosen`,
	}
}

// history returns recording rules for what forecasts compare with.
func history() Group {
	record := func(name, about, comment, expr string) Rule {
		return Rule{Record: "instance_resource:sockpressure_saturation:" + name, Expr: expr, about: about, Comment: comment}
	}
	return Group{
		Name: "sockpressure-history", file: "fleet", Interval: "2m",
		Comment: "The maximum over an hour, a day and a week, each from few points of the previous one. Forecasts do not fire for usage that is no higher than these. Without these rules forecasts still work, but fire more often.",
		Rules: []Rule{
			record("max1h", "each node and limit at least a quarter used within the last hour: its maximum; used by forecasts",
				"Forecasts are about limits that are at least half used, and a peak below a quarter silences none of them.",
				"max_over_time("+used+"[1h]) >= 0.25"),
			record("max1d", "the same over a day", "", "max_over_time(instance_resource:sockpressure_saturation:max1h[1d:30m])\n> instance_resource:sockpressure_saturation:max1h\nor\ninstance_resource:sockpressure_saturation:max1h"),
			record("max1w", "the same over a week", "", "max_over_time(instance_resource:sockpressure_saturation:max1d[1w:12h])\n> instance_resource:sockpressure_saturation:max1d\nor\ninstance_resource:sockpressure_saturation:max1d"),
		},
	}
}
