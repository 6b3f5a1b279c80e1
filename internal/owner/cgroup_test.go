package owner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	id     = "7dea796eb5d6826a85978fa316612874aa3d576ac576495bed83d77fbc9dc744"
	other  = "2032491dcae31e6746f47daa0ac74564f2843a1bd847c5e6c4eb501ca132ac36"
	uid    = "55c6c714-b240-4dec-9a45-57b61696ab6e"
	static = "8daa50c3a64c9ff60bb9eab7b44b56fd"
)

// layouts returns contents of /proc/PID/cgroup as container runtimes write them. <id>,
// <other>, <uid>, <u_id> and <static> stand for the constants above; <u_id> is the form used
// by systemd, with _ instead of -.
func layouts() []struct{ from, cgroup, want string } {
	return []struct{ from, cgroup, want string }{
		// Kubernetes: pkg/kubelet/cm/cgroup_manager_linux.go and pod_container_manager_linux.go.
		{"cgroupfs driver, guaranteed", "0::/kubepods/pod<uid>/<id>", "pod/<uid>"},
		{"cgroupfs driver, k3s", "11:pids:/kubepods/burstable/pod<uid>/<id>\n1:name=systemd:/kubepods/burstable/pod<uid>/<id>\n0::/system.slice/k3s.service", "pod/<uid>"},
		{"cgroupfs driver, static", "0::/kubepods/besteffort/pod<static>/<id>", "pod/<static>"},
		{"cgroupfs driver, the pod's own cgroup", "0::/kubepods/burstable/pod<uid>", "pod/<uid>"},
		{"systemd driver, containerd (netdata issue 4868)", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<u_id>.slice/cri-containerd-<id>.scope", "pod/<uid>"},
		{"systemd driver, static", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<static>.slice/cri-containerd-<id>.scope", "pod/<static>"},
		{"systemd driver, guaranteed, CRI-O", "0::/kubepods.slice/kubepods-pod<u_id>.slice/crio-<id>.scope", "pod/<uid>"},
		{"CRI-O's monitor", "0::/kubepods.slice/kubepods-pod<u_id>.slice/crio-conmon-<id>.scope", "pod/<uid>"},
		{"systemd driver, dockershim (pharos-cluster issue 440)", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<u_id>.slice/docker-<id>.scope", "pod/<uid>"},
		{"CRI-O, cgroup v1", "4:memory:/kubepods/burstable/pod<uid>/crio-<id>", "pod/<uid>"},
		{"systemd below: a pod that runs systemd", "0::/kubepods.slice/kubepods-pod<u_id>.slice/crio-<id>.scope/system.slice/httpd.service", "pod/<uid>"},
		{"kubelet with systemd, containerd without (containerd issue 5226)", "9:memory:/system.slice/containerd.service/kubepods-burstable-pod<u_id>.slice:cri-containerd:<id>", "pod/<uid>"},
		{"kind (nri pull 227)", "0::/system.slice/docker-<id>.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod<u_id>.slice/cri-containerd-<other>.scope", "pod/<uid>"},
		{"kind, cgroup v1", "3:cpu:/docker/<id>/kubelet/kubepods/besteffort/pod<uid>/<other>", "pod/<uid>"},
		{"minikube (minikube issue 11280)", "1:name=systemd:/docker/<id>/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod<u_id>.slice/crio-<other>.scope", "pod/<uid>"},
		{"a cluster in a pod", "0::/kubepods/pod<uid>/<id>/kubepods/burstable/pod<static>/<other>", "pod/<static>"},
		{"docker in a pod", "0::/kubepods/burstable/pod<uid>/<id>/docker/<other>", "pod/<uid>"},
		{"from another pod (inspektor-gadget pull 3085)", "0::/../../../kubepods-burstable.slice/kubepods-burstable-pod<u_id>.slice/cri-containerd-<id>.scope", "pod/<uid>"},
		{"from another pod of the same class, cgroupfs driver", "0::/../../pod<uid>/<id>", "pod/<uid>"},
		{"from another pod, cgroupfs driver", "0::/../../../besteffort/pod<uid>/<id>", "pod/<uid>"},
		{"no uid", "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice/cri-containerd-<id>.scope", ""},
		{"a uid elsewhere", "0::/home/pod<uid>/<id>", ""},
		{"not Kubernetes", "0::/my-pod<u_id>.slice/x.service", "unit/x.service"},

		// Docker: daemon/oci_linux.go, WithCgroups.
		{"docker, systemd driver", "0::/system.slice/docker-<id>.scope", "docker/7dea796eb5d6"},
		{"docker, rootless (docker/docs issue 14545)", "0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-<id>.scope", "docker/7dea796eb5d6"},
		{"docker, cgroupfs driver, hybrid", "12:pids:/docker/<id>\n1:name=systemd:/docker/<id>\n0::/system.slice/containerd.service", "docker/7dea796eb5d6"},
		{"docker in docker", "0::/docker/<id>/docker/<other>", "docker/2032491dcae3"},
		{"from another container", "0::/../docker-<id>.scope", "docker/7dea796eb5d6"},
		{"a kind node's kubelet", "0::/system.slice/docker-<id>.scope/kubelet.slice/kubelet.service", "docker/7dea796eb5d6"},
		{"buildkit (cryptnono issue 47)", "0::/docker/buildkit/t4967jvf8rbufklrhkicskyes", ""},
		{"a short id", "0::/docker/7dea796eb5d6", ""},

		// Podman: libpod/container_internal_linux.go, getOCICgroupPath.
		{"podman", "0::/machine.slice/libpod-<id>.scope/container", "podman/7dea796eb5d6"},
		{"podman, rootless, in a pod", "0::/user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_<other>.slice/libpod-<id>.scope", "podman/7dea796eb5d6"},
		{"podman, cgroupfs", "5:devices:/libpod_parent/libpod-<id>", "podman/7dea796eb5d6"},
		{"quadlet (podman issue 16589)", "0::/system.slice/quadlet-minimal.service/libpod-payload-<id>", "podman/7dea796eb5d6"},
		{"podman's monitor", "0::/machine.slice/libpod-conmon-<id>.scope", ""},
		{"podman's pause process (podman issue 20910)", "0::/user.slice/user-10000.slice/user@10000.service/user.slice/podman-239302.scope", "unit/user@10000.service"},

		// LXC: src/lxc/cgroups/cgfsng.c.
		{"LXC 4", "0::/lxc.payload.web/init.scope", "lxc/web"},
		{"Incus, a project", "0::/lxc.payload.shop_web/system.slice/nginx.service", "lxc/shop_web"},
		{"LXC 3.1 (lxcfs pull 269)", "6:pids:/lxc.payload/el7build01\n1:name=systemd:/lxc.payload/el7build01/init.scope", "lxc/el7build01"},
		{"Proxmox", "0::/lxc/101/ns/system.slice/ssh.service", "lxc/101"},
		{"docker in Incus", "0::/lxc.payload.web/system.slice/docker-<id>.scope", "docker/7dea796eb5d6"},
		{"LXC's monitor (incus pull 3684)", "0::/lxc.monitor.web", ""},
		{"no name", "0::/lxc.payload./x", ""},
		{"a name that is no text", "0::/lxc.payload.\xff\n1:name=systemd:/lxc/a b", ""},

		// systemd: docs/CGROUP_DELEGATION.md, src/machine/machine.c, src/nspawn/nspawn-register.c.
		{"nspawn (systemd issue 18104)", "0::/machine.slice/machine-box.scope/payload/system.slice/x.service", "nspawn/box"},
		{"nspawn, escaped", `0::/machine.slice/machine-my\x2dbox.scope/payload`, "nspawn/my-box"},
		{"nspawn, escaped badly", `0::/machine-a\x2.scope`, `nspawn/a\x2`},
		{"nspawn, escaped slash", `0::/machine.slice/machine-a\x2fb.scope`, ""},
		{"nspawn, machinectl start", "0::/machine.slice/systemd-nspawn@my-box.service/payload/init.scope", "nspawn/my-box"},
		{"nspawn --register=no", "0::/machine.slice/box.scope/payload/init.scope", "nspawn/box"},
		{"a virtual machine of libvirt", `0::/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator`, ""},
		{"a unit", "0::/system.slice/system-getty.slice/getty@tty1.service", "unit/getty@tty1.service"},
		{"a unit that makes cgroups", "0::/system.slice/x.service/payload", "unit/x.service"},
		{"a user's unit", "0::/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service", "unit/foo.service"},
		{"a user's unit, hybrid", "12:pids:/user.slice/user-1000.slice/user@1000.service\n1:name=systemd:/user.slice/user-1000.slice/user@1000.service/foo.service\n0::/", "unit/foo.service"},
		{"a FUSE mount", `0::/system.slice/mnt-a\x2db.mount`, `unit/mnt-a\x2db.mount`},
		{"a zombie's (proc_cgroup_show)", "0::/system.slice/x.service (deleted)", "unit/x.service"},
		{"a session", "0::/user.slice/user-0.slice/session-3.scope", ""},
		{"a suffix alone", "0::/.service", ""},

		// Lines with different owners.
		{"v2 before systemd's before others", "3:a:/a.service\n1:name=systemd:/b.service\n0::/c.service", "unit/c.service"},
		{"systemd's before others", "3:a:/a.service\n1:name=systemd:/b.service\n0::/", "unit/b.service"},
		{"the first of others", "3:a:/a.service\n2:b:/b.service", "unit/a.service"},
		{"a container before a unit", "3:a:/docker/<id>\n0::/c.service", "docker/7dea796eb5d6"},
		{"a pod before a container", "3:a:/kubepods/pod<uid>\n0::/docker/<id>", "pod/<uid>"},

		{"empty", "", ""},
		{"no path", "0:\n0\n::\n\n", ""},
		{"a path with colons", "0::/a:b/x:y.service", "unit/x:y.service"},
	}
}

func expand(s string) string {
	return strings.NewReplacer("<id>", id, "<other>", other, "<uid>", uid, "<static>", static,
		"<u_id>", strings.ReplaceAll(uid, "-", "_")).Replace(s)
}

func TestClaimed(t *testing.T) {
	for _, l := range layouts() {
		var got string
		if c := Claimed([]byte(expand(l.cgroup) + "\n")); c != (Claim{}) {
			got = string(c.Kind) + "/" + c.ID
		}
		if want := expand(l.want); got != want {
			t.Errorf("%s: %q, want %q", l.from, got, want)
		}
	}
}

func FuzzOwner(f *testing.F) {
	dir := f.TempDir()
	for _, uid := range []string{uid, static} {
		if err := os.Mkdir(filepath.Join(dir, "default_web_"+uid), 0o700); err != nil {
			f.Fatal(err)
		}
	}
	pods := NewPods(dir)
	for _, l := range layouts() {
		f.Add([]byte(expand(l.cgroup) + "\n"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := pods.Owner(b)
		if err != nil {
			t.Fatal(err)
		}
		kind, rest, _ := strings.Cut(o.Name, "/")
		switch Kind(kind) {
		case Pod:
			if o != (Owner{"pod/default/web", "default", "web"}) {
				t.Errorf("%+v", o)
			}
			return
		case Docker, Podman:
			if !isHex(rest, 12) {
				t.Errorf("%+v", o)
			}
		case LXC, Nspawn, Unit:
			if !legible(rest) {
				t.Errorf("%+v", o)
			}
		default:
			if o.Name != "" {
				t.Errorf("%+v", o)
			}
		}
		if o.Namespace != "" || o.Pod != "" {
			t.Errorf("%+v", o)
		}
	})
}
