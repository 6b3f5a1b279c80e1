package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

// whoAnswer is the JSON output of who, as documented in README.md.
type whoAnswer struct {
	Resource   string     `json:"resource"`
	State      string     `json:"state"`
	Saturation float64    `json:"saturation"`
	Usage      float64    `json:"usage"`
	By         string     `json:"by"`
	Counted    string     `json:"counted"`
	Count      float64    `json:"count"`
	Memory     float64    `json:"memory_bytes"`
	Groups     []whoGroup `json:"groups"`
	Others     int        `json:"more_groups"`
	Notes      []string   `json:"notes"`
	Stopped    bool       `json:"stopped"`
}

type whoGroup struct {
	Who       string   `json:"who"`
	PID       int      `json:"pid"`
	User      string   `json:"user"`
	Unit      string   `json:"unit"`
	Netns     string   `json:"netns"`
	Count     float64  `json:"count"`
	Memory    float64  `json:"memory_bytes"`
	Share     float64  `json:"share"`
	Sum       float64  `json:"cumulative_share"`
	Limit     float64  `json:"limit"`
	Estimated bool     `json:"estimated"`
	Processes []string `json:"processes"`
	Mostly    string   `json:"mostly"`
}

// askWho runs who in the network namespace of the calling goroutine. wrap may change the command.
func askWho(t *testing.T, wrap func(*exec.Cmd), args ...string) whoAnswer {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"who", "--format=json", "--top=1000"}, args...)...)
	cmd.SysProcAttr = new(syscall.SysProcAttr)
	if wrap != nil {
		wrap(cmd)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", args, err, stderr.String())
	}
	var a whoAnswer
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return a
}

// ask runs who in the namespace, as if that were the host's, and only for it.
func (n *netns) ask(args ...string) whoAnswer {
	n.t.Helper()
	return askWho(n.t, func(cmd *exec.Cmd) { asHost(cmd, "") }, append(args, "--netns=host")...)
}

// group returns the group with a name.
func (a whoAnswer) group(t *testing.T, who string) whoGroup {
	t.Helper()
	i := slices.IndexFunc(a.Groups, func(g whoGroup) bool { return g.Who == who })
	if i < 0 {
		t.Fatalf("no group is %s among %+v", who, a.Groups)
	}
	return a.Groups[i]
}

// this returns the name of this process in the output of who.
func this(t *testing.T) string {
	t.Helper()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s[%d]", strings.TrimSpace(string(comm)), os.Getpid())
}

// skmem returns how many sockets `ss -tanmH` or `ss -uanmH` lists, except for mini-sockets, and
// how much of the protocol's memory they use.
func skmem(t *testing.T, flag string) (count, memory float64) {
	t.Helper()
	numbers := regexp.MustCompile(`skmem:\(r(\d+),rb\d+,t\d+,tb\d+,f(\d+),w(\d+),`)
	for line := range strings.Lines(command(t, "", "ss", flag, "-anmOH")) {
		if strings.HasPrefix(line, "TIME-WAIT") || strings.HasPrefix(line, "SYN-RECV") {
			continue
		}
		count++
		m := numbers.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("ss says %q", line)
		}
		for _, s := range m[1:] {
			v, err := strconv.ParseFloat(s, 64)
			if err != nil {
				t.Fatal(err)
			}
			memory += v
		}
	}
	return count, memory
}

// TestWhoMemory checks that the memory of TCP and UDP sockets equals that shown by ss, to the
// byte, and that this process holds it, however it is grouped.
func TestWhoMemory(t *testing.T) {
	n := enterNetns(t, "ss")
	at := netip.MustParseAddrPort("127.0.0.1:4100")
	for i, p := range n.pairs(n.listen(at, 64), netip.AddrPort{}, at, 20) {
		// Unread data at one end, and more than that in the send queue of the other.
		for range 10 * i {
			if _, err := unix.Write(p.client, make([]byte, 10_000)); err != nil && !errors.Is(err, unix.EAGAIN) {
				t.Fatal(err)
			}
		}
	}
	udp := n.socket(at.Addr(), unix.SOCK_DGRAM, 0)
	n.bind(udp, at)
	for range 30 {
		if err := unix.Sendto(udp, make([]byte, 1000), 0, sockaddr(at)); err != nil {
			t.Fatal(err)
		}
	}
	for _, protocol := range []struct{ resource, flag, listener string }{
		{"tcp_memory", "-t", "at 127.0.0.1:4100"}, {"udp_memory", "-u", "at 127.0.0.1:4100"},
	} {
		for _, by := range []string{"process", "unit", "listener"} {
			// The kernel may be about to retransmit data that was not received.
			var a whoAnswer
			n.until("the same before and after", func() bool {
				count, memory := skmem(t, protocol.flag)
				a = n.ask(protocol.resource, "--by="+by)
				again, memoryAgain := skmem(t, protocol.flag)
				if count != again || memory != memoryAgain {
					return false
				}
				if a.Count != count || a.Memory != memory || memory < 30_000 {
					t.Errorf("%s by %s: %v sockets with %v bytes, ss has %v with %v", protocol.resource, by, a.Count, a.Memory, count, memory)
				}
				return true
			})
			sum, share := 0.0, 0.0
			for _, g := range a.Groups {
				sum += g.Memory
				if share += g.Share; g.Sum < share-1e-9 || g.Sum > share+1e-9 || g.Estimated {
					t.Errorf("%+v after a share of %v", g, share)
				}
			}
			if sum != a.Memory {
				t.Errorf("%s by %s: the groups have %v bytes of %v", protocol.resource, by, sum, a.Memory)
			}
			switch by {
			case "process":
				if g := a.group(t, this(t)); g.PID != os.Getpid() || g.User != "root" || g.Share != 1 {
					t.Errorf("%+v", g)
				}
			case "unit":
				if g := a.Groups[0]; !slices.Equal(g.Processes, []string{this(t)}) {
					t.Errorf("%+v", g)
				}
			case "listener":
				if g := a.group(t, protocol.listener); g.Count < 1 || !slices.Equal(g.Processes, []string{this(t)}) {
					t.Errorf("%+v", g)
				}
			}
		}
	}
}

// TestWhoAcceptQueue checks that a listener with a full queue, in a network namespace of its own,
// is first, with its process and the peer whose connections wait.
func TestWhoAcceptQueue(t *testing.T) {
	needs.Check(t, needs.Root)
	n, calm := nettest.New(t), nettest.New(t)
	n.Listen(4, 7)
	calm.Listen(64, 3)
	netns := netnsName(t, n)
	a := askWho(t, nil, "accept_queue", "--netns="+netns)
	g := a.Groups[0]
	if len(a.Groups) != 1 || a.Count != 5 || g.Who != "127.0.0.1:8080" || g.Count != 5 || g.Limit != 4 || g.Netns != netns ||
		g.User != "root" || !slices.Equal(g.Processes, []string{this(t)}) {
		t.Errorf("%+v", a)
	}
	if a = askWho(t, nil, "accept_queue"); a.Count < 8 || a.Groups[0].Count/a.Groups[0].Limit < 1.25 {
		t.Errorf("of all namespaces: %+v", a)
	}
	if a = askWho(t, nil, "accept_queue", "--by=process", "--netns="+netns); a.group(t, this(t)).Count != 5 || a.Groups[0].Mostly != "at 127.0.0.1:8080" {
		t.Errorf("by process: %+v", a)
	}
	if a = askWho(t, nil, "accept_queue", "--by=peer", "--netns="+netns); a.Count != 5 || a.group(t, "127.0.0.1").Count != 5 {
		t.Errorf("by peer: %+v", a)
	}
}

// TestWhoUnixQueue checks that a unix socket with waiting connections is first, with this
// process.
func TestWhoUnixQueue(t *testing.T) {
	needs.Check(t, needs.Root)
	n := enterNetns(t)
	n.sysctl("net.core.somaxconn", "50")
	path := filepath.Join(t.TempDir(), "db")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for range 3 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	a := n.ask("unix_accept_queue")
	g := a.group(t, path)
	if a.Count != 3 || g.Count != 3 || a.Groups[0].Who != path || g.Limit != 50 || !slices.Equal(g.Processes, []string{this(t)}) || g.User != "root" {
		t.Errorf("%+v", a)
	}
	if a = n.ask("unix_accept_queue", "--by=process"); a.group(t, this(t)).Count != 3 {
		t.Errorf("by process: %+v", a)
	}
}

// netnsName returns the name of a namespace without a pod, container or unit.
func netnsName(t *testing.T, n *nettest.Namespace) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.PID))
	if err != nil {
		t.Fatal(err)
	}
	return "inode/" + strings.TrimSuffix(strings.TrimPrefix(link, "net:["), "]")
}

// TestWhoPorts checks that the pair of addresses that uses the most ephemeral ports is first,
// with the process that connects, that sockets in TIME_WAIT have no process, and that orphans are
// grouped by where they were accepted.
func TestWhoPorts(t *testing.T) {
	n := enterNetns(t)
	n.sysctl("net.ipv4.ip_local_port_range", "40000 40099")
	n.sysctl("net.ipv4.ip_local_reserved_ports", "40000-40009,40011")
	from, to := netip.MustParseAddrPort("127.0.0.5:0"), netip.MustParseAddrPort("127.0.0.1:4100")
	listener := n.listen(to, 64)
	pairs := n.pairs(listener, from, to, 30)
	n.pairs(listener, netip.MustParseAddrPort("127.0.0.6:0"), to, 5)
	for _, p := range pairs[:8] { // the client's end enters TIME_WAIT
		n.close(p.client)
		n.close(p.server)
	}
	a := n.ask("ephemeral_ports")
	g := a.Groups[0]
	if a.Count != 35 || g.Who != "127.0.0.5 → 127.0.0.1:4100" || g.Count != 30 || g.Limit != 89 || !slices.Equal(g.Processes, []string{this(t)}) {
		t.Errorf("%+v", a)
	}
	if a.Usage != 30 {
		t.Errorf("the limit counts %v", a.Usage)
	}
	if a = n.ask("ephemeral_ports", "--by=process"); a.group(t, this(t)).Count != 27 || a.group(t, "no process").Count != 8 {
		t.Errorf("by process: %+v", a)
	}
	a = n.ask("tcp_time_wait")
	if a.Count != 8 || a.group(t, "to 127.0.0.1:4100").Count != 8 || a.Usage != 8 {
		t.Errorf("TIME_WAIT: %+v", a)
	}

	// Orphans: their peers do not read the data that they have to send.
	for _, p := range pairs[10:16] {
		for {
			if _, err := unix.Write(p.server, make([]byte, 64<<10)); errors.Is(err, unix.EAGAIN) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		n.close(p.server)
	}
	for _, by := range []string{"listener", "peer", "state", "unit"} {
		a = n.ask("tcp_orphans", "--by="+by)
		want := map[string]string{"listener": "at 127.0.0.1:4100", "peer": "127.0.0.5", "state": "fin_wait1"}[by]
		if a.Count != 6 || len(a.Groups) != 1 || want != "" && a.Groups[0].Who != want || a.Groups[0].Memory < 6*64<<10 {
			t.Errorf("orphans by %s: %+v", by, a)
		}
	}
}

// TestWhoDescriptors checks that the process with the most descriptors is named, with their kind,
// which is estimated if there are very many.
func TestWhoDescriptors(t *testing.T) {
	const files = 3000
	for range files {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			needs.Skip(t, fmt.Sprintf("ulimit -n %d", files+200))
		}
		defer unix.Close(fd)
	}
	a := askWho(t, nil, "file_descriptors")
	g := a.group(t, this(t))
	if g.Count < files || g.Count > files+200 || g.Mostly != "device" {
		t.Errorf("%+v", g)
	}
	// Other tests have descriptors too.
	if a = askWho(t, nil, "file_descriptors", "--by=kind"); a.group(t, "device").Count < files*0.9 || !a.group(t, "device").Estimated {
		t.Errorf("by kind: %+v", a)
	}
	a = askWho(t, nil, "process_file_descriptors")
	if g := a.group(t, this(t)); g.Limit == 0 || g.Count < files {
		t.Errorf("%+v", g)
	}
	for i, g := range a.Groups[1:] {
		if before := a.Groups[i]; g.Count/g.Limit > before.Count/before.Limit {
			t.Errorf("%+v after %+v", g, before)
		}
	}
}

// TestWhoUnit checks that sockets are grouped by the unit of their process's cgroup, for any
// user.
func TestWhoUnit(t *testing.T) {
	needs.Check(t, needs.Root)
	root := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			root = dir
		}
	}
	if root == "" {
		needs.Skip(t, "cgroups of version 2")
	}
	cgroup := filepath.Join(root, fmt.Sprintf("who-%d.service", os.Getpid()))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		needs.Skip(t, "cgroups that root may make: "+err.Error())
	}
	t.Cleanup(func() { _ = os.Remove(cgroup) })
	dir, err := os.Open(cgroup)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var e *exporter
	t.Run("exporter", func(t *testing.T) {
		t.Cleanup(func() {
			for end := time.Now().Add(patience); os.Remove(cgroup) != nil && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
		})
		e = start(t, func(cmd *exec.Cmd) { cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd()) })
		e.scrape("")
		unit := "unit/" + filepath.Base(cgroup)
		process := fmt.Sprintf("sockpressure_ex[%d]", e.cmd.Process.Pid)
		a := askWho(t, nil, "tcp_memory") // the default is by unit, because there is one
		if g := a.group(t, unit); a.By != "unit" || g.Count < 1 || !slices.Equal(g.Processes, []string{process}) {
			t.Errorf("%s by %s: %+v", unit, a.By, g)
		}
		if g := askWho(t, nil, "tcp_memory", "--by=process").group(t, process); g.Unit != unit || g.PID != e.cmd.Process.Pid {
			t.Errorf("%+v", g)
		}
		a = askWho(t, asNobody, "tcp_memory")
		if g := a.group(t, unit); g.Count < 1 || len(g.Processes) != 0 {
			t.Errorf("as any user: %+v", g)
		}
		if !slices.ContainsFunc(a.Notes, func(s string) bool { return strings.Contains(s, "needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH") }) {
			t.Errorf("what it lacks is not said: %q", a.Notes)
		}
	})
}

// TestWhoUnprivileged checks that who answers every question of a user without privileges, and
// reports which ones it lacks.
func TestWhoUnprivileged(t *testing.T) {
	needs.Check(t, needs.Root)
	n := nettest.New(t)
	n.Listen(4, 7)
	a := askWho(t, asNobody, "accept_queue")
	if !slices.ContainsFunc(a.Notes, func(s string) bool {
		return strings.Contains(s, "entering them needs CAP_SYS_ADMIN and CAP_SYS_PTRACE")
	}) {
		t.Errorf("what it lacks is not said: %q", a.Notes)
	}
	for _, resource := range []string{"tcp_memory", "udp_memory", "tcp_orphans", "tcp_time_wait", "ephemeral_ports", "file_descriptors", "process_file_descriptors", "neighbours_ipv4", "neighbours_ipv6", "memory", "netdev_backlog"} {
		if a := askWho(t, asNobody, resource); a.Resource != resource {
			t.Errorf("%s: %+v", resource, a)
		}
	}
	cmd := exec.Command(binary, "who", "conntrack_entries")
	cmd.SysProcAttr = new(syscall.SysProcAttr)
	asNobody(cmd)
	out, err := cmd.CombinedOutput()
	if err == nil && strings.Contains(string(out), "CAP_NET_ADMIN") || err != nil && !strings.Contains(string(out), "needs CAP_NET_ADMIN") && !strings.Contains(string(out), "nf_conntrack_netlink") {
		t.Errorf("conntrack: %v: %s", err, out)
	}
}

// TestWhoConntrack checks the groups of tracked connections.
func TestWhoConntrack(t *testing.T) {
	n := enterNetns(t, "nft")
	n.nft("add table inet tracked; add chain inet tracked in { type filter hook input priority 0; ct state invalid counter; }")
	to := netip.MustParseAddrPort("127.0.0.1:4100")
	n.pairs(n.listen(to, 64), netip.MustParseAddrPort("127.0.0.5:0"), to, 20)
	udp := n.socket(to.Addr(), unix.SOCK_DGRAM, 0)
	n.bind(udp, to)
	for i := range 7 {
		fd := n.socket(to.Addr(), unix.SOCK_DGRAM, 0)
		n.bind(fd, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(i + 1)}), 5000))
		if err := unix.Sendto(fd, []byte{1}, 0, sockaddr(to)); err != nil {
			t.Fatal(err)
		}
	}
	count, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
	if err != nil || strings.TrimSpace(string(count)) != "27" {
		t.Fatalf("%s entries, %v", count, err)
	}
	a := n.ask("conntrack_entries")
	if a.Count != 27 || a.Groups[0].Who != "127.0.0.5" || a.Groups[0].Count != 20 || len(a.Groups) != 8 {
		t.Errorf("%+v", a)
	}
	if a = n.ask("conntrack_entries", "--by=kind"); a.group(t, "tcp established").Count != 20 || a.group(t, "udp").Count != 7 {
		t.Errorf("%+v", a)
	}
	if a = n.ask("conntrack_entries", "--by=destination"); a.group(t, "tcp 127.0.0.1:4100").Count != 20 || a.group(t, "udp 127.0.0.1:4100").Count != 7 {
		t.Errorf("%+v", a)
	}
}

// TestWhoNeighbours checks neighbours by interface, network and state.
func TestWhoNeighbours(t *testing.T) {
	n := enterNetns(t, "ip")
	for _, args := range []string{
		"link add wide type veth peer name other", "link set wide up", "link set other up", "address add 198.51.100.1/24 dev wide", "address add 192.0.2.1/24 dev wide",
	} {
		command(t, "", "ip", strings.Fields(args)...)
	}
	for i := range 7 {
		network := []string{"198.51.100", "192.0.2"}[i%2]
		command(t, "", "ip", "neigh", "add", fmt.Sprintf("%s.%d", network, 10+i), "lladdr", "02:00:00:00:00:01", "dev", "wide", "nud", "permanent")
	}
	if a := n.ask("neighbours_ipv4"); a.group(t, "wide").Count != 7 {
		t.Errorf("%+v", a)
	}
	if a := n.ask("neighbours_ipv4", "--by=destination"); a.group(t, "198.51.100.0/24").Count != 4 || a.group(t, "192.0.2.0/24").Count != 3 {
		t.Errorf("%+v", a)
	}
	if a := n.ask("neighbours_ipv4", "--by=state"); a.group(t, "permanent").Count != 7 {
		t.Errorf("%+v", a)
	}
}

// TestWhoPod checks that --pod selects the listener of the pod, and no other one.
func TestWhoPod(t *testing.T) {
	needs.Check(t, needs.Root)
	n, other := nettest.New(t), nettest.New(t)
	n.Listen(4, 7)
	other.Listen(4, 7)
	const uid = "11111111-2222-3333-4444-555555555555"
	putInto(t, n, "kubepods/besteffort/pod"+uid)
	logs := t.TempDir()
	if err := os.Mkdir(filepath.Join(logs, "shop_cart-0_"+uid), 0o755); err != nil {
		t.Fatal(err)
	}
	a := askWho(t, nil, "accept_queue", "--pod=shop/cart-0", "--path.pod-logs="+logs)
	if len(a.Groups) != 1 || a.Groups[0].Netns != "pod/shop/cart-0" || a.Count != 5 {
		t.Errorf("%+v", a)
	}
	a = askWho(t, nil, "file_descriptors", "--by=pod", "--path.pod-logs="+logs)
	if a.group(t, "shop/cart-0").Count < 1 {
		t.Errorf("%+v", a)
	}
	a = askWho(t, nil, "file_descriptors", "--pod=shop/cart-0", "--path.pod-logs="+logs)
	if len(a.Groups) != 1 || a.Groups[0].PID != n.PID || a.Groups[0].Unit != "pod/shop/cart-0" {
		t.Errorf("%+v", a)
	}
}

// TestWhoChurn checks that who works while processes start and end.
func TestWhoChurn(t *testing.T) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = exec.Command("true").Run()
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	for range 10 {
		for _, args := range [][]string{{"tcp_memory", "--by=process"}, {"file_descriptors"}, {"file_descriptors", "--by=kind"}, {"memory", "--by=unit"}} {
			if a := askWho(t, nil, args...); a.Stopped || a.Resource != args[0] {
				t.Errorf("%v: %+v", args, a)
			}
		}
	}
}

// TestWhoText checks the table that README.md shows, and that each mistake in the arguments gives
// one line that names it.
func TestWhoText(t *testing.T) {
	out := command(t, "", binary, "who", "file_descriptors", "--top=3")
	// The second line, the effect of reaching the limit, appears only near the limit.
	table := regexp.MustCompile(`^file_descriptors: .*% of its limit \(.*\)\n(When the limit is reached: .*\n)?[\d,]+ descriptors, by process:\nSHARE +CUMULATIVE +DESCRIPTORS +PROCESS .*\n([\d.]+% .*\n){3}`)
	if !table.MatchString(out) {
		t.Error(out)
	}
	for want, args := range map[string][]string{
		`unknown resource "nonsense": it is one of tcp_memory, `:                                      {"nonsense"},
		"--by=process does not apply to tcp_time_wait, which can be grouped by listener, peer, state": {"tcp_time_wait", "--by=process"},
		"unknown network namespace nowhere: it is one of host":                                        {"tcp_memory", "--netns=nowhere"},
		"pod no/where has no network namespace of its own":                                            {"tcp_memory", "--pod=no/where"},
		"--pod=nowhere is not NAMESPACE/POD":                                                          {"tcp_memory", "--pod=nowhere"},
		"--netns and --pod cannot be combined":                                                        {"tcp_memory", "--pod=a/b", "--netns=host"},
		"--netns and --pod do not apply to low_memory":                                                {"low_memory", "--pod=a/b"},
		"--top=0 must be between 1 and 1000":                                                          {"tcp_memory", "--top=0"},
	} {
		var stderr strings.Builder
		cmd := exec.Command(binary, append([]string{"who"}, args...)...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err == nil || len(out) > 0 || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), want) {
			t.Errorf("%v: %v, %q", args, err, stderr.String())
		}
	}
}
