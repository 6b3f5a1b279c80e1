package e2e

import (
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

// rootfs is set by .ci/image.
var rootfs = flag.String("rootfs", "", "root filesystem of the image to test; without it, one with a static binary is made")

const (
	// imageUser is the user and the group of the image and of the DaemonSet.
	imageUser = 65532
	// imageBinary is the entry point of the image.
	imageBinary = "/bin/sockpressure_exporter"
	// seccompProfile is the default profile of CRI-O and Podman, in Debian's package
	// golang-github-containers-common.
	seccompProfile = "/usr/share/containers/seccomp.json"
)

// TestImage checks the image under the security contexts of the DaemonSet and of the one for all
// metrics, as on a node: runc, which containerd and CRI-O use too, gets the configuration that
// they would make for the pod.
func TestImage(t *testing.T) {
	needs.Check(t, needs.Root, needs.MountedRoot, "runc", seccompProfile)
	image := *rootfs
	if image == "" {
		image = t.TempDir()
		path := filepath.Join(image, imageBinary)
		if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("cp", binary, path).CombinedOutput(); err != nil {
			t.Fatalf("cp: %v\n%s", err, out)
		}
	}
	load := putLoad(t)
	onHost := func(cmd *exec.Cmd) { cmd.Path = filepath.Join(image, imageBinary) }
	host := start(t, onHost).scrape("")

	t.Run("host network", func(t *testing.T) {
		pod := newPod(t, image, imageUser)
		e := start(t, pod.wrap)
		pod.expectConfined(0)
		p := e.scrape("")
		expectHost(t, p, host)
		expectUnprivileged(t, p, host)
		load.find(t, p)
		expectQuiet(t, e)
		for _, probe := range []string{"/-/healthy", "/-/ready"} {
			if status, body := e.get(probe); status != http.StatusOK {
				t.Errorf("%s: %d: %s", probe, status, body)
			}
		}
	})
	t.Run("own network", func(t *testing.T) {
		pod := newPod(t, image, imageUser)
		inside := startInside(t, pod.in)
		pod.expectConfined(0)
		inside.findHostOrNothing(t, host, load)
		expectHostProcesses(t, inside.scrape(t))
	})
	t.Run("all metrics", func(t *testing.T) {
		pod := newPod(t, image, 0, "CAP_DAC_READ_SEARCH", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
		e := start(t, pod.wrap)
		pod.expectConfined(1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_SYSLOG | 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SYS_PTRACE)
		p := e.scrape("")
		expectHost(t, p, host)
		compareSeries(t, p.stable(), host.stable())
		expectSuccess(t, p)
		if n := p.value(t, "sockpressure_processes_unreadable"); n != 0 {
			t.Errorf("%v processes cannot be read", n)
		}
		if p.value(t, `sockpressure_scrape_collector_supported{collector="kmsg"}`) != 1 {
			t.Error("no kernel messages")
		}
		if len(p.with("sockpressure_memory_slab_bytes{")) == 0 {
			t.Error("no memory_slab_bytes")
		}
		load.find(t, p)
		// It may enter other network namespaces, under the runtime's seccomp profile.
		nettest.New(t).Listen(3, 2)
		if limits := e.scrape("").with("sockpressure_netns_accept_queue_limit{"); len(limits) == 0 {
			t.Error("no limit of an accept queue in another network namespace")
		}
		expectQuiet(t, e)
	})
}

// expectHost checks that a page has the host's numbers, as an earlier page has.
func expectHost(t *testing.T, now, earlier page) {
	t.Helper()
	if now.value(t, "sockpressure_host_network_namespace") != 1 {
		t.Error("it is not in the host's network namespace")
	}
	compareNumbers(t, now, earlier)
	expectHostProcesses(t, now)
}

// expectHostProcesses checks that a page has the test's own process, which has many descriptors
// and is outside the pod.
func expectHostProcesses(t *testing.T, p page) {
	t.Helper()
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	p.value(t, fmt.Sprintf("sockpressure_process_open_file_descriptors{process=%q}", strings.TrimSpace(string(comm))))
}

// pod is a container as on a node: with a read-only root filesystem, its own namespaces (hostPID
// is false), the host's /proc as /host/proc, and its cgroups as /host/cgroup.
type pod struct {
	t            *testing.T
	id           string
	bundle       string // directory with rootfs and config.json
	user         int
	capabilities []string
	network      *os.File // namespace, or nil for the host's
}

// newPod returns a pod of an image, which start runs with wrap.
func newPod(t *testing.T, image string, user int, capabilities ...string) *pod {
	t.Helper()
	p := &pod{t: t, id: "sockpressure-" + rand.Text(), bundle: t.TempDir(), user: user, capabilities: capabilities}
	// A copy, because runc creates mount points in it.
	if out, err := exec.Command("cp", "-a", image, filepath.Join(p.bundle, "rootfs")).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	return p
}

// in returns wrap for a pod in a network namespace.
func (p *pod) in(network *os.File) func(*exec.Cmd) {
	p.network = network
	return p.wrap
}

// wrap replaces a command by one that runs the image's binary in the pod.
func (p *pod) wrap(cmd *exec.Cmd) {
	p.t.Helper()
	cmd.Args[0] = imageBinary
	cmd.Args = append(cmd.Args, "--path.procfs=/host/proc", "--path.cgroup=/host/cgroup")
	config, err := json.Marshal(p.config(cmd.Args))
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.bundle, "config.json"), config, 0o600); err != nil {
		p.t.Fatal(err)
	}
	run := p.runc("run", "--bundle", p.bundle)
	cmd.Path, cmd.Args = run.Path, run.Args
	// Killing runc would not end the container.
	cmd.Cancel = p.runc("delete", "--force").Run
}

// runc returns a command of runc for the pod's container.
func (p *pod) runc(args ...string) *exec.Cmd {
	args = append([]string{"--root", filepath.Join(p.bundle, "state")}, args...)
	return exec.Command("runc", append(args, p.id)...)
}

// config returns the OCI configuration that a container runtime passes to runc for the pod.
func (p *pod) config(args []string) map[string]any {
	type object = map[string]any
	namespaces := []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}}
	if p.network != nil {
		path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.network.Fd())
		namespaces = append(namespaces, object{"type": "network", "path": path}, object{"type": "uts"})
	}
	return object{
		"ociVersion": "1.0.2",
		"root":       object{"path": "rootfs", "readonly": true},
		"process": object{
			"args": args,
			"cwd":  "/",
			"env":  []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			"user": object{"uid": p.user, "gid": p.user},
			"capabilities": object{
				"bounding": p.capabilities, "permitted": p.capabilities, "effective": p.capabilities,
			},
			"noNewPrivileges": true,
		},
		"mounts": []object{
			{"destination": "/proc", "type": "proc", "source": "proc", "options": []string{"nosuid", "noexec", "nodev"}},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755", "size=64k"}},
			{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": []string{"nosuid", "noexec", "nodev", "ro"}},
			{"destination": "/host/proc", "type": "bind", "source": "/proc", "options": []string{"rbind", "rprivate", "ro"}},
			{"destination": "/host/cgroup", "type": "bind", "source": "/sys/fs/cgroup", "options": []string{"rbind", "rprivate", "ro"}},
		},
		"linux": object{
			"namespaces":    namespaces,
			"maskedPaths":   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/scsi", "/sys/firmware"},
			"readonlyPaths": []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			"seccomp":       p.seccomp(),
		},
	}
}

// seccompFilter is a filter of system calls in runc's format, with the rules of a profile.
type seccompFilter struct {
	DefaultAction   string        `json:"defaultAction"`
	DefaultErrnoRet uint          `json:"defaultErrnoRet"`
	Syscalls        []seccompRule `json:"syscalls"`
}

type seccompRule struct {
	Names    []string          `json:"names"`
	Action   string            `json:"action"`
	ErrnoRet *uint             `json:"errnoRet,omitempty"`
	Args     []json.RawMessage `json:"args"`
	Includes seccompCondition  `json:"includes,omitzero"`
	Excludes seccompCondition  `json:"excludes,omitzero"`
}

type seccompCondition struct {
	Caps, Arches []string
}

// seccomp returns the rules of the runtime's default profile that apply to the pod's capabilities
// and this machine.
func (p *pod) seccomp() seccompFilter {
	var f seccompFilter
	profile, err := os.ReadFile(seccompProfile)
	if err == nil {
		err = json.Unmarshal(profile, &f)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	has := func(capability string) bool { return slices.Contains(p.capabilities, capability) }
	lacks := func(capability string) bool { return !has(capability) }
	f.Syscalls = slices.DeleteFunc(f.Syscalls, func(r seccompRule) bool {
		return slices.ContainsFunc(r.Includes.Caps, lacks) || slices.ContainsFunc(r.Excludes.Caps, has) ||
			len(r.Includes.Arches) > 0 && !slices.Contains(r.Includes.Arches, runtime.GOARCH)
	})
	for i := range f.Syscalls {
		f.Syscalls[i].Includes, f.Syscalls[i].Excludes = seccompCondition{}, seccompCondition{}
	}
	return f
}

// expectConfined checks that the running pod is confined as it should be, and has only the given
// capabilities.
func (p *pod) expectConfined(capabilities uint64) {
	p.t.Helper()
	// runc may write the file with the PID only after the container's first output.
	var state struct{ Pid int }
	out, err := p.runc("state").Output()
	if err == nil {
		err = json.Unmarshal(out, &state)
	}
	if err != nil {
		p.t.Fatalf("runc state: %v: %s", err, out)
	}
	pid := strconv.Itoa(state.Pid)
	proc := filepath.Join("/proc", pid)
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		p.t.Fatal(err)
	}
	ids := strings.TrimSpace(strings.Repeat(fmt.Sprintf("\t%d", p.user), 4))
	mask := fmt.Sprintf("%016x", capabilities)
	for _, want := range []string{
		"Name:\tsockpressure_ex", "NSpid:\t" + pid + "\t1", "Uid:\t" + ids, "Gid:\t" + ids,
		"CapPrm:\t" + mask, "CapEff:\t" + mask, "CapBnd:\t" + mask, "CapAmb:\t0000000000000000",
		"NoNewPrivs:\t1", "Seccomp:\t2",
	} {
		if !strings.Contains(string(status), want+"\n") {
			p.t.Errorf("its status does not say %q:\n%s", want, status)
		}
	}
	for _, path := range []string{"root", "root/host/proc"} {
		var fs unix.Statfs_t
		if err := unix.Statfs(filepath.Join(proc, path), &fs); err != nil || fs.Flags&unix.ST_RDONLY == 0 {
			p.t.Errorf("%s can be written: flags %#x, %v", path, fs.Flags, err)
		}
	}
}
