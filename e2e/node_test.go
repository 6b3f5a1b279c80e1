package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

// podImage is the image of every container of a node. load builds it.
const podImage = "localhost/podload:test"

// node is a containerd that tests use with crictl, as a kubelet uses it. It runs in its own
// network, mount and PID namespaces, so that nothing of the machine changes except for the
// cgroups of the pods, and everything ends with one process.
type node struct {
	t       *testing.T
	dir     string
	logs    string // of the pods, which every user may list
	cgroups string // the cgroup of all pods
	network *nettest.Namespace
}

// startNode starts a node that runs until the test ends.
func startNode(t *testing.T) *node {
	t.Helper()
	needs.Check(t, needs.Root, needs.MountedRoot, "containerd", "crictl", "ctr", "ip", "mount", "runc", "/usr/lib/cni/ptp")
	// The path of a unix socket is limited to 107 bytes, and every user may read this directory.
	dir, err := os.MkdirTemp(filepath.Dir(binary), "node-")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, logs: filepath.Join(dir, "pods"), cgroups: "/sockpressure-" + strings.ToLower(rand.Text()[:8])}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(n.removeCgroups)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(n.logs, 0o755), os.Mkdir(filepath.Join(dir, "cni"), 0o755)); err != nil {
		t.Fatal(err)
	}
	n.write("config.toml", fmt.Sprintf(`
		version = 2
		root = "%[1]s/root"
		state = "%[1]s/state"
		[debug]
		level = "warn"
		[grpc]
		address = "%[1]s/socket"
		[plugins."io.containerd.grpc.v1.cri"]
		sandbox_image = %[2]q
		restrict_oom_score_adj = true # this process may not be allowed to lower it
		disable_apparmor = true # profiles are the machine's
		[plugins."io.containerd.grpc.v1.cri".containerd]
		snapshotter = "native"
		[plugins."io.containerd.grpc.v1.cri".cni]
		bin_dir = "/usr/lib/cni"
		conf_dir = "%[1]s/cni"
	`, dir, podImage))
	n.write("cni/10-ptp.conflist", `{
		"cniVersion": "0.4.0", "name": "pods",
		"plugins": [{"type": "ptp", "ipam": {"type": "host-local", "ranges": [[{"subnet": "198.51.100.0/24"}]]}}]
	}`)
	n.run(filepath.Join(dir, "config.toml"))
	n.load()
	return n
}

func (n *node) write(name, content string) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.dir, name), []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// run starts containerd. The shell is process 1 of the PID namespace and reaps the processes
// whose parents have ended. Fixed paths of containerd are on file systems that end with the mount
// namespace.
func (n *node) run(config string) {
	n.t.Helper()
	log, err := os.Create(filepath.Join(n.dir, "log"))
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "sh", "-ec", `
		mount --make-rprivate /
		mount -t proc none /proc
		mount -t tmpfs none /run
		mount -t tmpfs none /var/lib
		containerd --config "$1" &
		wait`, "sh", config)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		cancel()
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // waits for every process of the namespace
		if n.t.Failed() {
			said, _ := os.ReadFile(log.Name())
			pods, _ := filepath.Glob(filepath.Join(n.logs, "*/log"))
			lines := slices.DeleteFunc(strings.Split(string(said), "\n"), func(l string) bool { return strings.Contains(l, "level=info") })
			for _, path := range pods {
				if b, _ := os.ReadFile(path); len(b) > 0 {
					n.t.Logf("%s:\n%s", path, b)
				}
			}
			n.t.Logf("the end of containerd's log:\n%s", strings.Join(lines[max(0, len(lines)-20):], "\n"))
		}
	})
	n.network = nettest.At(n.t, fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	eventually(n.t, "containerd answers", func() error {
		_, err := n.cri("version")
		return err
	})
}

// eventually waits for something to work.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not after %v: %s: %v", patience, what, err)
		}
	}
}

// load builds the image and imports it into containerd.
func (n *node) load() {
	n.t.Helper()
	program := filepath.Join(n.dir, "podload")
	build := exec.Command("go", "build", "-buildvcs=false", "-ldflags=-s -w", "-o", program, "./podload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		n.t.Fatalf("go build: %v\n%s", err, out)
	}
	b, err := os.ReadFile(program)
	if err != nil {
		n.t.Fatal(err)
	}
	archive := filepath.Join(n.dir, "image.tar")
	if err := os.WriteFile(archive, dockerArchive(n.t, podImage, "podload", b), 0o600); err != nil {
		n.t.Fatal(err)
	}
	command(n.t, "", "ctr", "--address="+n.dir+"/socket", "--namespace=k8s.io", "images", "import", "--snapshotter=native", archive)
	eventually(n.t, "it has the image", func() error { // containerd learns of the image by an event
		_, err := n.cri("inspecti", "-q", podImage)
		return err
	})
}

// dockerArchive returns an image with one program, in the format of docker save.
func dockerArchive(t *testing.T, tag, name string, program []byte) []byte {
	t.Helper()
	pack := func(names []string, files ...[]byte) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i, name := range names {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[i]))}); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(files[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	layer := pack([]string{name}, program)
	config := encode(t, object{
		"architecture": "amd64", "os": "linux",
		"config": object{"Entrypoint": []string{"/" + name}},
		"rootfs": object{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	manifest := encode(t, []object{{"Config": "config.json", "RepoTags": []string{tag}, "Layers": []string{"layer.tar"}}})
	return pack([]string{"manifest.json", "config.json", "layer.tar"}, manifest, config, layer)
}

// object is a JSON object.
type object = map[string]any

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// cri runs crictl and returns what it printed.
func (n *node) cri(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "crictl", append([]string{"--timeout=60s"}, args...)...)
	endpoint := "unix://" + n.dir + "/socket"
	cmd.Env = append(os.Environ(), "CONTAINER_RUNTIME_ENDPOINT="+endpoint, "IMAGE_SERVICE_ENDPOINT="+endpoint)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("crictl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// realPod is a pod of a node.
type realPod struct {
	namespace, name, uid string
	sandbox              string // its ID
}

// create creates a pod whose container runs podload with an argument.
func (n *node) create(namespace, name, load string, sysctls map[string]string) (realPod, error) {
	var b [16]byte
	_, _ = rand.Read(b[:])
	uid := fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	p := realPod{namespace: namespace, name: name, uid: uid}
	logs := filepath.Join(n.logs, namespace+"_"+name+"_"+uid)
	if err := os.Mkdir(logs, 0o755); err != nil {
		return p, err
	}
	config := map[string]object{
		"sandbox": {
			"metadata":      object{"name": name, "namespace": namespace, "uid": uid},
			"hostname":      name,
			"log_directory": logs,
			"linux":         object{"cgroup_parent": n.cgroups + "/kubepods/besteffort/pod" + uid, "sysctls": sysctls},
		},
		"container": {
			"metadata": object{"name": load},
			"image":    object{"image": podImage},
			"args":     []string{load},
			"log_path": "log",
			"linux":    object{},
		},
	}
	path := func(part string) string { return filepath.Join(n.dir, part+"-"+uid+".json") }
	for part, c := range config {
		if err := os.WriteFile(path(part), encode(n.t, c), 0o600); err != nil {
			return p, err
		}
	}
	var err error
	if p.sandbox, err = n.cri("runp", path("sandbox")); err != nil {
		return p, err
	}
	container, err := n.cri("create", p.sandbox, path("container"), path("sandbox"))
	if err != nil {
		return p, err
	}
	if _, err := n.cri("start", container); err != nil {
		return p, err
	}
	return p, nil
}

// delete removes a pod as a kubelet does. The directory of its logs stays for a while.
func (n *node) delete(p realPod) error {
	if _, err := n.cri("stopp", p.sandbox); err != nil {
		return err
	}
	_, err := n.cri("rmp", p.sandbox)
	return err
}

// links returns the names of the node's network devices.
func (n *node) links() map[string]bool {
	n.t.Helper()
	there := map[string]bool{}
	n.network.Inside(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			there[l.Name] = true
		}
		return err
	})
	return there
}

// removeCgroups removes the cgroups of the pods, in every hierarchy, once their processes have
// ended.
func (n *node) removeCgroups() {
	for _, root := range n.cgroupPaths() {
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			eventually(n.t, "the cgroup is empty", func() error { return os.Remove(dir) })
		}
	}
}

// cgroupPaths returns the paths of the cgroup of all pods, in every hierarchy.
func (n *node) cgroupPaths() []string {
	paths, _ := filepath.Glob("/sys/fs/cgroup/*" + n.cgroups)
	return append(paths, "/sys/fs/cgroup"+n.cgroups)
}

// pid returns the PID of a process of a pod in the machine's PID namespace.
func (n *node) pid(p realPod) int {
	n.t.Helper()
	for _, root := range n.cgroupPaths() {
		procs, _ := filepath.Glob(filepath.Join(root, "kubepods/besteffort/pod"+p.uid, "*/cgroup.procs"))
		for _, path := range procs {
			b, err := os.ReadFile(path)
			if err != nil || len(b) == 0 {
				continue
			}
			first, _, _ := strings.Cut(string(b), "\n")
			pid, err := strconv.Atoi(first)
			if err != nil {
				n.t.Fatalf("%s: %v", path, err)
			}
			return pid
		}
	}
	n.t.Fatalf("%s has no process", p.name)
	return 0
}
