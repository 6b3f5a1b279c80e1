package cli

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// planned runs plan on a recorded host.
func planned(t *testing.T, flags ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	args := append([]string{"plan", "--path.procfs=../../testdata/linux-6.12/proc", "--no-collector.tcp", "--no-collector.ports"}, flags...)
	status = Run(t.Context(), args, nil, &out, &err)
	return status, out.String(), err.String()
}

// sysfs returns a directory that is accepted as a copy of a sysfs.
func sysfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "kernel/slab/TCP"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"objs_per_slab": "10\n", "order": "3\n"} {
		if err := os.WriteFile(filepath.Join(dir, "kernel/slab/TCP", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestPlanSysctl checks that the output is a file that sysctl can read, with only the settings
// that have to be raised.
func TestPlanSysctl(t *testing.T) {
	status, out, errors := planned(t, "--path.sysfs="+sysfs(t), "--connections=60000", "--opens-per-second=100", "--closes-per-second=100", "--format=sysctl")
	if status != 1 || errors != "" {
		t.Fatalf("status %d, %s\n%s", status, errors, out)
	}
	line := regexp.MustCompile(`^[a-z0-9_.]+ = [0-9]+( [0-9]+)*$`)
	settings := map[string]string{}
	for l := range strings.SplitSeq(out, "\n") {
		switch {
		case l == "" || strings.HasPrefix(l, "# "):
		case line.MatchString(l):
			name, value, _ := strings.Cut(l, " = ")
			settings[name] = value
		default:
			t.Errorf("%q is neither a setting nor a comment", l)
		}
	}
	want := map[string]string{"net.netfilter.nf_conntrack_max": "96000"} // 72,000 and room, of 65,536
	if !maps.Equal(settings, want) {
		t.Errorf("%v, want %v", settings, want)
	}
	for _, words := range []string{
		"# sockpressure_exporter plan --connections=60000 --opens-per-second=100 --closes-per-second=100\n",
		"#   options nf_conntrack hashsize=96000\n", "#   --conntrack-min=96000\n", "#   LimitNOFILE=75000\n",
		`"nf_conntrack: table full, dropping packet"`,
	} {
		if !strings.Contains(out, words) {
			t.Errorf("the file lacks %q:\n%s", words, out)
		}
	}
	// No setting has to be raised for few connections.
	status, out, _ = planned(t, "--path.sysfs="+sysfs(t), "--connections=100", "--format=sysctl")
	if status != 0 || strings.Contains(out, " = ") || !strings.Contains(out, "as it is") {
		t.Errorf("status %d:\n%s", status, out)
	}
	status, out, _ = planned(t, "--path.sysfs="+sysfs(t), "--connections=10000000", "--format=sysctl")
	if status != 2 || strings.Contains(out, " = ") || !strings.Contains(out, "do not fit on this host: memory needs") {
		t.Errorf("status %d:\n%s", status, out)
	}
}

// TestPlanPods checks that sysctls of a network namespace are also given in the form used for
// pods.
func TestPlanPods(t *testing.T) {
	_, out, _ := planned(t, "--path.sysfs="+sysfs(t), "--connections=20000", "--opens-per-second=200", "--closes-per-second=200", "--format=sysctl")
	for _, words := range []string{
		"\n# securityContext:\n#   sysctls:\n", "#   - name: net.ipv4.tcp_max_tw_buckets\n#     value: \"15100\"\n",
		"# and for the kubelet --allowed-unsafe-sysctls=net.ipv4.tcp_max_tw_buckets\n",
	} {
		if !strings.Contains(out, words) {
			t.Errorf("no %q in\n%s", words, out)
		}
	}
}

// TestPlanJSON checks that the output is the document that README.md describes, and that its
// statuses are those of the table.
func TestPlanJSON(t *testing.T) {
	dir := sysfs(t)
	for connections, want := range map[string]struct {
		status  int
		verdict string
	}{"100": {0, "holds"}, "60000": {1, "set"}, "10000000": {2, "cannot"}} {
		status, out, _ := planned(t, "--path.sysfs="+dir, "--connections="+connections, "--format=json")
		var doc map[string]any
		if err := json.Unmarshal([]byte(out), &doc); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if status != want.status || doc["exit_status"] != float64(want.status) || doc["verdict"] != want.verdict {
			t.Errorf("%s: status %d, %v, %v", connections, status, doc["exit_status"], doc["verdict"])
		}
		names := func(v any) string { return strings.Join(slices.Sorted(maps.Keys(v.(map[string]any))), " ") }
		if got := names(doc); got != "exit_status first headline limits memory memory_bytes not_moved verdict" {
			t.Errorf("the document has %s", got)
		}
		for _, l := range doc["limits"].([]any) {
			if got := names(l); got != "effect item needed now resource rule set_by settings sysctls takes unit used verdict" {
				t.Fatalf("a limit has %s", got)
			}
		}
		read := 0
		for _, i := range doc["memory"].([]any) {
			item := i.(map[string]any)
			if got := names(i); got != "bytes bytes_each count of_this_kernel what" {
				t.Fatalf("an item has %s", got)
			}
			if item["of_this_kernel"] == true && item["what"] == "TCP" && item["bytes_each"] == 3276.8 {
				read++
			}
		}
		if read != 1 {
			t.Errorf("the size of TCP is not that of the kernel: %v", doc["memory"])
		}
		tableStatus, table, _ := planned(t, "--path.sysfs="+dir, "--connections="+connections)
		if tableStatus != status || !strings.HasPrefix(table, doc["headline"].(string)+"\n") || !strings.Contains(table, "\nRESOURCE ") {
			t.Errorf("status %d, table\n%s", tableStatus, table)
		}
	}
}

// TestPlanGrowth checks that the current load is shown with the limits that growth reaches.
func TestPlanGrowth(t *testing.T) {
	dir := sysfs(t)
	status, out, errors := planned(t, "--path.sysfs="+dir)
	if status != 0 || errors != "" || !strings.HasPrefix(out, "This host holds 23 connections now. The first limit reached would be ") || !strings.Contains(out, "\nCONNECTIONS ") {
		t.Errorf("status %d, %s\n%s", status, errors, out)
	}
	_, out, _ = planned(t, "--path.sysfs="+dir, "--format=json")
	var doc jsonGrowth
	if err := json.Unmarshal([]byte(out), &doc); err != nil || len(doc.Limits) < 3 || doc.Limits[0].Connections > doc.Limits[1].Connections {
		t.Errorf("%v in %s", err, out)
	}
}

// TestPlanInput checks that an invalid command line gives one line of error, and a status that
// no plan has.
func TestPlanInput(t *testing.T) {
	for flags, want := range map[string]string{
		"--connections=-1":                   "--connections=-1 must be between 1 and 4294967296",
		"--connections=0":                    "--connections=0 must be between 1 and 4294967296",
		"--connections=4294967297":           "--connections=4294967297 must be between 1 and 4294967296",
		"--connections=99999999999999999999": "--connections=99999999999999999999: value out of range",
		"--connections=many":                 "--connections=many: not a valid number",
		"--outbound=3":                       "--outbound needs --connections",
		"--tls":                              "--tls needs --connections",
		"--format=sysctl":                    "--format=sysctl needs --connections",
		"--connections=5 --outbound=9":       "--outbound=9 must be at most --connections=5",
		"--connections=5 --outbound=0":       "--outbound=0 has no effect",
		"--connections=5 --unread=4Kib":      "--unread=4Kib: not a size",
		"--connections=5 --unread=4MK":       `--unread=4MK: unknown unit "MK"`,
		"--connections=5 --memory=-1GiB":     "--memory=-1GiB: out of range",
		"--connections=5 --memory=9999999T":  "--memory=9999999T: out of range",
		"--connections=5 --proxy --loopback": "--proxy and --loopback cannot be combined",
		"--connections=5 --listen-pause=1":   "--listen-pause=1: time: missing unit",
	} {
		status, out, errors := planned(t, strings.Fields(flags)...)
		if status != unplanned || out != "" || strings.Count(errors, "\n") != 1 || !strings.HasPrefix(errors, "sockpressure_exporter: error: "+want) {
			t.Errorf("%s: status %d, %q, %q", flags, status, out, errors)
		}
	}
}

// TestPlanUnread checks that there is no plan if a limit could not be read.
func TestPlanUnread(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../testdata/linux-6.12/proc")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sys/fs/file-nr"), []byte("many\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errors bytes.Buffer
	status := Run(t.Context(), []string{"plan", "--path.procfs=" + dir, "--path.sysfs=" + sysfs(t), "--no-collector.tcp", "--no-collector.ports", "--connections=5"}, nil, &out, &errors)
	if status != unplanned || out.Len() > 0 || !strings.Contains(errors.String(), "collector filefd: ") || strings.Count(errors.String(), "\n") != 1 {
		t.Errorf("status %d, %q, %q", status, out.String(), errors.String())
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "4096": 4096, "4KiB": 4096, "4K": 4096, "64GiB": 64 << 30, "1TiB": 1 << 40, "7B": 7} {
		var s size
		if err := s.Set(text); err != nil || int64(s) != want {
			t.Errorf("%s: %d, %v", text, s, err)
		}
	}
}
