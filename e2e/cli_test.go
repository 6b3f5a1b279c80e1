package e2e

import (
	"bytes"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// TestBadInput checks that each wrong flag or environment gives one clear line on standard error
// and a nonzero exit status.
func TestBadInput(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	config := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(config, []byte("tls_server_config: {cert_file: nowhere.pem}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"unknown flag":       {[]string{"--collector.nonsense"}, "unknown long flag '--collector.nonsense'"},
		"unknown command":    {[]string{"nonsense"}, "unexpected nonsense"},
		"unreadable procfs":  {[]string{"--path.procfs=/nowhere"}, "/nowhere: no such file or directory"},
		"procfs is a file":   {[]string{"--path.procfs=/proc/version"}, "/proc/version: not a directory"},
		"port in use":        {[]string{"--web.listen-address=" + busy.Addr().String()}, "address already in use"},
		"bad address":        {[]string{"--web.listen-address=nonsense"}, "missing port in address"},
		"bad web config":     {[]string{"--web.listen-address=127.0.0.1:0", "--web.config.file=" + config}, "web.yml: missing one of key or key_file"},
		"missing web config": {[]string{"--web.config.file=/nowhere.yml"}, "/nowhere.yml: no such file or directory"},
		"bad path":           {[]string{"--web.telemetry-path=metrics"}, "must be a path below /"},
		"path of a probe":    {[]string{"--web.telemetry-path=/-/healthy"}, "must be a path below /"},
		"path not clean":     {[]string{"--web.telemetry-path=/a//b"}, "must be a path below /"},
		"empty procfs":       {[]string{"--path.procfs=" + t.TempDir()}, "is not a procfs"},
		"max-cpu of 2":       {[]string{"--collector.max-cpu=2"}, "must be between 0 and 1"},
		"max-cpu is NaN":     {[]string{"--collector.max-cpu=NaN"}, "must be between 0 and 1"},
		"top of 0":           {[]string{"--collector.top=0"}, "must be between 1 and 100"},
		"sample interval":    {[]string{"--collector.sample-interval=1ms"}, "--collector.sample-interval=1ms must be 0s or between 100ms and 15s"},
		"no collector":       {[]string{"--collector.disable-defaults"}, "no collector is enabled"},
		"bad log level":      {[]string{"--log.level=loud"}, "unrecognized log level loud"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			cmd := exec.Command(binary, c.args...)
			cmd.Stderr = &stderr
			timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
			err := cmd.Run()
			if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() <= 0 {
				t.Fatalf("it ended with %v", err)
			}
			var said []string
			for line := range strings.Lines(stderr.String()) {
				// In a container the exporter warns that it is not on the host.
				if !strings.Contains(line, "level=INFO") && !strings.Contains(line, "level=WARN") {
					said = append(said, line)
				}
			}
			if len(said) != 1 || !strings.Contains(said[0], c.want) {
				t.Errorf("it said %q, want one line with %q", said, c.want)
			}
		})
	}
}

func TestSelection(t *testing.T) {
	e := start(t, nil)
	for _, query := range []string{"?collect[]=nonsense", "?exclude[]=nonsense", "?collect[]=tcp&exclude[]=ports"} {
		status, body := e.get("/metrics" + query)
		if status != http.StatusBadRequest || strings.Count(body, "\n") != 1 {
			t.Errorf("%s: %d %q", query, status, body)
		}
	}
	_, body := e.get("/metrics?collect[]=nonsense")
	for _, name := range []string{"sockstat", "tcp", "ports", "unix", "udp", "netstat", "conntrack", "filefd", "process", "threads", "memory", "softnet", "neighbour", "netns", "cgroup", "kmsg"} {
		if !strings.Contains(body, name) {
			t.Errorf("%q does not name %s", body, name)
		}
	}
	p := e.scrape("?collect[]=tcp&collect[]=filefd")
	if got := p.with("sockpressure_scrape_collector_success"); len(got) != 2 {
		t.Errorf("collect[] gave %v", got)
	}
	p = e.scrape("?exclude[]=tcp")
	if got := p.with("sockpressure_scrape_collector_success"); len(got) != len(collector.Specs())-1 {
		t.Errorf("exclude[] gave %v", got)
	}

	e = start(t, nil, "--no-collector.tcp")
	if status, _ := e.get("/metrics?collect[]=tcp"); status != http.StatusBadRequest {
		t.Errorf("a disabled collector: %d", status)
	}
	e = start(t, nil, "--collector.disable-defaults", "--collector.filefd")
	if got := e.scrape("").with("sockpressure_scrape_collector_success"); len(got) != 1 {
		t.Errorf("--collector.disable-defaults gave %v", got)
	}
}

// TestStop checks that the exporter exits with status 0 on SIGTERM, with an idle connection open.
func TestStop(t *testing.T) {
	e := start(t, nil)
	e.scrape("")
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- e.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Error("still running")
	}
}

func TestPages(t *testing.T) {
	e := start(t, nil)
	for path, want := range map[string]string{
		"/":          "sockpressure_exporter</title>",
		"/-/healthy": "healthy",
		"/-/ready":   "ready",
	} {
		if status, body := e.get(path); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if status, _ := e.get("/nowhere"); status != http.StatusNotFound {
		t.Errorf("/nowhere: %d", status)
	}
}
