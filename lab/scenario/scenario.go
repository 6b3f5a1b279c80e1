// Package scenario describes what the lab does to a kernel: the list of scenarios,
// which the host goes through and the guest carries out, and the messages in
// which the guest reports.
package scenario

import (
	"slices"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// Scenario is one kind of trouble, or of none.
type Scenario struct {
	Name string
	// Resource is the limit that the load drives to refusal, empty if none.
	Resource string
	// Walks are the collectors that must have read again after each step. The exporter
	// then runs with --collector.max-cpu=0: an emulator is so much slower than a
	// processor that each step would wait for the budget of walks.
	Walks []string
	// Counters are those that must have risen at the end.
	Counters []string
	// Message is what the kernel may have logged besides the limit's own lines.
	Message string
	// Netns are the network namespaces other than the host's that must be seen at a limit
	// of their own: the labels of netns_saturation_ratio.
	Netns []string
	// Saturation is the least that the limit must show when the kernel first
	// refuses, or right before, if there is anything to show.
	Saturation float64
	// Who is what the command who must name first, asked about Resource when the kernel
	// first refuses; a pattern, empty if it is not asked.
	Who string
	// Unprivileged runs the exporter as a user without capabilities.
	Unprivileged bool
	// HighMemory limits the scenario to kernels with high memory, and leaves them
	// little low memory.
	HighMemory bool
	// Disk is the size of an empty disk in MiB, 0 for none.
	Disk int
	// Processors is how many there are, 0 for one.
	Processors int
	// Sampled has usage rise and fall between two scrapes once the kernel has refused:
	// samples have to go on then, and so has the counting of what the kernel logs.
	Sampled bool
	// Unsampled runs the exporter without samples between scrapes. In emulation they cost
	// many times of what they do on a real processor, and would hide other costs.
	Unsampled bool
	// Unrecorded is set where it is not a limit that is put to the test, and a recording
	// would tell nothing that others do not.
	Unrecorded bool
	// Prometheus has one outside of the guest scrape it every minute, which takes some of
	// them: the scenario is driven only where it is named.
	Prometheus bool
	// Longer is the time that it may take above that of others.
	Longer time.Duration
	// Planned has the guest set to what the command plan says, and has it hold what that
	// was asked for. It has no steps.
	Planned bool
	// Tuned has the guest try settings of tuning lists that a network namespace does not
	// have for itself. It has no steps either.
	Tuned bool
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
			Name: "conntrack_entries", Resource: "conntrack_entries", Saturation: 1, Who: `127\.0\.0\.1`,
			Counters: []string{"conntrack_drops_total"},
		},
		// The same in a network namespace of its own, by an exporter that is given the
		// procfs of its processes.
		{
			Name: "conntrack_entries_netns", Resource: "conntrack_entries", Saturation: 1, Who: `127\.0\.0\.1`,
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
			Name: "tcp_memory", Resource: "tcp_memory", Saturation: 0.95, Who: `(init|exe)\[\d+\]`,
			Counters: []string{"tcp_memory_pressures_total", "tcp_pruned_total"},
		},
		{Name: "udp_memory", Resource: "udp_memory", Saturation: 0.95, Who: `(init|exe)\[\d+\]`, Counters: []string{"udp_memory_errors_total"}},
		{
			Name: "tcp_orphans", Resource: "tcp_orphans", Saturation: 0.95, Who: `(at|to) 127\.0\.0\.1:9004`,
			Counters: []string{"tcp_aborts_on_memory_total"},
		},
		{Name: "tcp_time_wait", Resource: "tcp_time_wait", Saturation: 1, Who: `(at|to) 127\.0\.0\.1:9005`, Counters: []string{"tcp_time_wait_overflows_total"}},
		{
			Name: "accept_queue", Resource: "accept_queue", Saturation: 1, Who: `127\.0\.0\.1:9006`, Walks: []string{"tcp"},
			Counters: []string{"tcp_listen_overflows_total", "tcp_listen_drops_total"},
		},
		{Name: "unix_accept_queue", Resource: "unix_accept_queue", Saturation: 1, Walks: []string{"unix"}},
		{
			Name: "udp_receive_queue", Resource: "udp_receive_queue", Saturation: 0.9, Walks: []string{"udp"},
			Counters: []string{"udp_receive_buffer_errors_total"},
		},
		{
			Name: "syn_flood", Resource: "request_queue", Saturation: 1, Walks: []string{"tcp"},
			Counters: []string{"tcp_request_queue_full_drops_total", "tcp_request_queue_full_cookies_total", "tcp_syncookies_sent_total"},
		},
		{Name: "ephemeral_ports", Resource: "ephemeral_ports", Saturation: 1, Who: `127\.0\.0\.1 → 127\.0\.0\.1:9008`, Walks: []string{"ports"}},
		// On root, fs.file-max is not enforced.
		{Name: "file_descriptors", Resource: "file_descriptors", Saturation: 0.9, Who: `exe\[\d+\]`, Unprivileged: true, Sampled: true},
		{Name: "process_file_descriptors", Resource: "process_file_descriptors", Saturation: 1, Who: `exe\[\d+\]`, Walks: []string{"process"}},
		{Name: "threads", Resource: "threads", Saturation: 0.95},
		{
			Name: "neighbours_ipv4", Resource: "neighbours_ipv4", Saturation: 0.95, Who: `\w+`,
			Counters: []string{`neighbour_table_full_total{family="ipv4"}`},
		},
		{
			Name: "neighbours_ipv6", Resource: "neighbours_ipv6", Saturation: 0.95, Who: `\w+`,
			Counters: []string{`neighbour_table_full_total{family="ipv6"}`},
		},
		{Name: "ip_fragments_ipv4", Resource: "ip_fragments_ipv4", Saturation: 0.95, Counters: []string{"ip_reassembly_failures_total"}},
		{Name: "ip_fragments_ipv6", Resource: "ip_fragments_ipv6", Saturation: 0.95, Counters: []string{"ip6_reassembly_failures_total"}},
		// A backlog lasts for less than a scrape: only its drops can be seen.
		{Name: "netdev_backlog", Resource: "netdev_backlog", Counters: []string{"netdev_backlog_drops_total"}},
		// No program can start then, which who is.
		{Name: "committed_memory", Resource: "committed_memory", Saturation: 0.9},
		{Name: "memory", Resource: "memory", Saturation: 0.9, Counters: []string{"oom_kills_total"}, Sampled: true},
		{
			Name: "cgroup_memory", Resource: "cgroup_memory", Saturation: 0.9, Walks: []string{"cgroup"},
			Counters: []string{"cgroup_oom_kills_all_total", "cgroup_ooms_all_total"},
			Message:  "oom_kill_cgroup",
		},
		// The same by data that clients send and the program does not read.
		{
			Name: "cgroup_sockets", Unrecorded: true, Resource: "cgroup_memory", Saturation: 0.9, Walks: []string{"cgroup"},
			Counters: []string{"cgroup_oom_kills_all_total", "cgroup_ooms_all_total"},
			Message:  "oom_kill_cgroup",
		},
		{
			Name: "low_memory", Resource: "low_memory", Saturation: 0.9, Counters: []string{"oom_kills_total"},
			HighMemory: true, Sampled: true, Longer: time.Minute,
		},

		// A program writes into the kernel's log what the kernel itself writes there.
		{
			Name: "log_forged", Resource: "conntrack_entries", Saturation: 1,
			Counters: []string{"conntrack_drops_total"}, Unrecorded: true,
		},
		// The log is written faster than it can be read, while a table is full. With a
		// second processor the exporter could read all the time.
		{
			Name: "log_flood", Resource: "conntrack_entries", Saturation: 1, Processors: 2,
			Counters: []string{"conntrack_drops_total", "kernel_messages_lost_total"}, Unsampled: true, Unrecorded: true, Longer: 3 * time.Minute,
		},

		// A table is full between two scrapes.
		{Name: "between_scrapes", Resource: "conntrack_entries", Unrecorded: true, Prometheus: true, Longer: 5 * time.Minute},
		{Name: "plan", Planned: true, Unrecorded: true, Longer: 5 * time.Minute},
		{Name: "tuning", Tuned: true, Unrecorded: true, Longer: 2 * time.Minute},

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

// The guest's ports that QEMU forwards to where there is a Prometheus: the exporter's, and
// one at which the guest waits to be told that its load may begin, and then that it may
// end. FullFor is how long the limit is reached.
const (
	ExporterPort = 10058
	ControlPort  = 9100
	FullFor      = 20 * time.Second
)

// Message is what the guest writes, as a line of JSON each.
type Message struct {
	Machine *Machine `json:",omitempty"` // the first
	Step    *Step    `json:",omitempty"`
	Planned *Planned `json:",omitempty"`
	Tried   *Tried   `json:",omitempty"`
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
	// answer, and Silent is the reason; Seconds is how long that took.
	Page    string
	Silent  string `json:",omitempty"`
	Seconds float64
	// Missed is the scrapes that were not answered in time before that.
	Missed int `json:",omitempty"`
	// Differ is where the guest read something else, though that did not move.
	Differ []string `json:",omitempty"`
	// Log is what the kernel logged.
	Log []string `json:",omitempty"`
	// Who is what the command who printed, if it was asked, and NoWho why it did not answer.
	Who, NoWho string `json:",omitempty"`
	// Status is the status page, if the lab wants it and the exporter answered.
	Status string `json:",omitempty"`
}

// Planned is what came of a plan.
type Planned struct {
	Connections int
	// File is what plan printed for /etc/sysctl.d.
	File string
	// Predicted is the kernel memory that plan has in its bill, Measured what the
	// connections took, in bytes.
	Predicted, Measured float64
	// Refused is what a program saw while the guest was set to File, Moved the limits
	// whose counters or lines told of a refusal: there should be none.
	Refused string
	Moved   []string
	// Saturation is that of each limit while they were held.
	Saturation map[string]float64
	Cuts       []Cut
}

// Tried is a setting that was tried.
type Tried struct {
	Setting, Result string
	// Wrong is set where that was not what docs/million.md says of it.
	Wrong bool
}

// Cut is a value that plan said to set, a third lower.
type Cut struct {
	Resource, Setting, From, To string
	Refused                     string
	Moved                       []string
	// Named is set where the refusal is the one that the limit's row names.
	Named bool
}

// Done is the sum of all steps.
type Done struct {
	// Agreed is the series that had the value that the guest read by itself, Never
	// those that never had it in any step.
	Agreed int
	Never  []string `json:",omitempty"`
	// Miscounted is the messages whose number is not that of the kernel's lines.
	Miscounted []string `json:",omitempty"`
	Floods     []Flood  `json:",omitempty"`
}

// Flood is what the exporter made of a flood of the kernel's log.
type Flood struct {
	Writer  string
	Seconds float64
	// Records is how many there were, Lost those of them that the exporter missed.
	Records, Lost float64
	// Share is what the exporter took of a processor, Rest what it took before.
	Share, Rest float64
	// Logged is the kernel's lines about the full table amidst the flood, Counted those of
	// them that the exporter saw.
	Logged, Counted float64
}
