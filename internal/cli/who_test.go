package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/ptytest"
	"github.com/sockpressure/sockpressure_exporter/internal/who"
)

// hog copies a recorded kernel and adds a process with the given number of descriptors.
func hog(t *testing.T, descriptors int) (procfs string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../testdata/linux-6.12/proc")); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"status": "Name:\thog\nUid:\t7\t7\t7\t7\nFDSize:\t64\n",
		"cgroup": "0::/system.slice/hog.service\n",
		"limits": "Limit Soft Limit Hard Limit Units\nMax open files            10                 4096                 files     \n",
		"comm":   "hog\n",
	} {
		path := filepath.Join(dir, "7", name)
		if err := os.MkdirAll(filepath.Join(dir, "7/fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for fd := range descriptors {
		if err := os.Symlink("pipe:[1]", filepath.Join(dir, "7/fd", strconv.Itoa(fd))); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestWho checks the state of a limit and the process that uses it, for a limit given by name
// and for the one closest to being reached.
func TestWho(t *testing.T) {
	args := []string{"--path.procfs=" + hog(t, 10), "--no-collector.tcp", "--no-collector.ports", "--no-collector.unix", "--no-collector.udp"}
	for _, resource := range []string{"process_file_descriptors", ""} {
		var stdout, stderr bytes.Buffer
		all := append([]string{"who"}, args...)
		if resource != "" {
			all = append(all, resource)
		}
		if status := Run(t.Context(), all, nil, &stdout, &stderr); status != 0 || stderr.Len() > 0 {
			t.Fatalf("%v: status %d, %s", all, status, stderr.String())
		}
		const want = `process_file_descriptors: critical, 100.0% of its limit (10 of 10 descriptors) of hog
When the limit is reached: open, socket and accept of that process fail with EMFILE.
10 descriptors, by process:
SHARE   CUMULATIVE  DESCRIPTORS  LIMIT  USED    PROCESS  USER  UNIT              MOSTLY
100.0%  100.0%      10           10     100.0%  hog[7]   7     unit/hog.service  pipe
`
		if stdout.String() != want {
			t.Errorf("%v: %s\nwant\n%s", all, stdout.String(), want)
		}
	}
	var stdout, stderr bytes.Buffer
	if status := Run(t.Context(), append([]string{"who", "file_descriptors", "--format=json", "--by=unit"}, args...), nil, &stdout, &stderr); status != 0 {
		t.Fatal(stderr.String())
	}
	var doc map[string]any
	if err := json.Unmarshal(stdout.Bytes(), &doc); err != nil || doc["resource"] != "file_descriptors" || doc["by"] != "unit" || doc["count"] != 10.0 {
		t.Errorf("%v, %v", doc, err)
	}
}

// TestWhoNothing checks that there is an error if no limit can be read, or if the host's
// sockets cannot be reached, or if the arguments are invalid.
func TestWhoNothing(t *testing.T) {
	procfs := "--path.procfs=" + hog(t, 1)
	for want, args := range map[string][]string{
		"no limit can be read":          {"who", procfs, "--collector.disable-defaults", "--collector.kmsg"},
		"not in the host's network":     {"who", procfs, "tcp_memory"},
		"unknown resource \"nonsense\"": {"who", procfs, "nonsense"},
		"--top=1001 must be between":    {"who", procfs, "--top=1001"},
		"--by=pod does not apply":       {"who", procfs, "process_file_descriptors", "--by=pod"},
	} {
		var stdout, stderr bytes.Buffer
		status := Run(t.Context(), args, nil, &stdout, &stderr)
		if status != 1 || stdout.Len() > 0 || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), want) {
			t.Errorf("%v: status %d, %q", args, status, stderr.String())
		}
	}
}

// TestProgress checks that a line on a terminal, and only there, reports the progress, and
// that it is erased in the end.
func TestProgress(t *testing.T) {
	shown, terminal := ptytest.Open(t)
	p := newProgress(terminal)
	p.show(1, 2, "sockets") // too early
	for _, read := range []uint64{1_240_000, 2_500_000} {
		p.shown = time.Now().Add(-time.Second)
		p.show(read, 2_059_200, "sockets")
	}
	p.erase()
	const erased = "\r\x1b[K"
	const want = erased + "read 1,240,000 of about 2,059,200 sockets" + erased + "read 2,500,000 sockets" + erased
	got := make([]byte, len(want)) // a terminal may return it in parts
	if _, err := io.ReadFull(shown, got); err != nil || string(got) != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	var file bytes.Buffer
	p = newProgress(&file)
	p.shown = time.Now().Add(-time.Second)
	p.show(1, 2, "sockets")
	p.erase()
	if file.Len() > 0 {
		t.Errorf("a file got %q", file.String())
	}
}

// TestWhoCompletion checks that the completions have each resource.
func TestWhoCompletion(t *testing.T) {
	for _, flag := range []string{"--completion-script-bash", "--completion-script-zsh"} {
		var stdout bytes.Buffer
		Run(t.Context(), []string{flag}, nil, &stdout, t.Output())
		if want := `*" who "*) found="` + strings.Join(who.Resources(), " ") + `" ;;`; !strings.Contains(stdout.String(), want) {
			t.Errorf("%s lacks %s", flag, want)
		}
	}
}
