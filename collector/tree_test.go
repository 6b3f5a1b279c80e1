package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/sockpressure/sockpressure_exporter/internal/ctnetlink"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag/sockdiagtest"
)

const testdata = "../testdata"

// kernels lists the recorded trees: files of /proc and sock_diag dumps of stock Debian kernels
// under a small load.
func kernels() []string {
	return []string{"linux-5.10", "linux-6.1", "linux-6.1-686-pae", "linux-6.12", "linux-7.2"}
}

// tree is a copy of a recorded tree that a test can change.
type tree struct {
	t      *testing.T
	dir    string
	top    int
	replay *sockdiagtest.Replay
	// ctnetlink opens a netfilter socket; nil means that the namespace cannot be entered.
	ctnetlink func() (ctnetlink.Conn, error)
	// pageSize and memoryUnit are those of the kernel, in bytes. If memoryUnit is 0, the
	// kernel cannot determine it.
	pageSize, memoryUnit int
}

// newTree copies a recorded tree and adds a process with five descriptors, which a recording
// of files cannot hold.
func newTree(t *testing.T, kernel string) *tree {
	t.Helper()
	tr := &tree{t: t, dir: t.TempDir(), pageSize: 4096, memoryUnit: 4096, top: 10}
	if err := os.CopyFS(tr.dir, os.DirFS(filepath.Join(testdata, kernel))); err != nil {
		t.Fatal(err)
	}
	dump, err := os.ReadFile(filepath.Join(tr.dir, "sock_diag/tcpdiag_getsock_all_states.bin"))
	if err != nil {
		t.Fatal(err)
	}
	tr.replay = &sockdiagtest.Replay{Dump: dump}
	tr.write("proc/1/comm", "init\n")
	for fd := range 5 {
		tr.write(fmt.Sprintf("proc/1/fd/%d", fd), "")
	}
	return tr
}

func (tr *tree) write(name, content string) {
	tr.t.Helper()
	path := filepath.Join(tr.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		tr.t.Fatal(err)
	}
}

func (tr *tree) read(name string) string {
	tr.t.Helper()
	b, err := os.ReadFile(filepath.Join(tr.dir, name))
	if err != nil {
		tr.t.Fatal(err)
	}
	return string(b)
}

// edit replaces the first occurrence of old, which the file must contain.
func (tr *tree) edit(name, old, replacement string) {
	tr.t.Helper()
	content := tr.read(name)
	if !strings.Contains(content, old) {
		tr.t.Fatalf("%s has no %q", name, old)
	}
	tr.write(name, strings.Replace(content, old, replacement, 1))
}

func (tr *tree) link(name, target string) {
	tr.t.Helper()
	if err := os.Symlink(target, filepath.Join(tr.dir, name)); err != nil {
		tr.t.Fatal(err)
	}
}

// dump returns a recorded sock_diag dump.
func (tr *tree) dump(name string) []byte {
	tr.t.Helper()
	return []byte(tr.read(filepath.Join("sock_diag", name)))
}

func (tr *tree) remove(names ...string) {
	tr.t.Helper()
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(tr.dir, name)); err != nil {
			tr.t.Fatal(err)
		}
	}
}

// files lists the files of the tree's /proc that collectors read as text.
func (tr *tree) files() []string {
	var files []string
	for _, pattern := range []string{
		"proc/net/s*", "proc/net/netstat", "proc/net/stat/*", "proc/meminfo", "proc/zoneinfo", "proc/vmstat", "proc/slabinfo",
		"proc/pressure/*", "proc/sys/*/*", "proc/sys/net/*/*", "proc/sys/net/*/neigh/default/*",
	} {
		matches, err := filepath.Glob(filepath.Join(tr.dir, pattern))
		if err != nil {
			tr.t.Fatal(err)
		}
		for _, m := range matches {
			name, _ := filepath.Rel(tr.dir, m)
			if st, err := os.Stat(m); err == nil && st.Mode().IsRegular() {
				files = append(files, name)
			}
		}
	}
	return files
}

// set returns a set of all collectors over the tree.
func (tr *tree) set() *Set {
	tr.t.Helper()
	return NewSet(machine(tr.t, tr.options()), Specs(), Config{MaxCPU: 0, Top: tr.top, Logger: slog.New(slog.DiscardHandler)})
}

// options returns the options for a machine over the tree.
func (tr *tree) options() kernel.Options {
	return kernel.Options{
		ProcPath: filepath.Join(tr.dir, "proc"),
		SysPath:  filepath.Join(tr.dir, "sys"),
		PageSize: tr.pageSize,
		MemoryUnit: func() (int, error) {
			if tr.memoryUnit == 0 {
				return 0, errors.New("unit of socket memory: unknown")
			}
			return tr.memoryUnit, nil
		},
		DialSockDiag:  tr.replay.Dial,
		DialCTNetlink: tr.ctnetlink,
		OpenLog:       newLog().open,
	}
}

// running returns the options for the machine that the tests run on.
func running() kernel.Options { return kernel.Options{ProcPath: "/proc", SysPath: "/sys"} }

func machine(t testing.TB, o kernel.Options) *kernel.Machine {
	t.Helper()
	m, err := kernel.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// scope returns a scope that is closed when the test ends.
func scope(t testing.TB, o kernel.Options) *Scope {
	t.Helper()
	s := NewScope(machine(t, o), 10, slog.New(slog.DiscardHandler))
	t.Cleanup(s.Close)
	return s
}

// closeSet closes a set, none of whose collectors may be reading.
func closeSet(t testing.TB, set *Set) {
	t.Helper()
	if err := set.Close(t.Context()); err != nil && t.Context().Err() == nil {
		t.Error(err)
	}
}

// render reads the set once and returns it in the Prometheus text format, without what differs
// from run to run, and with the errors of the collectors at the end.
func (tr *tree) render() string {
	tr.t.Helper()
	set := tr.set()
	defer closeSet(tr.t, set)
	reading := set.Read(context.Background(), Query{})
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(reading.Collector())
	families, err := registry.Gather()
	if err != nil {
		tr.t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		if strings.HasSuffix(f.GetName(), "_duration_seconds") {
			continue
		}
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			tr.t.Fatal(err)
		}
	}
	for _, r := range reading.Results {
		if e := whatFailed(r); e != "" {
			fmt.Fprintf(&b, "# collector %s: %s\n", r.Collector, strings.ReplaceAll(e, tr.dir, ""))
		}
	}
	return b.String()
}

func whatFailed(r Result) string {
	switch {
	case r.Err != nil:
		return r.Err.Error()
	case r.Unsupported != nil:
		return r.Unsupported.Error()
	}
	return ""
}

// series reads the chosen collectors once and returns the series and the error of each.
func (tr *tree) series(choose func(string) bool) (map[string]map[string]float64, map[string]error) {
	tr.t.Helper()
	all, errs := map[string]map[string]float64{}, map[string]error{}
	set := tr.set()
	defer closeSet(tr.t, set)
	for _, r := range set.Read(context.Background(), Query{Choose: choose}).Results {
		series := map[string]float64{}
		for _, s := range r.samples {
			series[s.metric.Name+" "+strings.Join(s.labels, ",")] = s.value
		}
		for _, l := range r.Limits {
			// A number that changes with either of them, even if the usage is 0.
			series["limit "+l.Resource] = l.Limit + l.Usage/3
		}
		all[r.Collector], errs[r.Collector] = series, r.Err
	}
	return all, errs
}
