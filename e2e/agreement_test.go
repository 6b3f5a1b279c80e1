package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/byhand"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestAgreement compares every value of a page with a reading by hand, made right
// before and right after: in a namespace where only the test does something, and
// on the machine as it is.
func TestAgreement(t *testing.T) {
	t.Run("namespace", func(t *testing.T) {
		n := enterNetns(t, "nft", "ss")
		n.everyState()
		n.trouble()
		e := n.start(fmt.Sprintf("--collector.top=%d", longestList))
		agree(t, e, fmt.Sprintf("/proc/%d/root/proc", e.cmd.Process.Pid), func(series string) bool { return !ofMachine(series) })
	})
	t.Run("machine", func(t *testing.T) {
		needs.Check(t, needs.CI, needs.Root, "ss")
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
	hand, err := byhand.Open(proc)
	if err != nil {
		t.Fatal(err)
	}
	defer hand.Close()
	if _, err := os.Stat("/proc/thread-self/net/stat/nf_conntrack"); errors.Is(err, fs.ErrNotExist) {
		// Without CONFIG_NF_CONNTRACK_PROCFS it is read by this program.
		needs.Check(t, "conntrack")
	}
	agreed := map[string]bool{}
	end := time.Now().Add(2 * patience)
	for scrapes := 1; ; scrapes++ {
		// What is quick stands next to the scrape. A process of ss that has ended also
		// leaves its socket behind for a moment.
		ssBefore, tableBefore := readSS(t), read(t, byhand.Table)
		before := read(t, hand.Read)
		p := e.scrape()
		after := read(t, hand.Read)
		ssAfter, tableAfter := readSS(t), read(t, byhand.Table)

		var differ []string
		over := scrapes >= 5 && time.Now().After(end)
		for source, r := range map[string][2]byhand.Readings{
			"/proc": {before, after}, "/proc/net/tcp": {tableBefore, tableAfter}, "ss": {ssBefore, ssAfter},
		} {
			differences := byhand.Compare(p, longestList, r[0], r[1])
			for series := range r[0].Or(r[1]) {
				d, ok := differences[series]
				switch {
				case !ok, ofMachine(series) && !needs.InCI(): // where others open files, no two readings are alike
					agreed[source+series] = true
				case d.Hard && quiet(series), !agreed[source+series]:
					over = over || d.Hard && quiet(series)
					differ = append(differ, fmt.Sprintf("%s: by %s, %s", series, source, d.What))
				}
			}
		}
		byHand := before.Or(after).Or(tableBefore).Or(tableAfter).Or(ssBefore).Or(ssAfter)
		names := map[string]bool{}
		for series := range byHand {
			names[family(series)] = true
		}
		for _, series := range p.with("sockpressure_") {
			if _, ok := byHand[series]; !ok && !ofExporter(series) {
				over = over || !names[family(series)]
				differ = append(differ, series+": not read by hand, so add it to internal/byhand")
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

// ofExporter says whether a series is about the exporter.
func ofExporter(series string) bool {
	return strings.HasPrefix(series, "sockpressure_scrape_collector_") || family(series) == "sockpressure_exporter_build_info"
}

// read makes a reading by hand.
func read[T any](t *testing.T, by func() (T, error)) T {
	t.Helper()
	v, err := by()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// readSS asks ss.
func readSS(t *testing.T) byhand.Readings {
	t.Helper()
	r := byhand.Readings{}
	states := ssStates(t)
	for state := byhand.Established; state <= byhand.Closing; state++ {
		r.Set(float64(states[state.String()]), "tcp_sockets", "state", state.String())
	}
	length, limit, fullest := ssListeners(t)
	r.Set(float64(len(limit)), "tcp_listeners")
	r.Set(0, "tcp_listeners_crowded") // nobody listens on thousands of addresses here
	for at := range limit {
		r.Set(float64(length[at]), "accept_queue_length", "listener", at)
		r.Set(float64(limit[at]), "accept_queue_limit", "listener", at)
		r.Set(fullest[at], "accept_queue_saturation_ratio", "listener", at)
	}
	if len(limit) > 0 {
		r.Set(slices.Max(slices.Collect(maps.Values(fullest))), "saturation_ratio", "resource", "accept_queue")
	}
	// TCP:   5 (estab 2, closed 1, orphaned 0, timewait 1)
	for line := range strings.Lines(command(t, "", "ss", "-s")) {
		if _, counts, ok := strings.Cut(line, "("); ok {
			f := strings.FieldsFunc(counts, func(r rune) bool { return strings.ContainsRune(" ,()\n", r) })
			for i := 0; i+1 < len(f); i += 2 {
				switch f[i] {
				case "orphaned":
					r.Set(decimal(t, f[i+1]), "tcp_orphans")
				case "timewait":
					r.Set(decimal(t, f[i+1]), "tcp_time_wait")
				}
			}
		}
	}
	return r
}

func decimal(t *testing.T, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
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
