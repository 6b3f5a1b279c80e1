// Package e2e tests the built exporter from outside, on the running kernel.
//
// The tests change kernel settings only in network namespaces of their own.
package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// binary is the path of the exporter, built once for all tests of the package.
var binary string

func TestMain(m *testing.M) {
	// A signal that is caught here has its default action in child processes, even if the tests
	// run under nohup, which ignores it.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "sockpressure-e2e-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		// Every user may run the exporter.
		if err := os.Chmod(dir, 0o755); err != nil {
			panic(err)
		}
		binary = filepath.Join(dir, "sockpressure_exporter")
		// Static, so that a container can run it too, and without git, which rejects a repository
		// of another user.
		build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "..")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintln(os.Stderr, "go build:", err)
			return 1
		}
		// The host always has a UDP socket and a unix listener, so that the series of their
		// queues exist, whatever else runs on it.
		udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		defer udp.Close()
		unixListener, err := net.Listen("unix", filepath.Join(dir, "listener"))
		if err != nil {
			panic(err)
		}
		defer unixListener.Close()
		return needs.Run(m)
	}())
}

// exporter is a running process of the exporter.
type exporter struct {
	t   *testing.T
	url string
	cmd *exec.Cmd

	mu  sync.Mutex
	log strings.Builder
}

// start runs the exporter on a free loopback port until the test ends. Every scrape does new
// walks. wrap may change the command before it starts, to run it as another user or in another
// namespace, and how it is ended (Cancel).
func start(t *testing.T, wrap func(*exec.Cmd), args ...string) *exporter {
	t.Helper()
	args = append([]string{"--web.listen-address=127.0.0.1:0", "--collector.max-cpu=0"}, args...)
	ctx, cancel := context.WithCancel(context.Background())
	e := &exporter{t: t, cmd: exec.CommandContext(ctx, binary, args...)}
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if wrap != nil {
		wrap(e.cmd)
	}
	stderr, err := e.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		address := regexp.MustCompile(`msg="Listening on" address=(\S+)`)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			e.mu.Lock()
			e.log.WriteString(lines.Text() + "\n")
			e.mu.Unlock()
			if m := address.FindStringSubmatch(lines.Text()); m != nil {
				listening <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-read
		_ = e.cmd.Wait()
		if t.Failed() {
			t.Logf("log of the exporter:\n%s", e.logged())
		}
	})
	select {
	case a := <-listening:
		e.url = "http://" + a
	case <-read:
		t.Fatalf("the exporter ended: %s", e.logged())
	case <-time.After(20 * time.Second):
		t.Fatal("the exporter does not listen after 20 s")
	}
	return e
}

func (e *exporter) logged() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.log.String()
}

// get fetches a path and returns the status and the body.
func (e *exporter) get(path string) (int, string) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url+path, http.NoBody)
	if err != nil {
		e.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		e.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		e.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// page maps the series of a scrape to their values. Labels are sorted: name{a="b",c="d"}.
type page map[string]float64

// scrape fetches /metrics with a query, such as "?collect[]=tcp".
func (e *exporter) scrape(query string) page {
	e.t.Helper()
	status, body := e.get("/metrics" + query)
	if status != http.StatusOK {
		e.t.Fatalf("GET /metrics%s: %d: %s", query, status, body)
	}
	return parsePage(e.t, body)
}

// parsePage parses the Prometheus text format.
func parsePage(t *testing.T, body string) page {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	p := page{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			slices.Sort(labels)
			key := name
			if len(labels) > 0 {
				key += "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case m.Gauge != nil:
				p[key] = m.Gauge.GetValue()
			case m.Counter != nil:
				p[key] = m.Counter.GetValue()
			case m.Untyped != nil:
				p[key] = m.Untyped.GetValue()
			}
		}
	}
	return p
}

// value returns the value of a series, which must exist.
func (p page) value(t *testing.T, series string) float64 {
	t.Helper()
	v, ok := p[series]
	if !ok {
		t.Fatalf("no series %s among %v", series, p.with(strings.SplitN(series, "{", 2)[0]))
	}
	return v
}

// with returns the series whose names start with prefix, sorted.
func (p page) with(prefix string) []string {
	var series []string
	for _, s := range slices.Sorted(maps.Keys(p)) {
		if strings.HasPrefix(s, prefix) {
			series = append(series, s)
		}
	}
	return series
}
