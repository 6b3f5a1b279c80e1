package procfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f := New(path, Options{})
	defer f.Close()
	if _, err := f.Read(); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Fatalf("a file that does not exist: %v", err)
	}
	// The file is created, changes, grows beyond the buffer, and shrinks.
	for _, content := range []string{"one\n", "two\n", strings.Repeat("long\n", 5000), "short\n", ""} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := f.Read()
		if err != nil {
			t.Fatal(err)
		}
		if string(b) != content {
			t.Fatalf("%d bytes, want %d", len(b), len(content))
		}
	}
}

// TestProc checks that files of the running kernel have as many lines as os.ReadFile returns.
func TestProc(t *testing.T) {
	for _, path := range []string{"/proc/version", "/proc/cpuinfo", "/proc/self/limits", "/proc/zoneinfo", "/proc/sys/fs/nr_open"} {
		f := New(path, Options{})
		defer f.Close()
		for range 3 {
			got, err := f.Read()
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if lines := bytes.Count(want, []byte("\n")); bytes.Count(got, []byte("\n")) != lines {
				t.Errorf("%s: %d bytes, want %d", path, len(got), len(want))
			}
		}
	}
}

// TestOpenOnce checks that a file is opened only once, and again only after a read failed, as
// when a kernel module is unloaded.
func TestOpenOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	opened := 0
	f := New(path, Options{Open: func(path string) (int, error) {
		opened++
		return Open(path)
	}})
	defer f.Close()
	for range 3 {
		if _, err := f.Read(); err != nil {
			t.Fatal(err)
		}
	}
	if opened != 1 {
		t.Errorf("opened %d times", opened)
	}
	// Make the descriptor invalid.
	if err := unix.Close(f.fd); err != nil {
		t.Fatal(err)
	}
	if b, err := f.Read(); err != nil || string(b) != "x\n" || opened != 2 {
		t.Errorf("%q, %v, opened %d times", b, err, opened)
	}
}

// TestWithoutDescriptors checks that an open file can be read while the process cannot open
// any.
func TestWithoutDescriptors(t *testing.T) {
	f := New("/proc/net/sockstat", Options{})
	defer f.Close()
	if _, err := f.Read(); err != nil {
		t.Fatal(err)
	}
	absent, unknown := New("/proc/nowhere", Options{}), New("/proc/nowhere", Options{})
	if _, err := absent.Read(); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	_, openErr := os.Open("/proc/net/sockstat")
	b, err := f.Read()
	_, absentErr := absent.Read()
	_, unknownErr := unknown.Read()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(openErr, unix.EMFILE) {
		t.Fatalf("a plain open: %v", openErr)
	}
	if err != nil || len(b) == 0 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	// A file that did not exist is assumed still not to exist. One that was never opened gives
	// an error.
	if !errors.Is(absentErr, fs.ErrNotExist) || !errors.Is(unknownErr, unix.EMFILE) {
		t.Errorf("%v, %v", absentErr, unknownErr)
	}
}

func TestNoAllocation(t *testing.T) {
	f := New("/proc/net/sockstat", Options{})
	defer f.Close()
	if n := testing.AllocsPerRun(100, func() {
		if _, err := f.Read(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per read", n)
	}
}
