package collector

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// TestReference checks that docs/metrics.md matches the definitions of the collectors.
func TestReference(t *testing.T) {
	var b strings.Builder
	page := template.Must(template.New("metrics.md.tmpl").Funcs(template.FuncMap{
		"join": strings.Join,
		"messages": func(lines []LogLine) (messages []string) {
			for _, l := range lines {
				messages = append(messages, l.Message)
			}
			return messages
		},
		"ratio": func() func(float64) string {
			return func(ratio float64) string { return fmt.Sprint(ratio) }
		},
		"type": func(m *MetricInfo) string {
			if m.Type() == prometheus.CounterValue {
				return "counter"
			}
			return "gauge"
		},
	}).ParseFiles("metrics.md.tmpl"))
	if err := page.Execute(&b, map[string]any{"Prefix": namespace, "Health": healthRows().rows(), "Collectors": Specs()}); err != nil {
		t.Fatal(err)
	}
	golden(t, "../docs/metrics.md", b.String())
}

// TestRows checks that the definitions of metrics and limits follow the conventions of
// Prometheus and are consistent with each other.
func TestRows(t *testing.T) {
	for _, s := range Specs() {
		if s.Help == "" || !strings.HasSuffix(s.Help, ".") {
			t.Errorf("collector %s: help %q", s.Name, s.Help)
		}
	}
	seen := map[string]bool{}
	for _, m := range Metrics() {
		if seen[m.Name] {
			t.Errorf("%s is defined twice", m.Name)
		}
		seen[m.Name] = true
		if !strings.HasSuffix(m.Help, ".") || strings.ContainsAny(m.Help, "|\n") {
			t.Errorf("%s: help %q", m.Name, m.Help)
		}
		if strings.HasSuffix(m.Name, "_milliseconds") || strings.HasSuffix(m.Name, "_kilobytes") || strings.HasSuffix(m.Name, "_percent") {
			t.Errorf("%s is not in a base unit", m.Name)
		}
	}

	var resources []string
	for _, s := range Specs() {
		for _, l := range s.Limits {
			resources = append(resources, l.Resource)
		}
	}
	slices.Sort(resources)
	want := []string{
		"accept_queue", "cgroup_memory", "committed_memory", "conntrack_entries", "ephemeral_ports", "file_descriptors",
		"ip_fragments_ipv4", "ip_fragments_ipv6", "low_memory", "memory", "neighbours_ipv4", "neighbours_ipv6",
		"netdev_backlog", "process_file_descriptors", "request_queue", "tcp_memory", "tcp_orphans", "tcp_time_wait", "threads", "udp_memory",
		"udp_receive_queue", "unix_accept_queue",
	}
	if !slices.Equal(resources, want) {
		t.Errorf("resources %v, want %v", resources, want)
	}
}

// TestMetrics checks that Metrics lists every metric that is exported.
func TestMetrics(t *testing.T) {
	page := newTree(t, "linux-6.1-686-pae").render()
	if strings.Count(page, "# TYPE ") < 50 {
		t.Fatalf("a page of\n%s", page)
	}
	for line := range strings.Lines(page) {
		typ, ok := strings.CutPrefix(line, "# TYPE ")
		name, _, _ := strings.Cut(typ, " ")
		if ok && !slices.ContainsFunc(Metrics(), func(m MetricInfo) bool { return m.FullName() == name }) {
			t.Errorf("%s is exported but not in Metrics()", name)
		}
	}
}

// TestSeries checks that a page of a 32-bit kernel with full lists has fewer than 400 series,
// including about 45 of the exporter itself, and fewer than 700 with pods.
func TestSeries(t *testing.T) {
	tr := newTree(t, "linux-6.1-686-pae")
	tr.write("proc/sys/vm/overcommit_memory", "2\n")
	var zones strings.Builder
	for node := range 16 {
		zones.WriteString(strings.ReplaceAll(tr.read("proc/zoneinfo"), "Node 0,", fmt.Sprintf("Node %d,", node)))
	}
	tr.write("proc/zoneinfo", zones.String())
	for pid := 2; pid < 50; pid++ {
		dir := fmt.Sprintf("proc/%d/", pid)
		tr.write(dir+"comm", fmt.Sprintf("process-%d\n", pid))
		tr.write(dir+"limits", tr.read("proc/1/limits"))
		tr.write(dir+"fd/0", "")
	}
	// Add listeners and connections by copying the recorded ones to many ports.
	dump := tr.replay.Dump
	message := func(at, port int, source bool) {
		m := slices.Clone(dump[at : at+124])
		offset := 16 + 6
		if source {
			offset = 16 + 4
		}
		m[offset], m[offset+1] = byte(port>>8), byte(port)
		tr.replay.Dump = append(m, tr.replay.Dump...)
	}
	for port := range 40 {
		message(132, 1000+port, true)      // the IPv4 listener
		message(132+124, 2000+port, false) // a connection
	}
	// Add half-open connections to the listeners, and queues of unix and UDP sockets.
	for port := range 20 {
		message(132, 1000+port, true)
		tr.replay.Dump[16+1] = byte(sockdiag.SynRecv)
		tr.replay.Unix = append(tr.replay.Unix, unixWaiting(port)...)
		tr.replay.UDP = append(tr.replay.UDP, udpWaiting(port)...)
	}
	// Add units, two of which have a limit.
	tr.write("sys/fs/cgroup/cgroup.controllers", "memory\n")
	unit := func(n int, limit string, kills int) {
		dir := fmt.Sprintf("sys/fs/cgroup/u%d.service/", n)
		tr.write(dir+"memory.max", limit+"\n")
		tr.write(dir+"memory.current", "500\n")
		tr.write(dir+"memory.stat", "sock 10\n")
		tr.write(dir+"memory.events", fmt.Sprintf("oom_kill %d\n", kills))
	}
	for n := range 20 {
		unit(n, "max", 0)
	}
	unit(0, "1000", 0)
	unit(1, "1000", 1)
	count := func() (page string, lines int) {
		page = tr.render()
		for line := range strings.Lines(page) {
			if !strings.HasPrefix(line, "#") {
				lines++
			}
		}
		return page, lines
	}
	page, lines := count()
	for _, list := range []string{"request_queue_length", "unix_accept_queue_length", "udp_receive_queue_bytes", "udp_socket_drops_total"} {
		if n := strings.Count(page, "\n"+namespace+list+"{"); n != 4 {
			t.Errorf("%s has %d series, want 4", list, n)
		}
	}
	for _, list := range []string{"accept_queue_length", "ephemeral_ports_used", "process_open_file_descriptors", "memory_zone_free_bytes", "memory_slab_bytes", "cgroup_socket_memory_bytes"} {
		if n := strings.Count(page, "\n"+namespace+list+"{"); n != 10 {
			t.Errorf("%s has %d series, want a full list of 10", list, n)
		}
	}
	// The page that render returns lacks the duration of each collector.
	if lines += len(Specs()); lines >= 400 {
		t.Errorf("%d series, want at most 399", lines)
	}

	// With pods, these lists are full too. Full lists for network namespaces are added by
	// their number.
	for n := range 20 {
		unit(n, "1000", 1)
	}
	page, most := count()
	for _, list := range []string{"cgroup_memory_used_bytes", "cgroup_oom_kills_total"} {
		if n := strings.Count(page, "\n"+namespace+list+"{"); n != 10 {
			t.Errorf("%s has %d series, want a full list of 10", list, n)
		}
	}
	for _, m := range Metrics() {
		switch {
		case m.Name == "netns_saturation_ratio":
			most += 10 * netnsLimitCount
		case slices.Contains(m.Labels, "netns"):
			most += 10
		}
	}
	if most += len(Specs()); most >= 700 {
		t.Errorf("%d series with pods, want at most 699", most)
	}
	t.Logf("%d series with pods", most)
	t.Logf("%d series with full lists", lines)
}

// unixWaiting returns a sock_diag message for a unix socket with two waiting connections.
func unixWaiting(n int) []byte {
	name := fmt.Sprintf("/run/%04d", n)
	b := []byte{unix.AF_UNIX, unix.SOCK_STREAM, byte(sockdiag.Listen), 0}
	b = append(b, make([]byte, 12)...)
	b = attribute(b, 0, []byte(name)) // UNIX_DIAG_NAME
	return netlinkMessage(attribute(b, 4, binary.NativeEndian.AppendUint32(binary.NativeEndian.AppendUint32(nil, 2), 8)))
}

// udpWaiting returns a sock_diag message for a UDP socket whose receive buffer is half full
// and that has dropped one datagram.
func udpWaiting(port int) []byte {
	b := make([]byte, 72) // struct inet_diag_msg
	b[0], b[1] = unix.AF_INET, byte(sockdiag.Close)
	binary.BigEndian.PutUint16(b[4:], uint16(9000+port))
	binary.NativeEndian.PutUint32(b[68:], uint32(1+port)) // its inode
	var memory []byte                                     // INET_DIAG_SKMEMINFO
	for _, v := range []uint32{4096, 8192, 0, 0, 0, 0, 0, 0, 1} {
		memory = binary.NativeEndian.AppendUint32(memory, v)
	}
	return netlinkMessage(attribute(b, 7, memory))
}

func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, (4-len(value)%4)%4)...)
}

func netlinkMessage(payload []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, 20) // SOCK_DIAG_BY_FAMILY
	return append(append(b, make([]byte, 10)...), payload...)
}
