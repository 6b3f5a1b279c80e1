package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/ptytest"
)

// TestHangup checks that SIGHUP, which makes other daemons reload, is logged and does not end the
// exporter.
func TestHangup(t *testing.T) {
	e := start(t, nil)
	for n := 1; n <= 3; n++ {
		if err := e.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(5 * time.Second)
		for strings.Count(e.logged(), "Nothing to reload on SIGHUP") < n {
			if time.Now().After(deadline) {
				t.Fatalf("SIGHUP %d is not logged", n)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	e.scrape("")
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := e.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestHangupOfCheck checks that check ends on SIGHUP, as any command does when its terminal is
// closed.
func TestHangupOfCheck(t *testing.T) {
	proc := t.TempDir()
	pipe := filepath.Join(proc, "sys/fs/file-nr")
	if err := errors.Join(
		os.MkdirAll(filepath.Dir(pipe), 0o755),
		os.WriteFile(filepath.Join(proc, "version"), []byte("Linux version 6.12.0\n"), 0o600),
		unix.Mkfifo(pipe, 0o600), // opening it blocks forever
	); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "check", "--path.procfs="+proc, "--collector.disable-defaults", "--collector.filefd")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGHUP {
		t.Errorf("it ended with %v", err)
	}
}

// TestTerminalClosed checks that the exporter ends when its terminal is closed, unless it runs
// under nohup.
func TestTerminalClosed(t *testing.T) {
	for name, nohup := range map[string]bool{"ordinary": false, "nohup": true} {
		t.Run(name, func(t *testing.T) {
			shown, terminal := ptytest.Open(t)
			args := []string{binary, "--web.listen-address=127.0.0.1:0"}
			if nohup {
				// nohup would redirect standard output and error away from the terminal. The
				// shell only ignores SIGHUP, as nohup does too.
				args = []string{"/bin/sh", "-c", `trap "" HUP; exec "$@"`, "sh", binary, "--web.listen-address=127.0.0.1:0"}
			}
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			for b := make([]byte, 4096); !bytes.Contains(said.Bytes(), []byte("Listening on")); {
				n, err := shown.Read(b)
				if err != nil {
					t.Fatalf("%v after %s", err, said.Bytes())
				}
				said.Write(b[:n])
			}
			_ = terminal.Close()
			_ = shown.Close()
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			patience := 10 * time.Second
			if nohup {
				patience = time.Second
			}
			select {
			case err := <-ended:
				if err != nil || nohup {
					t.Errorf("it ended with %v", err)
				}
			case <-time.After(patience):
				if !nohup {
					t.Error("it still runs")
				}
				_ = cmd.Process.Kill()
				if err := <-ended; err == nil {
					t.Error("it ended with success after it was killed")
				}
			}
		})
	}
}

// TestVersion checks that the exporter shows the same version everywhere.
func TestVersion(t *testing.T) {
	out, err := exec.Command(binary, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`^sockpressure_exporter, version (\S+) \(branch: \S*, revision: (\S+)\)\n`).FindStringSubmatch(string(out))
	if m == nil {
		t.Fatalf("--version prints %s", out)
	}
	words := m[1] + ", revision " + m[2]
	e := start(t, nil)
	if !strings.Contains(e.logged(), `msg="Starting sockpressure_exporter" version="`+words+`"`) {
		t.Errorf("the log lacks %q: %s", words, e.logged())
	}
	if _, page := e.get("/"); !strings.Contains(page, "sockpressure_exporter</a> "+strings.ReplaceAll(words, "+", "&#43;")+"<") {
		t.Errorf("the status page lacks %q", words)
	}
	info := e.scrape("").with("sockpressure_exporter_build_info")
	if len(info) != 1 || !strings.Contains(info[0], `version="`+m[1]+`"`) || !strings.Contains(info[0], `revision="`+m[2]+`"`) {
		t.Errorf("%v, want %s", info, words)
	}
}

// TestBashCompletion checks the completions of incomplete command lines.
func TestBashCompletion(t *testing.T) {
	needs.Check(t, "bash")
	script, err := exec.Command(binary, "--completion-script-bash").Output()
	if err != nil {
		t.Fatal(err)
	}
	// Bash splits words at =.
	for typed, want := range map[string]string{
		"che":                               "check",
		"--collector.disa":                  "--collector.disable-defaults",
		"--no-collector.pro":                "--no-collector.process",
		"--collector.tcp --no-collector.tc": "--no-collector.tcp",
		"--collector.tcp = f":               "false",
		"--no-collector.tcp =":              "true false",
		"--web.systemd-socket = t":          "true",
		"--log.level = w":                   "warn",
		"--log.level w":                     "warn",
		"--path.sysfs = t":                  "", // a file name
		"--form":                            "",
		"check --form":                      "--format",
		"check --format =":                  "text json plugin",
		"check --format j":                  "json",
	} {
		cmd := exec.Command("bash", "--norc", "-c", `. /dev/stdin; COMP_WORDS=(x "$@"); COMP_CWORD=$#; _sockpressure_exporter; echo "${COMPREPLY[*]}"`, "x")
		cmd.Args = append(cmd.Args, strings.Fields(typed)...)
		cmd.Stdin = bytes.NewReader(script)
		out, err := cmd.Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != want {
			t.Errorf("%s: %q (%v), want %q", typed, got, err, want)
		}
	}
}

// TestManual checks that the manual page has flags and signals, and that check --help shows the
// flags of check.
func TestManual(t *testing.T) {
	man, err := exec.Command(binary, "--help-man").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`\fB\-\-format\fR=\fItext\fR`, `\fB\-\-[no\-]collector.tcp\fR`, ".B =true\n", ".SH SIGNALS\n", "SIGHUP does not stop\n.BR serve",
	} {
		if !bytes.Contains(man, []byte(want)) {
			t.Errorf("the page lacks %q", want)
		}
	}
	cmd := exec.Command(binary, "check", "--help")
	help, err := cmd.Output()
	if err != nil || !bytes.Contains(help, []byte("--format=text")) {
		t.Errorf("check --help: %v, %s", err, help)
	}
}
