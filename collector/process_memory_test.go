package collector

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestProcessMemory checks that a limit is read again if it is old, if the PID belongs to
// another process, or if the processes come out of order, and that the number of kept
// processes is bounded.
func TestProcessMemory(t *testing.T) {
	var m processMemory
	start := time.Unix(1e9, 0)
	type process struct {
		pid int
		id  uint64
	}
	step := func(what string, after time.Duration, processes []process, want ...int) {
		t.Helper()
		var read []int
		m.begin(start.Add(after))
		for _, p := range processes {
			k, _, err := m.find(p.pid, p.id, func() (float64, error) {
				read = append(read, p.pid)
				if p.pid == 13 {
					return 0, errors.New("broken")
				}
				return float64(p.pid), nil
			})
			if (err != nil) != (p.pid == 13) || err == nil && k.limit != float64(p.pid) || m.fresh(k) != slices.Contains(read, p.pid) {
				t.Errorf("%s: process %d: %+v, %t, %v", what, p.pid, k, m.fresh(k), err)
			}
		}
		if !slices.Equal(read, want) {
			t.Errorf("%s: read %v, want %v", what, read, want)
		}
	}
	all := []process{{1, 100}, {5, 101}, {13, 102}, {20, 103}}
	step("at first", 0, all, 1, 5, 13, 20)
	step("a moment later", time.Second, all, 13)
	step("a PID of another process", 2*time.Second, []process{{1, 100}, {5, 999}, {20, 103}}, 5)
	step("one that ended", 3*time.Second, []process{{1, 100}, {20, 103}})
	step("and came back", 4*time.Second, all, 5, 13)
	step("out of order", 5*time.Second, []process{{20, 103}, {1, 100}}, 1)
	step("old", limitAge+limitAge/4+10*time.Second, []process{{1, 100}, {20, 103}}, 1, 20)

	for _, c := range []struct {
		after time.Duration
		name  string // the name kept before
	}{{0, ""}, {settled - 1, ""}, {settled, ""}, {settled + 1, "a name"}, {2 * limitAge, ""}} {
		m.begin(start.Add(time.Hour + c.after))
		k, place, err := m.find(7, 7, func() (float64, error) { return 1, nil })
		if err != nil || k.name != c.name {
			t.Errorf("after %v: %+v, %v", c.after, k, err)
		}
		m.note(place, 1, "a name")
	}

	many := make([]process, maxKnown+1000)
	for i := range many {
		many[i] = process{100 + i, uint64(i)}
	}
	last := make([]int, 0, 1000)
	for _, p := range many[maxKnown:] {
		last = append(last, p.pid)
	}
	m = processMemory{}
	m.begin(start)
	for _, p := range many {
		_, _, _ = m.find(p.pid, p.id, func() (float64, error) { return float64(p.pid), nil })
	}
	step("more than are kept", time.Second, many, last...)
}

// TestLimitChanges checks that a raised limit of a running process is seen at the next reading
// and its open descriptors are up to date.
func TestLimitChanges(t *testing.T) {
	needs.Check(t, needs.Root) // other users may not see all processes
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	// The process needs a unique name: of those with the same name, only the one closest to
	// its limit is listed.
	program := filepath.Join(t.TempDir(), "limitchild")
	if err := os.Symlink(cat, program); err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), program)
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = child.Wait()
	}()
	// Once the process answers, it has opened all its files.
	if _, err := io.WriteString(in, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	pid := child.Process.Pid
	set := func(limit uint64) {
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: 1000}, nil); err != nil {
			t.Fatal(err)
		}
	}
	r := newProcessReader(scope(t, running()))
	r.Top = 100
	read := func() processFiles {
		var s processes
		if err := r.read(t.Context(), &s); err != nil {
			t.Fatal(err)
		}
		for _, f := range s.worst {
			if f.pid == pid {
				return f
			}
		}
		return processFiles{}
	}
	for _, step := range []struct {
		limit  uint64
		forget bool // make the kept limits too old
		want   float64
	}{{3, false, 3}, {4, false, 4}, {1000, false, 1000}, {5, true, 5}} {
		set(step.limit)
		if step.forget {
			for i := range r.memory.next {
				r.memory.next[i].of.read = time.Now().Add(-2 * limitAge)
			}
		}
		got := read()
		if got.limit != step.want && got != (processFiles{}) || step.want < 10 && (got.open < 3 || got.name != "limitchild") {
			t.Errorf("at a limit of %d: %+v", step.limit, got)
		}
	}
}

// TestNoDescriptorsLeft checks that reading the listed processes returns an error and no
// process if no file can be opened.
func TestNoDescriptorsLeft(t *testing.T) {
	tr := newTree(t, "linux-6.12")
	r := newProcessReader(scope(t, kernel.Options{ProcPath: filepath.Join(tr.dir, "proc"), SysPath: filepath.Join(tr.dir, "sys")}))
	of := func() []processFiles { return []processFiles{{pid: 1, open: 5, limit: 1024, place: -1}} }
	var s processes
	if err := r.choose(&s, of()); err != nil || len(s.worst) != 1 {
		t.Fatalf("%+v, %v", s, err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	s = processes{}
	err := r.choose(&s, of())
	if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, unix.EMFILE) || s.worst != nil {
		t.Errorf("%+v, %v", s, err)
	}
}
