// Package scenario describes what the lab does to a kernel: the list of scenarios, which
// the host goes through and the guest carries out, and the messages in which the guest
// reports.
package scenario

import (
	"slices"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// Scenario is one kind of overload, or none.
type Scenario struct {
	Name string
	// Resource is the limit that the load drives to refusal, empty if none.
	Resource string
	// Walks are the collectors that must read again after each step. The exporter then
	// runs with --collector.max-cpu=0: an emulator is so much slower than a processor
	// that each step would otherwise wait for the budget of walks.
	Walks []string
	// Counters are the counters that must have risen at the end.
	Counters []string
	// Message is a message that the kernel may log in addition to the limit's own lines.
	Message string
	// Netns are the network namespaces other than the host's that must be reported at a
	// limit of their own: the labels of netns_saturation_ratio.
	Netns []string
	// Saturation is the minimum that the limit must show when the kernel first refuses,
	// or right before, if there is anything to show.
	Saturation float64
	// Who is a pattern for what the command who must list first when it is asked about
	// Resource at the first refusal; empty if it is not asked.
	Who string
	// Unprivileged runs the exporter as a user without capabilities.
	Unprivileged bool
	// HighMemory restricts the scenario to kernels with high memory, and leaves them
	// little low memory.
	HighMemory bool
	// Disk is the size of an empty disk in MiB, 0 for none.
	Disk int
	// Processors is the number of processors, 0 for one.
	Processors int
	// Sampled makes usage rise and fall between two scrapes once the kernel has refused:
	// samples, and the counting of kernel messages, must continue then.
	Sampled bool
	// Unsampled runs the exporter without samples between scrapes. In emulation they cost
	// many times what they do on a real processor, and would hide other costs.
	Unsampled bool
	// Unrecorded is set if the scenario does not test a limit, and a recording would show
	// nothing that others do not.
	Unrecorded bool
	// Prometheus makes a Prometheus outside of the guest scrape it every minute. That
	// takes several minutes, so the scenario runs only if it is named.
	Prometheus bool
	// Longer is the time that it may take in addition to the usual one.
	Longer time.Duration
	// Planned makes the guest apply the settings that the command plan prints, and hold
	// the load that the plan is for. It has no steps.
	Planned bool
	// Tuned makes the guest try settings of tuning lists that a network namespace does
	// not have separately. It has no steps either.
	Tuned bool
	// Healthy means that nothing must go wrong: no refusal, and no alert.
	Healthy bool
}

// LogLines returns the lines of which the kernel must have logged at least one.
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

// All returns every scenario.
func All() []Scenario {
	return []Scenario{
		{
			Name: "conntrack_entries", Resource: "conntrack_entries", Saturation: 1, Who: `127\.0\.0\.1`,
			Counters: []string{"conntrack_drops_total"},
		},
		// The same in a separate network namespace, by an exporter that is given the
		// procfs of its processes.
		{
			Name: "conntrack_entries_netns", Resource: "conntrack_entries", Saturation: 1, Who: `127\.0\.0\.1`,
			Counters: []string{"conntrack_drops_total"},
			Message:  "conntrack_table_full_in_netns", // or the limit's own, on kernels that do not distinguish them
		},
		// Pods in their own network namespaces and cgroups, named as by systemd's cgroup
		// driver: each of another container runtime, and each at another limit.
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
		// fs.file-max is not enforced for root.
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
		// No program can start then, including the command who.
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

		// A program writes into the kernel's log what the kernel itself would write.
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

// Ramp is the approximate number of steps that a load takes from nothing to its limit:
// ten minutes at 15 s per step. Before and After are the steps without a load, Past those
// that follow the first refusal.
const (
	Before = 4
	Ramp   = 40
	Past   = 8
	After  = 4
)

// Folders of modules in the guest: PortModules are loaded first, so that it can report;
// the idle scenario reads the kernel before it loads Modules.
const (
	PortModules = "portmodules"
	Modules     = "modules"
)

// WantStatus on the kernel's command line makes the guest report the status page of each
// step too.
const WantStatus = "lab.status"

// The guest's ports that QEMU forwards for a Prometheus: the exporter's, and one at which
// the guest waits to be told that its load may begin, and later that it may end. FullFor
// is how long the limit is reached.
const (
	ExporterPort = 10058
	ControlPort  = 9100
	FullFor      = 20 * time.Second
)

// Message is a message of the guest, written as a line of JSON.
type Message struct {
	Machine *Machine `json:",omitempty"` // the first
	Step    *Step    `json:",omitempty"`
	Planned *Planned `json:",omitempty"`
	Tried   *Tried   `json:",omitempty"`
	Done    *Done    `json:",omitempty"` // the last, if all went well
	Error   string   `json:",omitempty"` // the last, if not
}

// Machine describes the machine of the guest.
type Machine struct {
	Release   string // uname -r
	PageSize  int    // in bytes
	BigEndian bool
}

// Step is the state of the kernel and the exporter after a step of the load.
type Step struct {
	// Refused is what the program under load saw when the kernel refused, empty before
	// that.
	Refused string `json:",omitempty"`
	// Page is what the exporter served, only its own metrics, empty if it did not answer.
	// Silent is the reason if it did not, and Seconds how long that took.
	Page    string
	Silent  string `json:",omitempty"`
	Seconds float64
	// Missed is the number of earlier scrapes that were not answered in time.
	Missed int `json:",omitempty"`
	// Differ lists where the guest read another value, although the value did not change.
	Differ []string `json:",omitempty"`
	// Log is what the kernel logged.
	Log []string `json:",omitempty"`
	// Who is what the command who printed, if it was asked, and NoWho why it did not
	// answer.
	Who, NoWho string `json:",omitempty"`
	// Status is the status page, if the lab wants it and the exporter answered.
	Status string `json:",omitempty"`
}

// Planned is the result of a plan.
type Planned struct {
	Connections int
	// File is what plan printed for /etc/sysctl.d.
	File string
	// Predicted is the kernel memory in the plan's bill, Measured what the connections
	// took, in bytes.
	Predicted, Measured float64
	// Refused is what a program saw while File was applied, and Moved the limits whose
	// counters or log lines showed a refusal. Both should be empty.
	Refused string
	Moved   []string
	// Saturation is the saturation of each limit while the connections were held.
	Saturation map[string]float64
	Cuts       []Cut
}

// Tried is a setting that was tried.
type Tried struct {
	Setting, Result string
	// Wrong is set if the result is not what docs/million.md says.
	Wrong bool
}

// Cut is a setting of the plan, reduced by a third.
type Cut struct {
	Resource, Setting, From, To string
	Refused                     string
	Moved                       []string
	// Named is set if the refusal is the one that the limit's row names.
	Named bool
}

// Done is the summary of all steps.
type Done struct {
	// Agreed is the number of series whose value equalled what the guest read itself,
	// Never those whose value never did.
	Agreed int
	Never  []string `json:",omitempty"`
	// Miscounted are the messages whose number differs from that of the kernel's lines.
	Miscounted []string `json:",omitempty"`
	Floods     []Flood  `json:",omitempty"`
}

// Flood is how the exporter handled a flood of the kernel's log.
type Flood struct {
	Writer  string
	Seconds float64
	// Records is the number of records, Lost how many of them the exporter missed.
	Records, Lost float64
	// Share is how much of a processor the exporter used, Rest how much it used before.
	Share, Rest float64
	// Logged is the number of the kernel's lines about the full table during the flood,
	// Counted how many of them the exporter counted.
	Logged, Counted float64
}
