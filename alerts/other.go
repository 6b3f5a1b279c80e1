package alerts

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// otherGroups are the rules that no single limit has: sockets and packets below the
// limits, the exporter itself, and what is recorded for fleets and forecasts.
func otherGroups() []Group {
	return []Group{drops(), kernelLog(), namespaces(), lost(), exporter(), fleet(), history()}
}

// drops are counters of losses that are of a program or of a CPU, and of no limit of
// the host. All of them move on healthy hosts, so each goes by its rate.
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
		Comment: "What is lost at single sockets and CPUs, by its rate: some of it is part of life.",
		Rules: []Rule{
			counter("UDPReceiveErrors", "rate(sockpressure_udp_receive_buffer_errors_total[5m])\n+ (rate(sockpressure_udp6_receive_buffer_errors_total[5m]) or 0 * rate(sockpressure_udp_receive_buffer_errors_total[5m]))",
				"10", "5m", "Datagrams are dropped because a program does not read them fast enough.",
				`drops {{ $value | printf "%.0f" }} datagrams a second at full receive buffers of UDP sockets.`),
			counter("TCPReceivePruned", "rate(sockpressure_tcp_receive_pruned_total[5m])", "10", "5m",
				"Received segments are dropped because receive buffers are full.",
				`drops {{ $value | printf "%.0f" }} received segments a second because compacting a socket's receive buffer did not free enough.`),
			counter("TCPBacklogDropping", "rate(sockpressure_tcp_backlog_drops_total[5m])", "10", "5m",
				"Segments are dropped because the backlog of a busy socket is full.",
				`drops {{ $value | printf "%.0f" }} segments a second at the backlog of a socket that its program is busy with.`),
			counter("TCPMemallocDropping", "rate(sockpressure_tcp_memalloc_drops_total[5m])", "0.1", "",
				"Segments are dropped because they came in the emergency reserve of memory.",
				`drops {{ $value | printf "%.1f" }} segments a second that only the kernel's emergency reserve had memory for.`),
			counter("NetdevTimeSqueezed", "rate(sockpressure_netdev_time_squeezes_total[5m])", "100", "15m",
				"CPUs do not finish their rounds of received packets.",
				`had packets left at the end of {{ $value | printf "%.0f" }} rounds a second (net.core.netdev_budget, netdev_budget_usecs).`),
		},
	}
}

// kernelLog are the kernel's own words, and what is seen of a limit between scrapes.
func kernelLog() Group {
	said := func(messages string) string {
		return `increase(sockpressure_kernel_messages_total{message=~"` + messages + `"}[5m])`
	}
	const watched = `resource=~"conntrack_entries|file_descriptors|neighbours_ipv4|neighbours_ipv6|tcp_memory|threads|udp_memory"`
	return Group{
		Name: "sockpressure-kernel", file: "kernel",
		Comment: "What the kernel logged (collector kmsg), and limits that were reached between two scrapes (--collector.sample-interval).",
		Rules: []Rule{
			{
				Alert: "SockPressureFileMaxReached", Severity: Critical, Labels: map[string]string{"stage": met, "resource": "file_descriptors"},
				Comment: "No counter tells of it, and the kernel logs it at each new high only.",
				Expr:    said("file_max_reached") + " > 0",
				Summary: "The machine ran out of open files.",
				Description: `The kernel of {{ $labels.instance }} logged {{ $value | printf "%.0f" }} times in the last 5 minutes that
					fs.file-max was reached: open, socket and accept fail with ENFILE for every process without CAP_SYS_ADMIN.`,
			},
			{
				Alert: "SockPressureKernelLoggedLimit", Severity: Warning, Labels: map[string]string{"stage": met},
				Comment: "The messages of the other limits: nearly all have counters as well, with alerts that know\nhow bad it is. That of a SYN flood is left out: with cookies it does little harm, and the\ncounters tell.",
				Expr:    said(strings.Join(limitMessages("file_max_reached", "oom_kill", "tcp_syn_flooding"), "|")) + " > 0",
				Summary: "The kernel logged that a limit was reached.",
				Description: `The kernel of {{ $labels.instance }} logged {{ $labels.message }} {{ $value | printf "%.0f" }} times in the last 5
					minutes. Its rate limits keep most lines of this kind from the log.`,
			},
			{
				Alert: "SockPressureKernelAllocationFailing", Severity: Warning,
				Comment: "A few failures of large or hurried allocations are part of life: their callers try again.",
				Expr:    said("(page|slab|vmap)_allocation_failure") + " > ${count}", Params: map[string]string{"count": "10"},
				Summary: "The kernel does not get the memory that it asks for.",
				Description: `The kernel of {{ $labels.instance }} logged {{ $labels.message }} {{ $value | printf "%.0f" }} times in the last 5
					minutes: packets may be dropped, or calls fail with ENOMEM.`,
			},
			{
				Alert: "SockPressureHungTask", Severity: Warning,
				Expr:    said("hung_task") + " > 0",
				Summary: "Tasks wait in the kernel and do not come back.",
				Description: `The kernel of {{ $labels.instance }} logged {{ $value | printf "%.0f" }} times in the last 5 minutes that a task was
					blocked for longer than kernel.hung_task_timeout_secs, as while memory is reclaimed or a disk does not answer.`,
			},
			{
				Alert: "SockPressureReachedBetweenScrapes", Severity: Warning, Labels: map[string]string{"stage": met},
				Comment: "Accept queues and the backlogs of CPUs are full for moments on many a healthy host, and so\nare TIME_WAIT and fragments by design: those are left out.",
				Expr: `sockpressure_saturation_peak_ratio{` + watched + `} >= 1
unless max_over_time(` + used + `{` + watched + `}[2m]) >= 0.9`,
				Summary: "A limit was reached between two scrapes.",
				Description: `{{ $labels.instance }}: {{ $labels.resource }} was at {{ $value | humanizePercentage }} of its limit within the last
					minute, and no scrape saw it there.`,
			},
		},
	}
}

// namespaces are the network namespaces besides the host's, such as those of pods. Their
// names are in the labels netns, namespace and pod.
func namespaces() Group {
	const (
		ratio    = "sockpressure_netns_saturation_ratio"
		refusals = "increase(sockpressure_netns_refusals_total"
		where    = `{{ with $labels.pod }}pod {{ $labels.namespace }}/{{ . }}{{ else }}{{ $labels.netns }}{{ end }} on {{ $labels.instance }}`
	)
	near := Rule{
		Alert: "SockPressureNetnsNearLimit", Labels: map[string]string{"stage": near},
		Summary: "A pod, or another network namespace, is close to a limit of its own.",
		Description: `{{ $labels.resource }} of ` + where + ` is at {{ $value | humanizePercentage }} of the limit
			that its network namespace has for itself.`,
	}
	ticket, page := near, near
	ticket.Severity, ticket.For, ticket.Params = Warning, "5m", map[string]string{"warning": "0.8"}
	ticket.Comment = "Not for moments: a burst fills a queue without harm, a program that has stopped accepting\nkeeps it full for minutes. A UDP queue that stands still is that of a program which never\nreads it. TIME_WAIT is left out, because it is capped by design, and the queue of connection\nrequests, because SYN cookies go on without it."
	ticket.Expr = ratio + `{resource=~"accept_queue|conntrack_entries|ephemeral_ports|unix_accept_queue"} >= ${warning}
or
` + ratio + `{resource="udp_receive_queue"} >= ${warning}
unless changes(` + ratio + `{resource="udp_receive_queue"}[10m]) == 0`
	page.Severity, page.For, page.Params = Critical, "2m", map[string]string{"critical": "0.95"}
	page.Comment = "Connections of the pod fail, or are about to."
	page.Expr = ratio + `{resource=~"conntrack_entries|ephemeral_ports"} >= ${critical}`
	return Group{
		Name: "sockpressure-netns", file: "netns", Interval: "30s",
		Comment: "Network namespaces besides the host's, such as those of pods (collector netns). A node has more of these than of all limits of its own, and nothing here fires within a minute: so less often than the rest.",
		Rules: []Rule{
			ticket, page,
			{
				Alert: "SockPressureNetnsRefusing", Severity: Warning, For: "1m", Labels: map[string]string{"stage": met},
				Comment: "Of all namespaces of a node together, those that have ended too: a pod that dies of it within\na minute is in. A few overflows come with every start and every burst.",
				Expr: refusals + `{resource=~"accept_queue|request_queue|tcp_memory"}[5m]) > ${count}
or
` + refusals + `{resource="conntrack_entries"}[5m]) > 0`,
				Params:  map[string]string{"count": "20"},
				Summary: "The kernel refuses connections of pods, or of other network namespaces.",
				Description: `The kernel of {{ $labels.instance }} refused {{ $value | printf "%.0f" }} times in the last 5 minutes because
					{{ $labels.resource }} was used up in a network namespace besides the host's. sockpressure_netns_* names the pods that were refused last.`,
			},
		},
	}
}

// limitMessages are what the kernel logs of limits, but for some.
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

// same are the labels that an exporter is known by, and alive is what it has as long
// as it answers.
const (
	same  = "on (cluster, job, instance)"
	alive = "sockpressure_host_network_namespace" // one series a node
)

// fires is whether an alert fires already: it then goes on by itself.
func fires(alert, window string) string {
	return `last_over_time(ALERTS{alertname="` + alert + `",alertstate="firing"}[` + window + `])`
}

// lost is the one alert on exporters that pages.
func lost() Group {
	return Group{
		Name: "sockpressure-lost", file: "exporter",
		Comment: "Nodes that do not answer any more, near a limit.",
		Rules: []Rule{
			{
				Alert: "SockPressureLostNearLimit", Severity: Critical, For: "2m", KeepFiringFor: "5m",
				Comment: "A node that died of its limit answers no scrape, and its page would resolve. So one that\nhad a page, pending or firing, takes this one along until it answers again, for a day at\nmost: by then somebody removed it. A pod at its limit takes no node along.",
				Expr: `(
  group by (cluster, job, instance) (
    max_over_time(ALERTS{alertname=~"SockPressure.+",alertname!~"SockPressure(LostNearLimit|Netns.+)",instance!="",severity="${page}",stage=~"near|forecast|met"}[10m])
  )
  or
  group by (cluster, job, instance) (` + fires("SockPressureLostNearLimit", "10m") + `)
)
unless ` + same + ` (` + alive + ` or up == 1)
unless ` + same + ` (ALERTS{alertname="SockPressureLostNearLimit",alertstate="firing"} offset 1d)`,
				Summary: "A node was close to a limit and does not answer any more.",
				Description: `{{ $labels.instance }} had a page for a kernel limit when its exporter stopped answering
					({{ $value | printf "%.0f" }} node): what was about to happen has probably happened.`,
			},
		},
	}
}

func exporter() Group {
	return Group{
		Name: "sockpressure-exporter", Interval: "1m",
		Comment: "The exporter itself: a limit that it does not see is not watched. Nothing here fires within minutes, and a node has many collectors: so less often than the rest.",
		Rules: []Rule{
			{
				Alert: "SockPressureExporterDown", Severity: Warning, For: "5m", KeepFiringFor: "10m",
				Comment: "By the name of the scrape job, or, in a job of another name, by what was an exporter a\nquarter of an hour or an hour ago.",
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
				Comment: "Not a target any more, and it was one an hour ago. Where nodes come and go by themselves,\nleave this one out.",
				Expr: `group by (cluster, job, instance) (
  ` + alive + ` offset 15m
  or
  ` + alive + ` offset 1h
  or
  up{job=~".*sockpressure.*"} offset 1h
)
unless ` + same + ` (` + alive + ` or up)`,
				Summary: "A node's exporter is not a target any more.",
				Description: `{{ $labels.instance }} was scraped an hour ago ({{ $value }} target) and has left the targets of
					Prometheus since. No other alert of this bundle can fire for it.`,
			},
			{
				Alert: "SockPressureExporterAbsent", Severity: Warning, For: "15m",
				Expr:    "absent(" + alive + ` or up{job=~".*sockpressure.*"})`,
				Summary: "No exporter is scraped at all.",
				Description: `Prometheus has had no target and no series of an exporter for 15 minutes. No other alert of this
					bundle can fire.`,
			},
			{
				Alert: "SockPressureCollectorFailing", Severity: Warning, For: "10m",
				Comment: "Success stays 1 where this kernel lacks what the collector reads: that is\nscrape_collector_supported, and nothing to alert on.",
				Expr:    "sockpressure_scrape_collector_success == 0",
				Summary: "A collector of the exporter fails.",
				Description: `{{ $labels.instance }}: collector {{ $labels.collector }} has failed for 10 minutes (success is
					{{ $value }}). Its limits are not watched meanwhile.`,
			},
			{
				Alert: "SockPressureCollectorStale", Severity: Info, For: "10m",
				Expr: "sockpressure_scrape_collector_age_seconds > ${age}", Params: map[string]string{"age": "300"},
				Summary: "A collector of the exporter shows old numbers.",
				Description: `{{ $labels.instance }}: what collector {{ $labels.collector }} shows is
					{{ $value | humanizeDuration }} old, because its walks take longer than --collector.max-cpu allows.`,
			},
			{
				Alert: "SockPressureProcessesUnreadable", Severity: Warning, For: "15m",
				Comment: "A few come and go; more than that are a user's or a container's.",
				Expr:    "sockpressure_processes_unreadable > ${count}", Params: map[string]string{"count": "10"},
				Summary: "The exporter may not read the descriptors of many processes.",
				Description: `{{ $labels.instance }} has {{ $value }} processes whose descriptors its exporter may not count: one of
					them may be at its limit, and process_file_descriptors would not show it.`,
			},
			{
				Alert: "SockPressureWrongNetworkNamespace", Severity: Warning, For: "5m",
				Expr:    "sockpressure_host_network_namespace == 0",
				Summary: "The exporter does not see the host's network namespace.",
				Description: `{{ $labels.instance }} runs outside of the host's network namespace and may not enter it, or takes a
					container for the host (the metric is {{ $value }}): sysctls and sockets of the host are not watched.`,
			},
			{
				Alert: "SockPressureWrongView", Severity: Warning, For: "15m",
				Expr:    `sockpressure_host_view{view!="network"} == 0`,
				Summary: "The exporter does not see all of the host.",
				Description: `{{ $labels.instance }}: what the exporter sees of {{ $labels.view }} is a container's and not the
					host's (the metric is {{ $value }}), so limits that depend on it are not watched.`,
			},
		},
	}
}

// refusals are what the kernel refuses, drops or kills, by the limit that is met.
func refusals() []Rule {
	seen := func(resource string, level float64) string {
		return fmt.Sprintf("ignoring (resource)\nmax_over_time(sockpressure_saturation_ratio{resource=%q}[5m]) >= %v", resource, level)
	}
	orphans, lowMemory := seen("tcp_orphans", levels("tcp_orphans").WarningRatio), seen("low_memory", levels("low_memory").WarningRatio)
	family := func(family string) string {
		return `sum without (family) (rate(sockpressure_neighbour_table_full_total{family="` + family + `"}[5m]))`
	}
	const aborts, kills = "rate(sockpressure_tcp_aborts_on_memory_total[5m])", "rate(sockpressure_oom_kills_total[5m])"
	all := []struct{ comment, resource, expr string }{
		{
			"A connection that could not be inserted is counted as a drop, but is no refusal.",
			"conntrack_entries", "clamp_min(\n  rate(sockpressure_conntrack_drops_total[5m])\n  - rate(sockpressure_conntrack_insert_failures_total[5m]),\n  0\n)",
		},
		{
			"Resets for lack of memory are of orphans too, and received data is dropped for the buffer\nof a single socket too: the saturation tells, as for the alerts.",
			"tcp_memory",
			aborts + "\n+ rate(sockpressure_tcp_receive_queue_drops_total[5m])\nand " + seen("tcp_memory", levels("tcp_memory").CriticalRatio) +
				"\nor\n" + aborts + "\nunless " + orphans,
		},
		{"", "tcp_orphans", aborts + "\nand " + orphans},
		{"", "tcp_time_wait", "rate(sockpressure_tcp_time_wait_overflows_total[5m])"},
		{"", "accept_queue", "rate(sockpressure_tcp_listen_overflows_total[5m])"},
		{
			"A cookie is an answer, so cookies are not in.",
			"request_queue", "rate(sockpressure_tcp_request_queue_full_drops_total[5m])",
		},
		{"", "udp_receive_queue", udpDrops("rate")},
		{
			"", "udp_memory",
			"rate(sockpressure_udp_memory_errors_total[5m])\n+ rate(sockpressure_udp6_memory_errors_total[5m])\nor\nrate(sockpressure_udp_memory_errors_total[5m])",
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
			about:  "each node and limit: what the kernel refused, dropped or killed a second",
			Labels: map[string]string{"resource": r.resource},
		})
	}
	rules[0].Comment = "What the kernel refuses, drops or kills, by the limit that was met. Counters that have\ncauses besides the limit are in: on a dashboard, too much is better. " + rules[0].Comment
	return rules
}

func fleet() Group {
	rules := []Rule{
		{
			Record: "instance_resource:sockpressure_saturation:max5m", Expr: "max_over_time(sockpressure_saturation_ratio[5m])",
			about:   "each node and limit: the highest saturation of the last 5 minutes",
			Comment: "The highest of the last 5 minutes, so that a dashboard with coarse steps sees it.",
		},
		{
			Record: "instance:sockpressure_saturation:max5m",
			about:  "each node: that of its worst limit",
			Expr:   "max without (resource) (instance_resource:sockpressure_saturation:max5m)",
		},
		{
			Record: "job_resource:sockpressure_saturation:max5m",
			about:  "each limit: that of its worst node",
			Expr:   "max by (cluster, job, resource) (instance_resource:sockpressure_saturation:max5m)",
		},
	}
	rules = append(rules, refusals()...)
	rules = append(
		rules,
		Rule{
			Record: "instance:sockpressure_refusals:rate5m",
			about:  "each node: all of it",
			Expr:   "sum without (resource) (instance_resource:sockpressure_refusals:rate5m)",
		},
		Rule{
			Record: "job_resource:sockpressure_refusals:rate5m",
			about:  "each limit: all nodes",
			Expr:   "sum by (cluster, job, resource) (instance_resource:sockpressure_refusals:rate5m)",
		},
		Rule{
			Record: "instance:sockpressure_collectors_failing:count",
			about:  "each node: collectors that fail",
			Expr:   "sum without (collector) (sockpressure_scrape_collector_success == bool 0)",
		},
		Rule{
			Record: "job_resource:sockpressure_saturation_peak:max",
			about:  "each limit: the highest peak of all nodes",
			Expr:   "max by (cluster, job, resource) (sockpressure_saturation_peak_ratio)",
		},
		Rule{
			Record: "job_message:sockpressure_kernel_messages:increase5m",
			about:  "each message of the kernel: all nodes",
			Expr:   "sum by (cluster, job, message) (increase(sockpressure_kernel_messages_total[5m]))",
		},
		Rule{
			Record: "job_resource_netns:sockpressure_netns_saturation:top20",
			about:  "each limit that a network namespace has for itself: the 20 pods or other namespaces nearest to it",
			Expr:   "topk by (cluster, job, resource) (20, sockpressure_netns_saturation_ratio)",
		},
		Rule{
			Record: "job_resource:sockpressure_netns_refusals:rate5m",
			about:  "each limit: what the kernels refused a second in network namespaces besides the hosts'",
			Expr:   "sum by (cluster, job, resource) (rate(sockpressure_netns_refusals_total[5m]))",
		},
	)
	return Group{
		Name: "sockpressure-fleet", Interval: "1m", Rules: rules,
		Comment: `Recording rules for fleets: of some 300 series a node, those that a dashboard over ten thousand nodes needs. It reads these and no others.

  job_resource:...       the worst of all nodes of a job, 17 series for each
  job_message:...        what the kernels of a job logged, 17 series for each
  job_resource_netns:... the worst 20 pods of a job, 80 series for each
  instance:...           one series a node
  instance_resource:...  one series for each node and limit; for the nodes chosen`,
	}
}

// history is what forecasts compare with.
func history() Group {
	record := func(name, about, comment, expr string) Rule {
		return Rule{Record: "instance_resource:sockpressure_saturation:" + name, Expr: expr, about: about, Comment: comment}
	}
	return Group{
		Name: "sockpressure-history", file: "fleet", Interval: "1m",
		Comment: "The highest of an hour, a day and a week, each from few points of the one before: what is no higher than that is no growth, and raises no forecast. Where these are not loaded, forecasts only are less quiet.",
		Rules: []Rule{
			record("max1h", "each node and limit that was used to a quarter or more within an hour: the highest; forecasts compare with these",
				"Forecasts are of limits that are used to a half, and a peak below a quarter keeps none of them silent.",
				"max_over_time("+used+"[1h]) >= 0.25"),
			record("max1d", "the same of a day", "", "max_over_time(instance_resource:sockpressure_saturation:max1h[1d:30m])\n> instance_resource:sockpressure_saturation:max1h\nor\ninstance_resource:sockpressure_saturation:max1h"),
			record("max1w", "the same of a week", "", "max_over_time(instance_resource:sockpressure_saturation:max1d[1w:12h])\n> instance_resource:sockpressure_saturation:max1d\nor\ninstance_resource:sockpressure_saturation:max1d"),
		},
	}
}
