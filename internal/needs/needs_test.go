package needs

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// child makes the test binary tell its parent of one skipped test.
const child = "SOCKPRESSURE_TELL"

func TestMain(m *testing.M) {
	if os.Getenv(child) != "" {
		flag.Parse()
		tell([]skip{{"e2e", "TestStates", []string{"nft"}}}, nil)
		return
	}
	os.Exit(Run(m))
}

// TestTell expects the line on the parent's standard error, behind what it wrote
// before and before what it writes afterwards, whatever that is.
func TestTell(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const want = "before\nskipped: 1 test (e2e 1); to run them: apt-get install nftables\nafter\n"
	for name, redirect := range map[string]string{"file": ">$1", "file that is appended to": ">>$1", "pipe": "> >(cat >$1)"} {
		t.Run(name, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			// What the child itself writes is thrown away, as go test does.
			cmd := exec.Command("bash", "-c", "exec 2"+redirect+`; echo before >&2; "$0" >/dev/null 2>&1; echo after >&2; exec 2>&-; wait`, self, log)
			cmd.Env = append(os.Environ(), child+"=1")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			got, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != want {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestSummarize(t *testing.T) {
	for want, skipped := range map[string][]skip{
		"": nil,
		"skipped: 3 tests (alerts 1, e2e 2); to run them: CI=true; root; apt-get install iproute2 nftables prometheus\n": {
			{"e2e", "TestStates", []string{Root, "nft", "ss"}},
			{"alerts", "TestSilence", []string{CI, "promtool"}},
			{"e2e", "TestPrometheus", []string{"prometheus", "ip"}},
		},
	} {
		if got := summarize(skipped); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

// TestPackages holds the list to its form, which .ci/run takes apart too.
func TestPackages(t *testing.T) {
	form := regexp.MustCompile(`^(/[^ :]+|[a-z0-9_.-]+):[a-z0-9.+-]+$`)
	seen := map[string]bool{}
	for line := range strings.Lines(packages) {
		line = strings.TrimSuffix(line, "\n")
		need, _, _ := strings.Cut(line, ":")
		if !form.MatchString(line) || seen[need] {
			t.Errorf("%q: want a program or file of its own, a colon and a package", line)
		}
		seen[need] = true
	}
	if len(seen) == 0 {
		t.Error("no packages")
	}
}

// TestMet tells what is there from what is not.
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
