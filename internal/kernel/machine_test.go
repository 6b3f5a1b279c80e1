package kernel

import (
	"os"
	"path/filepath"
	"testing"
)

// TestHostNetwork checks that the network is taken for that of a container only if a global
// limit is absent, not if it cannot be read.
func TestHostNetwork(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../testdata/linux-6.12")); err != nil {
		t.Fatal(err)
	}
	limit := filepath.Join(dir, "proc/sys/net/ipv4/tcp_mem")
	for _, step := range []struct {
		what   string
		change func() error
		want   bool
	}{
		{"as recorded", func() error { return nil }, true},
		{"absent", func() error { return os.Remove(limit) }, false},
		{"not to be read", func() error { return os.Mkdir(limit, 0o755) }, true},
	} {
		if err := step.change(); err != nil {
			t.Fatal(err)
		}
		k, err := Open(Options{ProcPath: filepath.Join(dir, "proc"), SysPath: filepath.Join(dir, "sys")})
		if err != nil {
			t.Fatal(err)
		}
		if got := k.View(); (got.Network == nil) != step.want || got.Processes != nil || got.Memory != nil {
			t.Errorf("%s: %+v", step.what, got)
		}
	}
}
