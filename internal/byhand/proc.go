package byhand

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Reader reads the files of /proc.
type Reader struct {
	proc   string
	fileNR *os.File
}

// Open prepares to read, with the processes below proc: /proc, or where another
// procfs stands.
func Open(proc string) (*Reader, error) {
	// Held open, so that reading it counts no file more.
	fileNR, err := os.Open("/proc/sys/fs/file-nr")
	if err != nil {
		return nil, err
	}
	return &Reader{proc, fileNR}, nil
}

// Close ends the use of the reader.
func (r *Reader) Close() error { return r.fileNR.Close() }

// Read reads the files of the network namespace of the calling thread, those of
// the machine, and the processes.
func (r *Reader) Read() (Readings, error) {
	p := newPass()
	p.sockstat()
	p.netstat()
	p.conntrack()
	p.memory()
	p.slabs()
	p.zones()
	p.processes(r.proc)
	p.devices()
	p.openFiles(r.fileNR)
	for resource, of := range map[string][2]string{
		"tcp_memory":        {"tcp_memory_bytes", `tcp_memory_threshold_bytes{threshold="high"}`},
		"udp_memory":        {"udp_memory_bytes", `udp_memory_threshold_bytes{threshold="low"}`},
		"tcp_orphans":       {"tcp_orphans", "tcp_orphans_limit"},
		"tcp_time_wait":     {"tcp_time_wait", "tcp_time_wait_limit"},
		"ip_fragments_ipv4": {`ip_fragment_memory_bytes{family="ipv4"}`, `ip_fragment_memory_limit_bytes{family="ipv4"}`},
		"ip_fragments_ipv6": {`ip_fragment_memory_bytes{family="ipv6"}`, `ip_fragment_memory_limit_bytes{family="ipv6"}`},
		"file_descriptors":  {"file_descriptors_allocated", "file_descriptors_limit"},
		"conntrack_entries": {"conntrack_entries", "conntrack_entries_limit"},
		"neighbours_ipv4":   {`neighbour_entries{family="ipv4"}`, `neighbour_entries_limit{family="ipv4"}`},
		"neighbours_ipv6":   {`neighbour_entries{family="ipv6"}`, `neighbour_entries_limit{family="ipv6"}`},
	} {
		usage, ok := p.Readings["sockpressure_"+of[0]]
		if limit := p.Readings["sockpressure_"+of[1]]; ok && limit > 0 {
			p.Set(usage/limit, "saturation_ratio", "resource", resource)
		}
	}
	p.hostView(r.proc)
	return p.result()
}

// hostView looks for what only the machine's first namespaces have: a limit, and
// kernel threads, which have no program.
func (p *pass) hostView(proc string) {
	seen := func(path string) float64 {
		if _, err := os.Stat(path); err != nil {
			return 0
		}
		return 1
	}
	network, processes := seen("/proc/sys/net/ipv4/tcp_mem"), 0.0
	if strings.TrimSpace(p.text(proc+"/2/comm")) == "kthreadd" {
		processes = 1
	}
	p.Set(network, "host_network_namespace")
	p.Set(network, "host_view", "view", "network")
	p.Set(processes, "host_view", "view", "processes")
	p.Set(1, "host_view", "view", "memory")
}

// sockstat reads sockstat and the sysctls about it.
func (p *pass) sockstat() {
	page := float64(os.Getpagesize())
	stat := map[string]float64{}
	for _, file := range []string{"/proc/net/sockstat", "/proc/net/sockstat6"} {
		for _, f := range p.lines(file) {
			for i := 1; i < len(f); i += 2 {
				stat[f[0]+f[i]] = p.decimal(f.at(i + 1))
			}
		}
	}
	for family, suffix := range map[string]string{"ipv4": "", "ipv6": "6"} {
		for _, protocol := range []string{"tcp", "udp", "udplite", "raw"} {
			if v, ok := stat[strings.ToUpper(protocol)+suffix+":inuse"]; ok {
				p.Set(v, "sockets_inuse", "family", family, "protocol", protocol)
			}
		}
		if v, ok := stat["FRAG"+suffix+":memory"]; ok {
			p.Set(v, "ip_fragment_memory_bytes", "family", family)
		}
	}
	for _, s := range []struct {
		field string
		unit  float64
		name  string
	}{
		{"sockets:used", 1, "sockets_used"},
		{"TCP:alloc", 1, "tcp_sockets_allocated"},
		{"TCP:orphan", 1, "tcp_orphans"},
		{"TCP:tw", 1, "tcp_time_wait"},
		{"TCP:mem", page, "tcp_memory_bytes"},
		{"UDP:mem", page, "udp_memory_bytes"},
	} {
		if v, ok := stat[s.field]; ok {
			p.Set(v*s.unit, s.name)
		}
	}

	for _, s := range []struct {
		file string
		unit float64
		name string // and labels
		each []string
	}{
		{"ipv4/tcp_max_orphans", 1, "tcp_orphans_limit", nil},
		{"ipv4/tcp_max_tw_buckets", 1, "tcp_time_wait_limit", nil},
		{"core/somaxconn", 1, "listen_backlog_limit", nil},
		{"ipv4/tcp_max_syn_backlog", 1, "syn_backlog_limit", nil},
		{"core/netdev_max_backlog", 1, "netdev_backlog_limit", nil},
		{"ipv4/ipfrag_high_thresh", 1, "ip_fragment_memory_limit_bytes", []string{"family", "ipv4"}},
		{"ipv6/ip6frag_high_thresh", 1, "ip_fragment_memory_limit_bytes", []string{"family", "ipv6"}},
		{"ipv4/neigh/default/gc_thresh3", 1, "neighbour_entries_limit", []string{"family", "ipv4"}},
		{"ipv6/neigh/default/gc_thresh3", 1, "neighbour_entries_limit", []string{"family", "ipv6"}},
		{"ipv4/tcp_mem", page, "tcp_memory_threshold_bytes", []string{"threshold", "low pressure high"}},
		{"ipv4/udp_mem", page, "udp_memory_threshold_bytes", []string{"threshold", "low pressure high"}},
		{"ipv4/tcp_rmem", 1, "tcp_buffer_bytes", []string{"direction", "receive", "bound", "min default max"}},
		{"ipv4/tcp_wmem", 1, "tcp_buffer_bytes", []string{"direction", "send", "bound", "min default max"}},
		{"netfilter/nf_conntrack_count", 1, "conntrack_entries", nil},
		{"netfilter/nf_conntrack_max", 1, "conntrack_entries_limit", nil},
		{"netfilter/nf_conntrack_buckets", 1, "conntrack_buckets", nil},
	} {
		for i, v := range p.numbers("/proc/sys/net/" + s.file) {
			labels := slices.Clone(s.each)
			if len(labels) > 0 {
				labels[len(labels)-1] = fields(strings.Fields(labels[len(labels)-1])).at(i)
			}
			p.Set(v*s.unit, s.name, labels...)
		}
	}
}

// netstatFields names the field of each counter, as nstat does.
const netstatFields = `
	tcp_listen_overflows_total           TcpExtListenOverflows
	tcp_listen_drops_total               TcpExtListenDrops
	tcp_syncookies_sent_total            TcpExtSyncookiesSent
	tcp_syncookies_received_total        TcpExtSyncookiesRecv
	tcp_syncookies_failed_total          TcpExtSyncookiesFailed
	tcp_request_queue_full_drops_total   TcpExtTCPReqQFullDrop
	tcp_request_queue_full_cookies_total TcpExtTCPReqQFullDoCookies
	tcp_time_wait_overflows_total        TcpExtTCPTimeWaitOverflow
	tcp_memory_pressures_total           TcpExtTCPMemoryPressures
	tcp_memory_pressure_seconds_total    TcpExtTCPMemoryPressuresChrono
	tcp_aborts_on_memory_total           TcpExtTCPAbortOnMemory
	tcp_aborts_on_timeout_total          TcpExtTCPAbortOnTimeout
	tcp_receive_queue_drops_total        TcpExtTCPRcvQDrop
	tcp_zero_window_drops_total          TcpExtTCPZeroWindowDrop
	tcp_pruned_total                     TcpExtPruneCalled
	tcp_receive_pruned_total             TcpExtRcvPruned
	tcp_out_of_order_pruned_total        TcpExtOfoPruned
	tcp_backlog_drops_total              TcpExtTCPBacklogDrop
	tcp_memalloc_drops_total             TcpExtPFMemallocDrop
	tcp_write_queue_too_big_total        TcpExtTCPWqueueTooBig
	tcp_syn_retransmits_total            TcpExtTCPSynRetrans
	tcp_retransmitted_segments_total     TcpRetransSegs
	tcp_active_opens_total               TcpActiveOpens
	tcp_passive_opens_total              TcpPassiveOpens
	tcp_attempt_failures_total           TcpAttemptFails
	tcp_resets_sent_total                TcpOutRsts
	udp_receive_buffer_errors_total      UdpRcvbufErrors
	udp_send_buffer_errors_total         UdpSndbufErrors
	udp_memory_errors_total              UdpMemErrors
	udp6_receive_buffer_errors_total     Udp6RcvbufErrors
	udp6_send_buffer_errors_total        Udp6SndbufErrors
	udp6_memory_errors_total             Udp6MemErrors
	ip_reassembly_failures_total         IpReasmFails
	ip6_reassembly_failures_total        Ip6ReasmFails
	ip_output_discards_total             IpOutDiscards
	ip_input_discards_total              IpInDiscards`

func (p *pass) netstat() {
	values := map[string]float64{}
	for _, file := range []string{"/proc/net/snmp", "/proc/net/netstat"} {
		all := p.lines(file)
		for i := 0; i+1 < len(all); i += 2 {
			for j := 1; j < len(all[i]); j++ {
				values[strings.TrimSuffix(all[i][0], ":")+all[i][j]] = p.decimal(all[i+1].at(j))
			}
		}
	}
	for _, f := range p.lines("/proc/net/snmp6") {
		values[f.at(0)] = p.decimal(f.at(1))
	}
	for line := range strings.Lines(strings.TrimSpace(netstatFields)) {
		f := strings.Fields(line)
		v, ok := values[f[1]]
		if !ok {
			continue
		}
		if f[1] == "TcpExtTCPMemoryPressuresChrono" {
			v /= 1000
		}
		p.Set(v, f[0])
	}
}

// conntrack reads the counters of connection tracking, by its tool where the
// kernel has no file of them.
func (p *pass) conntrack() {
	const path = "/proc/net/stat/nf_conntrack"
	if p.text("/proc/sys/net/netfilter/nf_conntrack_max") == "" {
		return
	}
	tool := ""
	if p.text(path) == "" {
		tool = p.command("conntrack", "-S")
	}
	for name, counter := range map[string]string{
		"conntrack_drops_total": "drop", "conntrack_early_drops_total": "early_drop", "conntrack_invalid_total": "invalid",
		"conntrack_insert_failures_total": "insert_failed", "conntrack_search_restarts_total": "search_restart",
	} {
		v, ok := p.column(path, counter, false)
		for field := range strings.FieldsSeq(tool) {
			if n, found := strings.CutPrefix(field, counter+"="); found {
				v, ok = v+p.decimal(n), true
			}
		}
		if ok {
			p.Set(v, name)
		}
	}
}

// command runs a program in the network namespace of this thread and returns what
// it said.
func (p *pass) command(name string, args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.file = strings.Join(cmd.Args, " ")
		p.fail(fmt.Errorf("%w: %s", err, stderr.String()))
	}
	return string(out)
}

// devices reads the queues of received packets and the neighbour tables.
func (p *pass) devices() {
	var drops, squeezes, length, input float64
	lengths := false // since Linux 5.10
	for _, f := range p.lines("/proc/net/softnet_stat") {
		drops += float64(p.hexadecimal(f.at(1)))
		squeezes += float64(p.hexadecimal(f.at(2)))
		if len(f) > 11 {
			lengths = true
			length = max(length, float64(p.hexadecimal(f[11])))
			input = max(input, float64(p.hexadecimal(f[min(13, len(f)-1)])))
		}
	}
	p.Set(drops, "netdev_backlog_drops_total")
	p.Set(squeezes, "netdev_time_squeezes_total")
	if lengths {
		p.Set(length, "netdev_backlog_length")
	}
	if limit := p.Readings["sockpressure_netdev_backlog_limit"]; lengths && limit > 0 {
		p.Set(input/limit, "saturation_ratio", "resource", "netdev_backlog")
	}
	for family, file := range map[string]string{"ipv4": "/proc/net/stat/arp_cache", "ipv6": "/proc/net/stat/ndisc_cache"} {
		if v, ok := p.column(file, "entries", true); ok {
			p.Set(v, "neighbour_entries", "family", family)
		}
		if v, ok := p.column(file, "table_fulls", false); ok {
			p.Set(v, "neighbour_table_full_total", "family", family)
		}
	}
}

// openFiles reads how many files the machine has open.
func (p *pass) openFiles(fileNR *os.File) {
	p.file = fileNR.Name()
	b := make([]byte, 100)
	size, err := fileNR.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		p.fail(err)
	}
	f := fields(strings.Fields(string(b[:size])))
	p.Set(p.decimal(f.at(0))-p.decimal(f.at(1)), "file_descriptors_allocated")
	p.Set(p.decimal(f.at(2)), "file_descriptors_limit")
}
