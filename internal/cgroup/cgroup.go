// Package cgroup finds the host's control groups and goes through them.
package cgroup

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrForeign means that what is mounted is the tree of a container: the host's has
// more.
var ErrForeign = errors.New("the control groups that are mounted are a container's own")

// A Hierarchy is a tree of control groups.
type Hierarchy struct {
	// Root is where it is mounted.
	Root string
	// Version is 1 or 2. Of version 1 there is a hierarchy for each controller.
	Version int
}

// Memory finds the hierarchy that accounts memory, given where control groups are
// mounted, which is /sys/fs/cgroup: version 2 there, or version 1 in the folder
// memory. The error is fs.ErrNotExist where there is none.
func Memory(path string) (Hierarchy, error) {
	if controllers, err := os.ReadFile(filepath.Join(path, "cgroup.controllers")); err == nil {
		if !slices.Contains(strings.Fields(string(controllers)), "memory") {
			return Hierarchy{}, &fs.PathError{Op: "find the controller memory in", Path: path, Err: fs.ErrNotExist}
		}
		return whole(Hierarchy{path, 2})
	} else if !errors.Is(err, fs.ErrNotExist) {
		return Hierarchy{}, err
	}
	path = filepath.Join(path, "memory")
	if _, err := os.Stat(filepath.Join(path, "memory.usage_in_bytes")); err != nil {
		return Hierarchy{}, err
	}
	return whole(Hierarchy{path, 1})
}

// Unified finds version 2, by itself or beside version 1: the one by whose inode
// numbers sockets name their group.
func Unified(path string) (Hierarchy, error) {
	for _, path := range []string{path, filepath.Join(path, "unified")} {
		if _, err := os.Stat(filepath.Join(path, "cgroup.controllers")); err == nil {
			return whole(Hierarchy{path, 2})
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

// A Group is a control group.
type Group struct {
	Path  string // as in /proc/<pid>/cgroup
	Inode uint64 // of its folder: its ID
	// Leaf is set where there are no groups below it.
	Leaf bool
}

// Walk calls visit for every group but the root, a group before those below it, which
// come in no order. One that is removed meanwhile is left out. A hundred names are held
// at a time, for each level.
func (h Hierarchy) Walk(ctx context.Context, visit func(Group) error) error {
	return h.walk(ctx, "", visit)
}

func (h Hierarchy) walk(ctx context.Context, path string, visit func(Group) error) error {
	dir, err := os.Open(h.Root + path)
	if err != nil {
		return present(err, path)
	}
	defer dir.Close()
	for {
		entries, err := dir.ReadDir(100)
		for _, entry := range entries {
			if !entry.IsDir() {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			child := path + "/" + entry.Name()
			var st unix.Stat_t
			if unix.Lstat(h.Root+child, &st) != nil {
				continue
			}
			g := Group{Path: child, Inode: st.Ino, Leaf: st.Nlink == 2}
			if err := visit(g); err != nil {
				return err
			}
			if !g.Leaf {
				if err := h.walk(ctx, child, visit); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return present(err, path)
		}
	}
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
// INET_DIAG_CGROUP_ID. ok is false for one that was removed. It goes through the tree.
func (h Hierarchy) Path(ctx context.Context, id uint64) (path string, ok bool) {
	_ = h.Walk(ctx, func(g Group) error {
		if g.Inode == id {
			path, ok = g.Path, true
			return io.EOF
		}
		return nil
	})
	return path, ok
}
