package collector

import (
	"context"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// netstat is one reading of the counters of /proc/net/snmp, snmp6 and netstat: one number
// for each row of netstatCounters, in the same order.
type netstat []Number

// netstatCounter is a row: one counter, and its section and field in the file.
type netstatCounter struct {
	name    string
	section string // "TcpExt:", or "snmp6" for a field of that file
	field   string
	scale   float64 // 0 means 1
	help    string
}

// netstatCounters returns the counters that show pressure. All count in the host's
// network namespace since it was created. Counters that a kernel does not have are left
// out.
func netstatCounters() []netstatCounter {
	return []netstatCounter{
		{"tcp_listen_overflows_total", "TcpExt:", "ListenOverflows", 0, "Connections dropped because the accept queue of their listener was full."},
		{"tcp_listen_drops_total", "TcpExt:", "ListenDrops", 0, "Connections that a listener dropped for any reason, overflows included."},
		{"tcp_syncookies_sent_total", "TcpExt:", "SyncookiesSent", 0, "SYN cookies sent because a queue of connection requests was full."},
		{"tcp_syncookies_received_total", "TcpExt:", "SyncookiesRecv", 0, "Connections created from a valid SYN cookie."},
		{"tcp_syncookies_failed_total", "TcpExt:", "SyncookiesFailed", 0, "Invalid SYN cookies received."},
		{"tcp_request_queue_full_drops_total", "TcpExt:", "TCPReqQFullDrop", 0, "Connection requests dropped because the queue was full and SYN cookies were off."},
		{"tcp_request_queue_full_cookies_total", "TcpExt:", "TCPReqQFullDoCookies", 0, "Connection requests answered with a SYN cookie because the queue was full."},
		{"tcp_time_wait_overflows_total", "TcpExt:", "TCPTimeWaitOverflow", 0, "Connections closed without TIME_WAIT because tcp_max_tw_buckets was reached."},
		{"tcp_memory_pressures_total", "TcpExt:", "TCPMemoryPressures", 0, "Times that a socket of this network namespace raised TCP memory above the pressure threshold."},
		{"tcp_memory_pressure_seconds_total", "TcpExt:", "TCPMemoryPressuresChrono", 1e-3, "Time spent under TCP memory pressure, added when the pressure ends."},
		{"tcp_aborts_on_memory_total", "TcpExt:", "TCPAbortOnMemory", 0, "Connections reset because TCP memory was exhausted or there were too many orphans."},
		{"tcp_aborts_on_timeout_total", "TcpExt:", "TCPAbortOnTimeout", 0, "Connections reset because the other side did not answer in time."},
		{"tcp_receive_queue_drops_total", "TcpExt:", "TCPRcvQDrop", 0, "Segments dropped because the receive queue could not grow."},
		{"tcp_zero_window_drops_total", "TcpExt:", "TCPZeroWindowDrop", 0, "Segments dropped because the receive window was closed."},
		{"tcp_pruned_total", "TcpExt:", "PruneCalled", 0, "Times that a receive buffer was compacted because it was too full."},
		{"tcp_receive_pruned_total", "TcpExt:", "RcvPruned", 0, "Segments dropped because compacting a receive buffer did not free enough."},
		{"tcp_out_of_order_pruned_total", "TcpExt:", "OfoPruned", 0, "Times that out-of-order data was dropped to free a receive buffer."},
		{"tcp_backlog_drops_total", "TcpExt:", "TCPBacklogDrop", 0, "Segments dropped because the backlog of a busy socket was full."},
		{"tcp_memalloc_drops_total", "TcpExt:", "PFMemallocDrop", 0, "Segments dropped because they arrived in memory of the emergency reserve."},
		{"tcp_write_queue_too_big_total", "TcpExt:", "TCPWqueueTooBig", 0, "Times that a send queue was not split because it would have exceeded its limit."},
		{"tcp_syn_retransmits_total", "TcpExt:", "TCPSynRetrans", 0, "SYN and SYN/ACK segments retransmitted because this host or the peer did not answer."},
		{"tcp_retransmitted_segments_total", "Tcp:", "RetransSegs", 0, "Segments retransmitted."},
		{"tcp_active_opens_total", "Tcp:", "ActiveOpens", 0, "Connections opened by this host."},
		{"tcp_passive_opens_total", "Tcp:", "PassiveOpens", 0, "Connections opened by other hosts to this one."},
		{"tcp_attempt_failures_total", "Tcp:", "AttemptFails", 0, "Connections that failed before they were established."},
		{"tcp_resets_sent_total", "Tcp:", "OutRsts", 0, "Segments sent with the RST flag."},
		{"udp_receive_buffer_errors_total", "Udp:", "RcvbufErrors", 0, "IPv4 datagrams dropped because the socket's receive buffer was full."},
		{"udp_send_buffer_errors_total", "Udp:", "SndbufErrors", 0, "IPv4 datagrams not sent because the socket's send buffer was full."},
		{"udp_memory_errors_total", "Udp:", "MemErrors", 0, "IPv4 datagrams dropped because UDP memory had reached its limit."},
		{"udp6_receive_buffer_errors_total", "snmp6", "Udp6RcvbufErrors", 0, "IPv6 datagrams dropped because the socket's receive buffer was full."},
		{"udp6_send_buffer_errors_total", "snmp6", "Udp6SndbufErrors", 0, "IPv6 datagrams not sent because the socket's send buffer was full."},
		{"udp6_memory_errors_total", "snmp6", "Udp6MemErrors", 0, "IPv6 datagrams dropped because UDP memory had reached its limit."},
		{"ip_reassembly_failures_total", "Ip:", "ReasmFails", 0, "IPv4 packets that could not be reassembled from their fragments because of a timeout or lack of memory."},
		{"ip6_reassembly_failures_total", "snmp6", "Ip6ReasmFails", 0, "IPv6 packets that could not be reassembled from their fragments because of a timeout or lack of memory."},
		{"ip_output_discards_total", "Ip:", "OutDiscards", 0, "Outgoing IPv4 packets dropped because of a lack of buffers or by a rule."},
		{"ip_input_discards_total", "Ip:", "InDiscards", 0, "Incoming IPv4 packets dropped because of a lack of buffers."},
	}
}

func netstatSpec() Spec {
	counters := netstatCounters()
	metrics := make([]Metric[netstat], len(counters))
	for i, c := range counters {
		source := "/proc/net/netstat, " + c.section[:len(c.section)-1] + " " + c.field
		switch c.section {
		case "Tcp:", "Udp:", "Ip:":
			source = "/proc/net/snmp, " + c.section[:len(c.section)-1] + " " + c.field
		case "snmp6":
			source = "/proc/net/snmp6, " + c.field
		}
		metrics[i] = Metric[netstat]{
			Name:  c.name,
			Help:  c.help + " From " + source + ".",
			Value: func(s *netstat) Number { return (*s)[i] },
		}
	}
	return define(Definition[netstat]{
		Name: "netstat",
		Help: "Counters of drops, refusals and pressure in TCP, UDP and IP, from /proc/net/netstat, /proc/net/snmp and /proc/net/snmp6.",
		Open: func(k *Scope) func(context.Context, *netstat) error {
			return netstatOf(k.Host, "snmp", "netstat", "snmp6")
		},
		Metrics: metrics,
	})
}

// netstatIndex gives the index of a field in a netstat, by section and name.
type netstatIndex map[string]map[string]int

// sections returns the part of the index for the given sections.
func (x netstatIndex) sections(names ...string) netstatIndex {
	part := netstatIndex{}
	for _, name := range names {
		part[name] = x[name]
	}
	return part
}

// netstatOf returns a function that reads the counters of a network namespace from the
// given files: netstat, snmp and snmp6.
func netstatOf(n *kernel.Netns, files ...string) func(context.Context, *netstat) error {
	counters := netstatCounters()
	index := netstatIndex{}
	for i, c := range counters {
		if index[c.section] == nil {
			index[c.section] = map[string]int{}
		}
		index[c.section][c.field] = i
	}
	type source struct {
		kernel.File
		parse func(b []byte, path string, s netstat) error
	}
	var sources []source
	for _, name := range files {
		f := source{File: n.File(name)}
		switch name {
		case "snmp6":
			f.parse = func(b []byte, path string, s netstat) error { return parse.SNMP6(b, path, index["snmp6"], s) }
		default:
			sections := index.sections("TcpExt:")
			if name == "snmp" {
				sections = index.sections("Ip:", "Tcp:", "Udp:")
			}
			f.parse = func(b []byte, path string, s netstat) error { return parse.SNMP(b, path, sections, s) }
		}
		sources = append(sources, f)
	}
	return func(_ context.Context, s *netstat) error {
		var p parse.Problems
		*s = make(netstat, len(counters))
		for i, f := range sources {
			b, err := required(f.File, "IPv4 (CONFIG_INET)")
			if isNotSupported(err) && files[i] == "snmp6" {
				err = nil // no IPv6
			}
			if isNotSupported(err) {
				return err
			}
			p.Add(err)
			if b != nil {
				p.Add(f.parse(b, f.Path(), *s))
			}
		}
		for i, c := range counters {
			if c.scale != 0 {
				(*s)[i] = (*s)[i].Times(c.scale)
			}
		}
		return p.Err()
	}
}
