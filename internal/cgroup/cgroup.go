// Package cgroup finds the host's cgroups and goes through them.
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

// ErrForeign means that what is mounted is the tree of a container: the host's has
// more.
var ErrForeign = errors.New("the mounted cgroups are a container's own")

// A Hierarchy is a tree of cgroups.
type Hierarchy struct {
	// Root is where it is mounted.
	Root string
	// Version is 1 or 2. Of version 1 there is a hierarchy for each controller.
	Version int
}

// places are where version 2 is mounted: by itself, or beside version 1.
func places(path string) [2]string { return [2]string{path, filepath.Join(path, "unified")} }

// Memory finds the hierarchy that accounts memory, given where cgroups are
// mounted, which is /sys/fs/cgroup: version 2 there or in the folder unified, or
// version 1 in the folder memory. A controller is in one of them only. The error is
// fs.ErrNotExist where none has it, and ErrForeign where it is not the host's.
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

// Unified finds version 2, by itself or beside version 1: the one by whose inode
// numbers sockets name their group. Its errors are those of Memory.
func Unified(path string) (Hierarchy, error) {
	for _, root := range places(path) {
		if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
			return whole(Hierarchy{root, 2})
		}
	}
	return Hierarchy{}, &fs.PathError{Op: "find version 2 in", Path: path, Err: fs.ErrNotExist}
}

// whole returns ErrForeign unless the root is the host's. Files that only other groups
// have, or only the root has, tell.
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
	// Leaf is set where there are no groups below it.
	Leaf bool
}

// maxDepth is how deep groups are looked for. Kubernetes in a container in a unit has
// them ten deep. Of each level a descriptor is open, and whoever has a group may make
// two thousand levels.
const maxDepth = 32

// Walk calls visit for every group but the root, a group before those below it, which
// come in no order. One that is removed meanwhile is left out, and so are those of more
// than 32 levels. A hundred names are held at a time, for each level.
//
// visit may return fs.SkipDir to leave out the groups below, and fs.SkipAll to leave
// out all that are to come.
func (h Hierarchy) Walk(ctx context.Context, visit func(Group) error) error {
	return h.WalkBelow(ctx, "", visit)
}

// WalkBelow is Walk for the groups below the one with a path.
func (h Hierarchy) WalkBelow(ctx context.Context, path string, visit func(Group) error) error {
	w := walk{Hierarchy: h, visit: visit}
	if err := w.below(ctx, path); !errors.Is(err, fs.SkipAll) {
		return err
	}
	return nil
}

// walk is one way through the tree.
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
	var failed error // of a visit, which is not the folder's
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

// child visits a group and those below it.
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

// group looks at the group with a path. ok is false for one that was removed.
func (h Hierarchy) group(path string) (g Group, ok bool) {
	var st unix.Stat_t
	if unix.Lstat(h.Root+path, &st) != nil {
		return Group{}, false
	}
	return Group{Path: path, Inode: st.Ino, Leaf: st.Nlink == 2}, true
}

// present is the error of a group, nil if it was removed. The root cannot be.
func present(err error, path string) error {
	if path != "" && Gone(err) {
		return nil
	}
	return err
}

// Gone reports whether an error means that a group was removed.
func Gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// Path returns the path of the group with an ID: the inode number of its folder, as in
// INET_DIAG_CGROUP_ID. The root's is "/". ok is false for one that was removed. It goes
// through the tree.
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
