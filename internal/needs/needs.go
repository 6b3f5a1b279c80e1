// Package needs skips the tests that this machine cannot run, and collects what they need
// for one line at the end of go test. With CI=true in the environment nothing is skipped
// as root: what is missing fails the test.
package needs

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a test may need other than programs and files.
const (
	// Root is the machine's root, with the capabilities to create namespaces and change
	// what is in them. A container's root seldom has them.
	Root = "root"
	// CI is CI=true in the environment, for tests that take minutes or depend on what
	// else the machine does.
	CI = "CI=true"
	// MountedRoot is a root file system that is mounted, so that its propagation can be
	// changed. That of a chroot may be a folder.
	MountedRoot = "a root file system that is mounted, not a folder"
)

// packages has the package of each program and file, Debian's or one of Go with its
// version, for .ci/run too.
//
//go:embed packages.txt
var packages string

// Check skips the test unless all needs are satisfied: constants of this package,
// programs by name, or files by absolute path. Programs and files must be listed in
// packages.txt.
func Check(t testing.TB, needs ...string) {
	t.Helper()
	var missing []string
	for _, need := range needs {
		if !met(t, need) {
			missing = append(missing, need)
		}
	}
	if len(missing) > 0 {
		Skip(t, missing...)
	}
}

// Skip skips the test for needs that it determined itself, such as an option of the
// kernel.
func Skip(t testing.TB, missing ...string) {
	t.Helper()
	described := make([]string, len(missing))
	for i, need := range missing {
		described[i] = need
		if p := packageOf(need); isGo(p) {
			described[i] += " (go install " + p + ")"
		} else if p != "" {
			described[i] += " (Debian package " + p + ")"
		}
	}
	message := "needs " + strings.Join(described, ", ")
	if InCI() && os.Geteuid() == 0 {
		t.Fatal(message)
	}
	if err := record(missing); err != nil {
		t.Fatal(err)
	}
	t.Skip(message)
}

// InCI reports whether there is time for tests that take minutes.
func InCI() bool { return os.Getenv("CI") == "true" }

func met(t testing.TB, need string) bool {
	t.Helper()
	switch need {
	case Root:
		return isRoot(t)
	case CI:
		return InCI()
	case MountedRoot:
		var s unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, "/", 0, 0, &s)
		// Before Linux 5.8 this is unknown.
		return err != nil || s.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 || s.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	}
	if packageOf(need) == "" {
		t.Fatalf("internal/needs/packages.txt does not have %s", need)
	}
	if strings.HasPrefix(need, "/") {
		_, err := os.Stat(need)
		return err == nil
	}
	_, err := exec.LookPath(need)
	return err == nil
}

// isRoot reports whether this is root of the initial user namespace with the capabilities
// that tests use.
func isRoot(t testing.TB) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		t.Fatal("capget:", err)
	}
	for _, capability := range []uint{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE} {
		if sets[0].Effective&(1<<capability) == 0 {
			return false
		}
	}
	return slices.Equal(strings.Fields(string(ids)), []string{"0", "0", "4294967295"})
}

// packageOf returns the package of a program or file, or "" if none is listed.
func packageOf(need string) string {
	for line := range strings.Lines(packages) {
		if p, ok := strings.CutPrefix(line, need+":"); ok {
			return strings.TrimSpace(p)
		}
	}
	return ""
}

// isGo reports whether a package is a Go package.
func isGo(p string) bool { return strings.Contains(p, "/") }

// summarize returns a line about skipped tests, or "" if there are none.
func summarize(skipped []skip) string {
	if len(skipped) == 0 {
		return ""
	}
	count, needs, install, build := map[string]int{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, s := range skipped {
		count[s.Binary]++
		for _, need := range s.Missing {
			switch p := packageOf(need); {
			case p == "":
				needs[need] = true
			case isGo(p):
				build["go install "+p] = true
			default:
				install[p] = true
			}
		}
	}
	var counts []string
	for _, binary := range sorted(count) {
		counts = append(counts, fmt.Sprintf("%s %d", binary, count[binary]))
	}
	wanted := sorted(needs)
	if len(install) > 0 {
		wanted = append(wanted, "apt-get install "+strings.Join(sorted(install), " "))
	}
	wanted = append(wanted, sorted(build)...)
	tests := "tests"
	if len(skipped) == 1 {
		tests = "test"
	}
	return fmt.Sprintf("skipped: %d %s (%s); to run them: %s\n", len(skipped), tests, strings.Join(counts, ", "), strings.Join(wanted, "; "))
}
