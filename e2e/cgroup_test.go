package e2e

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestCgroups checks the series of a real cgroup, as any user: its memory, its limit, and its OOM
// kills. It also checks that the cgroup can be removed and that the exporter keeps none of its
// files open.
func TestCgroups(t *testing.T) {
	needs.Check(t, needs.Root)
	const limit = 64 << 20
	g := newMemoryGroup(t, limit)
	name := "/" + filepath.Base(g.dir)
	labels := fmt.Sprintf(`{cgroup=%q,namespace="",pod=""}`, name)
	e := start(t, asNobody, "--collector.top=100")
	all := e.scrape("").value(t, "sockpressure_cgroup_oom_kills_all_total")

	// A shell that holds 24 MB and is the preferred victim of the OOM killer, so that no other
	// process is killed.
	shell := exec.Command("sh", "-c", `echo 1000 > /proc/self/oom_score_adj && echo $$ > "$0" && x=$(head -c 24000000 /dev/zero | tr '\0' x) && echo holds && read go && exec tail /dev/zero`, g.procs())
	shell.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shell.Process.Kill(); _ = shell.Wait() })
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatalf("the shell ended: %v", err)
	}
	p := e.scrape("")
	used, most := p.value(t, "sockpressure_cgroup_memory_used_bytes"+labels), p.value(t, "sockpressure_cgroup_memory_limit_bytes"+labels)
	if used < 24e6 || most != limit || p.value(t, "sockpressure_cgroup_memory_saturation_ratio"+labels) != used/most {
		t.Errorf("it uses %v of %v", used, most)
	}
	if byHand := g.used(t); math.Abs(used-byHand) > 4<<20 { // each CPU charges memory in advance
		t.Errorf("it uses %v, by hand %v", used, byHand)
	}

	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := shell.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Fatalf("it ended with %v", err)
	}
	p = e.scrape("")
	if got := p.value(t, "sockpressure_cgroup_oom_kills_total"+labels); got != 1 {
		t.Errorf("%v were killed in it", got)
	}
	after := p.value(t, "sockpressure_cgroup_oom_kills_all_total")
	if after < all+1 {
		t.Errorf("%v were killed in all, %v before", after, all)
	}

	eventually(t, "the group is removed", func() error { return os.Remove(g.dir) })
	p = e.scrape("")
	for series := range p {
		if strings.Contains(series, labels) {
			t.Errorf("the group is removed, but the page has %s", series)
		}
	}
	if got := p.value(t, "sockpressure_cgroup_oom_kills_all_total"); got < after {
		t.Errorf("%v were killed in all, %v before", got, after)
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", e.cmd.Process.Pid))
	if err != nil || len(fds) == 0 {
		t.Fatal(fds, err)
	}
	for _, fd := range fds {
		if file, _ := os.Readlink(fd); strings.Contains(file, name) {
			t.Errorf("%s is open", file)
		}
	}
}

// used returns the memory that the group cannot reclaim.
func (g memoryGroup) used(t *testing.T) float64 {
	t.Helper()
	number := func(file, prefix string) float64 {
		b, err := os.ReadFile(filepath.Join(g.dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, prefix); ok {
				n, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
		t.Fatalf("%s has no %s", file, prefix)
		return 0
	}
	if g.limit != "memory.max" {
		return number("memory.usage_in_bytes", "") - number("memory.stat", "total_inactive_file ") - number("memory.stat", "total_active_file ")
	}
	return number("memory.current", "") - number("memory.stat", "inactive_file ") - number("memory.stat", "active_file ") - number("memory.stat", "slab_reclaimable ")
}
