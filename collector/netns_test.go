package collector

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
)

// newNamespace makes a network namespace, which ends with the test or when its End is called.
// It returns the namespace and the label that it has while it has no owner.
func newNamespace(t *testing.T) (n *nettest.Namespace, name string) {
	t.Helper()
	needs.Check(t, needs.Root)
	n = nettest.New(t)
	id, err := machine(t, running()).MountID(strconv.Itoa(n.PID))
	if err != nil {
		t.Fatal(err)
	}
	return n, fmt.Sprintf("inode/%d", id)
}

// netnsSet returns a set of only the netns collector.
func netnsSet(t *testing.T) *Set {
	t.Helper()
	o := running()
	o.PodsPath = t.TempDir()
	set := NewSet(machine(t, o), []Spec{netnsSpec()}, Config{Top: 100, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { closeSet(t, set) })
	return set
}

// readNetns reads the set, which must succeed, and returns its series.
func readNetns(t *testing.T, set *Set) map[string]float64 {
	t.Helper()
	r := set.Read(t.Context(), Query{}).Results[0]
	if r.Err != nil || r.Unsupported != nil {
		t.Fatal(r.Err, r.Unsupported)
	}
	all := map[string]float64{}
	for _, s := range r.samples {
		key := []string{s.metric.Name}
		for i, name := range s.metric.Labels {
			if s.labels[i] != "" {
				key = append(key, name+"="+s.labels[i])
			}
		}
		all[strings.Join(key, " ")] = s.value
	}
	return all
}

// TestNetns checks that the values of each namespace are exported under its name.
func TestNetns(t *testing.T) {
	full, fullName := newNamespace(t)
	calm, calmName := newNamespace(t)
	_, emptyName := newNamespace(t)
	full.Listen(1, 5)
	calm.Listen(8, 2)
	set := netnsSet(t)
	got := readNetns(t, set)
	for key, want := range map[string]float64{
		"netns_tcp_sockets_inuse netns=" + calmName:                                5, // a listener and both ends of 2 connections
		"netns_accept_queue_length netns=" + fullName + " listener=127.0.0.1:8080": 2,
		"netns_accept_queue_limit netns=" + fullName + " listener=127.0.0.1:8080":  1,
		"netns_accept_queue_length netns=" + calmName + " listener=127.0.0.1:8080": 2,
		"netns_accept_queue_limit netns=" + calmName + " listener=127.0.0.1:8080":  8,
		"netns_saturation_ratio resource=accept_queue netns=" + fullName:           2,
		"netns_saturation_ratio resource=accept_queue netns=" + calmName:           0.25,
		"netns_refusals_total resource=accept_queue":                               0, // those before the first reading do not count
	} {
		if v, ok := got[key]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", key, v, ok, want)
		}
	}
	if got["netns_tcp_listen_overflows_total netns="+fullName] < 1 {
		t.Error("the namespace that refused connections has no counter")
	}
	for key := range got {
		if strings.Contains(key, emptyName) || strings.Contains(key, "overflows_total netns="+calmName) {
			t.Errorf("%s is exported, want no series for an empty namespace", key)
		}
	}
	if got["netns_namespaces"] < 3 || got["netns_unreadable"] != 0 {
		t.Errorf("%v namespaces, %v unreadable", got["netns_namespaces"], got["netns_unreadable"])
	}
	// Namespaces of other tests may be as full.
	limits := set.Read(t.Context(), Query{}).Results[0].netns
	if !slices.ContainsFunc(limits, func(l NetnsLimit) bool { return l.Resource == "accept_queue" && l.Name != "" && l.Saturation >= 2 }) {
		t.Errorf("the worst are %+v", limits)
	}
}

// TestNetnsLimits checks that TIME_WAIT sockets and ephemeral ports of a namespace are
// compared with its own sysctls.
func TestNetnsLimits(t *testing.T) {
	n, label := newNamespace(t)
	sysctl := func(name, value string) {
		n.Inside(func() error {
			return os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0)
		})
	}
	sysctl("ip_local_port_range", "40000 40099")
	sysctl("tcp_max_tw_buckets", "50")
	n.Listen(100, 60)
	got := readNetns(t, netnsSet(t))
	if v := got["netns_saturation_ratio resource=ephemeral_ports netns="+label]; v != 0.6 {
		t.Errorf("the saturation of 60 of 100 ports is %v, want 0.6", v)
	}
	if v, ok := got["netns_saturation_ratio resource=tcp_time_wait netns="+label]; ok {
		t.Errorf("the saturation of TIME_WAIT is %v without any such socket", v)
	}
}

// TestNetnsQueues checks that the fullest unix, UDP and request queue of a namespace are
// compared with their own limits, and that a namespace with empty queues has no such series.
func TestNetnsQueues(t *testing.T) {
	needs.Check(t, needs.Root, "ip")
	busy, busyName := newNamespace(t)
	calm, calmName := newNamespace(t)
	calm.Listen(8, 1)
	busy.Listen(1, 0)
	var open []int
	t.Cleanup(func() {
		for _, fd := range open {
			_ = unix.Close(fd)
		}
	})
	socket := func(family, kind int) (int, error) {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err == nil {
			open = append(open, fd)
		}
		return fd, err
	}
	// Two connections wait at a unix socket with a backlog of 4.
	busy.Inside(func() error {
		l, err := socket(unix.AF_UNIX, unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		at := &unix.SockaddrUnix{Name: fmt.Sprintf("@%s-%d", t.Name(), os.Getpid())}
		if err := errors.Join(unix.Bind(l, at), unix.Listen(l, 4)); err != nil {
			return err
		}
		for range 2 {
			fd, err := socket(unix.AF_UNIX, unix.SOCK_STREAM)
			if err := errors.Join(err, unix.Connect(fd, at)); err != nil {
				return err
			}
		}
		return nil
	})
	// Send datagrams to a UDP socket until one is dropped.
	busy.Inside(func() error {
		fd, err := socket(unix.AF_INET6, unix.SOCK_DGRAM)
		if err != nil {
			return err
		}
		at := &unix.SockaddrInet6{Addr: netip.IPv6Loopback().As16(), Port: nettest.Port}
		if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10), unix.Bind(fd, at)); err != nil {
			return err
		}
		for range 100 {
			if err := unix.Sendto(fd, make([]byte, 500), 0, at); err != nil {
				return err
			}
		}
		return nil
	})
	set := netnsSet(t)
	got := readNetns(t, set)
	if v := got["netns_saturation_ratio resource=unix_accept_queue netns="+busyName]; v != 0.5 {
		t.Errorf("the saturation of 2 of 4 connections is %v, want 0.5", v)
	}
	if v := got["netns_saturation_ratio resource=udp_receive_queue netns="+busyName]; v < 0.9 || v > 1.5 {
		t.Errorf("the saturation of a full receive buffer is %v", v)
	}
	// Make a connection request that is never completed: the SYN/ACK goes to an unused
	// address.
	busy.Inside(func() error {
		if out, err := exec.Command("ip", "route", "add", "198.51.100.0/24", "dev", "lo").CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return ask(nettest.Port, 1)
	})
	key := "netns_saturation_ratio resource=request_queue netns=" + busyName
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if v, ok := readNetns(t, set)[key]; v == 1 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the saturation of a full request queue is %v (%v), want 1", v, ok)
		}
	}
	for key := range readNetns(t, set) {
		if strings.HasPrefix(key, "netns_saturation_ratio") && strings.HasSuffix(key, "netns="+calmName) && !strings.Contains(key, "accept_queue") {
			t.Errorf("%s is exported, want no series for an empty queue", key)
		}
	}
}

// ask sends n SYNs to a port of this machine from unused addresses.
func ask(port uint16, n int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const sizeofIP, sizeofTCP = 20, 20
	for i := range n {
		from, to := [4]byte{198, 51, 100, byte(i)}, [4]byte{127, 0, 0, 1}
		b := make([]byte, sizeofIP+sizeofTCP)
		b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_TCP // version and size, hops, protocol
		copy(b[12:], from[:])
		copy(b[16:], to[:])
		tcp := b[sizeofIP:]
		binary.BigEndian.PutUint16(tcp, 1024)
		binary.BigEndian.PutUint16(tcp[2:], port)
		tcp[12], tcp[13] = sizeofTCP/4<<4, 0x02 // size, SYN
		binary.BigEndian.PutUint16(tcp[14:], 1024)
		sum := uint32(unix.IPPROTO_TCP + sizeofTCP)
		for _, part := range [][]byte{from[:], to[:], tcp} {
			for j := 0; j < len(part); j += 2 {
				sum += uint32(binary.BigEndian.Uint16(part[j:]))
			}
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(tcp[16:], ^uint16(sum))
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to}); err != nil {
			return err
		}
	}
	return nil
}

// TestNetnsRefusals checks that refusals in namespaces are counted once, including those in
// new namespaces and in namespaces that have ended.
func TestNetnsRefusals(t *testing.T) {
	old, _ := newNamespace(t)
	old.Listen(1, 5)
	set := netnsSet(t)
	const key = "netns_refusals_total resource=accept_queue"
	if got := readNetns(t, set)[key]; got != 0 {
		t.Fatalf("%v before the first reading", got)
	}
	young, youngName := newNamespace(t)
	young.Listen(1, 6)
	series := readNetns(t, set)
	first := series[key]
	if overflows := series["netns_tcp_listen_overflows_total netns="+youngName]; first < overflows || overflows < 1 {
		t.Errorf("%v refusals, of which %v in a new namespace", first, overflows)
	}
	old.End()
	young.End()
	for range 3 {
		// Connections of other tests may be refused too.
		if got := readNetns(t, set)[key]; got < first {
			t.Errorf("%v refusals after %v, when the namespaces have ended", got, first)
		}
	}
}

// TestNetnsNames checks that a namespace without a process is found by the file it is bound
// to, and named after it.
func TestNetnsNames(t *testing.T) {
	needs.Check(t, needs.Root, "ip")
	name := fmt.Sprintf("a b%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil && t.Context().Err() == nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	set := netnsSet(t)
	readNetns(t, set)
	nettest.At(t, "/run/netns/"+name).Listen(0, 4)
	got := readNetns(t, set)
	if v := got["netns_tcp_listen_overflows_total netns=name/"+name]; v < 1 {
		t.Errorf("%v overflows: %v", v, got)
	}
}

// TestNetnsLeavesNothing checks that a namespace ends with its last process even if namespaces
// are read all the time. When it ends, the other end of its veth pair is removed.
func TestNetnsLeavesNothing(t *testing.T) {
	needs.Check(t, needs.Root, "ip")
	set := netnsSet(t)
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	reading.Go(func() {
		for ctx.Err() == nil {
			set.Read(ctx, Query{})
		}
	})
	defer reading.Wait()
	defer cancel()
	for i := range 20 {
		n, _ := newNamespace(t)
		veth := fmt.Sprintf("sp%d-%d", os.Getpid()%100000, i)
		if out, err := exec.Command("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(n.PID)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		time.Sleep(time.Duration(i) * time.Millisecond)
		n.End()
		for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat("/sys/class/net/" + veth); errors.Is(err, fs.ErrNotExist) {
				break
			}
			if time.Since(begin) > 20*time.Second {
				t.Fatalf("%s still exists", veth)
			}
		}
	}
}

// TestNetnsHangs checks that a namespace whose reading hangs or panics delays the others only
// briefly, and that a hanging namespace is not read again until it has returned.
func TestNetnsHangs(t *testing.T) {
	release := make(chan struct{})
	looked := make(chan uint64, 100)
	r := &netnsReader{
		Scope: scope(t, kernel.Options{ProcPath: "/proc", SysPath: "/sys"}), hanging: map[uint64]bool{},
		looker: func(*Scope, *kernel.Tour) looker {
			return func(_ context.Context, at netnsPlace) (netnsReading, error) {
				looked <- at.id
				switch at.id {
				case 2:
					<-release
					return netnsReading{}, kernel.ErrLost
				case 3:
					panic("oops")
				case 4:
					return netnsReading{}, kernel.ErrLost
				}
				return netnsReading{id: at.id}, nil
			}
		},
	}
	places := []netnsPlace{{id: 1}, {id: 2, processes: []string{"22"}}, {id: 3}, {id: 4}, {id: 5}}
	visit := func() (read []uint64, failed []error) {
		err := r.visit(t.Context(), places, func(_ netnsPlace, n netnsReading, err error) {
			if err != nil {
				failed = append(failed, err)
			} else {
				read = append(read, n.id)
			}
		})
		if err != nil {
			t.Error(err)
		}
		return read, failed
	}
	for round := range 2 {
		read, failed := visit()
		if fmt.Sprint(read) != "[1 5]" || len(failed) != 3 || !errors.Is(failed[0], errDeadline) ||
			!strings.Contains(failed[1].Error(), "oops") || !errors.Is(failed[2], kernel.ErrLost) {
			t.Errorf("round %d: %v, %v", round, read, failed)
		}
	}
	if n := len(looked); n != 9 { // five in the first round, four in the second
		t.Errorf("looked %d times", n)
	}
	close(release)
	for end := time.Now().Add(20 * time.Second); r.hangs(2) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if read, failed := visit(); len(read) != 2 || len(failed) != 3 || errors.Is(failed[0], errDeadline) {
		t.Errorf("after it has returned: %v, %v", read, failed)
	}
}

// TestNetnsMoved checks that a reading is discarded if its process is in another namespace by
// then.
func TestNetnsMoved(t *testing.T) {
	n, _ := newNamespace(t)
	s := scope(t, running())
	pid := strconv.Itoa(n.PID)
	id, err := s.ID(pid)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Tour(func(tour *kernel.Tour) error {
		look := newNetnsVisitor(s, tour).look
		for _, c := range []struct {
			at   netnsPlace
			want error
		}{
			{netnsPlace{id: id, processes: []string{pid}}, nil},
			{netnsPlace{id: id + 1, processes: []string{pid}}, errMoved},
			{netnsPlace{id: id, processes: []string{strconv.Itoa(os.Getpid())}}, errMoved},
			{netnsPlace{id: id, processes: []string{"1073741824", pid}}, nil},
			{netnsPlace{id: id, processes: []string{"1073741824"}}, errMoved},
			{netnsPlace{id: id, path: filepath.Join(t.TempDir(), "gone")}, errMoved},
		} {
			if got, err := look(t.Context(), c.at); !errors.Is(err, c.want) || err == nil && got.id != id {
				t.Errorf("%+v: %d, %v", c.at, got.id, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestDistinguish checks that every namespace gets a unique, readable name and keeps it.
func TestDistinguish(t *testing.T) {
	h := netnsHistory{of: map[uint64]*netnsPast{}}
	for _, step := range []struct{ names, want string }{
		{"pod/a/b,,pod/a/b,name/x\n,name/x\r,docker/0", "pod/a/b inode/2 inode/3 name/x? inode/77 docker/0"},
		// The namespace that had the name keeps it, regardless of the order.
		{",,pod/a/b,,,", "inode/1 inode/2 pod/a/b inode/4 inode/77 inode/6"},
		{"pod/a/b,,pod/a/b,,,", "inode/1 inode/2 pod/a/b inode/4 inode/77 inode/6"},
	} {
		var all []netnsReading
		for i, name := range strings.Split(step.names, ",") {
			n := netnsReading{id: uint64(i + 1), owner: owner.Owner{Name: name}}
			if n.id == 5 {
				n.mount = 77
			}
			h.keep(n.id)
			all = append(all, n)
		}
		h.distinguish(all)
		var names []string
		for _, n := range all {
			names = append(names, n.owner.Name)
		}
		if got := strings.Join(names, " "); got != step.want {
			t.Errorf("%q: %s", step.names, got)
		}
	}
}

// TestChosen checks which owner is chosen for a namespace from the claims of its processes.
func TestChosen(t *testing.T) {
	claim := func(kind owner.Kind, id string) owner.Claim { return owner.Claim{Kind: kind, ID: id} }
	cart, debug, docker, unit, none := claim(owner.Pod, "cart"), claim(owner.Pod, "debug"), claim(owner.Docker, "0"), claim(owner.Unit, "ssh.service"), owner.Claim{}
	for _, c := range []struct {
		claims []owner.Claim
		had    owner.Claim
		want   owner.Claim
	}{
		{nil, cart, none},
		{[]owner.Claim{cart}, none, cart},
		{[]owner.Claim{debug, cart, cart}, none, cart},
		{[]owner.Claim{debug, cart}, none, none},
		{[]owner.Claim{debug, cart}, cart, cart},
		{[]owner.Claim{debug, debug, debug, cart}, cart, cart},
		{[]owner.Claim{unit, unit, cart}, none, cart},
		{[]owner.Claim{unit, none}, none, unit},
		{[]owner.Claim{docker, docker, docker, cart, debug}, none, docker},
		{[]owner.Claim{none, none}, cart, none},
	} {
		if got := chosen(c.claims, c.had); got != c.want {
			t.Errorf("%v, had by %v: %v", c.claims, c.had, got)
		}
	}
}

// TestNetnsHistory checks that counters are compared with those of the same namespace; that
// all counts of a new namespace are new, also if it has the ID of an earlier one; that a
// namespace that comes back is not counted again; and that clashes of connection tracking are
// not counted as refusals.
func TestNetnsHistory(t *testing.T) {
	h := netnsHistory{of: map[uint64]*netnsPast{}}
	const overflows = 0
	for i, step := range []struct {
		id                      uint64
		overflow, drop, clashes float64
		refused, dropped        float64 // in all, since the first reading
		rose                    int
	}{
		{1, 5, 3, 1, 0, 0, 1},
		{1, 5, 3, 1, 0, 0, 1},
		{1, 7, 6, 3, 2, 1, 3},
		{2, 4, 0, 0, 6, 1, 4}, // 1 is missing
		{2, 4, 0, 0, 6, 1, 4},
		{2, 1, 0, 0, 7, 1, 6}, // another one with the same ID
		{1, 7, 6, 3, 7, 1, 3}, // 1 is back
		{1, 8, 6, 3, 8, 1, 8},
	} {
		n := netnsReading{id: step.id, clashes: number(step.clashes)}
		n.counters[overflows], n.counters[netnsConntrackDrops] = number(step.overflow), number(step.drop)
		h.begin()
		h.note(&n, nil)
		h.end()
		if got := h.refused; got[overflows].Value != step.refused || got[netnsConntrackDrops].Value != step.dropped || n.rose != step.rose {
			t.Errorf("step %d: %v, %v, rose in %d", i, got[overflows], got[netnsConntrackDrops], n.rose)
		}
	}

	// A namespace that existed but could not be read is not new when it can be read.
	h.begin()
	h.keep(3)
	h.end()
	n := netnsReading{id: 3}
	n.counters[overflows] = number(100)
	h.begin()
	if h.note(&n, nil); h.refused[overflows].Value != 8 {
		t.Errorf("%v refusals, want 8: the namespace existed before", h.refused[overflows])
	}
	// No namespace is new at the first reading, nor at the first complete one.
	h = netnsHistory{of: map[uint64]*netnsPast{}}
	for id := range uint64(2) {
		n.id = id
		h.begin()
		if h.note(&n, nil); h.refused[overflows].Value != 0 {
			t.Errorf("%v refusals before the first complete reading, want 0", h.refused[overflows])
		}
	}
	// The history is bounded.
	for id := range uint64(3 * maxNamespaces) {
		h.begin()
		h.keep(id)
		h.end()
	}
	if len(h.of) > 2*maxNamespaces || h.of[3*maxNamespaces-1] == nil || h.of[2*maxNamespaces] == nil {
		t.Errorf("%d namespaces are remembered", len(h.of))
	}
}

// TestSettled checks that the owner of a namespace is looked up until it is found, or for
// freshEvery readings, and again if the processes change.
func TestSettled(t *testing.T) {
	h := netnsHistory{of: map[uint64]*netnsPast{}}
	mine, others := []string{"1", "2"}, []string{"1", "3"}
	for i, step := range []struct {
		times     int
		processes []string
		claim     owner.Claim
		settled   bool
	}{
		{1, mine, owner.Claim{Kind: owner.Pod, ID: "cart"}, true},
		{1, mine, owner.Claim{}, false},
		{freshEvery, mine, owner.Claim{}, true},
		{1, others, owner.Claim{}, false},
		{freshEvery - 1, others, owner.Claim{}, false},
		{1, others, owner.Claim{}, true},
	} {
		for range step.times {
			h.note(&netnsReading{id: 1, claim: step.claim}, step.processes)
		}
		if h.of[1].settled(step.processes) != step.settled || h.of[1].settled(nil) {
			t.Errorf("step %d: settled is not %v", i, step.settled)
		}
	}
}

// TestNewWounds checks that the namespaces with the latest refusals are listed first, not
// those with the most.
func TestNewWounds(t *testing.T) {
	first := top[*netnsReading]{n: 2, before: (*netnsReading).refusedLater}
	for id := range uint64(50) {
		n := &netnsReading{id: id, rose: 1, rise: float64(id)}
		if id == 40 {
			n.rose, n.rise = 2, 1
		}
		first.offer(n)
	}
	if first.items[0].id != 40 || first.items[1].id != 49 {
		t.Errorf("the first are %d and %d", first.items[0].id, first.items[1].id)
	}
}

// TestFindNetns checks that FindNetns returns each namespace under a unique name, with its
// processes and sockets.
func TestFindNetns(t *testing.T) {
	full, fullName := newNamespace(t)
	_, emptyName := newNamespace(t)
	full.Listen(1, 5)
	o := running()
	o.PodsPath = t.TempDir()
	k := NewScope(machine(t, o), 10, slog.New(slog.DiscardHandler))
	defer k.Close()
	found, err := FindNetns(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]FoundNetns{}
	for _, n := range found {
		if _, twice := at[n.Name]; twice {
			t.Errorf("two are called %s", n.Name)
		}
		at[n.Name] = n
	}
	if n := at[fullName]; !n.Enterable || n.TCP.Value < 5 || !slices.Contains(n.Processes, strconv.Itoa(full.PID)) {
		t.Errorf("%s: %+v", fullName, n)
	}
	if n := at[emptyName]; !n.Enterable || !n.TCP.Present || n.TCP.Value != 0 {
		t.Errorf("%s: %+v", emptyName, n)
	}
	// A copy of a procfs has no namespaces.
	copied := newTree(t, "linux-6.12")
	m, err := kernel.Open(kernel.Options{ProcPath: filepath.Join(copied.dir, "proc")})
	if err != nil {
		t.Fatal(err)
	}
	k = NewScope(m, 10, slog.New(slog.DiscardHandler))
	defer k.Close()
	if found, err := FindNetns(t.Context(), k); err != nil || len(found) > 0 {
		t.Errorf("%v, %v", found, err)
	}
}
