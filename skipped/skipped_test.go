// Package skipped is the last one that go test ./... runs. It tells what all
// others skipped.
package skipped

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

func TestMain(m *testing.M) { os.Exit(needs.RunLast(m)) }

// TestLast expects that no package comes behind this one.
func TestLast(t *testing.T) {
	list := exec.Command("go", "list", "./...")
	list.Dir = ".."
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(out), "/skipped\n") {
		t.Errorf("go test ./... runs others after this package:\n%s", out)
	}
}
