package kernel

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSettings checks that a sample reuses the value of a setting from the last reading, but
// reads values that the kernel changes.
func TestSettings(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../testdata/linux-6.12")); err != nil {
		t.Fatal(err)
	}
	proc := filepath.Join(dir, "proc")
	m, err := Open(Options{ProcPath: proc, SysPath: filepath.Join(dir, "sys")})
	if err != nil {
		t.Fatal(err)
	}
	sampling := false
	files := &Files{Machine: m, Sampling: &sampling, Defer: t.Cleanup}
	host := files.Host()
	for name, open := range map[string]struct {
		file    func(string) File
		setting bool
	}{
		"net.ipv4.tcp_max_orphans":         {host.Sysctl, true},
		"net.netfilter.nf_conntrack_max":   {files.GlobalSysctl, true},
		"net.netfilter.nf_conntrack_count": {host.SysctlUsage, false},
	} {
		file := open.file(name)
		expect := func(what, want string) {
			t.Helper()
			if b, err := file.Read(); err != nil || string(b) != want {
				t.Errorf("%s: %s: %q, %v", name, what, b, err)
			}
		}
		change := func(to string) {
			t.Helper()
			if err := os.WriteFile(file.Path(), []byte(to), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		change("1\n")
		sampling = true
		expect("a first sample", "1\n")
		change("2\n")
		if open.setting {
			expect("another sample", "1\n")
		} else {
			expect("another sample", "2\n")
		}
		sampling = false
		expect("a reading", "2\n")
		change("3\n")
		sampling = true
		if open.setting {
			expect("a sample after it", "2\n")
		}
		sampling = false
	}
}
