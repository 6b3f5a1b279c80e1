package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// copyProc copies a recorded tree and returns its procfs and its sysfs.
func copyProc(t *testing.T) (proc, sys string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../testdata/linux-6.12")); err != nil {
		t.Fatal(err)
	}
	sys = filepath.Join(dir, "sys")
	for _, file := range []string{"kernel/slab/TCP/slabs", "kernel/slab/TCP/order", "devices/system/cpu/online"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(sys, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sys, file), []byte("1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "proc"), sys
}

// kept lists the files below proc that an exporter keeps open, without proc itself.
func (e *exporter) kept(proc string) []string {
	e.t.Helper()
	fds := filepath.Join("/proc", strconv.Itoa(e.cmd.Process.Pid), "fd")
	entries, err := os.ReadDir(fds)
	if err != nil {
		e.t.Fatal(err)
	}
	var files []string
	for _, entry := range entries {
		link, err := os.Readlink(filepath.Join(fds, entry.Name()))
		if name, ok := strings.CutPrefix(link, proc+"/"); err == nil && ok {
			files = append(files, name)
		}
	}
	return files
}

// TestHang replaces each file that is kept open by a FIFO, whose opening blocks forever, one at a
// time. It checks that the exporter still listens, that the collectors that do not need the file
// answer at once, that check names the file, and that a signal ends the exporter.
func TestHang(t *testing.T) {
	t.Parallel() // it mostly waits
	var mu sync.Mutex
	var wrong []error
	// Reported after the logs of all exporters.
	t.Cleanup(func() {
		for _, err := range wrong {
			t.Error(err)
		}
	})
	proc, sys := copyProc(t)
	files := start(t, nil, "--path.procfs="+proc, "--path.sysfs="+sys).kept(proc)
	if len(files) < 30 {
		t.Fatalf("it keeps only %v open", files)
	}
	files = append(files, "version")
	if !needs.InCI() {
		// One file of each kind: of a network namespace, of the machine, of a walk, of no
		// collector.
		files = []string{"net/sockstat", "meminfo", "sys/net/ipv4/ip_local_port_range", "version"}
	}
	var all sync.WaitGroup
	for _, file := range files {
		proc, sys := copyProc(t)
		all.Go(func() {
			errs := hang(t, file, proc, sys)
			mu.Lock()
			defer mu.Unlock()
			for _, err := range errs {
				wrong = append(wrong, fmt.Errorf("%s: %w", file, err))
			}
		})
	}
	all.Wait()
	if len(wrong) > 0 {
		t.Fail()
	}
}

// hang runs check and an exporter where opening the file blocks forever, and returns what went
// wrong.
func hang(t *testing.T, file, proc, sys string) (wrong []error) {
	errorf := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	path := filepath.Join(proc, file)
	if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)); err != nil {
		return []error{err}
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "check", "--path.procfs="+proc, "--path.sysfs="+sys).CombinedOutput()
	exit := new(exec.ExitError)
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		errorf("check: %v\n%s", err, out)
	}
	if file != "version" && !strings.Contains(string(out), path+" did not answer") {
		errorf("check does not name the file that hangs:\n%s", out)
	}

	// The thread that started a process must not end before it does (Pdeathsig).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	e := start(t, nil, "--path.procfs="+proc, "--path.sysfs="+sys)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	var p page
	for _, timeout := range []string{"10", "60"} {
		// A collector that is known to hang is not waited for, so even a scrape that may take a
		// minute answers at once, however busy this machine is.
		began := time.Now()
		answer, err := e.send(client, http.MethodGet, e.url+"/metrics", http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {timeout}})
		if err != nil || answer.status != http.StatusOK {
			errorf("a scrape of %s s gives %d %q after %v: %v\n%s", timeout, answer.status, answer.body, time.Since(began), err, e.logged())
			return wrong
		}
		if took := time.Since(began); took > 20*time.Second {
			errorf("a scrape of %s s took %v", timeout, took)
		}
		p = parsePage(t, answer.body)
	}
	collectors := p.with("sockpressure_scrape_collector_success")
	failed := 0
	for _, s := range collectors {
		if p[s] == 0 {
			failed++
		}
	}
	// The copied procfs has no sockets to query, so tcp and ports fail too.
	if failed < 2 || failed > 5 {
		errorf("%d collectors failed: %v", failed, collectors)
	}
	began := time.Now()
	if err := e.cmd.Process.Signal(unix.SIGTERM); err != nil {
		errorf("%w", err)
	}
	if err := e.cmd.Wait(); err != nil {
		errorf("%w", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		errorf("the exporter ended %v after SIGTERM", took)
	}
	return wrong
}
