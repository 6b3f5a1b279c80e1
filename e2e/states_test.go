package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/byhand"
)

// ssStates counts the sockets that ss -tan lists, by state. An option (-4, -6) selects the
// address family.
func ssStates(t *testing.T, option ...string) map[string]int {
	t.Helper()
	names := map[string]string{
		"ESTAB": "established", "SYN-SENT": "syn_sent", "SYN-RECV": "syn_recv", "FIN-WAIT-1": "fin_wait1",
		"FIN-WAIT-2": "fin_wait2", "TIME-WAIT": "time_wait", "UNCONN": "close", "CLOSE-WAIT": "close_wait",
		"LAST-ACK": "last_ack", "LISTEN": "listen", "CLOSING": "closing",
	}
	count := map[string]int{}
	for line := range strings.Lines(command(t, "", "ss", append(option, "-tanH")...)) {
		state := strings.Fields(line)[0]
		if names[state] == "" {
			t.Fatalf("ss shows an unknown state %s", state)
		}
		count[names[state]]++
	}
	return count
}

// ssListeners adds up the accept queues that ss -ltn shows, by address, and returns the
// saturation of the fullest socket of each.
func ssListeners(t *testing.T) (length, limit map[string]int, fullest map[string]float64) {
	t.Helper()
	length, limit, fullest = map[string]int{}, map[string]int{}, map[string]float64{}
	for line := range strings.Lines(command(t, "", "ss", "-ltnH")) {
		f := strings.Fields(line)
		at := f[3]
		if port, ok := strings.CutPrefix(at, "*:"); ok { // both families
			at = "[::]:" + port
		}
		a, err := netip.ParseAddrPort(at)
		if err != nil {
			t.Fatal(err)
		}
		at = byhand.Unmap(a).String()
		waiting, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		most, err := strconv.Atoi(f[2])
		if err != nil {
			t.Fatal(err)
		}
		length[at] += waiting
		limit[at] += most
		fullest[at] = max(fullest[at], float64(waiting)/float64(max(most, 1)))
	}
	return length, limit, fullest
}

// everyState creates TCP sockets in every state but CLOSE, over IPv4 and IPv6, and returns how
// many. Sockets in CLOSE are in none of the kernel's tables of sockets. Since Linux 6.8 those
// that have a port can be listed, but not by the eleven states: neither ss nor the exporter shows
// them.
func (n *netns) everyState() map[string]map[string]int {
	n.t.Helper()
	// Packets to and from a silent port are dropped. A mute port receives packets, but those from
	// it are dropped.
	n.nft(`
		table inet lossy {
			set silent { type inet_service; }
			set mute { type inet_service; }
			chain in {
				type filter hook input priority 0;
				tcp dport @silent drop
				tcp sport @silent drop
				tcp sport @mute drop
			}
		}`)
	silence := func(port uint16) { n.nft(fmt.Sprintf("add element inet lossy silent { %d }", port)) }
	made := map[string]map[string]int{}
	for i, ip := range []string{"127.0.0.1", "::1"} {
		family := []string{"ipv4", "ipv6"}[i]
		count := map[string]int{}
		made[family] = count
		// Every scene has its own port, and one more connection over IPv6. The numbers of
		// connections are chosen so that no two states have the same count.
		port := uint16(1000 + 100*i)
		scene := func(times int, states ...string) (netip.AddrPort, int) {
			port++
			for _, s := range states {
				count[s] += times + i
			}
			return netip.AddrPortFrom(netip.MustParseAddr(ip), port), times + i
		}
		play := func(times int, states ...string) (netip.AddrPort, []pair) {
			at, times := scene(times, states...)
			count["listen"]++
			return at, n.pairs(n.listen(at, 100), netip.AddrPort{}, at, times)
		}

		at, times := scene(4, "syn_sent")
		silence(at.Port())
		for range times {
			n.dialing(netip.AddrPort{}, at)
		}

		at, times = scene(1, "syn_sent", "syn_recv")
		n.nft(fmt.Sprintf("add element inet lossy mute { %d }", at.Port()))
		n.listen(at, 100)
		count["listen"]++
		for range times {
			n.dialing(netip.AddrPort{}, at)
		}

		play(13, "established", "established")

		_, pairs := play(6, "fin_wait2", "close_wait")
		for _, p := range pairs {
			n.shutdown(p.client)
		}

		// The client is closed, so the kernel turns it into a mini-socket.
		_, pairs = play(8, "fin_wait2", "close_wait")
		for _, p := range pairs {
			n.close(p.client)
		}

		_, pairs = play(10, "time_wait")
		for _, p := range pairs {
			n.close(p.client)
			n.poll(p.server, unix.POLLRDHUP)
			n.close(p.server)
		}

		at, pairs = play(3, "fin_wait1", "established")
		silence(at.Port())
		for _, p := range pairs {
			n.close(p.client) // leaves an orphan
		}

		at, pairs = play(7, "fin_wait2", "last_ack")
		for _, p := range pairs {
			n.shutdown(p.client)
			n.reach(p.client, byhand.FinWait2)
		}
		silence(at.Port())
		for _, p := range pairs {
			n.shutdown(p.server)
		}

		// Both ends close, and neither receives the other's FIN. Then the client's retransmitted
		// FIN arrives, but the server's answers are dropped.
		at, pairs = play(3, "fin_wait1", "closing")
		silence(at.Port())
		for _, p := range pairs {
			n.shutdown(p.client)
			n.shutdown(p.server)
		}
		n.nft(fmt.Sprintf("add element inet lossy mute { %d }\ndelete element inet lossy silent { %d }", at.Port(), at.Port()))
		for _, p := range pairs {
			n.reach(p.server, byhand.Closing)
		}
	}

	var got map[string]map[string]int
	n.until("every state", func() bool {
		got = map[string]map[string]int{"ipv4": {}, "ipv6": {}}
		for _, s := range read(n.t, byhand.Sockets) {
			got[s.Family][s.State.String()]++
		}
		return fmt.Sprint(got) == fmt.Sprint(made)
	})
	return made
}

func (n *netns) shutdown(fd int) {
	n.t.Helper()
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		n.t.Fatal("shutdown:", err)
	}
}

// TestStates checks that the exporter counts sockets in every TCP state, as ss does.
func TestStates(t *testing.T) {
	n := enterNetns(t, "nft", "ss")
	made := n.everyState()
	e := n.start()
	p := e.scrape()
	if got := p.value(t, "sockpressure_host_network_namespace"); got != 0 {
		t.Fatalf("host_network_namespace is %v in a namespace that is not the machine's first one", got)
	}
	// The exporter's own listener, and both ends of the connection to it.
	made["ipv4"]["listen"]++
	made["ipv4"]["established"] += 2

	for family, option := range map[string]string{"ipv4": "-4", "ipv6": "-6"} {
		if got := ssStates(t, option); !maps.Equal(got, made[family]) {
			t.Errorf("ss says of %s: %v, made were %v", family, got, made[family])
		}
	}
	all := ssStates(t)
	for state := byhand.Established; state <= byhand.Closing; state++ {
		name := state.String()
		got := int(p.value(t, fmt.Sprintf("sockpressure_tcp_sockets{state=%q}", name)))
		want := made["ipv4"][name] + made["ipv6"][name]
		if got != want || got != all[name] {
			t.Errorf("%s: the exporter says %d, ss %d, made were %d", name, got, all[name], want)
		}
		if (want == 0) != (state == byhand.Closed) {
			t.Errorf("%s: %d were made", name, want)
		}
	}

	mini := 0
	for _, s := range read(t, byhand.Sockets) {
		if s.Mini {
			mini++
		}
	}
	if got := int(p.value(t, "sockpressure_tcp_time_wait")); got != mini || got <= all["time_wait"] {
		t.Errorf("tcp_time_wait is %d, mini-sockets are %d, %d of them in TIME_WAIT", got, mini, all["time_wait"])
	}
	if got := int(p.value(t, "sockpressure_tcp_listeners")); got != made["ipv4"]["listen"]+made["ipv6"]["listen"] {
		t.Errorf("tcp_listeners is %d", got)
	}
}

// TestAcceptQueues checks the accept queues of listeners of every kind, with waiting connections.
func TestAcceptQueues(t *testing.T) {
	n := enterNetns(t, "ss")
	n.sysctl("net.core.somaxconn", "50")
	v4, v6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	mapped, anyone := netip.MustParseAddr("::ffff:127.0.0.2"), netip.IPv6Unspecified()
	at := netip.AddrPortFrom

	type queue struct {
		listener netip.AddrPort
		backlogs []int // of each socket on the address
		clients  []netip.Addr
		late     []int // backlogs of sockets that listen after the clients have connected
		limit    int
	}
	queues := map[string]queue{
		"127.0.0.1:1001": {listener: at(v4, 1001), backlogs: []int{8}, clients: slices.Repeat([]netip.Addr{v4}, 3), limit: 8},
		"[::1]:1002":     {listener: at(v6, 1002), backlogs: []int{9}, clients: slices.Repeat([]netip.Addr{v6}, 4), limit: 9},
		// One listener for both families.
		"[::]:1003": {listener: at(anyone, 1003), backlogs: []int{10}, clients: []netip.Addr{v4, v6, v4, v6, v6}, limit: 10},
		// An IPv6 listener with an IPv4-mapped address.
		"127.0.0.2:1004": {listener: at(mapped, 1004), backlogs: []int{11}, clients: slices.Repeat([]netip.Addr{mapped.Unmap()}, 6), limit: 11},
		// A group over which the kernel distributes the connections.
		"127.0.0.1:1005": {listener: at(v4, 1005), backlogs: []int{20, 21}, clients: slices.Repeat([]netip.Addr{v4}, 7), limit: 41},
		"[::1]:1006":     {listener: at(v6, 1006), backlogs: []int{20, 22}, clients: slices.Repeat([]netip.Addr{v6}, 8), limit: 42},
		// somaxconn limits the backlog.
		"127.0.0.1:1007": {listener: at(v4, 1007), backlogs: []int{1000}, limit: 50},
		// The kernel allows one more connection than the backlog.
		"127.0.0.1:1008": {listener: at(v4, 1008), backlogs: []int{2}, clients: slices.Repeat([]netip.Addr{v4}, 3), limit: 2},
		"127.0.0.1:1009": {listener: at(v4, 1009), backlogs: []int{0}, limit: 0},
		// One socket of the group is full, the other is empty.
		"127.0.0.1:1010": {listener: at(v4, 1010), backlogs: []int{1}, clients: slices.Repeat([]netip.Addr{v4}, 2), late: []int{30}, limit: 31},
	}
	for _, q := range queues {
		for _, b := range q.backlogs {
			n.listen(q.listener, b)
		}
		for _, c := range q.clients {
			n.dial(netip.AddrPort{}, at(c, q.listener.Port()))
		}
		for _, b := range q.late {
			n.listen(q.listener, b)
		}
	}
	e := n.start()
	var length, limit map[string]int
	var fullest map[string]float64
	n.until("every connection in its queue", func() bool {
		length, limit, fullest = ssListeners(t)
		for name, q := range queues {
			if length[name] != len(q.clients) {
				return false
			}
		}
		return true
	})

	p := e.scrape()
	for name, q := range queues {
		label := fmt.Sprintf("{listener=%q}", name)
		got := int(p.value(t, "sockpressure_accept_queue_length"+label))
		gotLimit := int(p.value(t, "sockpressure_accept_queue_limit"+label))
		if got != len(q.clients) || gotLimit != q.limit || got != length[name] || gotLimit != limit[name] {
			t.Errorf("%s: the exporter says %d of %d, ss %d of %d, made were %d of %d",
				name, got, gotLimit, length[name], limit[name], len(q.clients), q.limit)
		}
		if got := p.value(t, "sockpressure_accept_queue_saturation_ratio"+label); got != fullest[name] {
			t.Errorf("%s: the fullest socket is at %v, by ss at %v", name, got, fullest[name])
		}
	}
	if got := int(p.value(t, "sockpressure_tcp_listeners")); got != len(queues)+1 || got != len(limit) {
		t.Errorf("tcp_listeners is %d, made were %d and the exporter's own, ss has %d", got, len(queues), len(limit))
	}
	if got := p.value(t, `sockpressure_saturation_ratio{resource="accept_queue"}`); got != 2 || got != slices.Max(slices.Collect(maps.Values(fullest))) {
		t.Errorf("the fullest queue is at %v, by ss at %v", got, fullest)
	}
	for _, name := range []string{"127.0.0.1:1008", "127.0.0.1:1010"} {
		if got := p.holder(t, "accept_queue", name); got != comm(t) {
			t.Errorf("%s is held by %q, not by this test", name, got)
		}
	}
}

// comm returns the name of this process.
func comm(t *testing.T) string {
	b, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// holder returns the process that holds all of an item of a limit, empty if there is no such
// series.
func (p page) holder(t *testing.T, resource, item string) string {
	t.Helper()
	for _, s := range p.with("sockpressure_saturation_holder_ratio{") {
		process := regexp.MustCompile(`process="([^"]*)"`).FindStringSubmatch(s)
		if strings.Contains(s, fmt.Sprintf("item=%q", item)) && strings.Contains(s, fmt.Sprintf("resource=%q", resource)) {
			if p[s] != 1 {
				t.Errorf("%s is %v", s, p[s])
			}
			return process[1]
		}
	}
	return ""
}

// limitPorts leaves 169 ephemeral ports in the namespace, in a range that excludes the ports of
// earlier listeners.
func (n *netns) limitPorts() (limit int) {
	n.t.Helper()
	n.sysctl("net.ipv4.ip_local_port_range", "20000 20199")
	n.sysctl("net.ipv4.ip_local_reserved_ports", "19990-20009,20030,20100-20119,30000")
	// A busy machine may be so slow that ports in TIME_WAIT are reused.
	n.sysctl("net.ipv4.tcp_tw_reuse", "0")
	return 200 - 10 - 1 - 20
}

// TestEphemeralPorts checks the used ephemeral ports of connections between pairs of addresses.
func TestEphemeralPorts(t *testing.T) {
	n := enterNetns(t, "nft")
	e := n.start()
	limit := n.limitPorts()
	at := func(ip string, port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(ip), port) }
	want := map[string]int{}
	expect := func(from, to netip.AddrPort, count int) {
		want[fmt.Sprintf("{destination=%q,source=%q}", byhand.Unmap(to), from.Addr().Unmap())] = count
	}

	// Some connections stay, some are closed by the client, which keeps its port
	// in TIME_WAIT.
	for i, c := range []struct{ from, to netip.AddrPort }{
		// IPv4 by IPv6 sockets, to a port of the ephemeral range, which the other ends use
		// without having been assigned it.
		{at("::ffff:127.0.0.7", 0), at("::ffff:127.0.0.8", 20050)},
		{at("127.0.0.7", 0), at("127.0.0.9", 1001)},
		{at("::1", 0), at("::1", 1002)},
	} {
		pairs := n.pairs(n.listen(c.to, 100), c.from, c.to, 20+i)
		for _, p := range pairs[:11] {
			n.close(p.client)
			n.poll(p.server, unix.POLLRDHUP)
			n.close(p.server)
		}
		expect(c.from, c.to, len(pairs))
	}

	// Connections in SYN_SENT.
	n.nft(`
		table inet lossy {
			chain in {
				type filter hook input priority 0
				tcp dport 1003 drop
			}
		}`)
	from, to := at("127.0.0.7", 0), at("127.0.0.8", 1003)
	for range 9 {
		n.dialing(from, to)
	}
	expect(from, to, 9)

	byHand := map[string]int{}
	for _, s := range read(t, byhand.Sockets) {
		name := fmt.Sprintf("{destination=%q,source=%q}", byhand.Unmap(s.Remote), s.Local.Addr().Unmap())
		if want[name] > 0 {
			byHand[name]++
		}
	}
	if !maps.Equal(byHand, want) {
		t.Fatalf("/proc/net/tcp has %v, made were %v", byHand, want)
	}

	limit-- // there is a listener on 20050
	p := e.scrape()
	got := map[string]int{}
	for _, s := range p.with("sockpressure_ephemeral_ports_used{") {
		got[strings.TrimPrefix(s, "sockpressure_ephemeral_ports_used")] = int(p[s])
	}
	if !maps.Equal(got, want) {
		t.Errorf("the exporter says %v, made were %v", got, want)
	}
	if got := p.value(t, "sockpressure_ephemeral_ports_limit"); got != float64(limit) {
		t.Errorf("ephemeral_ports_limit is %v, not %d", got, limit)
	}
	saturation := p.value(t, `sockpressure_saturation_ratio{resource="ephemeral_ports"}`)
	if want := 22 / float64(limit); saturation != want {
		t.Errorf("saturation is %v, not %v", saturation, want)
	}
}

// TestNoEphemeralPorts checks that the kernel refuses connections to one destination exactly when
// the limit is reached.
func TestNoEphemeralPorts(t *testing.T) {
	n := enterNetns(t)
	e := n.start()
	limit := n.limitPorts()
	// Connections are not assigned the port of a listener, whatever its address.
	for _, listener := range []string{"127.0.0.99:20060", "0.0.0.0:20061", "[::1]:20062"} {
		n.listen(netip.MustParseAddrPort(listener), 1)
		limit--
	}
	for _, ip := range []string{"127.0.0.1", "::1"} {
		from := netip.AddrPortFrom(netip.MustParseAddr(ip), 0)
		to := netip.AddrPortFrom(from.Addr(), 1001)
		n.listen(to, 2*limit)
		for range limit {
			n.dial(from, to)
		}
		if err := unix.Connect(n.bound(from), sockaddr(to)); !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("%s: connection %d: %v", ip, limit+1, err)
		}
		p := e.scrape()
		series := fmt.Sprintf("sockpressure_ephemeral_ports_used{destination=%q,source=%q}", to, ip)
		if got := p.value(t, series); got != float64(limit) {
			t.Errorf("%s is %v, not %d", series, got, limit)
		}
		if got := p.holder(t, "ephemeral_ports", ip+" → "+to.String()); got != comm(t) {
			t.Errorf("%s is held by %q, not by this test", to, got)
		}
		if got := p.value(t, `sockpressure_saturation_ratio{resource="ephemeral_ports"}`); got != 1 {
			t.Errorf("%s: no port is left, but saturation is %v", ip, got)
		}
	}
}
