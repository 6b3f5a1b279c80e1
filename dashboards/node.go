package dashboards

import (
	"maps"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

const nodeUID = "sockpressure-node"

const (
	netnsShare  = "sockpressure_netns_saturation_ratio"
	podOverTime = "Limits of pods over time"
)

// node returns the dashboard of one node. It reads the exporter's metrics and no
// recording rules, so that it works if these are not loaded.
func node(limits []collector.LimitInfo, books runbooks) dashboard {
	left := map[string]collector.LimitInfo{} // not placed yet
	for _, l := range limits {
		left[l.Resource] = l
	}
	show := measures()
	limit := func(resource string) panel {
		l := left[resource]
		delete(left, resource)
		return limitPanel(l, show[resource], books)
	}

	here := func(title, more string) string {
		return "/d/" + nodeUID + "?var-datasource=${datasource}&${cluster:queryparam}&${job:queryparam}&${instance:queryparam}&${__url_time_range}" + more + "&" + view(nodeUID, title)
	}
	now := nearest("sort_desc(max by (resource) (sockpressure_saturation_ratio))", limits, func(resource string) []object {
		return []object{link("Over time", here(words(resource), "")), link("Runbook", books[resource])}
	})
	now.title, now.width, now.height = "Nearest limits", 6, 16
	now.about = "Usage as a share of each limit that this kernel has and enforces, in the colours of the limit's own levels. At 100% the kernel refuses, drops or kills. A click leads to the limit's panel, or to the runbook."
	ofPod := []object{offers(link("This one over time", here(podOverTime, "&var-netns=${__value.raw:percentencode}")))}

	rows := []row{
		{"", false, []panel{
			now,
			{
				kind: table, title: "Alerts that fire", unit: number, width: 9, height: 7,
				about: "Firing alerts of this node by limit and pod, without those of severity info: the most severe one, and how many there are. Click an alert for its runbook.",
				empty: "while no alert fires, or if the alerts are not loaded",
				queries: []query{
					{"", "max by (resource, pod, instance) (" + severity() + ")"},
					{"", "topk by (resource, pod, instance) (1, max by (alertname, resource, pod, instance) (" + worstAlert() + "))"},
					{"", "count by (resource, pod, instance) (" + firing(`severity=~"critical|warning"`) + ")"},
				},
				columns: []column{{"Value #A", "Severity"}, {"resource", "Limit"}, {"alertname", "Alert"}, {"pod", "Pod"}, {"Value #C", "Alerts"}, {"instance", "Node"}},
				sorted:  []string{"Severity", "Limit"},
				overrides: append([]object{
					named("Severity", levels()...),
					alert(link("Runbook", docs+"runbooks.md#${__value.raw}"), link("Runbook, from the node", "http://${__data.fields.Node}/runbooks#${__value.raw}")),
				}, wide(map[string]int{"Limit": 130, "Alert": 205, "Pod": 115, "Alerts": 50})...),
			},
			{
				kind: table, title: "Who holds it", unit: share, width: 9, height: 7,
				about:     "The largest holder of each limit whose usage is at least half of its warning level, and the holder's share of the usage.",
				empty:     "while no limit is close",
				queries:   []query{{"", "topk(30, max by (resource, item, process, owner, pod, instance) (sockpressure_saturation_holder_ratio))"}},
				columns:   []column{{"resource", "Limit"}, {"process", "Process"}, {"pod", "Pod"}, {"Value", "Part"}, {"item", "Of"}, {"owner", "Owner"}, {"instance", "Node"}},
				sorted:    []string{"Part"},
				overrides: append([]object{named("Part", bar(share)...)}, wide(map[string]int{"Limit": 145, "Process": 95, "Pod": 115, "Part": 105})...),
			},
			{
				kind: lines, title: "Refusals now", unit: perSecond, width: 9, height: 9, stacked: true,
				about: "Refusals, drops and kills per second, by the limit that is reached; the last row shows each counter. Counters with other causes are included; dropped received data counts only while TCP memory is at 90% or above.",
				empty: "in part if the kernel lacks a counter: without nf_conntrack or IPv6, and for UDP memory before Linux 5.11",
				queries: []query{
					{"accept_queue {{instance}}", rate("tcp_listen_overflows_total")},
					{"request_queue {{instance}}", rate("tcp_request_queue_full_drops_total")},
					{"tcp_memory or tcp_orphans {{instance}}", rate("tcp_aborts_on_memory_total")},
					{"tcp_memory: received data {{instance}}", rate("tcp_receive_queue_drops_total") + ` * ignoring (resource) (sockpressure_saturation_ratio{resource="tcp_memory"} >= bool 0.9)`},
					{"tcp_time_wait {{instance}}", rate("tcp_time_wait_overflows_total")},
					{"udp_memory {{instance}}", rate("udp_memory_errors_total")},
					{"udp_memory, IPv6 {{instance}}", rate("udp6_memory_errors_total")},
					{"ip_fragments_ipv4 {{instance}}", rate("ip_reassembly_failures_total")},
					{"ip_fragments_ipv6 {{instance}}", rate("ip6_reassembly_failures_total")},
					{"conntrack_entries {{instance}}", "clamp_min(" + rate("conntrack_drops_total") + " - " + rate("conntrack_insert_failures_total") + ", 0)"},
					{"neighbours_{{family}} {{instance}}", rate("neighbour_table_full_total")},
					{"netdev_backlog {{instance}}", rate("netdev_backlog_drops_total")},
					{"memory: OOM kills {{instance}}", rate("oom_kills_total")},
				},
			},
			{
				kind: table, title: podsOfNode, unit: share, width: 9, height: 9,
				about: "The 50 pods, containers and other network namespaces that are closest to a limit of their own namespace. Severities are those of the alert on pods. Click one for its limits over time.",
				empty: "without other network namespaces; all limits but conntrack_entries need CAP_SYS_ADMIN and CAP_SYS_PTRACE",
				queries: []query{
					{"", "topk(50, max by (resource, netns, pod, instance) (" + netnsShare + "))"},
					{"", "max by (resource, netns, pod, instance) (" + podLevel(netnsShare) + ") and on (resource, netns, instance) topk(50, max by (resource, netns, instance) (" + netnsShare + "))"},
				},
				columns:   []column{{"Value #B", "Severity"}, {"netns", "Network namespace"}, {"pod", "Pod"}, {"resource", "Limit"}, {"Value #A", "Used"}, {"instance", "Node"}},
				sorted:    []string{"Severity", "Used"},
				overrides: append([]object{named("Severity", levels()...), named("Network namespace", ofPod...)}, wide(map[string]int{"Network namespace": 185, "Pod": 115, "Limit": 130, "Used": 65})...),
			},
		}},
		{"Between scrapes", true, []panel{
			{
				kind: lines, title: "Peaks", unit: share, width: 12, height: 8,
				about:   "The 10 limits with the highest peaks. A peak is the highest saturation within a minute, from samples between scrapes; it is 100% if a counter or a kernel message proves that the limit was reached. Limits whose usage cannot be read in constant time have none.",
				queries: []query{{"{{resource}} {{instance}}", highest(10, "sockpressure_saturation_peak_ratio")}},
			},
			{
				kind: lines, title: "What the kernel logged", unit: number, width: 12, height: 8,
				about:   "Kernel messages about limits and memory. The kernel rate-limits most of them.",
				empty:   "if the exporter may not read the kernel log (kernel.dmesg_restrict is 1 and CAP_SYSLOG is missing)",
				queries: []query{{"{{message}} {{instance}}", "increase(sockpressure_kernel_messages_total[$__rate_interval])"}},
			},
		}},
		{"Sockets and states", true, []panel{
			limit("tcp_orphans"),
			limit("tcp_time_wait"),
			counters("Connections opened and lost", "Connections opened by this host and by others, those that did not come about, and those that ended because nobody answered.", "",
				"tcp_active_opens", "tcp_passive_opens", "tcp_attempt_failures", "tcp_aborts_on_timeout", "tcp_resets_sent"),
			{
				kind: lines, title: "TCP sockets by state", unit: number, width: 12, height: 9,
				about:   "TCP sockets of both address families. Many in close_wait mean that a program does not close connections that its peers have closed.",
				queries: []query{{"{{state}} {{instance}}", "sockpressure_tcp_sockets"}},
			},
			{
				kind: lines, title: "Sockets in use", unit: number, width: 12, height: 9,
				about: "Sockets by address family and protocol; \"all\" includes other families such as unix and netlink. TIME_WAIT sockets and connection requests are not counted.",
				queries: []query{
					{"all {{instance}}", "sockpressure_sockets_used"},
					{"{{protocol}}, {{family}} {{instance}}", "sockpressure_sockets_inuse"},
				},
			},
		}},
		{"TCP and UDP memory", true, []panel{
			limit("tcp_memory"),
			limit("udp_memory"),
			{
				kind: lines, title: "Socket memory by owner", unit: size, width: 8, height: 8, stacked: true,
				about:   "The pods, containers and units with the most memory in socket buffers.",
				empty:   "if the host's cgroups are not mounted",
				queries: []query{{"{{cgroup}} {{instance}}", "sockpressure_cgroup_socket_memory_bytes"}},
			},
			{
				kind: lines, title: "Under TCP memory pressure", unit: share, width: 8, height: 8,
				about: "100% while TCP memory is above the pressure threshold; and the share of time under pressure as the kernel counts it, from there until usage is below low. The kernel adds a period when it ends, so a long one shows as a peak above 100%.",
				queries: []query{
					{"above pressure {{instance}}", `sockpressure_tcp_memory_bytes > bool ignoring (threshold) sockpressure_tcp_memory_threshold_bytes{threshold="pressure"}`},
					{"counted when it ended {{instance}}", rate("tcp_memory_pressure_seconds_total")},
				},
			},
		}},
		{"Connection tracking", true, []panel{
			limit("conntrack_entries"),
			counters("Connection tracking drops", "Packets dropped (failed inserts are in), entries thrown out to make room, inserts that failed by themselves, and searches that began again.",
				"where the module nf_conntrack is not loaded; without CONFIG_NF_CONNTRACK_PROCFS the counters need CAP_NET_ADMIN",
				"conntrack_drops", "conntrack_early_drops", "conntrack_insert_failures", "conntrack_search_restarts"),
			counters("Invalid packets", "Packets that belong to no tracked connection and can begin none.", "where the module nf_conntrack is not loaded; without CONFIG_NF_CONNTRACK_PROCFS the counters need CAP_NET_ADMIN",
				"conntrack_invalid"),
		}},
		{"Descriptors and threads", true, []panel{
			limit("file_descriptors"),
			limit("process_file_descriptors"),
			limit("threads"),
			{
				kind: table, title: "Processes nearest to their limit", unit: number, width: 8, height: 8,
				about: "Open descriptors and limit, for each process name of the process closest to its limit.",
				queries: []query{
					{"", "max by (process, instance) (sockpressure_process_open_file_descriptors)"},
					{"", "max by (process, instance) (sockpressure_process_file_descriptors_limit)"},
					{"", "max by (process, instance) (sockpressure_process_open_file_descriptors / sockpressure_process_file_descriptors_limit)"},
				},
				columns:   []column{{"process", "Process"}, {"instance", "Node"}, {"Value #A", "Open"}, {"Value #B", "Limit"}, {"Value #C", "Share"}},
				sorted:    []string{"Share"},
				overrides: []object{named("Share", property("unit", share))},
			},
		}},
		{"Queues and ports", true, []panel{
			limit("accept_queue"),
			{
				kind: table, title: "Listeners nearest to their limit", unit: number, width: 8, height: 8,
				about: "Connections waiting to be accepted, and the limit: the backlog passed to listen, at most net.core.somaxconn. For a SO_REUSEPORT group these are sums, and the share is that of its fullest socket.",
				empty: "if nothing listens",
				queries: []query{
					{"", "max by (listener, instance) (sockpressure_accept_queue_length)"},
					{"", "max by (listener, instance) (sockpressure_accept_queue_limit)"},
					{"", "max by (listener, instance) (sockpressure_accept_queue_saturation_ratio)"},
				},
				columns:   []column{{"listener", "Listener"}, {"instance", "Node"}, {"Value #A", "Waiting"}, {"Value #B", "Limit"}, {"Value #C", "Share"}},
				sorted:    []string{"Share"},
				overrides: []object{named("Share", property("unit", share))},
			},
			limit("ephemeral_ports"),
			limit("request_queue"),
			limit("unix_accept_queue"),
			limit("udp_receive_queue"),
		}},
		{"Network namespaces: pods, containers", true, []panel{
			{
				kind: lines, title: podOverTime, unit: share, width: 12, height: 9,
				about:   "Limits of the pods, containers and other network namespaces selected above: the 10 with the highest saturation.",
				empty:   "without other network namespaces; all limits but conntrack_entries need CAP_SYS_ADMIN and CAP_SYS_PTRACE",
				queries: []query{{"{{netns}} {{resource}} {{instance}}", highest(10, netnsShare+`{netns=~"$netns"}`)}},
			},
			{
				kind: lines, title: "Refused in network namespaces", unit: perSecond, width: 12, height: 9, stacked: true,
				about:   "Refusals per second in all network namespaces other than the host's, including those that no longer exist.",
				empty:   "if the exporter does not see the host's processes",
				queries: []query{{"{{resource}} {{instance}}", rate("netns_refusals_total")}},
			},
			{
				kind: table, title: "Where the kernel refuses", unit: perSecond, width: 12, height: 9,
				about: "The network namespaces whose counters rose last, per second: connections dropped at a full accept queue, packets that could not be tracked, connections closed without TIME_WAIT, datagrams dropped at a full buffer.",
				empty: "if the kernel has never refused anything in one",
				queries: []query{
					{"", "max by (netns, pod, instance) (rate(sockpressure_netns_tcp_listen_overflows_total[$__rate_interval]))"},
					{"", "max by (netns, pod, instance) (rate(sockpressure_netns_conntrack_drops_total[$__rate_interval]))"},
					{"", "max by (netns, pod, instance) (rate(sockpressure_netns_tcp_time_wait_overflows_total[$__rate_interval]))"},
					{"", "max by (netns, pod, instance) (rate(sockpressure_netns_udp_receive_buffer_errors_total[$__rate_interval]))"},
				},
				columns: []column{
					{"netns", "Network namespace"},
					{"pod", "Pod"},
					{"instance", "Node"},
					{"Value #A", "Accept queue"},
					{"Value #B", "Conntrack"},
					{"Value #C", "TIME_WAIT"},
					{"Value #D", "UDP"},
				},
				sorted:    []string{"Accept queue"},
				overrides: wide(map[string]int{"Network namespace": 190, "Pod": 120, "Node": 100, "Accept queue": 105, "Conntrack": 90, "TIME_WAIT": 90, "UDP": 80}),
			},
			{
				kind: table, title: "Accept queues of network namespaces", unit: number, width: 12, height: 9,
				about: "The listeners closest to their limit: connections waiting to be accepted, and the limit.",
				empty: "if no connection waits, or the exporter lacks CAP_SYS_ADMIN or CAP_SYS_PTRACE",
				queries: []query{
					{"", "max by (netns, pod, listener, instance) (sockpressure_netns_accept_queue_length)"},
					{"", "max by (netns, pod, listener, instance) (sockpressure_netns_accept_queue_limit)"},
				},
				columns: []column{
					{"netns", "Network namespace"}, {"pod", "Pod"}, {"listener", "Listener"}, {"instance", "Node"}, {"Value #A", "Waiting"}, {"Value #B", "Limit"},
				},
				sorted:    []string{"Waiting"},
				overrides: wide(map[string]int{"Network namespace": 190, "Pod": 120, "Node": 100, "Waiting": 80, "Limit": 80}),
			},
		}},
		{"Packets: backlog, neighbours, fragments", true, []panel{
			limit("netdev_backlog"),
			limit("neighbours_ipv4"),
			limit("neighbours_ipv6"),
			limit("ip_fragments_ipv4"),
			limit("ip_fragments_ipv6"),
		}},
		{"Memory and its reserves", true, []panel{
			limit("memory"),
			limit("cgroup_memory"),
			{
				kind: table, title: "Cgroups nearest to their limit", unit: size, width: 8, height: 8,
				about: "Pods, containers and units: memory that cannot be reclaimed, and the memory limit.",
				empty: "if no cgroup has a memory limit, or cgroups are not mounted",
				queries: []query{
					{"", "max by (cgroup, pod, instance) (sockpressure_cgroup_memory_saturation_ratio)"},
					{"", "max by (cgroup, pod, instance) (sockpressure_cgroup_memory_used_bytes)"},
					{"", "max by (cgroup, pod, instance) (sockpressure_cgroup_memory_limit_bytes)"},
					{"", "max by (cgroup, pod, instance) (increase(sockpressure_cgroup_oom_kills_total[$__rate_interval])) and on (cgroup, instance) sockpressure_cgroup_memory_limit_bytes"},
				},
				columns: []column{{"cgroup", "Cgroup"}, {"pod", "Pod"}, {"Value #A", "Share"}, {"Value #B", "Used"}, {"Value #C", "Limit"}, {"Value #D", "OOM kills"}, {"instance", "Node"}},
				sorted:  []string{"Share"},
				overrides: []object{
					named("Share", colours(limits, "cgroup_memory")...),
					named("OOM kills", property("unit", number)),
				},
			},
			limit("committed_memory"),
			{
				kind: lines, title: "Waiting for memory", unit: share, width: 8, height: 8, top: 1,
				about:   "The share of time in which some tasks, or all tasks, waited for memory.",
				empty:   "if pressure stall information is off",
				queries: []query{{"{{kind}} {{instance}}", rate("memory_pressure_seconds_total")}},
			},
			{
				kind: lines, title: "Kernel memory", unit: size, width: 8, height: 8,
				about:   "Memory used by the kernel itself, by kind; kernel_stack may be part of vmalloc. Sockets are in both kinds of slab.",
				queries: []query{{"{{kind}} {{instance}}", "sockpressure_memory_kernel_bytes"}},
			},
			{
				kind: lines, title: "Socket and conntrack caches", unit: size, width: 8, height: 8, stacked: true,
				about:   "The largest slab caches of sockets and connection tracking.",
				empty:   "unless the exporter runs as root, to whom alone the kernel shows its caches",
				queries: []query{{"{{cache}} {{instance}}", "sockpressure_memory_slab_bytes"}},
			},
			{
				kind: lines, title: "Free above the reserve", unit: size, width: 8, height: 8,
				about:   "Free memory of a zone minus its min watermark, for the zones closest to it. At 0, an allocation waits until memory is reclaimed, or a process is killed.",
				queries: []query{{"{{zone}}, node {{node}} {{instance}}", `sockpressure_memory_zone_free_bytes - ignoring (watermark) sockpressure_memory_zone_watermark_bytes{watermark="min"}`}},
			},
			limit("low_memory"),
			{
				kind: lines, title: "LowFree and HighFree", unit: size, width: 16, height: 8,
				about: "Sockets are in low memory. LowFree also falls with page cache, which can be reclaimed; the limit low_memory does not count that.",
				empty: "except on 32-bit kernels with high memory",
				queries: []query{
					{"low, free {{instance}}", "sockpressure_memory_low_free_bytes"},
					{"limit: low, total {{instance}}", "sockpressure_memory_low_total_bytes"},
					{"high, free {{instance}}", "sockpressure_memory_high_free_bytes"},
				},
				overrides: []object{dashed("limit", colorLimit)},
			},
		}},
		{"Kernel refusals", true, []panel{
			counters("Listeners", "Connections dropped because the accept queue was full, for any reason (drops, overflows included), and connection requests whose queue was full. A cookie is an answer, not a refusal.", "",
				"tcp_listen_overflows", "tcp_listen_drops", "tcp_request_queue_full_drops", "tcp_request_queue_full_cookies", "tcp_syncookies_failed"),
			counters("TCP", "Connections reset for want of memory or as orphans, closed without TIME_WAIT, and segments dropped in the receive path.", "",
				"tcp_aborts_on_memory", "tcp_memory_pressures", "tcp_time_wait_overflows", "tcp_receive_queue_drops", "tcp_receive_pruned", "tcp_out_of_order_pruned",
				"tcp_pruned", "tcp_backlog_drops", "tcp_zero_window_drops", "tcp_memalloc_drops"),
			counters("TCP retransmissions", "Segments sent again, SYN by themselves. They rise on this host when the other side refuses.", "",
				"tcp_retransmitted_segments", "tcp_syn_retransmits"),
			counters("UDP", "Datagrams dropped because UDP memory met its limit, or because the buffer of one socket was full.", "in part before Linux 5.11, which counts no memory errors, and where IPv6 is off",
				"udp_memory_errors", "udp_receive_buffer_errors", "udp_send_buffer_errors", "udp6_memory_errors", "udp6_receive_buffer_errors", "udp6_send_buffer_errors"),
			counters("IP and received packets", "Packets dropped because a CPU did not keep up, fragments that were not put together, packets dropped for want of a buffer, neighbours that did not fit into their table.",
				"in part where IPv6 is off, or in a network namespace that is not the first one",
				"netdev_backlog_drops", "netdev_time_squeezes", "ip_reassembly_failures", "ip6_reassembly_failures", "ip_output_discards", "ip_input_discards", "neighbour_table_full"),
			{
				kind: lines, title: "OOM kills", unit: number, width: 8, height: 8,
				about:   "Processes killed for lack of memory, including those in a memory cgroup at its limit.",
				queries: []query{{"OOM kills {{instance}}", "increase(sockpressure_oom_kills_total[$__rate_interval])"}},
			},
		}},
		{"The exporter", true, []panel{{
			kind: table, title: "Collectors", unit: number, width: 24, height: 10,
			about: "Success is 0 after an error: the limits of that collector are not monitored. Supported is 0 if the kernel lacks what the collector reads. Age is above 0 if --collector.max-cpu postponed a new reading.",
			queries: []query{
				{"", "max by (collector, instance) (sockpressure_scrape_collector_success)"},
				{"", "max by (collector, instance) (sockpressure_scrape_collector_supported)"},
				{"", "max by (collector, instance) (sockpressure_scrape_collector_duration_seconds)"},
				{"", "max by (collector, instance) (sockpressure_scrape_collector_age_seconds)"},
			},
			columns:   []column{{"collector", "Collector"}, {"instance", "Node"}, {"Value #A", "Success"}, {"Value #B", "Supported"}, {"Value #C", "Duration"}, {"Value #D", "Age"}},
			sorted:    []string{"Success", "Supported", "Collector"},
			rising:    true,
			overrides: []object{named("Duration", property("unit", seconds)), named("Age", property("unit", seconds))},
		}}},
	}
	if len(left) > 0 {
		other := row{title: "Other limits", folded: true}
		for _, resource := range slices.Sorted(maps.Keys(left)) {
			other.panels = append(other.panels, limit(resource))
		}
		rows = slices.Insert(rows, len(rows)-2, other)
	}

	return dashboard{
		uid: nodeUID, title: "Sockpressure / Node", from: "now-3h",
		about: "How close one node is to each kernel limit on sockets and memory, and what its kernel refuses.",
		variables: []variable{
			{name: "cluster", label: "Cluster", metric: "sockpressure_host_network_namespace", all: true},
			{name: "job", label: "Job", metric: "sockpressure_host_network_namespace", all: true},
			{name: "instance", label: "Instance", metric: "sockpressure_host_network_namespace"},
			{name: "netns", label: "Pod or network namespace", metric: netnsShare, all: true},
		},
		annotations: []object{
			annotation("Alerts", "red", "{{alertname}}", "{{instance}} {{resource}}", firing()),
			annotation("Kernel messages", "purple", "{{message}}", "{{instance}}", "increase(sockpressure_kernel_messages_total[$__rate_interval]) > 0"),
			annotationAt("Exporter restarts", "blue", "The exporter began", "{{instance}}", "process_start_time_seconds * 1000"),
		},
		links: []object{{
			"type": "link", "title": "Pods of this node", "url": "/d/" + nodeUID + "?" + view(nodeUID, podsOfNode), "icon": "external link",
			"includeVars": true, "keepTime": true, "targetBlank": false, "tooltip": "", "tags": []string{}, "asDropdown": false,
		}},
		rows: rows,
	}
}

// counters returns a panel of counters. Their names are derived from those of the
// metrics.
func counters(title, about, empty string, names ...string) panel {
	p := panel{kind: lines, title: title, about: about, empty: empty, unit: perSecond, width: 8, height: 8}
	for _, name := range names {
		word := strings.ReplaceAll(strings.TrimPrefix(name, "tcp_"), "_", " ")
		if name == "neighbour_table_full" {
			word += " {{family}}"
		}
		p.queries = append(p.queries, query{word + " {{instance}}", rate(name + "_total")})
	}
	return p
}

// rate returns an expression for how much a counter rises per second.
func rate(counter string) string { return "rate(sockpressure_" + counter + "[$__rate_interval])" }
