package collector

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/internal/cgroup"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
)

// cgroupTree is a copy of a tree of control groups.
type cgroupTree struct {
	*tree
	pods string
	set  *Set
}

func newCgroupTree(t *testing.T) *cgroupTree {
	c := &cgroupTree{tree: newTree(t, "linux-6.12"), pods: t.TempDir()}
	m := machine(t, kernel.Options{ProcPath: filepath.Join(c.dir, "proc"), SysPath: filepath.Join(c.dir, "sys"), PodsPath: c.pods})
	c.set = NewSet(m, []Spec{cgroupSpec()}, Config{Top: 10, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { closeSet(t, c.set) })
	return c
}

// v2 writes the files of a group of version 2.
func (c *cgroupTree) v2(path, limit string, current, file, sock, kills int) {
	dir := "sys/fs/cgroup/" + path + "/"
	c.write(dir+"memory.max", limit+"\n")
	c.write(dir+"memory.current", fmt.Sprintln(current))
	c.write(dir+"memory.stat", fmt.Sprintf("anon 1\nfile %d\nsock %d\ninactive_file %d\nactive_file 0\nslab_reclaimable 10\n", file, sock, file))
	c.write(dir+"memory.events", fmt.Sprintf("low 0\nhigh 0\nmax 3\noom 1\noom_kill %d\n", kills))
}

// page returns the samples of the collector.
func (c *cgroupTree) page() (map[string]float64, Result) {
	reading := c.set.Read(c.t.Context(), Query{})
	got := map[string]float64{}
	for _, s := range reading.Results[0].samples {
		got[strings.TrimPrefix(s.series().String(), "sockpressure_cgroup_")] = s.value
	}
	return got, reading.Results[0]
}

func expectSeries(t *testing.T, what string, got, want map[string]float64) {
	t.Helper()
	for name, value := range want {
		if v, ok := got[name]; !ok || v != value {
			t.Errorf("%s: %s is %v, %t, want %v", what, name, v, ok, value)
		}
	}
	for name, value := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: %s is %v", what, name, value)
		}
	}
}

// TestCgroups expects a pod to be one, with its fullest group, a unit's groups to be the
// unit's, and two of one name to be told apart.
func TestCgroups(t *testing.T) {
	const uid = "12345678-1234-1234-1234-123456789abc"
	c := newCgroupTree(t)
	if err := os.Mkdir(filepath.Join(c.pods, "shop_cart-0_"+uid), 0o755); err != nil {
		t.Fatal(err)
	}
	c.write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
	kube := "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"
	c.v2("kubepods.slice", "10000", 5000, 10, 700, 3)
	c.v2("kubepods.slice/kubepods-burstable.slice", "max", 5000, 10, 700, 3)
	c.v2(kube, "1000", 510, 0, 600, 2)
	c.v2(kube+"/cri-containerd-aa.scope", "400", 360, 50, 500, 2)
	c.v2(kube+"/cri-containerd-bb.scope", "400", 60, 0, 100, 0)
	c.v2("system.slice", "max", 900, 0, 70, 0)
	c.v2("system.slice/nginx.service", "max", 500, 0, 50, 0)
	c.v2("system.slice/nginx.service/worker", "200", 50, 0, 40, 0)
	c.v2("user.slice", "max", 10, 0, 7, 0)
	c.v2("user.slice/nginx.service", "max", 10, 0, 6, 0)
	c.v2("user.slice/session-1.scope", "max", 10, 0, 1, 0)

	pod, own := `{cgroup="pod/shop/cart-0",namespace="shop",pod="cart-0"}`, func(name string) string {
		return fmt.Sprintf(`{cgroup=%q,namespace="",pod=""}`, name)
	}
	got, result := c.page()
	if result.Err != nil {
		t.Error(result.Err)
	}
	// Which of the two units has the name depends on the order of the folders.
	other := own("unit/nginx.service")
	if got["socket_memory_bytes"+other] == 6 {
		got["socket_memory_bytes"+other], got["socket_memory_bytes"+own("/user.slice/nginx.service")] = 50, 6
		delete(got, "socket_memory_bytes"+own("/system.slice/nginx.service"))
		for _, m := range []string{"memory_used_bytes", "memory_limit_bytes", "memory_saturation_ratio"} {
			got[m+other] = got[m+own("/system.slice/nginx.service")]
			delete(got, m+own("/system.slice/nginx.service"))
		}
	}
	want := map[string]float64{
		"groups": 11, "oom_kills_all_total": 0,
		"socket_memory_bytes" + pod: 600, "socket_memory_bytes" + other: 50,
		"socket_memory_bytes" + own("/user.slice/nginx.service"):   6,
		"socket_memory_bytes" + own("/user.slice/session-1.scope"): 1,
		"memory_used_bytes" + pod:                                  300, "memory_limit_bytes" + pod: 400, "memory_saturation_ratio" + pod: 0.75,
		"memory_used_bytes" + other: 40, "memory_limit_bytes" + other: 200, "memory_saturation_ratio" + other: 0.2,
		"memory_used_bytes" + own("/kubepods.slice"): 4980, "memory_limit_bytes" + own("/kubepods.slice"): 10000, "memory_saturation_ratio" + own("/kubepods.slice"): 0.498,
		"oom_kills_total" + pod: 2,
	}
	expectSeries(t, "first", got, want)
	if l := result.Limits[0]; l.Resource != "cgroup_memory" || l.Saturation() != 0.75 || l.Items[0].Name() != "pod/shop/cart-0" {
		t.Errorf("the limit is %+v", l)
	}
	if h := result.holders["tcp_memory"]; h == nil || h.String() != "pod/shop/cart-0" || h.of(1200).Share != 0.5 {
		t.Errorf("tcp_memory is held by %v", h)
	}

	// A pod begins, is killed and ends between two readings: its slice tells.
	c.v2("kubepods.slice", "10000", 5000, 10, 700, 5)
	got, _ = c.page()
	if got["oom_kills_all_total"] != 2 {
		t.Errorf("%v were killed, not 2", got["oom_kills_all_total"])
	}
	c.v2("new.slice", "max", 1, 0, 0, 4)
	if got, _ = c.page(); got["oom_kills_all_total"] != 6 {
		t.Errorf("%v were killed, not 6", got["oom_kills_all_total"])
	}
	c.remove("sys/fs/cgroup/new.slice")
	if got, _ = c.page(); got["oom_kills_all_total"] != 6 {
		t.Errorf("%v were killed when a group was removed, not 6", got["oom_kills_all_total"])
	}

	// What one file of a group has is of that group.
	c.write("sys/fs/cgroup/"+kube+"/memory.stat", "sock ?\n")
	got, result = c.page()
	if result.Err == nil || !strings.Contains(result.Err.Error(), "memory.stat") {
		t.Errorf("a broken file: %v", result.Err)
	}
	if _, ok := got["socket_memory_bytes"+pod]; ok || got["memory_used_bytes"+own("/kubepods.slice")] != 4980 {
		t.Errorf("a broken file gives %v", got)
	}
}

// TestCgroupsV1 expects the files of version 1.
func TestCgroupsV1(t *testing.T) {
	c := newCgroupTree(t)
	c.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n")
	c.write("sys/fs/cgroup/memory/release_agent", "\n")
	for path, limit := range map[string]string{"docker": "9223372036854771712", "docker/" + strings.Repeat("ab", 32): "1000"} {
		dir := "sys/fs/cgroup/memory/" + path + "/"
		c.write(dir+"memory.limit_in_bytes", limit+"\n")
		c.write(dir+"memory.usage_in_bytes", "500\n")
		c.write(dir+"memory.stat", "cache 1\ninactive_file 7\ntotal_inactive_file 50\ntotal_active_file 50\n")
		c.write(dir+"memory.kmem.tcp.usage_in_bytes", "8192\n")
		c.write(dir+"memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
	}
	got, result := c.page()
	labels := `{cgroup="docker/abababababab",namespace="",pod=""}`
	expectSeries(t, "version 1", got, map[string]float64{
		"groups": 2, "oom_kills_all_total": 0, "socket_memory_bytes" + labels: 8192, "oom_kills_total" + labels: 3,
		"memory_used_bytes" + labels: 400, "memory_limit_bytes" + labels: 1000, "memory_saturation_ratio" + labels: 0.4,
	})
	if result.Err != nil {
		t.Error(result.Err)
	}
}

// TestCgroupsForeign expects nothing where there is none, or only a container's own.
func TestCgroupsForeign(t *testing.T) {
	c := newCgroupTree(t)
	if got, result := c.page(); result.Unsupported == nil || len(got) > 0 {
		t.Errorf("without control groups: %v, %v", got, result.Err)
	}
	c.write("sys/fs/cgroup/cgroup.controllers", "memory\n")
	c.write("sys/fs/cgroup/cgroup.type", "domain\n")
	c.v2("child", "max", 1, 1, 1, 1)
	if got, result := c.page(); !errors.Is(result.Unsupported, cgroup.ErrForeign) || len(got) > 0 {
		t.Errorf("in a container: %v, %v", got, result.Unsupported)
	}
	c.write("sys/fs/cgroup/cgroup.controllers", "cpu\n")
	if got, result := c.page(); result.Unsupported == nil || errors.Is(result.Unsupported, cgroup.ErrForeign) || len(got) > 0 {
		t.Errorf("without the controller: %v, %v", got, result.Unsupported)
	}
}
