package collector

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/cgroup"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
)

// cgroupTree is a copy of a recorded tree to which a test adds cgroups.
type cgroupTree struct {
	*tree
	pods string
	set  *Set
}

func newCgroupTree(t *testing.T) *cgroupTree {
	c := &cgroupTree{tree: newTree(t, "linux-6.12"), pods: t.TempDir()}
	c.open()
	t.Cleanup(func() { closeSet(t, c.set) })
	return c
}

// open opens the collector. If it is already open, open closes it first.
func (c *cgroupTree) open() {
	if c.set != nil {
		closeSet(c.t, c.set)
	}
	m := machine(c.t, kernel.Options{ProcPath: filepath.Join(c.dir, "proc"), SysPath: filepath.Join(c.dir, "sys"), PodsPath: c.pods})
	c.set = NewSet(m, []Spec{cgroupSpec()}, Config{Top: 10, Logger: slog.New(slog.DiscardHandler)})
}

// v2 writes the files of a cgroup of version 2.
func (c *cgroupTree) v2(path, limit string, current, file, sock, kills int) {
	dir := "sys/fs/cgroup/" + path + "/"
	c.write(dir+"memory.max", limit+"\n")
	c.write(dir+"memory.current", fmt.Sprintln(current))
	c.write(dir+"memory.stat", fmt.Sprintf("anon 1\nfile %d\nsock %d\ninactive_file %d\nactive_file 0\nslab_reclaimable 10\n", file, sock, file))
	c.write(dir+"memory.events", fmt.Sprintf("low 0\nhigh 0\nmax 3\noom 1\noom_kill %d\n", kills))
}

// page reads the collector once and returns its samples.
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

// TestCgroups checks that a pod is one item with the values of its fullest cgroup, that the
// cgroups below a unit count as the unit, and that two units of the same name are
// distinguished.
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
	other := own("/system.slice/nginx.service") // user.slice has a unit of the same name
	got, result := c.page()
	if result.Err != nil {
		t.Error(result.Err)
	}
	want := map[string]float64{
		"groups": 11, "unreadable": 0, "ooms_all_total": 0, "oom_kills_all_total": 0,
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

	// A pod that starts, has processes killed and ends between two readings is counted by the
	// cgroup above it.
	c.v2("kubepods.slice", "10000", 5000, 10, 700, 5)
	got, _ = c.page()
	if got["oom_kills_all_total"] != 2 || got["ooms_all_total"] != 0 {
		t.Errorf("%v were killed, not 2, %v times at a limit, not 0", got["oom_kills_all_total"], got["ooms_all_total"])
	}
	c.v2("new.slice", "max", 1, 0, 0, 4)
	if got, _ = c.page(); got["oom_kills_all_total"] != 6 || got["ooms_all_total"] != 1 {
		t.Errorf("%v were killed, not 6, %v times at a limit, not 1", got["oom_kills_all_total"], got["ooms_all_total"])
	}
	c.remove("sys/fs/cgroup/new.slice")
	if got, _ = c.page(); got["oom_kills_all_total"] != 6 {
		t.Errorf("%v were killed when a group was removed, not 6", got["oom_kills_all_total"])
	}

	// A broken file affects only the values of its cgroup that are read from it.
	c.write("sys/fs/cgroup/"+kube+"/memory.stat", "sock ?\n")
	got, result = c.page()
	if result.Err == nil || !strings.Contains(result.Err.Error(), "memory.stat") {
		t.Errorf("a broken file: %v", result.Err)
	}
	if _, ok := got["socket_memory_bytes"+pod]; ok || got["memory_used_bytes"+own("/kubepods.slice")] != 4980 || got["unreadable"] != 1 {
		t.Errorf("a broken file gives %v", got)
	}
}

// v1 writes the files of a cgroup of version 1.
func (c *cgroupTree) v1(path, limit string, kills int) {
	dir := "sys/fs/cgroup/memory/" + path + "/"
	c.write(dir+"memory.limit_in_bytes", limit+"\n")
	c.write(dir+"memory.usage_in_bytes", "500\n")
	c.write(dir+"memory.stat", "cache 1\ninactive_file 7\ntotal_inactive_file 50\ntotal_active_file 50\n")
	c.write(dir+"memory.kmem.tcp.usage_in_bytes", "8192\n")
	c.write(dir+"memory.oom_control", fmt.Sprintf("oom_kill_disable 0\nunder_oom 0\noom_kill %d\n", kills))
}

// TestCgroupsV1 checks that the files of version 1 are read, in which the memory of a cgroup
// includes that of the cgroups below it, but its kills do not.
func TestCgroupsV1(t *testing.T) {
	const none = "9223372036854771712"
	c := newCgroupTree(t)
	c.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n")
	c.write("sys/fs/cgroup/memory/release_agent", "\n")
	id := "docker/" + strings.Repeat("ab", 32)
	c.v1("docker", none, 3)
	c.v1(id, "1000", 3)
	c.v1(id+"/a", none, 2)
	c.v1(id+"/b", none, 1)
	labels := `{cgroup="docker/abababababab",namespace="",pod=""}`
	expect := func(what string, groups, kills, all float64) {
		t.Helper()
		got, result := c.page()
		expectSeries(t, what, got, map[string]float64{
			"groups": groups, "unreadable": 0, "oom_kills_all_total": all, "socket_memory_bytes" + labels: 8192, "oom_kills_total" + labels: kills,
			"memory_used_bytes" + labels: 400, "memory_limit_bytes" + labels: 1000, "memory_saturation_ratio" + labels: 0.4,
		})
		if result.Err != nil {
			t.Error(result.Err)
		}
	}
	expect("first", 4, 6, 0)
	expect("the same", 4, 6, 0)
	expect("again", 4, 6, 0)
	c.v1(id+"/b", none, 3)
	c.edit("proc/vmstat", "oom_kill 0\n", "oom_kill 2\n")
	expect("a kill below", 4, 8, 2)
	c.remove("sys/fs/cgroup/memory/" + id + "/b")
	expect("a group is gone", 3, 8, 2)
}

// TestCgroupNames checks that cgroups whose names have unusual bytes or are too long get
// valid, unique names.
func TestCgroupNames(t *testing.T) {
	c := newCgroupTree(t)
	c.write("sys/fs/cgroup/cgroup.controllers", "memory\n")
	long := "x" + strings.Repeat("y", 250)
	names := []string{"a\x01", "a\x02", "a\xff", "a?", "a\nb", `a"b`, "ä", "a b", long, long + "/x/y/z/u/v/w"}
	want := map[string]bool{"/a?": true, `/a"b`: true, "/ä": true, "/a b": true}
	h, err := cgroup.Unified(c.dir + "/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		path := "/"
		for part := range strings.SplitSeq(name, "/") {
			path += part
			c.v2(path, "max", 1, 1, 1+i, 0)
			path += "/"
		}
		c.write("sys/fs/cgroup/"+long+"/cgroup.subtree_control", "memory\n")
	}
	for _, name := range []string{"a\x01", "a\x02", "a\xff", "a\nb", long + "/x/y/z/u/v/w"} {
		want["inode/"+inode(t, h.Root+"/"+name)] = true
	}
	got, result := c.page()
	if result.Err != nil {
		t.Error(result.Err)
	}
	found := 0
	for series := range got {
		if labels, ok := strings.CutPrefix(series, "socket_memory_bytes{cgroup="); ok {
			quoted, _, _ := strings.Cut(labels, ",namespace=")
			name, err := strconv.Unquote(quoted)
			if !want[name] || err != nil {
				t.Errorf("a group is called %s, %v", labels, err)
			}
			found++
		}
	}
	if found != len(want) {
		t.Errorf("%d groups of %d: %v", found, len(want), got)
	}
}

func inode(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return strconv.FormatUint(st.Ino, 10)
}

// TestCgroupTwins checks that two pods of the same name, as while one replaces the other, are
// two items.
func TestCgroupTwins(t *testing.T) {
	c := newCgroupTree(t)
	c.write("sys/fs/cgroup/cgroup.controllers", "memory\n")
	paths := []string{}
	for i, uid := range []string{strings.Repeat("a", 32), strings.Repeat("b", 32)} {
		if err := os.Mkdir(filepath.Join(c.pods, "shop_cart-0_"+uid), 0o755); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, "kubepods/pod"+uid)
		c.v2(paths[i], "100", 50+i, 0, 5, 0)
		c.v2(paths[i]+"/container", "100", 50+i, 0, 5, 0)
	}
	c.v2("kubepods", "max", 101, 0, 10, 0)
	c.write("sys/fs/cgroup/kubepods/cgroup.subtree_control", "cpu memory pids\n")
	got, _ := c.page()
	for i, path := range paths {
		labels := fmt.Sprintf(`{cgroup="/%s",namespace="shop",pod="cart-0"}`, path)
		if got["socket_memory_bytes"+labels] != 5 || got["memory_used_bytes"+labels] != float64(40+i) {
			t.Errorf("%s: %v", path, got)
		}
	}
	if len(got) != 4+2+6 {
		t.Errorf("%v", got)
	}
}

// TestCgroupUndivided checks that a cgroup is reported itself if the cgroups below it do not
// account for memory.
func TestCgroupUndivided(t *testing.T) {
	c := newCgroupTree(t)
	c.write("sys/fs/cgroup/cgroup.controllers", "memory\n")
	c.v2("work", "max", 10, 0, 5, 0)
	c.write("sys/fs/cgroup/work/cgroup.subtree_control", "pids\n")
	c.write("sys/fs/cgroup/work/a/cgroup.procs", "1\n")
	got, result := c.page()
	expectSeries(t, "undivided", got, map[string]float64{
		"groups": 2, "unreadable": 0, "ooms_all_total": 0, "oom_kills_all_total": 0, `socket_memory_bytes{cgroup="/work",namespace="",pod=""}`: 5,
	})
	if result.Err != nil {
		t.Error(result.Err)
	}
}

// TestCgroupMany checks that the many or deeply nested cgroups of one user do not displace
// those of others.
func TestCgroupMany(t *testing.T) {
	c := newCgroupTree(t)
	c.write("sys/fs/cgroup/cgroup.controllers", "memory\n")
	c.v2("user@1000.service", "max", 10, 0, 5, 0)
	for i := range maxBelow + 10 {
		if err := os.Mkdir(filepath.Join(c.dir, "sys/fs/cgroup/user@1000.service", strconv.Itoa(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	deep := "sys/fs/cgroup/user@1001.service" + strings.Repeat("/x", 500)
	c.v2("user@1001.service", "max", 10, 0, 6, 0)
	c.write(deep+"/memory.max", "1\n")
	c.v2("web.service", "100", 50, 0, 7, 0)
	got, result := c.page()
	if got["unreadable"] != 1 || got["groups"] > maxBelow+100 || result.Err != nil {
		t.Errorf("%v groups, %v unreadable, %v", got["groups"], got["unreadable"], result.Err)
	}
	for name, sockets := range map[string]float64{"user@1000.service": 5, "user@1001.service": 6, "web.service": 7} {
		if v := got[fmt.Sprintf(`socket_memory_bytes{cgroup="unit/%s",namespace="",pod=""}`, name)]; v != sockets {
			t.Errorf("%s has %v", name, v)
		}
	}
}

// TestCgroupDamage checks that, if a file is damaged, all values that are still exported are
// right and the error names the file.
func TestCgroupDamage(t *testing.T) {
	for _, file := range []string{"memory.max", "memory.current", "memory.stat", "memory.events"} {
		c := newCgroupTree(t)
		c.write("sys/fs/cgroup/cgroup.controllers", "memory\n")
		c.v2("a.service", "1000", 500, 100, 50, 2)
		c.v2("b.service", "1000", 600, 100, 60, 3)
		whole, _ := c.page()
		name := "sys/fs/cgroup/a.service/" + file
		content := c.read(name)
		damaged := []string{"", "\n", "\x00\xff\n", content + content, "new 1\n" + content, strings.ReplaceAll(content, "\n", " 7\n")}
		for cut := range len(content) {
			damaged = append(damaged, content[:cut])
		}
		for _, number := range []string{"-1", "18446744073709551616", "text", ""} {
			damaged = append(damaged, regexp.MustCompile(`[0-9]+`).ReplaceAllString(content, number))
		}
		for _, content := range damaged {
			c.write(name, content)
			c.open() // so that no previous values are left
			got, result := c.page()
			if result.Err != nil && !strings.Contains(result.Err.Error(), "a.service/"+file) {
				t.Errorf("%s %q: the error is %v", file, content, result.Err)
			}
			if (result.Err != nil) != (got["unreadable"] == 1) {
				t.Errorf("%s %q: %v unreadable, %v", file, content, got["unreadable"], result.Err)
			}
			for series, v := range whole {
				if strings.Contains(series, "b.service") && got[series] != v {
					t.Errorf("%s %q: %s is %v, not %v", file, content, series, got[series], v)
				}
			}
			for series, v := range got {
				_, ok := whole[series]
				if !ok || math.IsNaN(v) || v < 0 || file != "memory.events" && strings.Contains(series, "kills") && v != whole[series] {
					t.Errorf("%s %q: %s is %v", file, content, series, v)
				}
			}
		}
		c.write(name, content)
		c.open()
		got, result := c.page()
		delete(got, "oom_kills_all_total")
		delete(whole, "oom_kills_all_total")
		delete(got, "ooms_all_total")
		delete(whole, "ooms_all_total")
		if !maps.Equal(got, whole) || result.Err != nil {
			t.Errorf("%s again: %v, not %v, %v", file, got, whole, result.Err)
		}
	}
}

// TestCgroupUnread checks that kills are not counted as new if they happened before the first
// successful reading.
func TestCgroupUnread(t *testing.T) {
	c := newCgroupTree(t)
	c.write("sys/fs/cgroup/cgroup.controllers", "memory\n")
	c.v2("a.service", "max", 1, 0, 1, 100)
	c.write("sys/fs/cgroup/a.service/memory.events", "oom_kill ?\n")
	c.page()
	c.v2("a.service", "max", 1, 0, 1, 100)
	for kills, want := range []float64{0, 1} {
		c.v2("a.service", "max", 1, 0, 1, 100+kills)
		if got, _ := c.page(); got["oom_kills_all_total"] != want {
			t.Errorf("%v were killed, not %v", got["oom_kills_all_total"], want)
		}
	}
}

// TestCgroupsSpared checks that files that cannot affect the result are not read until they
// can.
func TestCgroupsSpared(t *testing.T) {
	c := newCgroupTree(t)
	c.write("sys/fs/cgroup/cgroup.controllers", "memory\n")
	c.v2("box.service", "max", 5000, 0, 7, 0)
	spoil := func(group, file string) {
		c.write("sys/fs/cgroup/box.service/"+group+"/"+file, "spoilt ?\noom_kill ?\nsock ?\n")
	}
	for i := range 20 { // the first 10 are closer to their limits than the others can be
		group := fmt.Sprintf("box.service/%d", i)
		used := 50
		if i >= 10 {
			used = 40
		}
		c.v2(group, "100", used+20, 10, 0, 0)
		c.v2(fmt.Sprintf("%d.service", i), "100", used+20-i/10*10, 10, 0, 0)
		spoil(strconv.Itoa(i), "memory.events")
	}
	got, result := c.page()
	if result.Err != nil || got[`memory_saturation_ratio{cgroup="unit/0.service",namespace="",pod=""}`] != 0.5 {
		t.Errorf("%v, %v", got, result.Err)
	}

	// The cgroups of one owner are one item: of box.service only the one closest to its limit
	// counts, and memory.stat is not read for cgroups that use less than the tenth item.
	for i := 10; i < 20; i++ {
		c.v2(fmt.Sprintf("box.service/%d", i), "100", 30, 10, 0, 0)
		spoil(strconv.Itoa(i), "memory.stat")
	}
	if _, result = c.page(); result.Err != nil {
		t.Errorf("memory.stat was read for cgroups far from their limits: %v", result.Err)
	}
	c.write("sys/fs/cgroup/box.service/15/memory.current", "99\n")
	if _, result = c.page(); result.Err == nil || !strings.Contains(result.Err.Error(), "box.service/15/memory.stat") {
		t.Errorf("a cgroup that may be close to its limit: %v", result.Err)
	}
	c.v2("box.service/15", "100", 99, 0, 0, 0)
	if got, _ = c.page(); got[`memory_used_bytes{cgroup="unit/box.service",namespace="",pod=""}`] != 89 {
		t.Errorf("%v", got)
	}

	// Limits are read again after at most freshEvery readings.
	for range freshEvery {
		c.write("sys/fs/cgroup/0.service/memory.max", "1000\n")
		got, _ = c.page()
	}
	if v := got[`memory_saturation_ratio{cgroup="unit/0.service",namespace="",pod=""}`]; v != 0 {
		t.Errorf("the saturation is %v after the limit was raised", v)
	}
}

// TestCgroupKills checks that the kills of a cgroup below the first level are read after
// /proc/vmstat has counted a kill, and once more at the next reading.
func TestCgroupKills(t *testing.T) {
	c := newCgroupTree(t)
	c.write("sys/fs/cgroup/cgroup.controllers", "memory\n")
	kills := func() float64 {
		t.Helper()
		got, result := c.page()
		if result.Err != nil {
			t.Error(result.Err)
		}
		return got[`oom_kills_total{cgroup="unit/a.service",namespace="",pod=""}`]
	}
	c.v2("system.slice", "max", 1, 0, 1, 0)
	c.write("sys/fs/cgroup/system.slice/cgroup.subtree_control", "memory\n")
	c.v2("system.slice/a.service", "max", 1, 0, 1, 0)
	for range 3 {
		kills()
	}
	c.edit("proc/vmstat", "oom_kill 0\n", "oom_kill 1\n")
	if got := kills(); got != 0 {
		t.Errorf("%v were killed", got)
	}
	c.v2("system.slice/a.service", "max", 1, 0, 1, 1) // updated only after vmstat
	if got := kills(); got != 1 {
		t.Errorf("%v were killed, not 1", got)
	}
	c.edit("proc/vmstat", "oom_kill 1\n", "") // an older kernel
	c.v2("system.slice/a.service", "max", 1, 0, 1, 2)
	if got := kills(); got != 2 {
		t.Errorf("%v were killed, not 2", got)
	}
}

// TestCgroupsForeign checks that nothing is exported if there are no cgroups, or if only those
// of a container are visible.
func TestCgroupsForeign(t *testing.T) {
	c := newCgroupTree(t)
	if got, result := c.page(); result.Unsupported == nil || len(got) > 0 {
		t.Errorf("without cgroups: %v, %v", got, result.Err)
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
