package collector

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// TestRequestQueues checks that a request counts for the listener at its address, or at all
// addresses of its family, or at all addresses of both families.
func TestRequestQueues(t *testing.T) {
	v := newTCPVisitor(10)
	v.Reset()
	listen := func(at string, backlog uint32) {
		s := socket(at, "0.0.0.0:0")
		if netip.MustParseAddrPort(at).Addr().Is6() {
			s = socket(at, "[::]:0")
		}
		s.State, s.SendQueue = sockdiag.Listen, backlog
		v.Visit(s)
	}
	ask := func(at string, n int) {
		s := socket(at, "198.51.100.1:5000")
		if netip.MustParseAddrPort(at).Addr().Is6() {
			s = socket(at, "[2001:db8::1]:5000")
		}
		s.State = sockdiag.SynRecv
		for range n {
			v.Visit(s)
		}
	}
	listen("127.0.0.1:80", 100)
	listen("0.0.0.0:80", 10)
	listen("[::]:443", 200)
	listen("[2001:db8::2]:443", 8)
	ask("127.0.0.1:80", 50)
	ask("127.0.0.2:80", 4)
	ask("127.0.0.2:443", 20)
	ask("[2001:db8::3]:443", 30)
	ask("[2001:db8::2]:443", 3)
	ask("127.0.0.1:9", 5) // its listener was closed
	for cookies, limits := range map[string][4]uint64{"1": {100, 10, 200, 8}, "0": {96, 10, 96, 8}} {
		tr := newTree(t, "linux-6.12")
		tr.write("proc/sys/net/ipv4/tcp_syncookies", cookies+"\n")
		tr.write("proc/sys/net/ipv4/tcp_max_syn_backlog", "128\n")
		queues, err := newRequestLimits(scope(t, tr.options()).Host).requests(v)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.SortedFunc(queues, func(a, b requestQueue) int { return a.listener.Compare(b.listener) })
		at := netip.MustParseAddrPort
		want := []requestQueue{
			{at("0.0.0.0:80"), 4, limits[1]},
			{at("127.0.0.1:80"), 50, limits[0]},
			{at("[::]:443"), 50, limits[2]},
			{at("[2001:db8::2]:443"), 3, limits[3]},
		}
		if !slices.Equal(got, want) {
			t.Errorf("with tcp_syncookies %s: %v, want %v", cookies, got, want)
		}
	}
}

// TestUnixQueues checks that the fullest queues come first, that names are written as ss
// writes them, and that one idle queue is kept if all are idle.
func TestUnixQueues(t *testing.T) {
	v := newUnixVisitor(2)
	visit := func(name string, length, limit uint32) {
		v.VisitUnix(&sockdiag.UnixSocket{Inode: 5, Name: []byte(name), Queue: length, Backlog: limit})
	}
	v.Reset()
	visit("/b\x00", 0, 5)
	visit("\x00a\x01", 0, 7)
	if len(v.fullest.items) != 0 || v.idle.path != "/b" || v.count != 2 {
		t.Errorf("idle: %+v", v)
	}
	visit("/half", 2, 4)
	visit("/half", 3, 4) // bound again while the old socket exists
	visit("/over", 5, 4)
	visit("", 1, 4)
	got := v.fullest.items
	if len(got) != 2 || got[0].path != "/over" || got[1].path != "/half" || got[1].length != 3 {
		t.Errorf("%+v", got)
	}
	if name := (&sockdiag.UnixSocket{Inode: 5}).String(); name != "inode/5" {
		t.Errorf("a socket without a name is %q", name)
	}
	if name := (&sockdiag.UnixSocket{Name: []byte("\x00x")}).String(); name != "@x" {
		t.Errorf("an abstract name is %q", name)
	}
}

// TestUDPDrops checks that the drops of an address do not fall when its sockets are closed and
// created again or get the inode of another.
func TestUDPDrops(t *testing.T) {
	h := udpHistory{known: map[uint32]udpKnown{}, totals: map[string]*udpDrops{}}
	step := func(want float64, drops map[uint32]udpKnown) {
		t.Helper()
		all := h.note(drops)
		if len(all) != 1 || all[0].total != want {
			t.Errorf("%+v, want %v", all, want)
		}
	}
	step(10, map[uint32]udpKnown{1: {":53", 4}, 2: {":53", 6}})
	step(12, map[uint32]udpKnown{1: {":53", 5}, 2: {":53", 7}})
	step(12, map[uint32]udpKnown{2: {":53", 7}})
	step(15, map[uint32]udpKnown{2: {":53", 3}})
	step(15, nil)
	if all := h.note(map[uint32]udpKnown{2: {":54", 3}}); len(all) != 2 {
		t.Errorf("another address: %+v", all)
	}
}

// TestUDPWorth checks that the fullest queue and others that are filled to udpWorth have a
// series, or that with the lowest port if all are empty.
func TestUDPWorth(t *testing.T) {
	v := newUDPVisitor(10)
	visit := func(at string, used uint32) {
		s := socket(at, "0.0.0.0:0")
		s.State, s.Memory = sockdiag.Close, sockdiag.Memory{Receive: used, Limit: 16 << 10}
		v.Visit(s)
	}
	listed := func() (sockets []string) {
		for _, q := range v.worth() {
			sockets = append(sockets, q.socket)
		}
		return sockets
	}
	v.Reset()
	if got := listed(); got != nil {
		t.Errorf("no socket: %q", got)
	}
	visit("127.0.0.1:40001", 0)
	visit("127.0.0.1:53", 0)
	visit("127.0.0.1:514", 0)
	if got := listed(); !slices.Equal(got, []string{"127.0.0.1:53"}) {
		t.Errorf("all are empty: %q", got)
	}
	visit("127.0.0.1:50001", 768)
	visit("127.0.0.1:50002", 768)
	if got := listed(); !slices.Equal(got, []string{"127.0.0.1:50001"}) {
		t.Errorf("a datagram each: %q", got)
	}
	visit("127.0.0.1:514", 2<<10)
	visit("127.0.0.1:53", 1<<10)
	if got := listed(); !slices.Equal(got, []string{"127.0.0.1:514", "127.0.0.1:53"}) {
		t.Errorf("two that hold something: %q", got)
	}
}

// TestUDPConnected checks that drops are counted once if the socket is connected after them.
func TestUDPConnected(t *testing.T) {
	h := udpHistory{known: map[uint32]udpKnown{}, totals: map[string]*udpDrops{}}
	sum := 0.0
	h.note(map[uint32]udpKnown{1: {":53", 4}})
	for _, d := range h.note(map[uint32]udpKnown{1: {":53 → peer", 6}}) {
		sum += d.total
	}
	if sum != 6 {
		t.Errorf("%v drops, want 6", sum)
	}
}

// TestNetnsTurns checks that connection requests are read in a few namespaces at each reading,
// and in every namespace in turn.
func TestNetnsTurns(t *testing.T) {
	h := netnsHistory{of: map[uint64]*netnsPast{}}
	const waiting = 10 // a third of them at each reading
	for id := range uint64(waiting) {
		if !h.turn(id) {
			t.Error("not read although no other namespace is waiting")
		}
	}
	h.waited = waiting
	asked := map[uint64]int{}
	for range 3 {
		h.reading++
		now := 0
		for id := range uint64(waiting) {
			if h.turn(id) {
				asked[id]++
				now++
			}
		}
		if now > requestTurns {
			t.Errorf("%d of %d at once", now, waiting)
		}
	}
	for id := range uint64(waiting) {
		if asked[id] != 1 {
			t.Errorf("%d: asked %d times", id, asked[id])
		}
	}
}

// TestUDPVisitor checks that the fullest queue of each address is kept, and one idle queue if
// all are idle.
func TestUDPVisitor(t *testing.T) {
	v := newUDPVisitor(10)
	v.Reset()
	visit := func(used, limit uint32, state sockdiag.State) {
		s := socket("127.0.0.1:53", "198.51.100.1:99")
		s.State, s.Memory = state, sockdiag.Memory{Receive: used, Limit: limit}
		v.Visit(s)
	}
	visit(0, 100, sockdiag.Close)
	if v.idle.socket != "127.0.0.1:53" || v.idle.limit != 100 {
		t.Errorf("idle: %+v", v.idle)
	}
	visit(10, 100, sockdiag.Close)
	visit(90, 100, sockdiag.Close)
	visit(20, 100, sockdiag.Established)
	got := v.fullest.items
	if len(got) != 2 || got[0].used != 90 || got[1].socket != "127.0.0.1:53 → 198.51.100.1:99" || v.count != 4 {
		t.Errorf("%+v", got)
	}
}
