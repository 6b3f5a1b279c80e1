package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
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
		effect := strings.Contains(stdout.String(), "\nWhen conntrack_entries is met: Packets of new connections are dropped")
		if pressing := c.status == 1 || c.status == 2; effect != pressing {
			t.Errorf("%s entries: what happens is said: %t", c.entries, effect)
		}
		if c.status == unknown && !strings.Contains(stderr.String(), "collector tcp failed") {
			t.Errorf("it says %q", stderr.String())
		}
	}
}

// TestCheckColours expects colours on a terminal, unless NO_COLOR is set, and the
// same table.
func TestCheckColours(t *testing.T) {
	args := []string{"check", "--path.procfs=testdata/linux-6.12/proc", "--no-collector.tcp", "--no-collector.ports"}
	table := func(noColour, term string) string {
		t.Setenv("NO_COLOR", noColour)
		t.Setenv("TERM", term)
		shown, terminal := openTerminal(t)
		if status := run(t.Context(), args, terminal, t.Output()); status != 0 {
			t.Errorf("status %d", status)
		}
		_ = terminal.Close()
		// Where nobody has the terminal any more, reading ends with EIO.
		b, err := io.ReadAll(shown)
		if !errors.Is(err, unix.EIO) {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), "\r\n", "\n")
	}
	var stdout bytes.Buffer
	run(t.Context(), args, &stdout, t.Output())
	want := stdout.String()
	if strings.Contains(want, "\x1b") {
		t.Errorf("coloured without a terminal: %q", want)
	}
	coloured := table("", "xterm")
	if !strings.Contains(coloured, "\x1b[32mok\x1b[39m") {
		t.Errorf("not coloured: %q", coloured)
	}
	if got := regexp.MustCompile(`\x1b\[\d\dm`).ReplaceAllString(coloured, ""); got != want {
		t.Errorf("the coloured table is\n%s, not\n%s", got, want)
	}
	if got := table("1", "xterm"); got != want {
		t.Errorf("with NO_COLOR: %q", got)
	}
	if got := table("", "dumb"); got != want {
		t.Errorf("on a dumb terminal: %q", got)
	}
}

// openTerminal returns what a person sees of a terminal, and the terminal.
func openTerminal(t *testing.T) (shown, terminal *os.File) {
	t.Helper()
	open := func(path string) *os.File {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	shown = open("/dev/ptmx")
	if err := unix.IoctlSetPointerInt(int(shown.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(shown.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return shown, open(fmt.Sprintf("/dev/pts/%d", n))
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

// TestCheckMisused expects that a plugin that is called wrongly neither warns nor
// is silent.
func TestCheckMisused(t *testing.T) {
	for args, want := range map[string]int{
		"check --nonsense":             unknown,
		"--collector.top=0 check":      unknown,
		"check --path.procfs=/nowhere": unknown,
		"--nonsense":                   1,
	} {
		var stderr bytes.Buffer
		if got := run(t.Context(), strings.Fields(args), io.Discard, &stderr); got != want || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%s: status %d, want %d; %s", args, got, want, stderr.String())
		}
	}
}
