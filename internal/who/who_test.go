package who

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag/sockdiagtest"
)

// TestRows checks that each limit has a row, and that each row either has groupings or says
// why nobody can be named.
func TestRows(t *testing.T) {
	var limits []string
	for _, s := range collector.Specs() {
		for _, l := range s.Limits {
			limits = append(limits, l.Resource)
			if !slices.Contains(Resources(), l.Resource) {
				t.Errorf("there is no row for %s", l.Resource)
			}
		}
	}
	for _, r := range rows() {
		if !slices.Contains(limits, r.resource) {
			t.Errorf("%s is not a limit", r.resource)
		}
		if answers := r.read != nil && len(r.by) > 0 && r.things != ""; answers == (r.nobody != "") {
			t.Errorf("%s: %+v", r.resource, r)
		}
		for i, by := range r.by {
			if !slices.Contains(Groupings(), by) || slices.Contains(r.by[:i], by) {
				t.Errorf("%s can be grouped by %v", r.resource, r.by)
			}
		}
	}
}

// host is a machine made of files and recorded sockets.
type host struct {
	t      *testing.T
	dir    string
	replay sockdiagtest.Replay
	ctx    context.Context //nolint:containedctx // of a test
}

func newHost(t *testing.T) *host {
	t.Helper()
	h := &host{t: t, dir: t.TempDir(), ctx: t.Context()}
	if err := os.CopyFS(h.dir, os.DirFS("../../testdata/linux-6.12")); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) write(name, content string) {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		h.t.Fatal(err)
	}
}

// process adds a process with the given descriptors.
func (h *host) process(pid int, name string, user int, cgroup string, links ...string) {
	h.t.Helper()
	dir := fmt.Sprintf("proc/%d/", pid)
	h.write(dir+"status", fmt.Sprintf("Name:\t%s\nUid:\t%d\t%d\t%d\t%d\nFDSize:\t64\n", name, user, user, user, user))
	h.write(dir+"cgroup", "0::"+cgroup+"\n")
	h.write(dir+"statm", fmt.Sprintf("%d %d 100 1 0 %d 0\n", 40*pid, 10*pid+100, 20*pid))
	h.write(dir+"limits", "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 4096                 files     \n")
	if err := os.MkdirAll(filepath.Join(h.dir, dir, "fd"), 0o755); err != nil {
		h.t.Fatal(err)
	}
	for i, link := range links {
		if err := os.Symlink(link, filepath.Join(h.dir, dir, "fd", strconv.Itoa(i))); err != nil {
			h.t.Fatal(err)
		}
	}
}

// add adds sockets to the dump.
func (h *host) add(sockets ...sockdiag.Socket) {
	for _, s := range sockets {
		b := make([]byte, 72)
		b[0], b[1], b[2] = unix.AF_INET, byte(s.State), s.Timer
		binary.BigEndian.PutUint16(b[4:], s.SourcePort)
		binary.BigEndian.PutUint16(b[6:], s.DestinationPort)
		copy(b[8:24], s.SourceAddr[:])
		copy(b[24:40], s.DestinationAddr[:])
		binary.NativeEndian.PutUint32(b[56:], s.RecvQueue)
		binary.NativeEndian.PutUint32(b[60:], s.SendQueue)
		binary.NativeEndian.PutUint32(b[64:], s.UID)
		binary.NativeEndian.PutUint32(b[68:], s.Inode)
		attribute := func(typ uint16, value []byte) {
			b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
			b = binary.NativeEndian.AppendUint16(b, typ)
			b = append(b, value...)
		}
		if s.State != sockdiag.TimeWait {
			memory := make([]byte, 36)
			binary.NativeEndian.PutUint32(memory, s.Memory.Receive)
			attribute(7, memory)
			attribute(21, binary.NativeEndian.AppendUint64(nil, s.Cgroup))
		}
		m := binary.NativeEndian.AppendUint32(nil, uint32(16+len(b)))
		m = binary.NativeEndian.AppendUint16(m, 20)
		m = append(m, make([]byte, 10)...)
		h.replay.Dump = append(h.replay.Dump, append(m, b...)...)
	}
}

// socket returns an IPv4 socket.
func socket(state sockdiag.State, from, to string, inode uint32, memory uint32) sockdiag.Socket {
	a, b := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	s := sockdiag.Socket{State: state, SourcePort: a.Port(), DestinationPort: b.Port(), Inode: inode, Cgroup: 1, UID: 1000}
	copy(s.SourceAddr[:], a.Addr().AsSlice())
	copy(s.DestinationAddr[:], b.Addr().AsSlice())
	s.Memory.Receive = memory
	if state == sockdiag.TimeWait {
		s.Timer = sockdiag.TimerTimeWait
	}
	return s
}

func (h *host) scope() *collector.Scope {
	h.t.Helper()
	m, err := kernel.Open(kernel.Options{
		ProcPath: filepath.Join(h.dir, "proc"), SysPath: filepath.Join(h.dir, "sys"), PageSize: 4096,
		MemoryUnit:   func() (int, error) { return 4096, nil },
		DialSockDiag: h.replay.Dial, View: &kernel.View{},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	k := collector.NewScope(m, 10, slog.New(slog.DiscardHandler))
	h.t.Cleanup(k.Close)
	return k
}

// ask asks a question and returns the groups as lines: count, memory, owner, processes, main
// process.
func (h *host) ask(q Question) (*Answer, []string) {
	h.t.Helper()
	if q.Top == 0 {
		q.Top = 10
	}
	a, err := Ask(h.ctx, h.scope(), q)
	if err != nil {
		h.t.Fatalf("%+v: %v", q, err)
	}
	var lines []string
	for _, g := range a.Groups {
		estimated := ""
		if g.Estimated {
			estimated = "~"
		}
		lines = append(lines, strings.Join(strings.Fields(fmt.Sprintf("%s%.0f %.0f %s %s %s %s %s", estimated, g.Count, g.Memory, g.Who, g.User, g.Unit, strings.Join(g.Processes, ","), g.Mostly)), " "))
	}
	return a, lines
}

// busy returns a host with a listener, four accepted connections, two that wait to be
// accepted, two outbound ones, an orphan and two sockets in TIME_WAIT.
func busy(t *testing.T) *host {
	h := newHost(t)
	h.write("proc/1/root/etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n")
	listener := socket(sockdiag.Listen, "0.0.0.0:80", "0.0.0.0:0", 100, 0)
	listener.RecvQueue, listener.SendQueue = 2, 8
	h.add(
		listener,
		socket(sockdiag.Established, "10.0.0.1:80", "192.0.2.1:50001", 101, 1000),
		socket(sockdiag.Established, "10.0.0.1:80", "192.0.2.1:50002", 102, 2000),
		socket(sockdiag.Established, "10.0.0.1:80", "192.0.2.2:50003", 103, 3000),
		socket(sockdiag.CloseWait, "10.0.0.1:80", "192.0.2.3:50004", 104, 100),
		socket(sockdiag.Established, "10.0.0.1:80", "192.0.2.9:50005", 0, 10),
		socket(sockdiag.Established, "10.0.0.1:80", "192.0.2.9:50006", 0, 10),
		socket(sockdiag.Established, "10.0.0.1:40000", "10.0.0.2:5432", 201, 40000),
		socket(sockdiag.Established, "10.0.0.1:40001", "10.0.0.2:5432", 202, 0),
		socket(sockdiag.FinWait1, "10.0.0.1:80", "192.0.2.4:50007", 0, 500),
		socket(sockdiag.TimeWait, "10.0.0.1:40002", "10.0.0.2:5432", 0, 0),
		socket(sockdiag.TimeWait, "10.0.0.1:40003", "10.0.0.2:5432", 0, 0),
		socket(sockdiag.TimeWait, "10.0.0.1:80", "192.0.2.1:50008", 0, 0),
	)
	h.process(20, "nginx", 0, "/system.slice/nginx.service", "/dev/null", "socket:[100]")
	h.process(21, "nginx", 1000, "/system.slice/nginx.service", "socket:[100]", "socket:[101]", "socket:[102]", "socket:[103]", "socket:[104]")
	h.process(30, "java", 1000, "/system.slice/app.service", "socket:[201]", "socket:[202]", "pipe:[7]", "anon_inode:[eventpoll]")
	return h
}

func TestSockets(t *testing.T) {
	h := busy(t)
	for _, c := range []struct {
		q    Question
		want []string
	}{
		{Question{Resource: "tcp_memory"}, []string{
			"2 40000 unit/app.service java[30] to 10.0.0.2:5432",
			"5 6100 unit/nginx.service nginx[21],nginx[20] at *:80",
			"3 520 (cgroup 1) at *:80", // the two that wait and the orphan
		}},
		{Question{Resource: "tcp_memory", By: ByProcess}, []string{
			"2 40000 java[30] web unit/app.service to 10.0.0.2:5432",
			"4 6100 nginx[21] web unit/nginx.service at *:80",
			"3 520 no process (cgroup 1) at *:80",
			"1 0 nginx[20] root unit/nginx.service",
		}},
		{Question{Resource: "tcp_memory", By: ByListener}, []string{
			"2 40000 to 10.0.0.2:5432 (cgroup 1) java[30]", "8 6620 at *:80 (cgroup 1) nginx[21],nginx[20]",
		}},
		{Question{Resource: "tcp_memory", By: ByPeer}, []string{
			"2 40000 10.0.0.2:5432 (cgroup 1) java[30]", "2 3000 192.0.2.1 (cgroup 1) nginx[21]", "1 3000 192.0.2.2 (cgroup 1) nginx[21]",
			"1 500 192.0.2.4 (cgroup 1)", "1 100 192.0.2.3 (cgroup 1) nginx[21]", "2 20 192.0.2.9 (cgroup 1)", "1 0 nobody, listening nginx[20]",
		}},
		{Question{Resource: "tcp_memory", By: ByState}, []string{
			"7 46020 established java[30],nginx[21]", "1 500 fin_wait1", "1 100 close_wait nginx[21]", "1 0 listen nginx[20]",
		}},
		{Question{Resource: "tcp_orphans"}, []string{"1 500 at *:80 (cgroup 1)"}},
		{Question{Resource: "tcp_time_wait"}, []string{"2 0 to 10.0.0.2:5432", "1 0 at *:80"}},
		{Question{Resource: "tcp_time_wait", By: ByPeer}, []string{"2 0 10.0.0.2:5432", "1 0 192.0.2.1"}},
		{Question{Resource: "accept_queue"}, []string{"2 0 *:80 root unit/nginx.service nginx[20],nginx[21]"}},
		{Question{Resource: "accept_queue", By: ByPeer}, []string{"2 0 192.0.2.9 (cgroup 1)"}},
		{Question{Resource: "ephemeral_ports"}, []string{"4 40000 10.0.0.1 → 10.0.0.2:5432 (cgroup 1) java[30]"}},
		{Question{Resource: "ephemeral_ports", By: ByProcess}, []string{
			"2 40000 java[30] web unit/app.service to 10.0.0.2:5432", "2 0 no process to 10.0.0.2:5432",
		}},
		{Question{Resource: "file_descriptors"}, []string{
			"5 0 nginx[21] web unit/nginx.service socket", "4 0 java[30] web unit/app.service", "2 0 nginx[20] root unit/nginx.service",
		}},
		{Question{Resource: "file_descriptors", By: ByUnit}, []string{"7 0 unit/nginx.service nginx[21]", "4 0 unit/app.service java[30]"}},
		{Question{Resource: "file_descriptors", By: ByPod}, []string{"11 0 in no pod nginx[21]"}},
		{Question{Resource: "file_descriptors", By: ByKind}, []string{
			"8 0 socket nginx[21],java[30]", "1 0 device nginx[20]", "1 0 eventpoll java[30]", "1 0 pipe java[30]",
		}},
		{Question{Resource: "memory"}, []string{
			"1 1228800 java[30] web unit/app.service", "1 860160 nginx[21] web unit/nginx.service", "1 819200 nginx[20] root unit/nginx.service",
		}},
		{Question{Resource: "committed_memory", By: ByUnit}, []string{"2 3358720 unit/nginx.service nginx[21]", "1 2457600 unit/app.service java[30]"}},
	} {
		a, got := h.ask(c.q)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s by %s:\n%s\nwant\n%s", c.q.Resource, c.q.By, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
		sum := 0.0
		for _, g := range a.Groups {
			sum += g.Count
		}
		if sum != a.Count || a.TooLow != 0 || a.Others != 0 {
			t.Errorf("%s by %s: the groups have %v of %v", c.q.Resource, c.q.By, sum, a.Count)
		}
	}
}

// TestTop checks that groups that are not shown are counted.
func TestTop(t *testing.T) {
	a, got := busy(t).ask(Question{Resource: "tcp_memory", By: ByPeer, Top: 2})
	if len(got) != 2 || a.Others != 5 || a.Count != 10 || a.Memory != 46620 {
		t.Errorf("%+v", a)
	}
	if g := a.Groups[1]; g.Share != 3000.0/46620 || g.Cumulative != 43000.0/46620 {
		t.Errorf("%+v", g)
	}
}

// TestNobody checks that there is a reason if nobody can be named.
func TestNobody(t *testing.T) {
	if a, _ := newHost(t).ask(Question{Resource: "netdev_backlog"}); a.Nobody == "" || len(a.Groups) > 0 {
		t.Errorf("%+v", a)
	}
}

// TestDamage checks that there is an answer although processes end or have invalid files.
func TestDamage(t *testing.T) {
	h := busy(t)
	h.write("proc/40/status", "")
	h.write("proc/41/statm", "1 2")
	h.process(42, "odd\x1b[31m", 7, "garbage", "socket:[99999999999999]", "socket:[", "x", "socket:[0]")
	h.write("proc/43/fd", "not a folder")
	h.write("proc/44/status", "FDSize:\t-1\nUid:\tx\n")
	if err := os.MkdirAll(filepath.Join(h.dir, "proc/44/fd"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, q := range []Question{
		{Resource: "tcp_memory", By: ByProcess}, {Resource: "accept_queue"}, {Resource: "file_descriptors", By: ByKind},
	} {
		if _, lines := h.ask(q); len(lines) == 0 {
			t.Errorf("%+v: nothing", q)
		}
	}
}

// endless is a transport that calls cancel when a reply with more than listeners is first
// read.
type endless struct {
	*sockdiagtest.Replay
	reads, until int
	cancel       func()
}

func (e *endless) Send(m netlink.Message) (netlink.Message, error) {
	if binary.NativeEndian.Uint32(m.Data[52:]) == uint32(sockdiag.MaskOf(sockdiag.Listen)) {
		e.until = 0
	} else {
		e.until = 1 << 30
	}
	m, err := e.Replay.Send(m)
	return m, err
}

func (e *endless) Receive(b []byte) (int, error) {
	n, err := e.Replay.Receive(b)
	if err == nil && e.until > 0 {
		if e.reads++; e.reads == 1 {
			e.cancel()
		}
	}
	return n, err
}

// TestStopped checks that the answer has what was found until the context was canceled.
func TestStopped(t *testing.T) {
	h := busy(t)
	for i := range 1000 {
		h.add(socket(sockdiag.Established, "10.0.0.1:80", fmt.Sprintf("192.0.2.7:%d", 1000+i), 0, 1))
	}
	ctx, cancel := context.WithCancel(t.Context())
	m, err := kernel.Open(kernel.Options{
		ProcPath: filepath.Join(h.dir, "proc"), SysPath: filepath.Join(h.dir, "sys"), PageSize: 4096, View: &kernel.View{},
		DialSockDiag: func() (sockdiag.Transport, error) { return &endless{Replay: &h.replay, cancel: cancel}, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	k := collector.NewScope(m, 10, slog.New(slog.DiscardHandler))
	defer k.Close()
	a, err := Ask(ctx, k, Question{Resource: "tcp_memory", By: ByPeer, Top: 10})
	if !errors.Is(err, context.Canceled) || a == nil || !a.Stopped || a.Count == 0 || a.Count >= 1000 {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestQuestions checks that a question that cannot be answered gives one clear line of error.
func TestQuestions(t *testing.T) {
	for want, q := range map[string]Question{
		`unknown resource "nonsense": it is one of tcp_memory, udp_memory`:                        {Resource: "nonsense"},
		"--by=pod does not apply to tcp_time_wait, which can be grouped by listener, peer, state": {Resource: "tcp_time_wait", By: ByPod},
		"--netns and --pod cannot be combined":                                                    {Resource: "tcp_memory", Pod: "a/b", Netns: "host"},
		"--pod=a is not NAMESPACE/POD":                                                            {Resource: "tcp_memory", Pod: "a"},
		"--netns and --pod do not apply to low_memory, which is a limit of the whole machine":     {Resource: "low_memory", Netns: "host"},
	} {
		if err := Check(q); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v", q, err)
		}
	}
	if err := Check(Question{Resource: "netdev_backlog", By: ByProcess}); err != nil {
		t.Error(err)
	}
}
