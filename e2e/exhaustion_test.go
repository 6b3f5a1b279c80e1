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
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

// TestExhaustedDescriptors checks that an exporter that cannot open files loses only the scans of
// processes and cgroups, which have to open some.
func TestExhaustedDescriptors(t *testing.T) {
	needs.Check(t, "prlimit")
	for name, args := range map[string][]string{"as ever": nil, "without sysfs": {"--path.sysfs=" + emptySysfs(t)}} {
		t.Run(name, func(t *testing.T) { testExhausted(t, nil, args...) })
		t.Run(name+", unprivileged", func(t *testing.T) {
			needs.Check(t, needs.Root)
			testExhausted(t, asNobody, args...)
		})
	}
}

// emptySysfs returns the path of a sysfs without slab caches, which every user may read.
func emptySysfs(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(filepath.Dir(binary), "sys")
	if err := os.MkdirAll(filepath.Join(dir, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ofFolders returns the collectors that list directories, which they have to open each time.
func ofFolders() []string { return append(ofProcesses(), "cgroup") }

func testExhausted(t *testing.T, wrap func(*exec.Cmd), args ...string) {
	e := start(t, wrap, args...)
	c := keepAlive(e.url, 1)
	scrape := func(timeout string) page {
		t.Helper()
		body, err := c.get("/metrics", timeout)
		if err != nil {
			t.Fatal(err)
		}
		return parsePage(t, body)
	}
	// The soft limit is set by a process of the exporter's user, since even root
	// needs CAP_SYS_RESOURCE to set another user's.
	limit := func(soft string) {
		t.Helper()
		cmd := exec.Command("prlimit", "--pid", strconv.Itoa(e.cmd.Process.Pid), "--nofile="+soft+":")
		cmd.SysProcAttr = new(syscall.SysProcAttr)
		if wrap != nil {
			wrap(cmd)
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd, err, out)
		}
	}
	// The exporter's metrics of processes and of itself come from files that it opens each time.
	lost := func(series string, _ bool) bool {
		return strings.HasPrefix(series, "sockpressure_process") || strings.HasPrefix(series, "process_") ||
			series == `sockpressure_saturation_ratio{resource="process_file_descriptors"}`
	}
	all := scrape("10").stable()
	want := maps.Clone(all)
	maps.DeleteFunc(want, lost)
	check := func() {
		t.Helper()
		p := scrape("10")
		for _, s := range collector.Specs() {
			want := 1.0
			if slices.Contains(ofFolders(), s.Name) {
				want = 0
			}
			if got := p.value(t, success(s.Name)); got != want {
				t.Errorf("success of collector %s is %v, want %v", s.Name, got, want)
			}
		}
		if len(p.with("sockpressure_process")) > 0 {
			t.Error("the process collector failed but has samples")
		}
		got := p.stable()
		maps.DeleteFunc(got, lost)
		compareSeries(t, got, want)
		if t.Failed() {
			t.FailNow()
		}
	}

	// Open descriptors above the limit stay open, and the three below it are in use.
	limit("3")
	for range 20 {
		check()
	}
	if n := strings.Count(e.logged(), "collector failed"); n < len(ofProcesses()) || n > len(ofFolders()) { // there may be no cgroups
		t.Errorf("%d warnings, want one of each collector that lists directories", n)
	}
	// A scrape without time must not affect the next one.
	for _, timeout := range []string{"1e-9", "0.0001", "0.0002", "0.0005", "0.001", "0.002"} {
		scrape(timeout)
		check()
	}
	limit("1024")
	compareSeries(t, scrape("10").stable(), all)
}

// kept fetches pages over connections that stay open, and never replaces one.
type kept struct {
	url  string
	http *http.Client
}

var errNewConnection = errors.New("a connection was lost")

// keepAlive returns a client that opens at most n connections, ever.
func keepAlive(url string, n int) *kept {
	left := make(chan struct{}, n)
	for range n {
		left <- struct{}{}
	}
	return &kept{url, &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			MaxConnsPerHost:     n,
			MaxIdleConnsPerHost: n,
			DisableCompression:  true,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				select {
				case <-left:
					return new(net.Dialer).DialContext(ctx, network, address)
				default:
					return nil, errNewConnection
				}
			},
		},
	}}
}

// get fetches a path. timeout is the scrape timeout in the request header, in seconds.
func (c *kept) get(path, timeout string) (string, error) {
	r, err := http.NewRequest(http.MethodGet, c.url+path, http.NoBody)
	if err != nil {
		return "", err
	}
	r.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", timeout)
	resp, err := c.http.Do(r)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(b), err
}

// TestExhaustedThreads checks that the exporter keeps working when it cannot create threads, with
// a network namespace that it enters at each scrape.
func TestExhaustedThreads(t *testing.T) {
	needs.Check(t, needs.Root, "prlimit")
	nettest.New(t)
	// No other process has this user, so its threads are all the exporter's.
	const user = 64911
	e := start(t, func(cmd *exec.Cmd) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user, Gid: user}
	})
	threads := func() int {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", e.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(tasks)
	}
	e.scrape("")
	limit := threads()
	cmd := exec.Command("prlimit", "--pid", strconv.Itoa(e.cmd.Process.Pid), fmt.Sprintf("--nproc=%d:%[1]d", limit))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for range 100 {
		if v := e.scrape("").value(t, `sockpressure_scrape_collector_success{collector="netns"}`); v != 1 {
			t.Fatal("collector netns failed")
		}
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if status, _ := e.get("/"); status != http.StatusOK {
				t.Errorf("the page: status %d", status)
			}
		})
	}
	all.Wait()
	if got := threads(); got > limit {
		t.Errorf("%d threads, and %d may be", got, limit)
	}
}
