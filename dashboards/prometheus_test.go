package dashboards

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

// mayBeEmpty lists the panels that lack data, or part of it, on some kernels and hosts. The
// description of each mentions it.
func mayBeEmpty() []string {
	return []string{
		"sockpressure-fleet: Nodes in trouble",
		"sockpressure-fleet: Worst pods",
		"sockpressure-fleet: Cgroups of the worst nodes",
		"sockpressure-fleet: Nodes that refuse",
		"sockpressure-fleet: What the kernels logged",
		"sockpressure-fleet: Exporters that do not answer",
		"sockpressure-fleet: Exporters with failing collectors",
		"sockpressure-node: Alerts that fire",
		"sockpressure-node: Who holds it",
		"sockpressure-node: Refusals now",
		"sockpressure-node: Pods and namespaces nearest to their own limits",
		"sockpressure-node: What the kernel logged",
		"sockpressure-node: Socket memory by owner",
		"sockpressure-node: Connection tracking entries",
		"sockpressure-node: Connection tracking drops",
		"sockpressure-node: Invalid packets",
		"sockpressure-node: File descriptors",
		"sockpressure-node: Threads",
		"sockpressure-node: Accept queue",
		"sockpressure-node: Listeners nearest to their limit",
		"sockpressure-node: Ephemeral ports",
		"sockpressure-node: Request queue",
		"sockpressure-node: Unix accept queue",
		"sockpressure-node: UDP receive queue",
		"sockpressure-node: Limits of pods over time",
		"sockpressure-node: Refused in network namespaces",
		"sockpressure-node: Where the kernel refuses",
		"sockpressure-node: Accept queues of network namespaces",
		"sockpressure-node: Receive backlog",
		"sockpressure-node: Neighbours IPv4",
		"sockpressure-node: Neighbours IPv6",
		"sockpressure-node: IP fragments IPv6",
		"sockpressure-node: Cgroup memory",
		"sockpressure-node: Cgroups nearest to their limit",
		"sockpressure-node: Committed memory",
		"sockpressure-node: Waiting for memory",
		"sockpressure-node: Socket and conntrack caches",
		"sockpressure-node: Low memory",
		"sockpressure-node: LowFree and HighFree",
		"sockpressure-node: UDP",
		"sockpressure-node: IP and received packets",
	}
}

func TestMain(m *testing.M) { os.Exit(needs.Run(m)) }

// TestEmpty checks that mayBeEmpty lists the panels whose descriptions contain "Empty".
func TestEmpty(t *testing.T) {
	var got []string
	for _, b := range boards(t) {
		for _, p := range b.all() {
			if strings.Contains(p.Description, " Empty ") {
				got = append(got, b.UID+": "+p.Title)
			}
		}
	}
	want := mayBeEmpty()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("panels that say that they may be empty: %q\nwant %q", got, want)
	}
}

// TestPrometheus checks that every query of every dashboard returns data from a Prometheus that
// scrapes the exporter and evaluates the rules. There are two nodes: this one, and a recorded
// 32-bit kernel that enforces its commit limit, with the metrics that not every kernel has. Every
// query returns data for both together, and for this one alone unless the panel may be empty.
func TestPrometheus(t *testing.T) {
	needs.Check(t, "prometheus")
	dir := t.TempDir()
	binary, recorded := filepath.Join(dir, "sockpressure_exporter"), filepath.Join(dir, "recorded")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", binary, "..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if err := os.CopyFS(recorded, os.DirFS("../testdata/linux-6.1-686-pae")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(recorded, "proc/sys/vm/overcommit_memory"), []byte("2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		nettest.New(t).Listen(64, 80) // full, but less so than the listeners that tests of other packages look for
	}
	here := serve(t, binary, "--web.listen-address=127.0.0.1:0", "--collector.max-cpu=0")
	there := serve(t, binary, "--web.listen-address=127.0.0.1:0", "--path.procfs="+filepath.Join(recorded, "proc"))
	rules, err := filepath.Abs("../alerts/*.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "prometheus.yml")
	err = os.WriteFile(config, fmt.Appendf(nil, `global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: [%q]
scrape_configs:
  - job_name: sockpressure
    static_configs:
      - targets: [%q]
  - job_name: something else
    static_configs:
      - targets: ["127.0.0.1:1", %q]
`, rules, here, there), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	prometheus := serve(t, "prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0")

	// choose substitutes variables, as Grafana does.
	choose := func(q asked, instance string) asked {
		q.expr = strings.NewReplacer("$cluster", ".*", "$__range", "1h", "$job", ".+", "$instance", instance, "$resource", ".*", "$__rate_interval", "5s", "$severity", ".+", "$top", "20", "$limit", "tcp_memory", "$worst", instance, "$netns", ".+").Replace(q.expr)
		if strings.Contains(q.expr, "$") {
			t.Errorf("%s: unknown variable: %s", q, q.expr)
		}
		return q
	}
	// Queries that return data only while a node is lost or critical, fails in part or logs a
	// limit.
	rare := regexp.MustCompile(`^count by.*severity="critical"|ExporterDown|kernel_messages.* > 0$|^count by.*collectors_failing.* > 0`)
	var waiting []asked
	for _, b := range boards(t) {
		for _, q := range queries(b) {
			if os.Geteuid() != 0 && (q.String() == "sockpressure-node: Socket and conntrack caches" || strings.Contains(q.expr, "kernel_messages")) {
				continue // only root can read them
			}
			if os.Geteuid() != 0 && strings.Contains(q.expr, "netns_") && !strings.Contains(q.expr, "refusals") {
				continue // only root can create a network namespace
			}
			if regexp.MustCompile("sockpressure_(cgroup|unix_accept|udp_receive_queue)_").MatchString(q.expr) {
				continue // this machine may have no such groups and sockets
			}
			if _, err := os.Stat("/proc/net/stat/nf_conntrack"); err != nil && strings.Contains(q.expr, "netns_conntrack") {
				continue
			}
			if rare.MatchString(q.expr) {
				ask(t, prometheus, choose(q, ".+").expr) // the query is valid, but returns nothing here
				continue
			}
			waiting = append(waiting, choose(q, ".+"))
			if !slices.Contains(mayBeEmpty(), q.String()) {
				waiting = append(waiting, choose(q, strings.ReplaceAll(here, ".", `\\.`)))
			}
		}
	}
	all := len(waiting)
	knock := overflow(t)
	// A group of rules is first evaluated within its interval, up to a minute, and a rate needs
	// two samples of a record.
	for end := time.Now().Add(4 * time.Minute); len(waiting) > 0 && time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		knock()
		waiting = slices.DeleteFunc(waiting, func(q asked) bool { return ask(t, prometheus, q.expr) > 0 })
	}
	for _, q := range waiting {
		t.Errorf("%s: no data: %s", q, q.expr)
	}
	t.Logf("%d of %d queries have data", all-len(waiting), all)

	// A target that is not an exporter does not count as a node, whatever is selected.
	for _, b := range boards(t) {
		for _, q := range queries(b) {
			want, ok := map[string]string{"sockpressure-fleet: Nodes": " == 2", "sockpressure-fleet: Not scraped": " == 0"}[q.String()]
			if !ok {
				continue
			}
			if q = choose(q, ".+"); ask(t, prometheus, q.expr+want) != 1 {
				t.Errorf("%s: not%s: %s", q, want, q.expr)
			}
		}
	}
}

// serve runs a server until the test ends and returns its address, which the exporter and
// Prometheus log in the same format.
func serve(t *testing.T, path string, args ...string) string {
	t.Helper()
	return serveAs(t, regexp.MustCompile(`(msg="Listening on") address=(\S+)`), path, args...)
}

// serveAs does the same for a server that logs its address in another format.
func serveAs(t *testing.T, address *regexp.Regexp, path string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening, ended := make(chan string, 1), make(chan struct{})
	var log strings.Builder // used only by the goroutine until it has ended
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			log.WriteString(lines.Text() + "\n")
			if m := address.FindStringSubmatch(lines.Text()); m != nil {
				listening <- m[2]
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of %s:\n%s", filepath.Base(path), log.String())
		}
	})
	select {
	case a := <-listening:
		return a
	case <-ended:
		t.Fatalf("%s ended: %s", path, log.String())
	case <-time.After(20 * time.Second):
		t.Fatalf("%s does not listen after 20 s", path)
	}
	return ""
}

// ask returns how many series an instant query finds. A bad query fails the test.
func ask(t *testing.T, address, promQL string) int {
	t.Helper()
	resp, err := http.Get("http://" + address + "/api/v1/query?query=" + url.QueryEscape(promQL))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Data struct{ Result []any }
	}
	switch {
	case resp.StatusCode == http.StatusServiceUnavailable: // listening but not ready yet
	case resp.StatusCode != http.StatusOK || json.Unmarshal(body, &answer) != nil:
		t.Fatalf("%s: %d %s", promQL, resp.StatusCode, body)
	}
	return len(answer.Data.Result)
}

// overflow creates a listener that accepts nothing, and returns a function that connects to it
// once more: the first few connections wait, further ones are refused and counted.
func overflow(t *testing.T) func() {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	own, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", own.(*syscall.SockaddrInet4).Port)
	return func() {
		conn, err := net.DialTimeout("tcp", address, 100*time.Millisecond)
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
		}
	}
}
