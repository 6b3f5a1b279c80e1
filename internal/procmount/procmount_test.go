package procmount

import (
	"errors"
	"io/fs"
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

func TestIsKernelThread(t *testing.T) {
	for stat, want := range map[string]bool{
		"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0":          true,
		"2 (a) S 0 0 0 0 -1 2129984) S 1 1 1 0 -1 4 0 0": false, // a name that looks like the fields after it
		"2 (sh) S 1 2 2 0 -1 4194560 0 0":                false,
		"2 (sh) S 1 2 2 0 -1":                            false,
		"2 (sh":                                          false,
		"":                                               false,
	} {
		if got := isKernelThread([]byte(stat)); got != want {
			t.Errorf("%q: %t", stat, got)
		}
	}
}

func TestOptions(t *testing.T) {
	const mountinfo = `21 26 0:20 / /proc rw,relatime - proc proc rw
22 26 0:33 / /mnt/a rw shared:7 master:3 - proc proc rw,hidepid=invisible,gid=4,subset=pid
broken
23 26 0:34 / /mnt/b rw - proc proc rw,hidepid=2
`
	for minor, want := range map[uint32]Mount{
		20: {},
		33: {hidepid: "invisible", subsetPID: true},
		34: {hidepid: "2"},
		35: {},
	} {
		m := Mount{dev: unix.Mkdev(0, minor)}
		m.setOptions([]byte(mountinfo))
		if want.dev = m.dev; m != want {
			t.Errorf("%d: %+v, want %+v", minor, m, want)
		}
	}
}

// TestCopy checks that a directory that is not a procfs is used as a copy of one if it has
// net.
func TestCopy(t *testing.T) {
	dir := t.TempDir()
	if _, err := Find(filepath.Join(dir, "absent")); err == nil {
		t.Error("a path that does not exist is a procfs")
	}
	if _, err := Find(dir); err == nil || !strings.Contains(err.Error(), "is not a procfs") {
		t.Errorf("an empty directory: %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "net"), 0o700); err != nil {
		t.Fatal(err)
	}
	m, err := Find(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !m.Copied() || m.Processes() != nil || m.Memory() != nil || m.Absent(fs.ErrNotExist) != fs.ErrNotExist { //nolint:errorlint // the very same
		t.Errorf("%+v", m)
	}
}

// TestMounts checks mounts of procfs as containers have them. Each case is a mount namespace
// in which a child of this test runs tell on a path from the environment.
func TestMounts(t *testing.T) {
	if script := os.Getenv("PROCMOUNT_PATH"); script != "" {
		tell(script)
		return
	}
	needs.Check(t, needs.Root, needs.MountedRoot, "setpriv")
	if own, _ := os.Readlink("/proc/self/ns/pid"); own != initPID {
		needs.Skip(t, "the machine's own PID namespace")
	}
	for name, c := range map[string]struct {
		prepare   string
		newPID    bool
		user      uint32
		path      string
		processes string // part of the reason, empty for none
		memory    string
	}{
		"as it is":                           {path: "/proc"},
		"own PID namespace, own procfs":      {prepare: "mount -t proc proc /proc", newPID: true, path: "/proc", processes: "PID namespace"},
		"own PID namespace, host's procfs":   {newPID: true, path: "/proc"},
		"host's procfs beside its own":       {prepare: "mkdir /tmp/p; mount --bind /proc /tmp/p; mount -t proc proc /proc", newPID: true, path: "/tmp/p"},
		"hidepid=1, root":                    {prepare: "mount -t proc -o hidepid=1 proc /proc", path: "/proc"},
		"hidepid=1, a user":                  {prepare: "mount -t proc -o hidepid=1 proc /proc", path: "/proc", user: 65534, processes: "hidepid"},
		"hidepid=2, a user":                  {prepare: "mount -t proc -o hidepid=2 proc /proc", path: "/proc", user: 65534, processes: "hidepid"},
		"hidepid=ptraceable, a user":         {prepare: "mount -t proc -o hidepid=4 proc /proc", path: "/proc", user: 65534, processes: "hidepid"},
		"subset=pid":                         {prepare: "mount -t proc -o subset=pid proc /proc", path: "/proc", memory: "subset=pid"},
		"meminfo of another file system":     {prepare: "cp /proc/meminfo /tmp/m; mount --bind /tmp/m /proc/meminfo", path: "/proc", memory: "lxcfs"},
		"an ordinary user, procfs as it is":  {path: "/proc", user: 65534},
		"PID namespace without its own proc": {prepare: "mount -t tmpfs none /mnt; mkdir /mnt/p; mount -t proc proc /mnt/p", newPID: true, path: "/mnt/p", processes: "PID namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			// Other users have no access to the directories of the test.
			exe := filepath.Join("/run", "procmount-test-"+strconv.Itoa(os.Getpid()))
			self, err := os.ReadFile("/proc/self/exe")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(exe, self, 0o755); err != nil {
				t.Fatal(err)
			}
			defer os.Remove(exe)
			script := "set -e; mount --make-rprivate /; mount -t tmpfs none /tmp; " + c.prepare + "\n" +
				`exec setpriv --reuid=` + strconv.Itoa(int(c.user)) + ` --regid=` + strconv.Itoa(int(c.user)) + ` --clear-groups "$0" -test.run='^TestMounts$'`
			cmd := exec.Command("/bin/sh", "-c", script, exe)
			cmd.Env = append(os.Environ(), "PROCMOUNT_PATH="+c.path)
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
			if c.newPID {
				cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWPID
			}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for what, want := range map[string]string{"processes": c.processes, "memory": c.memory} {
				_, said, ok := strings.Cut(string(out), what+": ")
				said, _, _ = strings.Cut(said, "\n")
				if !ok || (want == "") != (said == "<nil>") || !strings.Contains(said, want) {
					t.Errorf("%s: %q, want %q in it", what, said, want)
				}
			}
		})
	}
}

// tell prints what Find reports about a path.
func tell(path string) {
	m, err := Find(path)
	if err != nil {
		panic(err)
	}
	print("processes: ", text(m.Processes()), "\nmemory: ", text(m.Memory()), "\n")
}

func text(err error) string {
	if err == nil {
		return "<nil>"
	}
	return strings.ReplaceAll(err.Error(), "\n", " ")
}

// TestCheck checks that only files of the procfs itself are accepted.
func TestCheck(t *testing.T) {
	m, err := Find("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		"/proc/meminfo": nil, "/proc/self/net/sockstat": nil, "/proc/sys/fs/file-nr": nil, "/etc/passwd": errMountedOver,
	} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Check(int(f.Fd())); !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
		_ = f.Close()
	}
}
