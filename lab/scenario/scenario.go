// Package scenario says what the lab does to a kernel: the list of scenarios,
// which the host goes through and the guest carries out, and the messages in
// which the guest reports.
package scenario

import (
	"slices"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// Scenario is one kind of trouble, or of none.
type Scenario struct {
	Name string
	// Resource is the limit that the load drives to refusal, empty if none.
	Resource string
	// Walks are the collectors that must have read anew after each step. The exporter
	// then runs with --collector.max-cpu=0: an emulator is so much slower than a
	// processor that each step would wait for the budget of walks.
	Walks []string
	// Counters are those that must have risen at the end.
	Counters []string
	// Message is what the kernel may have logged besides the limit's own lines.
	Message string
	// Netns are the network namespaces besides the host's that must be seen at a limit
	// of their own: the labels of netns_saturation_ratio.
	Netns []string
	// Saturation is the least that the limit must show when the kernel first
	// refuses, or right before, if there is anything to show.
	Saturation float64
	// Unprivileged runs the exporter as a user without capabilities.
	Unprivileged bool
	// HighMemory limits the scenario to kernels with high memory, and leaves them
	// little low memory.
	HighMemory bool
	// Disk is the size of an empty disk in MiB, 0 for none.
	Disk int
	// Healthy has nothing go wrong: no refusal, and no alert.
	Healthy bool
}

// LogLines are lines, of which the kernel must have logged one.
func (s Scenario) LogLines() []collector.LogLine {
	var lines []collector.LogLine
	for _, spec := range collector.Specs() {
		for _, line := range spec.LogLines {
			if line.Message == s.Message {
				lines = append(lines, line)
			}
		}
		for _, l := range spec.Limits {
			if l.Resource == s.Resource {
				lines = append(lines, l.LogLines...)
			}
		}
	}
	return slices.DeleteFunc(lines, func(l collector.LogLine) bool { return l.Before != "" })
}

// All is every scenario.
func All() []Scenario {
	return []Scenario{
		{
			Name: "conntrack_entries", Resource: "conntrack_entries", Saturation: 1,
			Counters: []string{"conntrack_drops_total"},
		},
		// The same in a network namespace of its own, by an exporter that is given the
		// procfs of its processes.
		{
			Name: "conntrack_entries_netns", Resource: "conntrack_entries", Saturation: 1,
			Counters: []string{"conntrack_drops_total"},
			Message:  "conntrack_table_full_in_netns", // or the limit's own, on kernels that do not tell
		},
		// Pods in network namespaces and cgroups of their own, as systemd's cgroup driver
		// names those: each of another container runtime, and each at another limit.
		{
			Name: "pods", Walks: []string{"netns"},
			Counters: []string{
				`netns_refusals_total{resource="accept_queue"}`, `netns_refusals_total{resource="conntrack_entries"}`, `netns_refusals_total{resource="tcp_time_wait"}`,
			},
			Netns: []string{
				`namespace="shop",netns="pod/shop/cart-0",pod="cart-0",resource="accept_queue"`,
				`namespace="shop",netns="pod/shop/search-1",pod="search-1",resource="tcp_time_wait"`,
				`namespace="shop",netns="pod/shop/checkout-5d9c",pod="checkout-5d9c",resource="ephemeral_ports"`,
				`namespace="kube-system",netns="pod/kube-system/coredns-x7",pod="coredns-x7",resource="conntrack_entries"`,
			},
		},
		{
			Name: "tcp_memory", Resource: "tcp_memory", Saturation: 0.95,
			Counters: []string{"tcp_memory_pressures_total", "tcp_pruned_total"},
		},
		{Name: "udp_memory", Resource: "udp_memory", Saturation: 0.95, Counters: []string{"udp_memory_errors_total"}},
		{
			Name: "tcp_orphans", Resource: "tcp_orphans", Saturation: 0.95,
			Counters: []string{"tcp_aborts_on_memory_total"},
		},
		{Name: "tcp_time_wait", Resource: "tcp_time_wait", Saturation: 1, Counters: []string{"tcp_time_wait_overflows_total"}},
		{
			Name: "accept_queue", Resource: "accept_queue", Saturation: 1, Walks: []string{"tcp"},
			Counters: []string{"tcp_listen_overflows_total", "tcp_listen_drops_total"},
		},
		{
			Name:     "syn_flood",
			Counters: []string{"tcp_request_queue_full_drops_total", "tcp_request_queue_full_cookies_total", "tcp_syncookies_sent_total"},
			Message:  "tcp_syn_flooding",
		},
		{Name: "ephemeral_ports", Resource: "ephemeral_ports", Saturation: 1, Walks: []string{"ports"}},
		// On root, fs.file-max is not enforced.
		{Name: "file_descriptors", Resource: "file_descriptors", Saturation: 0.9, Unprivileged: true},
		{Name: "process_file_descriptors", Resource: "process_file_descriptors", Saturation: 1, Walks: []string{"process"}},
		{
			Name: "neighbours_ipv4", Resource: "neighbours_ipv4", Saturation: 0.95,
			Counters: []string{`neighbour_table_full_total{family="ipv4"}`},
		},
		{
			Name: "neighbours_ipv6", Resource: "neighbours_ipv6", Saturation: 0.95,
			Counters: []string{`neighbour_table_full_total{family="ipv6"}`},
		},
		{Name: "ip_fragments_ipv4", Resource: "ip_fragments_ipv4", Saturation: 0.95, Counters: []string{"ip_reassembly_failures_total"}},
		{Name: "ip_fragments_ipv6", Resource: "ip_fragments_ipv6", Saturation: 0.95, Counters: []string{"ip6_reassembly_failures_total"}},
		// A backlog lasts for less than a scrape: only its drops can be seen.
		{Name: "netdev_backlog", Resource: "netdev_backlog", Counters: []string{"netdev_backlog_drops_total"}},
		{Name: "committed_memory", Resource: "committed_memory", Saturation: 0.9},
		{Name: "memory", Resource: "memory", Saturation: 0.9, Counters: []string{"oom_kills_total"}},
		{
			Name: "cgroup_memory", Resource: "cgroup_memory", Saturation: 0.9, Walks: []string{"cgroup"},
			Counters: []string{"cgroup_oom_kills_all_total", "cgroup_ooms_all_total"},
			Message:  "oom_kill_cgroup",
		},
		// The same by data that clients send and the program does not read.
		{
			Name: "cgroup_sockets", Resource: "cgroup_memory", Saturation: 0.9, Walks: []string{"cgroup"},
			Counters: []string{"cgroup_oom_kills_all_total", "cgroup_ooms_all_total"},
			Message:  "oom_kill_cgroup",
		},
		{
			Name: "low_memory", Resource: "low_memory", Saturation: 0.9, Counters: []string{"oom_kills_total"},
			HighMemory: true,
		},

		// Every collector must have read something that can be compared.
		{Name: "idle", Healthy: true, Walks: []string{"tcp", "ports", "process"}},
		{Name: "busy", Healthy: true, Walks: []string{"tcp", "ports", "process"}},
		{Name: "burst", Healthy: true, Walks: []string{"tcp", "ports", "process"}},
		{Name: "page_cache", Healthy: true, HighMemory: true, Disk: 300},
	}
}

// Ramp is the steps that a load takes from nothing to its limit, more or less:
// ten minutes if a step is laid out at 15 s. Before and After are the steps
// without a load, Past those that go on after the first refusal.
const (
	Before = 4
	Ramp   = 40
	Past   = 8
	After  = 4
)

// Folders of modules in the guest: PortModules are loaded first, so that it can report;
// the idle scenario looks at the kernel before it loads Modules.
const (
	PortModules = "portmodules"
	Modules     = "modules"
)

// WantStatus on the kernel's command line makes the guest report the status page of
// each step too.
const WantStatus = "lab.status"

// Message is what the guest writes, as a line of JSON each.
type Message struct {
	Machine *Machine `json:",omitempty"` // the first
	Step    *Step    `json:",omitempty"`
	Done    *Done    `json:",omitempty"` // the last, if all went well
	Error   string   `json:",omitempty"` // the last, if not
}

// Machine is what the guest runs on.
type Machine struct {
	Release   string // uname -r
	PageSize  int    // in bytes
	BigEndian bool
}

// Step is the kernel and the exporter after a step of the load.
type Step struct {
	// Refused is what the program under load saw when the kernel refused, empty
	// as long as it did not.
	Refused string `json:",omitempty"`
	// Page is what the exporter served, its own metrics only, empty if it did not
	// answer, and Silent says why; Seconds is how long that took.
	Page    string
	Silent  string `json:",omitempty"`
	Seconds float64
	// Missed is the scrapes that were not answered in time before that.
	Missed int `json:",omitempty"`
	// Differ is where the guest read something else, though that did not move.
	Differ []string `json:",omitempty"`
	// Log is what the kernel logged.
	Log []string `json:",omitempty"`
	// Status is the status page, if the lab wants it and the exporter answered.
	Status string `json:",omitempty"`
}

// Done is the sum of all steps.
type Done struct {
	// Agreed is the series that had the value that the guest read by itself, Never
	// those that never had it in any step.
	Agreed int
	Never  []string `json:",omitempty"`
}
