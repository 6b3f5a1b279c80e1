package collector

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/procfs"
)

func TestSoftLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "limits")
	for content, want := range map[string]struct {
		limit float64
		fails bool
	}{
		"Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n": {limit: 1024},
		"Limit\nMax open files            unlimited            unlimited            files\n":                                {limit: 0},
		"Limit\nMax open files            0                    0                    files\n":                                {limit: 0},
		"Limit\nMax open files            many                 unlimited            files\n":                                {fails: true},
		"Limit\nMax open files ":   {fails: true},
		"Limit\nMax processes 1\n": {fails: true},
		"":                         {limit: 0},
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		limit, err := softLimit(path, make([]byte, 4096))
		if limit != want.limit || (err != nil) != want.fails {
			t.Errorf("%q: %v, %v", content, limit, err)
		}
	}

	// Compare the limit of this process with that read by procfs.
	self, err := procfs.Self()
	if err != nil {
		t.Fatal(err)
	}
	limits, err := self.Limits()
	if err != nil {
		t.Fatal(err)
	}
	if limit, err := softLimit("/proc/self/limits", make([]byte, 4096)); err != nil || limit != float64(limits.OpenFiles) {
		t.Errorf("own limit: %v, %v; want %d", limit, err, limits.OpenFiles)
	}
}
