package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/byhand"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestAgreement checks the computed values of a page against a reading by hand: in a namespace
// that only the test uses, read right before and right after the scrape, and on recorded files,
// which do not change.
func TestAgreement(t *testing.T) {
	t.Run("namespace", func(t *testing.T) {
		n := enterNetns(t, "nft", "ss")
		n.everyState()
		n.trackedTrouble()
		n.fullQueues()
		e := n.start(fmt.Sprintf("--collector.top=%d", longestList))
		agree(t, e, fmt.Sprintf("/proc/%d/root/proc", e.cmd.Process.Pid))
	})
	t.Run("recorded", func(t *testing.T) {
		recorded, err := filepath.Glob("../testdata/linux-*")
		if err != nil || len(recorded) == 0 {
			t.Fatal(recorded, err)
		}
		for _, from := range recorded {
			t.Run(filepath.Base(from), func(t *testing.T) { agreeOn(t, from) })
		}
	})
}

// longestList is the length of the exporter's lists here, the longest that it allows.
const longestList = 100

// agreeOn checks a page of a copy of recorded files, to which it adds processes.
func agreeOn(t *testing.T, from string) {
	t.Helper()
	root := t.TempDir()
	if err := errors.Join(os.CopyFS(root, os.DirFS(from)), os.MkdirAll(root+"/sys/kernel", 0o700)); err != nil {
		t.Fatal(err)
	}
	limits, err := os.ReadFile(root + "/proc/1/limits")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) {
		name = filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for pid, open := range map[int]int{1: 3, 20: 7, 21: 9, 22: 9, 300: 1} {
		dir := fmt.Sprintf("proc/%d/", pid)
		write(dir+"comm", []string{"init", "server", "client"}[pid%3]+"\n")
		write(dir+"limits", string(limits))
		for fd := range open {
			write(fmt.Sprintf("%sfd/%d", dir, fd), "")
		}
	}
	hand, err := byhand.OpenRecorded(root)
	if err != nil {
		t.Fatal(err)
	}
	defer hand.Close()
	byHand := read(t, hand.Read)
	e := start(t, nil, fmt.Sprintf("--collector.top=%d", longestList), "--path.procfs="+root+"/proc", "--path.sysfs="+root+"/sys")
	p := e.scrape("")
	for series, d := range byhand.Compare(p, longestList, byHand, byHand) {
		t.Errorf("%s: %s", series, d.What)
	}
	for _, series := range p.with("sockpressure_") {
		if _, ok := byHand[series]; !ok && byHand.Covers(series) {
			t.Errorf("%s: only the exporter has it", series)
		}
	}
	t.Logf("%d series", len(byHand))
}

// ofMachine reports whether a series is about the whole machine, which others use too, rather
// than about a network namespace.
func ofMachine(series string) bool {
	name := strings.TrimPrefix(series, "sockpressure_")
	if resource, ok := strings.CutPrefix(name, `saturation_ratio{resource="`); ok {
		name = resource
	}
	for _, prefix := range []string{"tcp_orphans", "file_descriptors", "process", "memory", "netdev_", "neighbour", "threads"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// agree scrapes until every series of the namespace has agreed with the readings by hand, that
// is, had a value between the two. A series with the same value in both readings must have that
// value at once.
func agree(t *testing.T, e *line, proc string) {
	t.Helper()
	hand, err := byhand.Open(proc)
	if err != nil {
		t.Fatal(err)
	}
	defer hand.Close()
	if _, err := os.Stat("/proc/thread-self/net/stat/nf_conntrack"); errors.Is(err, fs.ErrNotExist) {
		// Without CONFIG_NF_CONNTRACK_PROCFS, the reading by hand uses conntrack.
		needs.Check(t, "conntrack")
	}
	agreed := map[string]bool{}
	end := time.Now().Add(2 * patience)
	for scrapes := 1; ; scrapes++ {
		// The quick readings are next to the scrape. Also, a process of ss leaves its socket
		// behind for a moment after it has ended.
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
				case ofMachine(series): // others open files, so no two readings are the same
				case !ok:
					agreed[source+series] = true
				case d.Hard, !agreed[source+series]:
					over = over || d.Hard
					differ = append(differ, fmt.Sprintf("%s: by %s, %s", series, source, d.What))
				}
			}
		}
		byHand := before.Or(after).Or(tableBefore).Or(tableAfter).Or(ssBefore).Or(ssAfter)
		for _, series := range p.with("sockpressure_") {
			if _, ok := byHand[series]; !ok && byHand.Covers(series) && !ofMachine(series) {
				differ = append(differ, series+": only the exporter has it")
			}
		}
		if len(differ) == 0 {
			t.Logf("%d series agree after %d scrapes", len(agreed), scrapes)
			return
		}
		if over {
			slices.Sort(differ)
			t.Fatal(strings.Join(differ, "\n"))
		}
	}
}

// read returns a reading by hand.
func read[T any](t *testing.T, by func() (T, error)) T {
	t.Helper()
	v, err := by()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// readSS returns a reading by ss.
func readSS(t *testing.T) byhand.Readings {
	t.Helper()
	r := byhand.Readings{}
	readUnix(t, r)
	readUDP(t, r)
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

// readUnix adds the listening unix sockets: those with waiting connections or, without any, the
// first.
func readUnix(t *testing.T, r byhand.Readings) {
	t.Helper()
	type queue struct{ length, limit float64 }
	queues := map[string]queue{}
	for line := range strings.Lines(command(t, "", "ss", "-Hxl")) {
		f := strings.Fields(line)
		if f[1] != "LISTEN" {
			continue
		}
		q := queue{decimal(t, f[2]), decimal(t, f[3])}
		if was, ok := queues[f[4]]; !ok || q.length/max(q.limit, 1) > was.length/max(was.limit, 1) {
			queues[f[4]] = q
		}
	}
	fullest, all := 0.0, slices.Sorted(maps.Keys(queues))
	waiting := slices.DeleteFunc(slices.Clone(all), func(path string) bool { return queues[path].length == 0 })
	if len(waiting) == 0 {
		waiting = all[:min(len(all), 1)]
	}
	for _, path := range waiting {
		q := queues[path]
		r.Set(q.length, "unix_accept_queue_length", "path", path)
		r.Set(q.limit, "unix_accept_queue_limit", "path", path)
		fullest = max(fullest, q.length/max(q.limit, 1))
	}
	if len(all) > 0 {
		r.Set(fullest, "saturation_ratio", "resource", "unix_accept_queue")
	}
}

// readUDP adds the UDP sockets with queued datagrams, and those that dropped some.
func readUDP(t *testing.T, r byhand.Readings) {
	t.Helper()
	fullest := 0.0
	// UNCONN 4352 0 127.0.0.1:1400 0.0.0.0:* skmem:(r4352,rb4608,t0,tb212992,f3840,w0,o0,bl0,d7)
	for line := range strings.Lines(command(t, "", "ss", "-HuanmO")) {
		f := strings.Fields(line)
		socket := f[3]
		if f[0] == "ESTAB" {
			socket += " → " + f[4]
		}
		memory := map[string]float64{}
		_, list, _ := strings.Cut(f[len(f)-1], "(")
		for item := range strings.SplitSeq(strings.TrimSuffix(list, ")"), ",") {
			digits := strings.IndexAny(item, "0123456789")
			memory[item[:digits]] = decimal(t, item[digits:])
		}
		if memory["r"] > 0 {
			r.Set(memory["r"], "udp_receive_queue_bytes", "socket", socket)
			r.Set(memory["rb"], "udp_receive_queue_limit_bytes", "socket", socket)
			fullest = max(fullest, memory["r"]/memory["rb"])
		}
		if memory["d"] > 0 {
			r.Set(memory["d"], "udp_socket_drops_total", "socket", socket)
		}
	}
	r.Set(fullest, "saturation_ratio", "resource", "udp_receive_queue")
}

// fullQueues makes connections wait at unix sockets, and datagrams at UDP sockets, some of which
// are dropped.
func (n *netns) fullQueues() {
	n.t.Helper()
	check := func(err error) {
		n.t.Helper()
		if err != nil {
			n.t.Fatal(err)
		}
	}
	socket := func() int {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		check(err)
		n.open[fd] = true
		return fd
	}
	for name, waiting := range map[string]int{"@abstract": 3, n.t.TempDir() + "/full.sock": 5, n.t.TempDir() + "/idle.sock": 0} {
		at, listener := &unix.SockaddrUnix{Name: name}, socket()
		check(unix.Bind(listener, at))
		check(unix.Listen(listener, 4))
		for range waiting {
			check(unix.Connect(socket(), at))
		}
	}
	for i, ip := range []string{"127.0.0.1", "::1"} {
		addr := netip.MustParseAddr(ip)
		udp := func(port uint16) (fd int, at netip.AddrPort) {
			fd, at = n.socket(addr, unix.SOCK_DGRAM, 0), netip.AddrPortFrom(addr, port)
			check(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10))
			n.bind(fd, at)
			return fd, at
		}
		send := func(fd int, to netip.AddrPort, times int) {
			for range times {
				check(unix.Sendto(fd, make([]byte, 100), 0, sockaddr(to)))
			}
		}
		full, at := udp(1400)
		connected, other := udp(1401)
		check(unix.Connect(connected, sockaddr(at)))
		send(n.socket(addr, unix.SOCK_DGRAM, 0), at, 20+i)
		send(full, other, 4+i)
	}
}

func decimal(t *testing.T, s string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// trackedTrouble sends packets that connection tracking takes for invalid, and some whose entries
// clash, so that its counters have values.
func (n *netns) trackedTrouble() {
	n.t.Helper()
	n.nft(`
		table ip tracked {
			chain in {
				type filter hook input priority 0
				ct state invalid counter
			}
			chain post {
				type nat hook postrouting priority 100
				udp dport 1301 snat to 127.0.0.9:5000
			}
		}`)
	v4 := netip.MustParseAddr("127.0.0.1")
	send := func(fd int, port uint16, times int, b []byte) {
		for range times {
			if err := unix.Sendto(fd, b, 0, sockaddr(netip.AddrPortFrom(v4, port))); err != nil && !errors.Is(err, unix.EPERM) {
				n.t.Fatal("sendto:", err)
			}
		}
	}
	// An ICMP packet with a wrong checksum, and datagrams that get the same address.
	send(n.socket(v4, unix.SOCK_RAW, unix.IPPROTO_ICMP), 0, 9, []byte{0, 0, 0xff, 0xff, 0, 0, 0, 0})
	for range 6 {
		send(n.socket(v4, unix.SOCK_DGRAM, 0), 1301, 1, nil)
	}
}
