package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
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

// TestHang puts a FIFO, whose opening blocks for ever, in the place of each file
// that is kept open, one after the other. The exporter listens all the same, the
// collectors that do not need the file answer at once, check says what hangs, and
// a signal ends it.
func TestHang(t *testing.T) {
	t.Parallel() // it does little but wait
	proc, sys := copyProc(t)
	files := start(t, nil, "--path.procfs="+proc, "--path.sysfs="+sys).kept(proc)
	if len(files) < 30 {
		t.Fatalf("it keeps only %v open", files)
	}
	files = append(files, "version")
	if !needs.InCI() {
		// One of each kind: of a namespace, of the machine, of a walk, of no collector.
		files = []string{"net/sockstat", "meminfo", "sys/net/ipv4/ip_local_port_range", "version"}
	}
	// All at once.
	var all sync.WaitGroup
	defer all.Wait()
	for _, file := range files {
		all.Go(func() { hang(t, file) })
	}
}

func hang(t *testing.T, file string) {
	proc, sys := copyProc(t)
	path := filepath.Join(proc, file)
	if err := os.Remove(path); err != nil {
		t.Error(err)
		return
	}
	if err := unix.Mkfifo(path, 0o644); err != nil {
		t.Error(err)
		return
	}

	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	began := time.Now()
	out, err := exec.CommandContext(ctx, binary, "check", "--path.procfs="+proc, "--path.sysfs="+sys).CombinedOutput()
	exit := new(exec.ExitError)
	if took := time.Since(began); !errors.As(err, &exit) || exit.ExitCode() != 3 || took > 20*time.Second {
		t.Errorf("%s: check took %v: %v\n%s", file, took, err, out)
	}
	if file != "version" && !strings.Contains(string(out), path+" does not answer") {
		t.Errorf("%s: check does not say that it hangs:\n%s", file, out)
	}

	began = time.Now()
	e := start(t, nil, "--path.procfs="+proc, "--path.sysfs="+sys)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("%s: it listens after %v", file, took)
	}
	e.scrape("")
	began = time.Now()
	p := e.scrape("")
	// Forty exporters on two processors answer later than one, which takes some
	// milliseconds, but much sooner than after a deadline.
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("%s: the second scrape took %v", file, took)
	}
	failed := 0
	for _, s := range p.with("sockpressure_scrape_collector_success") {
		if p[s] == 0 {
			failed++
		}
	}
	// In a copy of a procfs tcp and ports have no sockets to ask for.
	if failed < 2 || failed > 5 {
		t.Errorf("%s: %d collectors failed: %v", file, failed, p.with("sockpressure_scrape_collector_success"))
	}
	began = time.Now()
	if err := e.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := e.cmd.Wait(); err != nil {
		t.Errorf("%s: %v", file, err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("%s: SIGTERM was obeyed after %v", file, took)
	}
}
