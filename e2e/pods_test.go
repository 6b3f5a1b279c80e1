package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

// hierarchy returns the cgroup hierarchy in which systemd puts services: cgroup v2, alone or
// beside v1, or systemd's of v1.
func hierarchy(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && (st.Type == unix.CGROUP2_SUPER_MAGIC || st.Type == unix.CGROUP_SUPER_MAGIC) {
			return dir
		}
	}
	t.Fatal("no cgroup hierarchy is mounted below /sys/fs/cgroup")
	return ""
}

// putInto moves the process of a namespace into a new cgroup, and ends the process and removes
// the cgroup when the test ends.
func putInto(t *testing.T, n *nettest.Namespace, path string) {
	t.Helper()
	root := hierarchy(t)
	dir := root
	for part := range strings.SplitSeq(path, "/") {
		dir = filepath.Join(dir, part)
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		made := dir
		t.Cleanup(func() {
			for end := time.Now().Add(patience); os.Remove(made) != nil && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(n.PID)), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.End)
}

// TestPods checks that series of network namespaces are named after the pods, containers and
// units of their processes' cgroups: drops for any user, saturation for a user who may enter
// them.
func TestPods(t *testing.T) {
	needs.Check(t, needs.Root)
	hierarchy(t)
	logs := filepath.Join(filepath.Dir(binary), "pods") // which every user may read
	if err := os.Mkdir(logs, 0o755); err != nil {
		t.Fatal(err)
	}
	const (
		cart  = "0f7a2c1e-5b1d-4b0a-9e53-6d1f3b9d1a01"
		queue = "9d1c6c52-3a55-4d0e-8f61-0b7b1d8e4c02"
		lost  = "1b2f0c9a-7c11-4a56-a8de-3c2a1f0e9b03"
	)
	for _, dir := range []string{"shop_cart-0_" + cart, "shop_queue-x7_" + queue} {
		if err := os.Mkdir(filepath.Join(logs, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	id := strings.Repeat("0123456789abcdef", 4)
	names := map[string]string{ // by cgroup
		"kubepods/besteffort/pod" + cart + "/" + id: `namespace="shop",netns="pod/shop/cart-0",pod="cart-0"`,
		"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(queue, "-", "_") +
			".slice/cri-containerd-" + id + ".scope": `namespace="shop",netns="pod/shop/queue-x7",pod="queue-x7"`,
		"system.slice/docker-" + id + ".scope":     `namespace="",netns="docker/0123456789ab",pod=""`,
		"machine.slice/libpod-" + id + ".scope":    `namespace="",netns="podman/0123456789ab",pod=""`,
		"system.slice/sockpressure-pods.service":   `namespace="",netns="unit/sockpressure-pods.service",pod=""`,
		"kubepods/burstable/pod" + lost + "/" + id: "",
	}
	wants, nameless := map[string]string{}, ""
	for cgroup, labels := range names {
		n := nettest.New(t)
		putInto(t, n, cgroup)
		n.Listen(1, 4)
		if wants[cgroup] = labels; labels == "" { // a pod without a log directory
			nameless = fmt.Sprintf("/proc/%d/", n.PID)
		}
	}
	for name, wrap := range map[string]func(*exec.Cmd){"root": nil, "nobody": asNobody} {
		t.Run(name, func(t *testing.T) {
			number := "net/sockstat"
			if wrap == nil {
				number = "ns/net" // as lsns shows it
			}
			p := start(t, wrap, "--path.pod-logs="+logs, "--collector.top=100").scrape("")
			for cgroup, labels := range wants {
				if labels == "" {
					labels = fmt.Sprintf(`namespace="",netns="inode/%d",pod=""`, inode(t, nameless+number))
				}
				if got := p.value(t, "sockpressure_netns_tcp_listen_overflows_total{"+labels+"}"); got < 1 {
					t.Errorf("%s: %v overflows", cgroup, got)
				}
				full, ok := p["sockpressure_netns_saturation_ratio{"+labels+`,resource="accept_queue"}`]
				if entered := wrap == nil; ok != entered || entered && full < 1 {
					t.Errorf("%s: its accept queue is at %v (%v)", cgroup, full, ok)
				}
			}
			if p.value(t, "sockpressure_netns_unreadable") != 0 || p.value(t, success("netns")) != 1 {
				t.Error("a namespace could not be read")
			}
		})
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}
