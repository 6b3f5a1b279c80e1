package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/ptytest"
)

// TestCheck checks that the exit status is that of the worst limit, and that the limit closest
// to being reached is listed first, on a recorded kernel whose conntrack table fills.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../testdata/linux-6.12/proc")); err != nil {
		t.Fatal(err)
	}
	entries := func(n string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "sys/net/netfilter/nf_conntrack_count"), []byte(n+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The recording has no sockets, and those of the running kernel must not be mixed with it.
	args := []string{"check", "--path.procfs=" + dir, "--no-collector.cgroup", "--no-collector.tcp", "--no-collector.ports", "--no-collector.unix", "--no-collector.udp"}
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
		{"12", args[:3], unknown, "memory"},
		{"65536", args[:3], 2, "conntrack_entries  critical"},
	} {
		entries(c.entries)
		var stdout, stderr bytes.Buffer
		if got := Run(t.Context(), c.args, nil, &stdout, &stderr); got != c.status {
			t.Errorf("%s entries: status %d, want %d; %s", c.entries, got, c.status, stderr.String())
		}
		lines := strings.Split(stdout.String(), "\n")
		if !strings.HasPrefix(squeezed(lines[1]), squeezed(c.first)) {
			t.Errorf("%s entries: first line %q", c.entries, lines[1])
		}
		effect := strings.Contains(stdout.String(), "\nWhen conntrack_entries reaches its limit: Packets of new connections are dropped")
		if pressing := c.status == 1 || c.status == 2; effect != pressing {
			t.Errorf("%s entries: the effect is shown: %t", c.entries, effect)
		}
		if c.status == unknown && !strings.Contains(stderr.String(), "collector tcp failed") {
			t.Errorf("standard error is %q, want none", stderr.String())
		}
	}
}

// TestCheckColours checks that a terminal gets colours, unless NO_COLOR is set, and the same
// table otherwise.
func TestCheckColours(t *testing.T) {
	args := []string{"check", "--path.procfs=../../testdata/linux-6.12/proc", "--no-collector.cgroup", "--no-collector.tcp", "--no-collector.ports", "--no-collector.unix", "--no-collector.udp"}
	table := func(noColour, term string) string {
		t.Setenv("NO_COLOR", noColour)
		t.Setenv("TERM", term)
		shown, terminal := ptytest.Open(t)
		if status := Run(t.Context(), args, nil, terminal, t.Output()); status != 0 {
			t.Errorf("status %d", status)
		}
		_ = terminal.Close()
		// Reading ends with EIO once the terminal is closed.
		b, err := io.ReadAll(shown)
		if !errors.Is(err, unix.EIO) {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), "\r\n", "\n")
	}
	var stdout bytes.Buffer
	Run(t.Context(), args, nil, &stdout, t.Output())
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

// squeezed replaces each run of white space with one space.
func squeezed(s string) string { return strings.Join(strings.Fields(s), " ") }

// TestStop checks that the status is 0 when ctx ends, whatever clients left unfinished, and
// that only requests are waited for.
func TestStop(t *testing.T) {
	for name, c := range map[string]struct {
		sends string
		waits bool
	}{
		"nothing":       {"", false},
		"half a header": {"GET /metrics HTTP/1.1\r\nHo", false},
		"a scrape":      {"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proc := t.TempDir()
			if err := errors.Join(os.MkdirAll(filepath.Join(proc, "sys/fs"), 0o755),
				os.WriteFile(filepath.Join(proc, "version"), []byte("Linux version 6.12.0\n"), 0o600)); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			log, stderr := io.Pipe()
			status := make(chan int, 1)
			go func() {
				status <- Run(ctx, []string{
					"--web.listen-address=127.0.0.1:0", "--path.procfs=" + proc,
					"--collector.disable-defaults", "--collector.filefd",
				}, nil, io.Discard, stderr)
				_ = stderr.Close()
			}()
			// This is the last line that is logged before the server stops.
			address := regexp.MustCompile(`msg="TLS is disabled." .*address=(\S+)`)
			var stopped time.Time
			var warnings []string
			for lines := bufio.NewScanner(log); lines.Scan(); {
				if strings.Contains(lines.Text(), "level=WARN") {
					warnings = append(warnings, lines.Text())
				}
				if m := address.FindStringSubmatch(lines.Text()); m != nil {
					// Opening a pipe without a writer blocks.
					pipe := filepath.Join(proc, "sys/fs/file-nr")
					if err := unix.Mkfifo(pipe, 0o600); err != nil {
						t.Fatal(err)
					}
					defer unblock(t, pipe)
					defer send(t, m[1], c.sends)()
					stopped = time.Now()
					stop()
				}
			}
			if got := <-status; got != 0 {
				t.Errorf("status %d", got)
			}
			// The server itself logs what it waited for. How long the rest takes depends on
			// the load of the machine.
			if took := time.Since(stopped); c.waits && took < lastRequests {
				t.Errorf("stopping took only %v", took)
			}
			// Outside of the host's network namespace, a warning is logged at the start.
			warnings = slices.DeleteFunc(warnings, func(s string) bool { return strings.Contains(s, "network namespace") })
			if len(warnings) > 1 || len(warnings) == 1 != c.waits {
				t.Errorf("the warnings are %q", warnings)
			}
		})
	}
}

// send opens a connection, sends a string and waits until the server handles it. The function
// that it returns closes the connection.
func send(t *testing.T, address, something string) func() {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, something); err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(something, "\r\n\r\n") {
		time.Sleep(300 * time.Millisecond)
		return func() { _ = conn.Close() }
	}
	// A complete request makes the server open the pipe.
	stacks := make([]byte, 1<<20)
	for end := time.Now().Add(20 * time.Second); !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("openat(")); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the server does not handle the request")
		}
	}
	return func() { _ = conn.Close() }
}

// unblock lets those that wait for a writer of the pipe continue.
func unblock(t *testing.T, pipe string) {
	t.Helper()
	f, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
}

// TestCheckMisused checks that a plugin that is called with wrong arguments returns status
// unknown and prints an error.
func TestCheckMisused(t *testing.T) {
	for args, want := range map[string]int{
		"check --nonsense":             unknown,
		"--collector.top=0 check":      unknown,
		"check --path.procfs=/nowhere": unknown,
		"--nonsense":                   1,
	} {
		var stderr bytes.Buffer
		if got := Run(t.Context(), strings.Fields(args), nil, io.Discard, &stderr); got != want || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%s: status %d, want %d; %s", args, got, want, stderr.String())
		}
	}
}
