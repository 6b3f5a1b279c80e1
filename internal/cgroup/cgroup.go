// Package cgroup finds the host's cgroups and walks them.
package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// ErrForeign means that the mounted tree is a container's, and that the host has more
// cgroups.
var ErrForeign = errors.New("the mounted cgroups are a container's own")

// A Hierarchy is a tree of cgroups.
type Hierarchy struct {
	// Root is where it is mounted.
	Root string
	// Version is 1 or 2. Version 1 has a hierarchy for each controller.
	Version int
}

// places returns where version 2 may be mounted: by itself, or beside version 1.
func places(path string) [2]string { return [2]string{path, filepath.Join(path, "unified")} }

// Memory finds the hierarchy that accounts for memory, given where cgroups are mounted,
// usually /sys/fs/cgroup: version 2 there or in the folder unified, or version 1 in the
// folder memory. A controller is in only one of them. The error is fs.ErrNotExist if
// there is no such hierarchy, and ErrForeign if it is not the host's.
func Memory(path string) (Hierarchy, error) {
	for _, root := range places(path) {
		controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return Hierarchy{}, err
		}
		if slices.Contains(strings.Fields(string(controllers)), "memory") {
			return whole(Hierarchy{root, 2})
		}
	}
	root := filepath.Join(path, "memory")
	if _, err := os.Stat(filepath.Join(root, "memory.usage_in_bytes")); errors.Is(err, fs.ErrNotExist) {
		return Hierarchy{}, &fs.PathError{Op: "find the controller memory in", Path: path, Err: fs.ErrNotExist}
	} else if err != nil {
		return Hierarchy{}, err
	}
	return whole(Hierarchy{root, 1})
}

// Unified finds the hierarchy of version 2, by itself or beside version 1. Its inode
// numbers identify the cgroups of sockets. It returns the same errors as Memory.
func Unified(path string) (Hierarchy, error) {
	for _, root := range places(path) {
		if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
			return whole(Hierarchy{root, 2})
		}
	}
	return Hierarchy{}, &fs.PathError{Op: "find version 2 in", Path: path, Err: fs.ErrNotExist}
}

// whole returns ErrForeign unless the root is the host's. It tests for files that only
// the root has, or only other cgroups have.
func whole(h Hierarchy) (Hierarchy, error) {
	name, expected := "cgroup.type", false // since Linux 4.14; cgroup.events before
	if h.Version == 1 {
		name, expected = "release_agent", true
	}
	_, err := os.Stat(filepath.Join(h.Root, name))
	if found := err == nil; found != expected {
		return Hierarchy{}, &fs.PathError{Op: "read", Path: h.Root, Err: ErrForeign}
	}
	return h, nil
}

// A Group is a cgroup.
type Group struct {
	Path  string // as in /proc/<pid>/cgroup
	Inode uint64 // of its folder: its ID
	// Leaf is set if there are no cgroups below it.
	Leaf bool
}

// maxDepth is the maximum depth of a walk. Kubernetes in a container in a unit has
// cgroups ten levels deep. A walk keeps a descriptor open for each level, and the owner
// of a cgroup may create two thousand levels.
const maxDepth = 32

// Walk calls visit for every cgroup except the root. A cgroup is visited before those
// below it, which are in no particular order. Cgroups that are removed in the meantime,
// or more than 32 levels deep, are left out. A hundred names are held at a time for each
// level.
//
// visit may return fs.SkipDir to skip the cgroups below, and fs.SkipAll to skip all
// remaining ones.
func (h Hierarchy) Walk(ctx context.Context, visit func(Group) error) error {
	return h.WalkBelow(ctx, "", visit)
}

// WalkBelow is like Walk, for the cgroups below the one with the given path.
func (h Hierarchy) WalkBelow(ctx context.Context, path string, visit func(Group) error) error {
	w := walk{Hierarchy: h, visit: visit}
	if err := w.below(ctx, path); !errors.Is(err, fs.SkipAll) {
		return err
	}
	return nil
}

// walk is one walk through the tree.
type walk struct {
	Hierarchy
	visit   func(Group) error
	buffers [maxDepth][]byte // by level
}

func (w *walk) below(ctx context.Context, path string) error {
	depth := strings.Count(path, "/")
	if depth >= maxDepth {
		return nil
	}
	dir := w.Root + path
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return present(&fs.PathError{Op: "open", Path: dir, Err: err}, path)
	}
	defer unix.Close(fd)
	if w.buffers[depth] == nil {
		w.buffers[depth] = make([]byte, 4<<10)
	}
	var failed error // of a visit, not of the folder
	err = procfile.Entries(fd, dir, w.buffers[depth], func(e procfile.Entry) error {
		if e.Type != unix.DT_DIR || string(e.Name) == "." || string(e.Name) == ".." {
			return nil
		}
		failed = w.child(ctx, path+"/"+string(e.Name))
		return failed
	})
	if failed != nil {
		return failed
	}
	return present(err, path)
}

// child visits a cgroup and those below it.
func (w *walk) child(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	g, ok := w.group(path)
	if !ok {
		return nil
	}
	err := w.visit(g)
	if err == nil && !g.Leaf {
		err = w.below(ctx, path)
	}
	if errors.Is(err, fs.SkipDir) {
		return nil
	}
	return err
}

// group reads the cgroup with the given path. ok is false if it was removed.
func (h Hierarchy) group(path string) (g Group, ok bool) {
	var st unix.Stat_t
	if unix.Lstat(h.Root+path, &st) != nil {
		return Group{}, false
	}
	return Group{Path: path, Inode: st.Ino, Leaf: st.Nlink == 2}, true
}

// present returns the error for a cgroup, or nil if the cgroup was removed. The root
// cannot be removed.
func present(err error, path string) error {
	if path != "" && Gone(err) {
		return nil
	}
	return err
}

// Gone reports whether an error means that a cgroup was removed.
func Gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// Path returns the path of the cgroup with the given ID: the inode number of its folder,
// as in INET_DIAG_CGROUP_ID. The root's path is "/". ok is false if the cgroup was
// removed. Path walks the tree.
func (h Hierarchy) Path(ctx context.Context, id uint64) (path string, ok bool) {
	if root, there := h.group(""); there && root.Inode == id {
		return "/", true
	}
	_ = h.Walk(ctx, func(g Group) error {
		if g.Inode == id {
			path, ok = g.Path, true
			return fs.SkipAll
		}
		return nil
	})
	return path, ok
}
