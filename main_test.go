package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheck expects the exit status of the worst limit, and the nearest limit on
// top, on a recorded kernel whose conntrack table fills.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/linux-6.12/proc")); err != nil {
		t.Fatal(err)
	}
	entries := func(n string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "sys/net/netfilter/nf_conntrack_count"), []byte(n+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The recording has no sockets but those of the running kernel, which are
	// not shown beside it.
	args := []string{"check", "--path.procfs=" + dir, "--no-collector.tcp", "--no-collector.ports"}
	for _, c := range []struct {
		entries string
		args    []string
		status  int
		first   string
	}{
		{"12", args, 0, "memory"},
		{"49151", args, 0, "conntrack_entries  ok"},
		{"49152", args, 1, "conntrack_entries  warning   75.0%  49152 entries"},
		{"65536", args, 2, "conntrack_entries  critical  100.0%  65536 entries"},
		{"12", args[:2], unknown, "memory"},
		{"65536", args[:2], 2, "conntrack_entries  critical"},
	} {
		entries(c.entries)
		var stdout, stderr bytes.Buffer
		if got := run(t.Context(), c.args, &stdout, &stderr); got != c.status {
			t.Errorf("%s entries: status %d, want %d; %s", c.entries, got, c.status, stderr.String())
		}
		lines := strings.Split(stdout.String(), "\n")
		if !strings.HasPrefix(squeezed(lines[1]), squeezed(c.first)) {
			t.Errorf("%s entries: first line %q", c.entries, lines[1])
		}
		if c.status == unknown && !strings.Contains(stderr.String(), "collector tcp failed") {
			t.Errorf("it says %q", stderr.String())
		}
	}
}

// squeezed makes runs of blanks one.
func squeezed(s string) string { return strings.Join(strings.Fields(s), " ") }

func TestHelpAndVersion(t *testing.T) {
	for _, arg := range []string{"--help", "--version"} {
		var stdout, stderr bytes.Buffer
		if status := run(t.Context(), []string{arg}, &stdout, &stderr); status != 0 || stderr.Len() != 0 || !strings.Contains(stdout.String(), name) {
			t.Errorf("%s: status %d, %q, %q", arg, status, stdout.String(), stderr.String())
		}
	}
}
