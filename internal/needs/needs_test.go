package needs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// child is an environment variable that makes the test binary write a line to the standard
// error of its parent, which go test sets up. Its value selects the function that opens it.
const child = "SOCKPRESSURE_CHILD"

func TestMain(m *testing.M) {
	stderr := map[string]func(int) (*os.File, error){"share": shareStderr, "reopen": reopenStderr}[os.Getenv(child)]
	if stderr == nil {
		os.Exit(Run(m))
	}
	f, err := stderr(os.Getppid())
	if err != nil {
		os.Exit(1)
	}
	_, _ = f.WriteString("between\n")
}

// TestStderr checks that the line appears between what the parent wrote before and after, or
// not at all if that is impossible.
func TestStderr(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const pipe = -1
	for _, c := range []struct {
		how, what string
		flags     int
		said      bool
	}{
		{"share", "a file", 0, true},
		{"share", "a file that is appended to", os.O_APPEND, true},
		{"share", "a pipe", pipe, true},
		{"reopen", "a file", 0, false},
		{"reopen", "a file that is appended to", os.O_APPEND, true},
		{"reopen", "a pipe", pipe, true},
	} {
		t.Run(c.how+" "+c.what, func(t *testing.T) {
			cmd := exec.Command("sh", "-c", `echo before >&2; (exec "$0" >/dev/null 2>&1); echo after >&2`, self)
			cmd.Env = append(os.Environ(), child+"="+c.how)
			var piped bytes.Buffer
			cmd.Stderr = &piped
			path := filepath.Join(t.TempDir(), "log")
			if c.flags != pipe {
				f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|c.flags, 0o600)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				cmd.Stderr = f
			}
			if err := cmd.Run(); err != nil {
				t.Fatal(err)
			}
			got := piped.Bytes()
			if c.flags != pipe {
				if got, err = os.ReadFile(path); err != nil {
					t.Fatal(err)
				}
			}
			want := "before\nbetween\nafter\n"
			if !c.said {
				want = "before\nafter\n"
			}
			if string(got) != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestSummarize(t *testing.T) {
	for want, skipped := range map[string][]skip{
		"": nil,
		"skipped: 3 tests (alerts 1, e2e 2); to run them: CI=true; root; apt-get install iproute2 nftables prometheus\n": {
			{"e2e", []string{Root, "nft", "ss"}},
			{"alerts", []string{CI, "promtool"}},
			{"e2e", []string{"prometheus", "ip"}},
		},
		"skipped: 1 test (rendered 1); to run them: apt-get install mount; go install github.com/yannh/kubeconform/cmd/kubeconform@v0.7.0; go install helm.sh/helm/v3/cmd/helm@v3.19.0\n": {
			{"rendered", []string{"helm", "kubeconform", "mount"}},
		},
	} {
		if got := summarize(skipped); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

// TestPackages checks the format of the list, which .ci/run parses too.
func TestPackages(t *testing.T) {
	form := regexp.MustCompile(`^(/[^ :]+|[a-z0-9_.-]+):([a-z0-9.+-]+|[A-Za-z0-9./-]+/[a-z0-9./-]+@v[0-9.]+)$`)
	seen := map[string]bool{}
	for line := range strings.Lines(packages) {
		line = strings.TrimSuffix(line, "\n")
		need, _, _ := strings.Cut(line, ":")
		if !form.MatchString(line) || seen[need] {
			t.Errorf("%q: want a unique program or file, a colon and a package", line)
		}
		seen[need] = true
	}
	if len(seen) == 0 {
		t.Error("no packages")
	}
}

// TestMet checks that met reports which needs are available.
func TestMet(t *testing.T) {
	path := t.TempDir()
	t.Setenv("PATH", path)
	if err := os.WriteFile(filepath.Join(path, "nft"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CI", "true")
	for need, want := range map[string]bool{CI: true, "nft": true, "ss": false} {
		if got := met(t, need); got != want {
			t.Errorf("%s: %t, want %t", need, got, want)
		}
	}
	t.Setenv("CI", "false")
	if met(t, CI) {
		t.Error("CI=false is taken for CI=true")
	}
	if os.Geteuid() != 0 && met(t, Root) {
		t.Error("an ordinary user is taken for root")
	}
}
