package e2e

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAgreement compares every value of a page with a reading by hand, made right
// before and right after: in a namespace where only the test does something, and
// on the machine as it is.
func TestAgreement(t *testing.T) {
	t.Run("namespace", func(t *testing.T) {
		n := enterNetns(t)
		n.everyState()
		n.trouble()
		e := n.start(fmt.Sprintf("--collector.top=%d", longestList))
		agree(t, e, fmt.Sprintf("/proc/%d/root/proc", e.cmd.Process.Pid), func(series string) bool { return !ofMachine(series) })
	})
	t.Run("machine", func(t *testing.T) {
		needRoot(t)
		e := connect(start(t, nil, fmt.Sprintf("--collector.top=%d", longestList)))
		agree(t, e, "/proc", func(string) bool { return false })
	})
}

// longestList is the length of the exporter's lists here, as long as they can be.
const longestList = 100

// ofMachine says whether a series is about the whole machine, on which others
// are at work, rather than about a network namespace.
func ofMachine(series string) bool {
	name := strings.TrimPrefix(series, "sockpressure_")
	if resource, ok := strings.CutPrefix(name, `saturation_ratio{resource="`); ok {
		name = resource
	}
	for _, prefix := range []string{
		"tcp_sockets_allocated", "tcp_orphans", "tcp_memory", "udp_memory", "conntrack_buckets", "conntrack_entries_limit",
		"file_descriptors", "process", "memory", "low_memory", "committed_memory", "oom_kills", "netdev_", "neighbour",
	} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// agree scrapes until every series has agreed with the readings by hand: has had
// a value that is not outside of the two. A quiet series that is the same in
// both readings must have that value, at once.
func agree(t *testing.T, e *line, proc string, quiet func(series string) bool) {
	t.Helper()
	// Held open, so that reading it counts no file more.
	fileNR, err := os.Open("/proc/sys/fs/file-nr")
	if err != nil {
		t.Fatal(err)
	}
	defer fileNR.Close()
	agreed := map[string]bool{}
	end := time.Now().Add(2 * patience)
	for scrapes := 1; ; scrapes++ {
		// What is quick stands next to the scrape. A process of ss that has ended also
		// leaves its socket behind for a moment.
		ssBefore, tableBefore := readSS(t), readTable(t)
		before := readProc(t, proc, fileNR)
		p := e.scrape()
		after := readProc(t, proc, fileNR)
		ssAfter, tableAfter := readSS(t), readTable(t)

		var differ []string
		over := scrapes >= 5 && time.Now().After(end)
		for source, r := range map[string][2]readings{
			"/proc": {before, after}, "/proc/net/tcp": {tableBefore, tableAfter}, "ss": {ssBefore, ssAfter},
		} {
			for series := range r[0].or(r[1]) {
				what, hard := p.differs(series, r[0], r[1])
				switch {
				case what == "":
					agreed[source+series] = true
				case hard && quiet(series), !agreed[source+series]:
					over = over || hard && quiet(series)
					differ = append(differ, fmt.Sprintf("%s: by %s, %s", series, source, what))
				}
			}
		}
		byHand := before.or(after).or(tableBefore).or(tableAfter).or(ssBefore).or(ssAfter)
		names := map[string]bool{}
		for series := range byHand {
			names[family(series)] = true
		}
		for _, series := range p.with("sockpressure_") {
			if _, ok := byHand[series]; !ok && !ofExporter(series) {
				over = over || !names[family(series)]
				differ = append(differ, series+": not read by hand, so add it to readProc")
			}
		}
		if len(differ) == 0 {
			t.Logf("%d series of %d metrics agree after %d scrapes", len(agreed), len(names), scrapes)
			return
		}
		if over {
			slices.Sort(differ)
			t.Fatal(strings.Join(differ, "\n"))
		}
	}
}

// differs says how a value of the page lies outside of two readings, and whether
// those were the same. A series that is in one of them only came or went
// meanwhile.
func (p page) differs(series string, before, after readings) (what string, hard bool) {
	b, had := before[series]
	a, has := after[series]
	v, shown := p[series]
	switch {
	case !shown && (!had || !has || p.mayLack(series)),
		had && shown && near(v, b),
		has && shown && near(v, a),
		had && has && shown && v > min(a, b) && v < max(a, b):
		return "", false
	}
	got := fmt.Sprint(v)
	if !shown {
		got = "nothing"
	}
	return fmt.Sprintf("before %v (%t), after %v (%t), but the exporter says %s", b, had, a, has, got), had && has && a == b
}

// ofExporter says whether a series is about the exporter.
func ofExporter(series string) bool {
	return strings.HasPrefix(series, "sockpressure_scrape_collector_") || family(series) == "sockpressure_exporter_build_info"
}

// mayLack says whether a page may be without a series: one of a list that is
// full, or one of the hundreds of caches that the exporter does not choose.
func (p page) mayLack(series string) bool {
	name := family(series)
	return name == "sockpressure_memory_slab_bytes" || len(p.with(name+"{")) == longestList
}

// near allows for the rounding of a fraction.
func near(a, b float64) bool { return a == b || math.Abs(a-b) < 1e-9*math.Abs(b) }

// readings is values by series.
type readings map[string]float64

// or returns the readings with what only others have.
func (r readings) or(others readings) readings {
	all := maps.Clone(others)
	maps.Copy(all, r)
	return all
}

// set adds a value, its labels given as names and values.
func (r readings) set(value float64, name string, labels ...string) {
	r[seriesOf(name, labels...)] = value
}

func seriesOf(name string, labels ...string) string {
	var pairs []string
	for l := range slices.Chunk(labels, 2) {
		pairs = append(pairs, fmt.Sprintf("%s=%q", l[0], l[1]))
	}
	slices.Sort(pairs)
	if len(pairs) == 0 {
		return "sockpressure_" + name
	}
	return "sockpressure_" + name + "{" + strings.Join(pairs, ",") + "}"
}

// readSS asks ss.
func readSS(t *testing.T) readings {
	t.Helper()
	r := readings{}
	states := ssStates(t)
	for state := uint64(1); state <= closing; state++ {
		r.set(float64(states[stateName(state)]), "tcp_sockets", "state", stateName(state))
	}
	length, limit, fullest := ssListeners(t)
	r.set(float64(len(limit)), "tcp_listeners")
	for at := range limit {
		r.set(float64(length[at]), "accept_queue_length", "listener", at)
		r.set(float64(limit[at]), "accept_queue_limit", "listener", at)
	}
	if len(limit) > 0 {
		r.set(fullest, "saturation_ratio", "resource", "accept_queue")
	}
	// TCP:   5 (estab 2, closed 1, orphaned 0, timewait 1)
	for line := range strings.Lines(command(t, "", "ss", "-s")) {
		if _, counts, ok := strings.Cut(line, "("); ok {
			f := strings.FieldsFunc(counts, func(r rune) bool { return strings.ContainsRune(" ,()\n", r) })
			for i := 0; i+1 < len(f); i += 2 {
				switch f[i] {
				case "orphaned":
					r.set(decimal(t, f[i+1]), "tcp_orphans")
				case "timewait":
					r.set(decimal(t, f[i+1]), "tcp_time_wait")
				}
			}
		}
	}
	return r
}

// readProc reads what the exporter reads, and in another way: the files of the
// network namespace of this goroutine, those of the machine, and the processes
// below proc.
func readProc(t *testing.T, proc string, fileNR *os.File) readings {
	t.Helper()
	r := readings{}
	readSockets(t, r)
	readNetstat(t, r)
	readConntrack(t, r)
	readMemory(t, r)
	readSlabs(t, r)
	readZones(t, r)
	readProcesses(t, r, proc)
	readDevices(t, r)
	b := make([]byte, 100)
	size, err := fileNR.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	files := strings.Fields(string(b[:size]))
	r.set(decimal(t, files[0])-decimal(t, files[1]), "file_descriptors_allocated")
	r.set(decimal(t, files[2]), "file_descriptors_limit")
	for resource, of := range map[string][2]string{
		"tcp_memory":        {"tcp_memory_bytes", `tcp_memory_threshold_bytes{threshold="high"}`},
		"udp_memory":        {"udp_memory_bytes", `udp_memory_threshold_bytes{threshold="high"}`},
		"tcp_orphans":       {"tcp_orphans", "tcp_orphans_limit"},
		"tcp_time_wait":     {"tcp_time_wait", "tcp_time_wait_limit"},
		"ip_fragments_ipv4": {`ip_fragment_memory_bytes{family="ipv4"}`, `ip_fragment_memory_limit_bytes{family="ipv4"}`},
		"ip_fragments_ipv6": {`ip_fragment_memory_bytes{family="ipv6"}`, `ip_fragment_memory_limit_bytes{family="ipv6"}`},
		"file_descriptors":  {"file_descriptors_allocated", "file_descriptors_limit"},
		"conntrack_entries": {"conntrack_entries", "conntrack_entries_limit"},
		"neighbours_ipv4":   {`neighbour_entries{family="ipv4"}`, `neighbour_entries_limit{family="ipv4"}`},
		"neighbours_ipv6":   {`neighbour_entries{family="ipv6"}`, `neighbour_entries_limit{family="ipv6"}`},
	} {
		usage, ok := r["sockpressure_"+of[0]]
		if limit := r["sockpressure_"+of[1]]; ok && limit > 0 {
			r.set(usage/limit, "saturation_ratio", "resource", resource)
		}
	}
	r.set(1, "host_network_namespace")
	return r
}

// text reads a file, and is empty where there is none. /proc/net is that of this
// goroutine's namespace.
func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(strings.Replace(path, "/proc/net/", "/proc/thread-self/net/", 1))
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		t.Fatal(err)
	}
	return string(b)
}

// lines splits a file into the fields of its lines.
func lines(t *testing.T, path string) [][]string {
	t.Helper()
	var all [][]string
	for line := range strings.Lines(text(t, path)) {
		all = append(all, strings.Fields(line))
	}
	return all
}

func decimal(t *testing.T, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// numbers reads a file of numbers, such as a sysctl, and is nil where there is none.
func numbers(t *testing.T, path string) []float64 {
	t.Helper()
	var v []float64
	for f := range strings.FieldsSeq(text(t, path)) {
		v = append(v, decimal(t, f))
	}
	return v
}

// readSockets reads sockstat and the sysctls about it.
func readSockets(t *testing.T, r readings) {
	t.Helper()
	page := float64(os.Getpagesize())
	stat := map[string]float64{}
	for _, f := range append(lines(t, "/proc/net/sockstat"), lines(t, "/proc/net/sockstat6")...) {
		for i := 1; i < len(f); i += 2 {
			stat[f[0]+f[i]] = decimal(t, f[i+1])
		}
	}
	for family, suffix := range map[string]string{"ipv4": "", "ipv6": "6"} {
		for _, protocol := range []string{"tcp", "udp", "udplite", "raw"} {
			if v, ok := stat[strings.ToUpper(protocol)+suffix+":inuse"]; ok {
				r.set(v, "sockets_inuse", "family", family, "protocol", protocol)
			}
		}
		if v, ok := stat["FRAG"+suffix+":memory"]; ok {
			r.set(v, "ip_fragment_memory_bytes", "family", family)
		}
	}
	r.set(stat["sockets:used"], "sockets_used")
	r.set(stat["TCP:alloc"], "tcp_sockets_allocated")
	r.set(stat["TCP:orphan"], "tcp_orphans")
	r.set(stat["TCP:tw"], "tcp_time_wait")
	r.set(stat["TCP:mem"]*page, "tcp_memory_bytes")
	r.set(stat["UDP:mem"]*page, "udp_memory_bytes")

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
		for i, v := range numbers(t, "/proc/sys/net/"+s.file) {
			labels := slices.Clone(s.each)
			if len(labels) > 0 {
				labels[len(labels)-1] = strings.Fields(labels[len(labels)-1])[i]
			}
			r.set(v*s.unit, s.name, labels...)
		}
	}
}

// unmap gives an IPv4 address by a socket of the IPv6 kind as such.
func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// readTable counts the lines of /proc/net/tcp and tcp6.
func readTable(t *testing.T) readings {
	t.Helper()
	r := readings{}
	table := tcpTable(t)
	count := map[uint64]float64{}
	queues := map[string]float64{}
	for _, s := range table {
		count[s.state]++
		if s.state == listening {
			queues[unmap(s.local).String()] += float64(s.waiting)
		}
	}
	for state := uint64(1); state <= closing; state++ {
		r.set(count[state], "tcp_sockets", "state", stateName(state))
	}
	for at, waiting := range queues {
		r.set(waiting, "accept_queue_length", "listener", at)
	}
	r.set(float64(len(queues)), "tcp_listeners")

	// Ports that the kernel may have chosen.
	free := map[uint16]bool{}
	ports := numbers(t, "/proc/sys/net/ipv4/ip_local_port_range")
	for p := ports[0]; p <= ports[1]; p++ {
		free[uint16(p)] = true
	}
	for _, item := range strings.FieldsFunc(text(t, "/proc/sys/net/ipv4/ip_local_reserved_ports"), func(r rune) bool { return r == ',' || r == '\n' }) {
		first, last, ok := strings.Cut(item, "-")
		if !ok {
			last = first
		}
		for p := decimal(t, first); p <= decimal(t, last); p++ {
			delete(free, uint16(p))
		}
	}
	// The other end of a connection that was accepted holds a listener's port, and
	// no connection is given one.
	listened := map[netip.AddrPort]bool{}
	given := maps.Clone(free)
	for _, s := range table {
		if s.state == listening {
			listened[unmap(s.local)] = true
			delete(given, s.local.Port())
			if s.local.Addr().IsUnspecified() {
				delete(free, s.local.Port())
			}
		}
	}
	limit := float64(len(given))
	r.set(limit, "ephemeral_ports_limit")
	most := 0.0
	for _, s := range table {
		from, to := unmap(s.local), unmap(s.remote)
		if !free[from.Port()] || listened[from] || s.state == closed || s.state == synRecv {
			continue
		}
		series := seriesOf("ephemeral_ports_used", "source", from.Addr().String(), "destination", to.String())
		r[series]++
		most = max(most, r[series])
	}
	r.set(most/limit, "saturation_ratio", "resource", "ephemeral_ports")
	return r
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

func readNetstat(t *testing.T, r readings) {
	t.Helper()
	values := map[string]float64{}
	for _, file := range []string{"/proc/net/snmp", "/proc/net/netstat"} {
		all := lines(t, file)
		for i := 0; i+1 < len(all); i += 2 {
			for j, name := range all[i][1:] {
				values[strings.TrimSuffix(all[i][0], ":")+name] = decimal(t, all[i+1][j+1])
			}
		}
	}
	for _, f := range lines(t, "/proc/net/snmp6") {
		values[f[0]] = decimal(t, f[1])
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
		r.set(v, f[0])
	}
}

// column adds up a column of hexadecimal numbers over the CPUs, or, for one that
// is the same for all, takes it once.
func column(t *testing.T, path, name string, once bool) (sum float64, ok bool) {
	t.Helper()
	all := lines(t, path)
	if len(all) == 0 {
		return 0, false
	}
	at := slices.Index(all[0], name)
	if at < 0 {
		return 0, false
	}
	for _, f := range all[1:] {
		v := float64(hexNumber(t, f[at]))
		if once {
			return v, true
		}
		sum += v
	}
	return sum, true
}

// readConntrack reads the counters of connection tracking, by its tool where the
// kernel has no file of them.
func readConntrack(t *testing.T, r readings) {
	t.Helper()
	const path = "/proc/net/stat/nf_conntrack"
	if text(t, "/proc/sys/net/netfilter/nf_conntrack_max") == "" {
		return
	}
	tool := ""
	if text(t, path) == "" {
		tool = command(t, "", "conntrack", "-S")
	}
	for name, counter := range map[string]string{
		"conntrack_drops_total": "drop", "conntrack_early_drops_total": "early_drop", "conntrack_invalid_total": "invalid",
		"conntrack_insert_failures_total": "insert_failed", "conntrack_search_restarts_total": "search_restart",
	} {
		v, ok := column(t, path, counter, false)
		for field := range strings.FieldsSeq(tool) {
			if n, found := strings.CutPrefix(field, counter+"="); found {
				v, ok = v+decimal(t, n), true
			}
		}
		if ok {
			r.set(v, name)
		}
	}
}

// readMemory reads what of memory is one number.
func readMemory(t *testing.T, r readings) {
	t.Helper()
	info := map[string]float64{}
	for _, f := range lines(t, "/proc/meminfo") {
		info[f[0]] = decimal(t, f[1]) * 1024
	}
	for name, field := range map[string]string{
		"total": "MemTotal", "available": "MemAvailable", "committed": "Committed_AS", "commit_limit": "CommitLimit",
		"low_total": "LowTotal", "low_free": "LowFree", "high_total": "HighTotal", "high_free": "HighFree",
	} {
		if v, ok := info[field+":"]; ok {
			r.set(v, "memory_"+name+"_bytes")
		}
	}
	for kind, field := range map[string]string{
		"slab_reclaimable": "SReclaimable", "slab_unreclaimable": "SUnreclaim", "kernel_stack": "KernelStack",
		"page_tables": "PageTables", "secondary_page_tables": "SecPageTables", "percpu": "Percpu", "vmalloc": "VmallocUsed",
	} {
		if v, ok := info[field+":"]; ok {
			r.set(v, "memory_kernel_bytes", "kind", kind)
		}
	}
	r.set((info["MemTotal:"]-info["MemAvailable:"])/info["MemTotal:"], "saturation_ratio", "resource", "memory")
	if numbers(t, "/proc/sys/vm/overcommit_memory")[0] == 2 {
		r.set(info["Committed_AS:"]/info["CommitLimit:"], "saturation_ratio", "resource", "committed_memory")
	}

	for _, f := range lines(t, "/proc/vmstat") {
		if f[0] == "oom_kill" {
			r.set(decimal(t, f[1]), "oom_kills_total")
		}
	}
	for _, f := range lines(t, "/proc/pressure/memory") {
		r.set(decimal(t, strings.TrimPrefix(f[len(f)-1], "total="))/1e6, "memory_pressure_seconds_total", "kind", f[0])
	}
}

// readSlabs reads slabinfo. A cache that shares its memory with others is a link
// in /sys/kernel/slab, and is not the exporter's to show.
func readSlabs(t *testing.T, r readings) {
	t.Helper()
	for _, f := range lines(t, "/proc/slabinfo") {
		if len(f) < 16 || f[0] == "#" {
			continue
		}
		if st, err := os.Lstat("/sys/kernel/slab/" + f[0]); err == nil && st.IsDir() {
			r.set(decimal(t, f[14])*decimal(t, f[5])*float64(os.Getpagesize()), "memory_slab_bytes", "cache", f[0])
		}
	}
}

// readZones reads the zones that have memory.
func readZones(t *testing.T, r readings) {
	t.Helper()
	zones := map[[2]string]map[string]float64{}
	var zone map[string]float64
	for _, f := range lines(t, "/proc/zoneinfo") {
		if len(f) == 4 && f[0] == "Node" {
			zone = map[string]float64{}
			zones[[2]string{strings.TrimSuffix(f[1], ","), f[3]}] = zone
		}
		if f[0] == "pages" {
			f = f[1:]
		}
		// The first is the zone's, what follows is of its nodes and CPUs.
		if _, ok := zone[f[0]]; zone != nil && len(f) == 2 && !ok && f[0] != "per-node" {
			zone[f[0]] = decimal(t, f[1]) * float64(os.Getpagesize())
		}
	}
	for id, z := range zones {
		if z["managed"] == 0 {
			continue
		}
		r.set(z["free"], "memory_zone_free_bytes", "node", id[0], "zone", id[1])
		for _, watermark := range []string{"min", "low", "high"} {
			r.set(z[watermark], "memory_zone_watermark_bytes", "node", id[0], "zone", id[1], "watermark", watermark)
		}
	}
	if total, ok := r["sockpressure_memory_low_total_bytes"]; ok {
		usage := total - r["sockpressure_memory_low_free_bytes"] - r[`sockpressure_memory_kernel_bytes{kind="slab_reclaimable"}`]
		limit := total
		for id, z := range zones {
			if id[1] != "HighMem" && id[1] != "Movable" && z["managed"] > 0 {
				usage -= z["nr_zone_active_file"] + z["nr_zone_inactive_file"]
				limit -= z["min"]
			}
		}
		r.set(max(usage, 0)/limit, "saturation_ratio", "resource", "low_memory")
	}
}

// readProcesses lists the descriptors of every process.
func readProcesses(t *testing.T, r readings, proc string) {
	t.Helper()
	type files struct {
		pid         int
		open, limit float64
	}
	worst := map[string]files{}
	fullest := 0.0
	dirs, err := filepath.Glob(proc + "/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		f := files{pid: int(decimal(t, filepath.Base(dir))), open: openFiles(dir)}
		for _, l := range lines(t, dir+"/limits") {
			if strings.HasPrefix(strings.Join(l, " "), "Max open files") && l[3] != "unlimited" {
				f.limit = decimal(t, l[3])
			}
		}
		name := strings.TrimSuffix(text(t, dir+"/comm"), "\n")
		if f.open <= 0 || f.limit == 0 || name == "" {
			continue
		}
		fullest = max(fullest, f.open/f.limit)
		w, ok := worst[name]
		if !ok || f.open/f.limit > w.open/w.limit || f.open/f.limit == w.open/w.limit && f.pid < w.pid {
			worst[name] = f
		}
	}
	for name, f := range worst {
		r.set(f.open, "process_open_file_descriptors", "process", name)
		r.set(f.limit, "process_file_descriptors_limit", "process", name)
	}
	r.set(0, "processes_unreadable")
	r.set(fullest, "saturation_ratio", "resource", "process_file_descriptors")
}

// openFiles lists the descriptors of a process. A thread that waits in accept has
// been given one more, which counts but is not listed: the size of the folder has
// it (Linux 6.2).
func openFiles(dir string) float64 {
	names, _ := os.ReadDir(dir + "/fd")
	open := len(names)
	if filepath.Base(dir) == strconv.Itoa(os.Getpid()) {
		open-- // the one that lists them
	}
	threads, _ := os.ReadDir(dir + "/task")
	if st, err := os.Stat(dir + "/fd"); err == nil && int(st.Size()) > open && int(st.Size()) <= open+len(threads) {
		open = int(st.Size())
	}
	return float64(open)
}

// readDevices reads the queues of received packets and the neighbour tables.
func readDevices(t *testing.T, r readings) {
	t.Helper()
	var drops, squeezes, length, input float64
	for _, f := range lines(t, "/proc/net/softnet_stat") {
		drops += float64(hexNumber(t, f[1]))
		squeezes += float64(hexNumber(t, f[2]))
		if len(f) > 11 {
			length = max(length, float64(hexNumber(t, f[11])))
			input = max(input, float64(hexNumber(t, f[min(13, len(f)-1)])))
		}
	}
	r.set(drops, "netdev_backlog_drops_total")
	r.set(squeezes, "netdev_time_squeezes_total")
	r.set(length, "netdev_backlog_length")
	if limit := r["sockpressure_netdev_backlog_limit"]; limit > 0 {
		r.set(input/limit, "saturation_ratio", "resource", "netdev_backlog")
	}
	for family, file := range map[string]string{"ipv4": "/proc/net/stat/arp_cache", "ipv6": "/proc/net/stat/ndisc_cache"} {
		if v, ok := column(t, file, "entries", true); ok {
			r.set(v, "neighbour_entries", "family", family)
		}
		if v, ok := column(t, file, "table_fulls", false); ok {
			r.set(v, "neighbour_table_full_total", "family", family)
		}
	}
}

// trouble meets limits of all kinds, so that as many counters as can be have a
// value, and most have one of their own. It takes up after everyState.
func (n *netns) trouble() {
	n.t.Helper()
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(v4, port) }
	dialing := func(times int, port uint16) {
		for range times {
			n.dialing(netip.AddrPort{}, at(port))
		}
	}
	n.nft(`
		table inet lossy {
			chain out {
				type filter hook output priority 0
				udp dport 1300 drop
			}
			chain forge {
				type filter hook input priority 0
				tcp dport 1303 tcp flags & (syn | ack) == ack tcp ackseq set 1
			}
		}
		table ip tracked {
			chain in {
				type filter hook input priority 0
				ct state invalid counter
			}
			chain post {
				type nat hook postrouting priority 100
				udp dport 1301 snat to 127.0.0.9:5000
			}
		}
		add element inet lossy mute { 1304, 1305 }`)

	// Listeners: nobody there, no room, cookies good and bad, too many requests.
	dialing(3, 1300)
	n.listen(at(1301), 0)
	dialing(3, 1301)
	n.sysctl("net.ipv4.tcp_syncookies", "2")
	n.pairs(n.listen(at(1302), 100), netip.AddrPort{}, at(1302), 5)
	n.listen(at(1303), 100)
	dialing(6, 1303)
	n.sysctl("net.ipv4.tcp_syncookies", "1")
	n.listen(at(1304), 1)
	dialing(8, 1304)
	n.sysctl("net.ipv4.tcp_syncookies", "0")
	n.listen(at(1305), 1)
	dialing(11, 1305)

	// No room in TIME_WAIT, an answer that never comes, a buffer that is full.
	n.sysctl("net.ipv4.tcp_max_tw_buckets", "1")
	for _, p := range n.pairs(n.listen(at(1306), 100), netip.AddrPort{}, at(1306), 4) {
		n.close(p.client)
		n.poll(p.server, unix.POLLRDHUP)
		n.close(p.server)
	}
	n.sysctl("net.ipv4.tcp_max_tw_buckets", "5432")
	p := n.pairs(n.listen(at(1307), 100), netip.AddrPort{}, at(1307), 1)[0]
	n.nft("add element inet lossy silent { 1307 }")
	n.set(p.client, unix.SOL_TCP, unix.TCP_USER_TIMEOUT)
	n.write(p.client, 1)
	n.poll(p.client, unix.POLLERR)
	p = n.pairs(n.listen(at(1308), 100), netip.AddrPort{}, at(1308), 1)[0]
	n.set(p.server, unix.SOL_SOCKET, unix.SO_RCVBUF)
	n.set(p.client, unix.SOL_TCP, unix.TCP_NODELAY)
	n.write(p.client, 100)

	// Datagrams that a rule stops, that are no packet, that clash, that nobody
	// reads.
	n.datagrams(n.socket(v4, unix.SOCK_DGRAM, 0), at(1300), 7, nil)
	n.datagrams(n.socket(v4, unix.SOCK_RAW, unix.IPPROTO_ICMP), at(0), 9, []byte{0, 0, 0xff, 0xff, 0, 0, 0, 0})
	for range 6 {
		n.datagrams(n.socket(v4, unix.SOCK_DGRAM, 0), at(1301), 1, nil)
	}
	for a, times := range map[netip.Addr]int{v4: 40, v6: 50} {
		to := netip.AddrPortFrom(a, 1302)
		receiver := n.socket(a, unix.SOCK_DGRAM, 0)
		n.set(receiver, unix.SOL_SOCKET, unix.SO_RCVBUF)
		n.bind(receiver, to)
		n.datagrams(n.socket(a, unix.SOCK_DGRAM, 0), to, times, make([]byte, 1000))
	}
	// Fragments: some that overlap, which ends the packet, and one that waits.
	raw4, raw6 := n.socket(v4, unix.SOCK_RAW, unix.IPPROTO_RAW), n.socket(v6, unix.SOCK_RAW, unix.IPPROTO_RAW)
	for id := range byte(3) {
		for _, offset := range []byte{0, 1} {
			n.datagrams(raw4, at(0), 1, fragment4(id, offset))
			n.datagrams(raw6, netip.AddrPortFrom(v6, 0), 1, fragment6(id, offset))
			n.datagrams(raw6, netip.AddrPortFrom(v6, 0), 1, fragment6(10+id, offset))
		}
	}
	n.datagrams(raw4, at(0), 1, fragment4(100, 0))
	n.datagrams(raw6, netip.AddrPortFrom(v6, 0), 1, fragment6(100, 0))
	n.datagrams(raw6, netip.AddrPortFrom(v6, 0), 1, fragment6(101, 0))
}

// write writes n times, or until the buffers are full.
func (n *netns) write(fd, times int) {
	n.t.Helper()
	for range times {
		if _, err := unix.Write(fd, make([]byte, 100)); err != nil && !errors.Is(err, unix.EAGAIN) {
			n.t.Fatal("write:", err)
		}
	}
}

// datagrams sends datagrams. Some of these tests have the kernel refuse them.
func (n *netns) datagrams(fd int, to netip.AddrPort, times int, b []byte) {
	n.t.Helper()
	for range times {
		if err := unix.Sendto(fd, b, 0, sockaddr(to)); err != nil && !errors.Is(err, unix.EPERM) {
			n.t.Fatal("sendto:", err)
		}
	}
}

// fragment4 is an IPv4 packet from and to 127.0.0.1: 16 bytes of a datagram, from
// 8 * offset on, with more to come.
func fragment4(id, offset byte) []byte {
	header := []byte{0x45, 0, 0, 36, 0, 1 + id, 0x20, offset, 64, unix.IPPROTO_UDP, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1}
	return append(header, make([]byte, 16)...)
}

// fragment6 is the same from and to ::1.
func fragment6(id, offset byte) []byte {
	header := make([]byte, 48)
	copy(header, []byte{0x60, 0, 0, 0, 0, 24, unix.IPPROTO_FRAGMENT, 64})
	header[23], header[39] = 1, 1
	copy(header[40:], []byte{unix.IPPROTO_UDP, 0, 0, offset<<3 | 1, 0, 0, 0, id})
	return append(header, make([]byte, 16)...)
}
