package e2e

import (
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// nobody is the ID of the user and the group nobody.
const nobody = 65534

// asNobody makes a command run as nobody, without capabilities, which the change of user drops,
// and without supplementary groups.
func asNobody(cmd *exec.Cmd) {
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
}

// TestUnprivileged checks that a user without privileges gets every series that root gets, except
// those that need a privilege according to their collector.
func TestUnprivileged(t *testing.T) {
	needs.Check(t, needs.Root)
	root := start(t, nil).scrape("")
	e := start(t, asNobody)
	user := e.scrape("")

	expectUnprivileged(t, user, root)
	expectQuiet(t, e)
}

// expectUnprivileged checks that the page of a user without privileges has the series of root's
// page that need none, and that every collector succeeded.
func expectUnprivileged(t *testing.T, user, root page) {
	t.Helper()
	want := root.stable()
	maps.DeleteFunc(want, func(series string, _ bool) bool { return needsPrivilege(family(series)) })
	compareSeries(t, user.stable(), want)
	expectSuccess(t, user)
	if hidden := user.value(t, "sockpressure_processes_unreadable") > 0; hidden == kernelAtLeast(t, 6, 2) {
		t.Errorf("descriptors of other users' processes are hidden: %v", hidden)
	}
}

// expectSuccess checks that every collector succeeded.
func expectSuccess(t *testing.T, p page) {
	t.Helper()
	for _, s := range collector.Specs() {
		if p.value(t, success(s.Name)) != 1 {
			t.Errorf("collector %s failed", s.Name)
		}
	}
}

// expectQuiet checks that the log has no warnings and no errors.
func expectQuiet(t *testing.T, e *exporter) {
	t.Helper()
	if log := e.logged(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
		t.Errorf("it logged:\n%s", log)
	}
}

// words returns the words of a text, without punctuation.
func words(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) })
}

// needsPrivilege reports whether a metric needs a privilege according to its collector.
func needsPrivilege(name string) bool {
	return slices.ContainsFunc(collector.Specs(), func(s collector.Spec) bool {
		return slices.ContainsFunc(s.Metrics, func(m collector.MetricInfo) bool {
			return m.FullName() == name && slices.Contains(words(s.Privilege), m.Name)
		})
	})
}

// others reports whether a series depends on other tests and programs: on network namespaces,
// cgroups, and limits that these approach. The limit of threads exists only in the machine's PID
// namespace, on a new kernel.
func others(series string) bool {
	for _, prefix := range []string{"sockpressure_netns_", "sockpressure_cgroup_", "sockpressure_saturation_holder_ratio", "sockpressure_threads_limit"} {
		if strings.HasPrefix(series, prefix) {
			return true
		}
	}
	return strings.Contains(series, `{resource="cgroup_memory"}`) || strings.Contains(series, `{resource="threads"}`)
}

// stable returns the series of a page that two scrapes of one host have in common. Of lists that
// change all the time (processes, listeners, ports, caches, zones) it has only the name.
func (p page) stable() map[string]bool {
	series := map[string]bool{}
	for s := range p {
		switch f := family(s); {
		case strings.HasPrefix(f, "sockpressure_kernel_message"), others(s):
			continue // other tests also write to the log and have network namespaces of their own
		case strings.HasPrefix(f, "sockpressure_cgroup_") && f != s, strings.Contains(s, `resource="cgroup_memory"`), f == "sockpressure_saturation_holder_ratio":
			continue // and cgroups, and approach limits
		case strings.HasPrefix(f, "sockpressure_process_"),
			strings.HasPrefix(f, "sockpressure_accept_queue_"),
			strings.HasPrefix(f, "sockpressure_memory_zone_"),
			strings.HasPrefix(f, "sockpressure_request_queue_"), strings.HasPrefix(f, "sockpressure_unix_accept_"),
			strings.HasPrefix(f, "sockpressure_udp_receive_queue_"), f == "sockpressure_udp_socket_drops_total",
			f == "sockpressure_memory_slab_bytes", f == "sockpressure_ephemeral_ports_used":
			s = f
		}
		series[s] = true
	}
	return series
}

// compareSeries checks that two sets have the same series.
func compareSeries(t *testing.T, got, want map[string]bool) {
	t.Helper()
	for _, s := range slices.Sorted(maps.Keys(want)) {
		if !got[s] {
			t.Errorf("%s is missing", s)
		}
	}
	for _, s := range slices.Sorted(maps.Keys(got)) {
		if !want[s] {
			t.Errorf("%s should not be there", s)
		}
	}
}

// family returns the name of a series.
func family(series string) string {
	name, _, _ := strings.Cut(series, "{")
	return name
}

// success is the series that reports whether a collector worked.
func success(name string) string {
	return fmt.Sprintf("sockpressure_scrape_collector_success{collector=%q}", name)
}

// kernelAtLeast reports whether the running kernel has at least the given version.
func kernelAtLeast(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var v [2]int
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &v[0], &v[1]); err != nil {
		t.Fatalf("kernel %s: %v", release, err)
	}
	return slices.Compare(v[:], []int{major, minor}) >= 0
}
