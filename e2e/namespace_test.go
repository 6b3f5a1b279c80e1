package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

// The tests of this file use the network namespace that they run in as the host's, put the
// exporter into another one, as in a container, and check that it has the host's numbers or none.

// ownSysctls returns sysctls of the exporter's own network namespace, with values that are used
// nowhere else.
func ownSysctls() map[string][]float64 {
	return map[string][]float64{
		"core/somaxconn":           {54321},
		"ipv4/tcp_max_syn_backlog": {54331},
		"ipv4/tcp_max_tw_buckets":  {54347},
		"ipv4/ip_local_port_range": {30000, 53456},
		"ipv4/ipfrag_high_thresh":  {4194001},
		"ipv6/ip6frag_high_thresh": {4194003},
		"ipv4/tcp_rmem":            {4099, 131101, 33554501},
		"ipv4/tcp_wmem":            {4111, 16411, 4194011},
	}
}

// place is where, and as which user, the exporter runs.
type place struct {
	network     *os.File // namespace, or nil for the host's
	container   bool     // has its own procfs, and the host's as /mnt/proc
	procOptions string   // of the host's procfs
	nobody      bool
}

// wrap makes a command run in a place, in a PID namespace. Process 1 of that, a shell, is in the
// test's network namespace and so represents the host's process 1, which may be inaccessible even
// to root. All processes end with that shell.
func (p place) wrap(cmd *exec.Cmd) {
	enter, prepare, run := "", "", "exec"
	if p.network != nil {
		cmd.ExtraFiles = []*os.File{p.network}
		enter = "nsenter --net=/proc/self/fd/3 --"
	}
	if p.container {
		enter += " unshare --mount --pid --fork --"
		prepare = `
			mount -t tmpfs none /mnt
			mkdir /mnt/proc
			mount --bind /proc /mnt/proc
			mount -t proc none /proc`
		cmd.Args = append(cmd.Args, "--path.procfs=/mnt/proc")
	}
	if p.nobody {
		run = fmt.Sprintf("exec setpriv --reuid=%d --regid=%[1]d --clear-groups --inh-caps=-all --", nobody)
	}
	script := fmt.Sprintf(`
		mount --make-rprivate /
		mount -t proc -o rw,%s none /proc
		%s sh -ec '%s
			%s "$@" 3<&-' sh "$@" &
		wait`, p.procOptions, enter, prepare, run)
	cmd.Args = append([]string{"sh", "-ec", script, "sh"}, cmd.Args...)
	cmd.Path = "/bin/sh"
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS
}

// in returns wrap for a place in a network namespace.
func (p place) in(network *os.File) func(*exec.Cmd) {
	p.network = network
	return p.wrap
}

func TestNetworkNamespace(t *testing.T) {
	needs.Check(t, needs.Root, needs.MountedRoot, "mount", "nsenter", "setpriv", "unshare")
	load := putLoad(t)
	e := start(t, nil)
	host := e.scrape("")
	for end := time.Now().Add(10 * time.Second); host.value(t, "sockpressure_tcp_time_wait") < load.timeWait; host = e.scrape("") {
		if time.Now().After(end) {
			t.Fatal("too few connections in TIME_WAIT")
		}
	}

	host = host.withoutProcesses()

	for name, container := range map[string]bool{"container": true, "network namespace": false} {
		t.Run(name, func(t *testing.T) {
			inside := startInside(t, place{container: container}.in)
			p := inside.scrape(t)
			if p.value(t, "sockpressure_host_network_namespace") != 1 {
				t.Error("root did not find the host's network namespace")
			}
			compareSeries(t, p.withoutProcesses().stable(), host.stable())
			compareNumbers(t, p, host)
			load.find(t, p)
			inside.findNothing(t, p)
			if got := p.value(t, `sockpressure_tcp_sockets{state="established"}`); got < load.established {
				t.Errorf("%v connections established, want at least %v", got, load.established)
			}
			if series := fmt.Sprintf("{listener=%q}", load.listener); p.value(t, "sockpressure_accept_queue_length"+series) != load.waiting ||
				p.value(t, "sockpressure_accept_queue_limit"+series) != load.backlog {
				t.Errorf("accept queues: %v", p.with("sockpressure_accept_queue"))
			}
			if log := inside.logged(); strings.Count(log, "level=WARN") != 3 || strings.Count(log, "PID namespace") != 3 {
				t.Errorf("it warned of more than the processes:\n%s", log)
			}
		})
		t.Run(name+", unprivileged", func(t *testing.T) {
			startInside(t, place{container: container, nobody: true}.in).findHostOrNothing(t, host, load)
		})
	}
}

// TestHiddenProcesses checks an exporter with a procfs in which an ordinary user cannot see
// process 1, whose network namespace the exporter should be in.
func TestHiddenProcesses(t *testing.T) {
	needs.Check(t, needs.Root, needs.MountedRoot, "mount", "nsenter", "setpriv", "unshare")
	load := putLoad(t)
	host := start(t, nil).scrape("")
	const hidden = "hidepid=2"

	t.Run("host", func(t *testing.T) {
		e := start(t, place{procOptions: hidden, nobody: true}.wrap)
		p := e.scrape("")
		if p.value(t, "sockpressure_host_network_namespace") != 1 {
			t.Error("host_network_namespace is not 1 in the host's network namespace")
		}
		// Those series would show the processes of one user as the host's.
		host := host.withoutProcesses()
		want := host.stable()
		maps.DeleteFunc(want, func(s string, _ bool) bool { return needsPrivilege(family(s)) })
		compareSeries(t, p.withoutProcesses().stable(), want)
		compareNumbers(t, p, host)
		load.find(t, p)
		for _, name := range ofProcesses() {
			if p.value(t, success(name)) != 0 {
				t.Errorf("collector %s did not report its failure", name)
			}
		}
		if log := e.logged(); strings.Count(log, "level=WARN") != 3 || !strings.Contains(log, "hidepid") {
			t.Errorf("it said:\n%s", log)
		}
	})
	t.Run("network namespace", func(t *testing.T) {
		inside := startInside(t, place{procOptions: hidden, nobody: true}.in)
		p := inside.scrape(t)
		if p.value(t, "sockpressure_host_network_namespace") != 0 {
			t.Error("host_network_namespace is not 0")
		}
		inside.findNothing(t, p)
		// Collectors that do not depend on network namespaces still work.
		for _, name := range []string{"filefd", "memory"} {
			if p.value(t, success(name)) != 1 {
				t.Errorf("collector %s failed", name)
			}
		}
		for s := range p {
			if f := family(s); strings.HasPrefix(f, "sockpressure_tcp_") || strings.HasPrefix(f, "sockpressure_sockets_") {
				t.Errorf("%s is not the host's", s)
			}
		}
	})
}

// needsNamespace reports whether a series comes from a sysctl or a socket of the host's network
// namespace, not from a file below /proc/1/net.
func needsNamespace(series string) bool {
	for _, s := range collector.Specs() {
		if slices.Contains(ofSockets(), s.Name) {
			if slices.ContainsFunc(s.Metrics, func(m collector.MetricInfo) bool { return m.FullName() == family(series) }) {
				return true
			}
		}
	}
	resource, ok := strings.CutPrefix(series, "sockpressure_saturation_ratio")
	if !ok {
		resource, ok = strings.CutPrefix(series, "sockpressure_saturation_peak_ratio")
	}
	if ok {
		return slices.Contains([]string{
			`{resource="tcp_memory"}`, `{resource="udp_memory"}`, `{resource="tcp_orphans"}`, `{resource="tcp_time_wait"}`,
			`{resource="ip_fragments_ipv4"}`, `{resource="ip_fragments_ipv6"}`, `{resource="netdev_backlog"}`,
			`{resource="neighbours_ipv4"}`, `{resource="neighbours_ipv6"}`, `{resource="accept_queue"}`, `{resource="ephemeral_ports"}`, `{resource="request_queue"}`,
			`{resource="unix_accept_queue"}`, `{resource="udp_receive_queue"}`,
		}, resource)
	}
	return slices.Contains([]string{
		"sockpressure_tcp_memory_threshold_bytes", "sockpressure_udp_memory_threshold_bytes", "sockpressure_tcp_orphans_limit",
		"sockpressure_tcp_time_wait_limit", "sockpressure_ip_fragment_memory_limit_bytes", "sockpressure_tcp_buffer_bytes",
		"sockpressure_listen_backlog_limit", "sockpressure_syn_backlog_limit", "sockpressure_netdev_backlog_limit",
		"sockpressure_neighbour_entries_limit",
	}, family(series))
}

// compareNumbers checks that limits are the same as on an earlier page, and that counters have
// not fallen, as far as both pages have them.
func compareNumbers(t *testing.T, now, earlier page) {
	t.Helper()
	for series, before := range earlier {
		after, ok := now[series]
		f := family(series)
		if !ok || !strings.HasPrefix(f, "sockpressure_") {
			continue
		}
		if others(series) {
			continue
		}
		limit := strings.Contains(f, "_limit") || strings.Contains(f, "_threshold_") || strings.Contains(f, "_buffer_")
		// Each exporter of a test listens, and each listener uses a port.
		moves := strings.HasPrefix(f, "sockpressure_process_") || strings.HasPrefix(f, "sockpressure_accept_queue_") ||
			f == "sockpressure_ephemeral_ports_limit"
		// These count from an exporter's own start.
		own := strings.HasPrefix(f, "sockpressure_kernel_message") || strings.HasPrefix(f, "sockpressure_saturation_samples")
		if limit && !moves && after != before || strings.HasSuffix(f, "_total") && !own && after < before {
			t.Errorf("%s is %v, and %v on the host", series, after, before)
		}
	}
}

// hostLoad is a load that the test puts on the host so that its numbers differ from those of a
// new network namespace.
type hostLoad struct {
	listener              string
	waiting, backlog      float64 // at the listener
	established, timeWait float64
}

// putLoad puts a load on the host until the test ends.
func putLoad(t *testing.T) hostLoad {
	t.Helper()
	const waiting, open, closed = 7, 200, 20
	full, err := fillQueue(t, "127.0.0.1", waiting)
	if err != nil {
		t.Fatal(err)
	}

	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var servers sync.WaitGroup
	for i := range open + closed {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if i < open {
			t.Cleanup(func() { _ = s.Close() })
			continue
		}
		// The side that closes first is the one in TIME_WAIT.
		_ = c.Close()
		servers.Go(func() {
			_, _ = io.Copy(io.Discard, s)
			_ = s.Close()
		})
	}
	servers.Wait()
	return hostLoad{full, waiting, waiting, 2 * open, closed}
}

// find checks that a page has the load, in the series that any user can read.
func (l hostLoad) find(t *testing.T, p page) {
	t.Helper()
	for series, least := range map[string]float64{
		"sockpressure_sockets_used":                                l.established,
		`sockpressure_sockets_inuse{family="ipv4",protocol="tcp"}`: l.established,
		"sockpressure_tcp_time_wait":                               l.timeWait,
		"sockpressure_tcp_active_opens_total":                      l.established/2 + l.timeWait,
	} {
		if got := p.value(t, series); got < least {
			t.Errorf("%s is %v, the host has at least %v", series, got, least)
		}
	}
}

// fillQueue listens on a free port of an address until the test ends, with a full accept queue.
func fillQueue(t *testing.T, ip string, backlog int) (address string, err error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(t.Context(), "tcp4", ip+":0")
	if err != nil {
		return "", err
	}
	t.Cleanup(func() { _ = l.Close() })
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		return "", err
	}
	var listenErr error
	if err := raw.Control(func(fd uintptr) { listenErr = unix.Listen(int(fd), backlog) }); err != nil || listenErr != nil {
		return "", errors.Join(err, listenErr)
	}
	for range backlog {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			return "", err
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	return l.Addr().String(), nil
}

// inside is an exporter in a network namespace that is not the test's.
type inside struct {
	*exporter
	client *http.Client
}

// ownAddress is an address that is used only in the namespaces of the tests.
const ownAddress = "127.77.0.1"

// startInside starts an exporter in a new network namespace, with a load of its own. wrap returns
// a function that makes a command run there.
func startInside(t *testing.T, wrap func(network *os.File) func(*exec.Cmd)) inside {
	t.Helper()
	network := newNetwork(t)
	err := within(network, func() error {
		for name, values := range ownSysctls() {
			text := strings.Trim(fmt.Sprintf("%.0f", values), "[]")
			if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(text), 0); err != nil {
				return err
			}
		}
		_, err := fillQueue(t, ownAddress, 9)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, protocol, address string) (c net.Conn, err error) {
		err = within(network, func() error {
			c, err = new(net.Dialer).DialContext(ctx, protocol, address)
			return err
		})
		return c, err
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return inside{start(t, wrap(network)), &http.Client{Transport: transport}}
}

func (i inside) scrape(t *testing.T) page {
	t.Helper()
	a, err := i.send(i.client, http.MethodGet, i.url+"/metrics", nil)
	if err != nil || a.status != http.StatusOK {
		t.Fatal(a.status, err)
	}
	return parsePage(t, a.body)
}

// findHostOrNothing checks the page of an exporter that may not enter the host's network
// namespace: it has the host's numbers, as on an earlier page, or none.
func (i inside) findHostOrNothing(t *testing.T, host page, load hostLoad) {
	t.Helper()
	i.scrape(t)
	p := i.scrape(t)
	if p.value(t, "sockpressure_host_network_namespace") != 0 {
		t.Error("host_network_namespace is not 0")
	}
	seen := p
	if p.value(t, processView) == 0 {
		seen, host = p.withoutProcesses(), host.withoutProcesses()
	}
	want := host.stable()
	maps.DeleteFunc(want, func(s string, _ bool) bool { return needsPrivilege(family(s)) || needsNamespace(s) })
	compareSeries(t, seen.stable(), want)
	compareNumbers(t, seen, host)
	load.find(t, p)
	i.findNothing(t, p)
	for _, s := range collector.Specs() {
		want := 1.0
		if slices.Contains(ofSockets(), s.Name) || slices.Contains(ofProcesses(), s.Name) && p.value(t, processView) == 0 {
			want = 0
		}
		if got := p.value(t, success(s.Name)); got != want {
			t.Errorf("success of collector %s is %v, want %v", s.Name, got, want)
		}
	}
	// One line for the network, for the processes if they are not visible, and for each collector
	// that fails, however many scrapes there were.
	log := i.logged()
	warnings := 5
	if p.value(t, processView) == 0 {
		warnings = 8
	}
	for want, n := range map[string]int{"cannot enter the host's network namespace": 1, "collector=tcp": 1, "collector=ports": 1, "level=WARN": warnings} {
		if strings.Count(log, want) != n {
			t.Errorf("%q is not in the log %d times:\n%s", want, n, log)
		}
	}
}

// processView is the series that reports whether the host's processes are visible.
const processView = `sockpressure_host_view{view="processes"}`

// ofSockets returns the collectors that walk sockets, which have to be in the host's network
// namespace.
func ofSockets() []string { return []string{"tcp", "ports", "unix", "udp"} }

// ofProcesses returns the collectors that scan all processes.
func ofProcesses() []string { return []string{"process", "netns"} }

// withoutProcesses returns a page without the series about processes, of which an exporter in
// another PID namespace, as in a place, has none.
func (p page) withoutProcesses() page {
	rest := maps.Clone(p)
	maps.DeleteFunc(rest, func(s string, _ float64) bool {
		return strings.HasPrefix(s, "sockpressure_process") || s == `sockpressure_saturation_ratio{resource="process_file_descriptors"}` ||
			s == success("process") || s == success("netns") || s == processView
	})
	return rest
}

// findNothing checks that nothing of the exporter's own network namespace is on a page.
func (i inside) findNothing(t *testing.T, p page) {
	t.Helper()
	numbers := []float64{53456 - 30000 + 1} // ports
	for _, values := range ownSysctls() {
		numbers = append(numbers, values...)
	}
	for series, value := range p {
		if !strings.HasPrefix(series, "sockpressure_") {
			continue
		}
		if strings.Contains(series, ownAddress+":") || strings.Contains(series, strings.TrimPrefix(i.url, "http://")) ||
			slices.Contains(numbers, value) && !strings.HasSuffix(family(series), "_total") {
			t.Errorf("%s %v is of the exporter's own network namespace", series, value)
		}
	}
}

// newNetwork creates a network namespace, which lasts until the test and every process in it end.
func newNetwork(t *testing.T) *os.File {
	t.Helper()
	var network *os.File
	err := onThread(func() (err error) {
		if err := nettest.Unshare(); err != nil {
			return err
		}
		network, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = network.Close() })
	return network
}

// within runs fn in a network namespace. A socket stays in the namespace in which it was created.
func within(network *os.File, fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return fn()
	})
}

// onThread runs fn, which may change the network namespace of its thread. The thread then returns
// to its own namespace. It must not end with its goroutine, because that would kill the processes
// that it started (Pdeathsig).
func onThread(fn func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = own.Close() }()
	err = fn()
	if e := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); e != nil {
		panic(e)
	}
	runtime.UnlockOSThread()
	return err
}
