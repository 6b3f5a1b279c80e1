package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func write(t *testing.T, content string, elem ...string) {
	t.Helper()
	path := filepath.Join(elem...)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestFind checks that the hierarchy of a host is found, and that a container's is rejected.
func TestFind(t *testing.T) {
	for name, c := range map[string]struct {
		files           map[string]string
		memory, unified string // the error, or the version and the directory
	}{
		"nothing":  {nil, "file does not exist", "file does not exist"},
		"v2":       {map[string]string{"cgroup.controllers": "cpuset cpu io memory pids\n"}, "2 .", "2 ."},
		"v2 alone": {map[string]string{"cgroup.controllers": "cpu memory_x\n"}, "file does not exist", "2 ."},
		"hybrid": {
			map[string]string{"unified/cgroup.controllers": "\n", "memory/memory.usage_in_bytes": "1\n", "memory/release_agent": ""}, "1 memory", "2 unified",
		},
		"hybrid, memory in v2": {map[string]string{"unified/cgroup.controllers": "memory\n", "cpu/release_agent": ""}, "2 unified", "2 unified"},
		"v1":                   {map[string]string{"memory/memory.usage_in_bytes": "1\n", "memory/release_agent": ""}, "1 memory", "file does not exist"},
		"a container's v2":     {map[string]string{"cgroup.controllers": "memory\n", "cgroup.type": "domain\n"}, ErrForeign.Error(), ErrForeign.Error()},
		"a container's v1":     {map[string]string{"memory/memory.usage_in_bytes": "1\n"}, ErrForeign.Error(), "file does not exist"},
	} {
		root := t.TempDir()
		for name, content := range c.files {
			write(t, content, root, name)
		}
		found := func(h Hierarchy, err error) string {
			if err != nil {
				if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), root) {
					t.Errorf("%s: %v", name, err)
				}
				return err.Error()
			}
			rel, _ := filepath.Rel(root, h.Root)
			return fmt.Sprintf("%d %s", h.Version, rel)
		}
		if got := found(Memory(root)); !strings.HasSuffix(got, c.memory) {
			t.Errorf("%s: memory is in %s, want %s", name, got, c.memory)
		}
		if got := found(Unified(root)); !strings.HasSuffix(got, c.unified) {
			t.Errorf("%s: version 2 is in %s, want %s", name, got, c.unified)
		}
	}
}

func tree(t *testing.T, paths ...string) Hierarchy {
	t.Helper()
	h := Hierarchy{t.TempDir(), 2}
	for _, path := range paths {
		write(t, "", h.Root, path, "cgroup.procs")
	}
	return h
}

func (h Hierarchy) walked(t *testing.T, path string, visit func(Group) error) (paths []string) {
	t.Helper()
	err := h.WalkBelow(t.Context(), path, func(g Group) error {
		paths = append(paths, g.Path)
		return visit(g)
	})
	if err != nil {
		t.Error(err)
	}
	return paths
}

func TestWalk(t *testing.T) {
	h := tree(t, "a/b/c", "a/d", "e", "f/\xff\n")
	all := func(Group) error { return nil }
	got := h.walked(t, "", all)
	for i, path := range got {
		if parent := filepath.Dir(path); parent != "/" && !slices.Contains(got[:i], parent) {
			t.Errorf("%q comes before its parent", path)
		}
	}
	slices.Sort(got)
	if want := []string{"/a", "/a/b", "/a/b/c", "/a/d", "/e", "/f", "/f/\xff\n"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	got = h.walked(t, "/a", all)
	slices.Sort(got)
	if want := []string{"/a/b", "/a/b/c", "/a/d"}; !slices.Equal(got, want) {
		t.Errorf("below /a %q, want %q", got, want)
	}
	if got := h.walked(t, "/gone", all); len(got) > 0 {
		t.Errorf("below a removed cgroup: %q", got)
	}
	got = h.walked(t, "", func(g Group) error {
		if g.Path == "/a" {
			return fs.SkipDir
		}
		return nil
	})
	slices.Sort(got)
	if want := []string{"/a", "/e", "/f", "/f/\xff\n"}; !slices.Equal(got, want) {
		t.Errorf("without those below /a %q, want %q", got, want)
	}
	if got := h.walked(t, "", func(Group) error { return fs.SkipAll }); len(got) != 1 {
		t.Errorf("after the first %q", got)
	}
	deep := tree(t, strings.Repeat("x/", 500))
	if got := deep.walked(t, "", all); len(got) != maxDepth {
		t.Errorf("%d levels", len(got))
	}
}

// TestRemoved checks that cgroups that are removed during a walk are left out.
func TestRemoved(t *testing.T) {
	h := tree(t, "a/b", "c/d", "e/f")
	left := ""
	got := h.walked(t, "", func(g Group) error {
		if left != "" {
			return nil
		}
		left = g.Path
		for _, other := range []string{"/a", "/c", "/e"} {
			if other != g.Path {
				if err := os.RemoveAll(h.Root + other); err != nil {
					return err
				}
			}
		}
		return os.RemoveAll(h.Root + g.Path)
	})
	if len(got) != 1 {
		t.Errorf("%q", got)
	}
	if err := h.WalkBelow(t.Context(), "", func(Group) error { return nil }); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(h.Root); err != nil {
		t.Fatal(err)
	}
	if err := h.Walk(t.Context(), func(Group) error { return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a root: %v", err)
	}
}

func TestErrors(t *testing.T) {
	h := tree(t, "a", "b")
	failed := errors.New("failed")
	if err := h.Walk(t.Context(), func(Group) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Walk(ctx, func(Group) error { t.Error("visited"); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestPath(t *testing.T) {
	h := tree(t, "a/b/c", "d")
	for path, want := range map[string]string{"": "/", "/a/b/c": "/a/b/c", "/d": "/d"} {
		var st unix.Stat_t
		if err := unix.Stat(h.Root+path, &st); err != nil {
			t.Fatal(err)
		}
		if got, ok := h.Path(t.Context(), st.Ino); got != want || !ok {
			t.Errorf("%d is %q, %t, want %q", st.Ino, got, ok, want)
		}
	}
	if got, ok := h.Path(t.Context(), 1); ok {
		t.Errorf("1 is %q", got)
	}
}
