package who

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// cgroups knows the cgroups of version 2 by their IDs.
type cgroups struct {
	podsOf *owner.Pods
	paths  map[uint64]string // nil before they were looked at
	known  map[uint64]ownedCgroup
}

// ownedCgroup is whose a cgroup is, and its path.
type ownedCgroup struct {
	owner.Owner
	path string
}

func (c *cgroups) pods(q *inquiry) *owner.Pods {
	if c.podsOf == nil {
		c.podsOf = owner.NewPods(q.PodsPath)
	}
	return c.podsOf
}

// maxCgroups bounds how many are looked at.
const maxCgroups = 1 << 17

// cgroupPath returns the path of the cgroup with an ID, as in /proc/<pid>/cgroup; ok is
// false for one that was removed, or where there is no version 2.
func (q *inquiry) cgroupPath(id uint64) (path string, ok bool) {
	c := &q.groups
	if c.paths == nil {
		c.paths = map[uint64]string{}
		root := q.cgroupRoot()
		if root == "" {
			return "", false
		}
		// The ID of a cgroup is the inode number of its folder on 64-bit machines, and its
		// lower half on others.
		_ = filepath.WalkDir(root, func(at string, d fs.DirEntry, err error) error {
			if err != nil || len(c.paths) == maxCgroups {
				return fs.SkipDir
			}
			if !d.IsDir() {
				return nil
			}
			var st unix.Stat_t
			if unix.Lstat(at, &st) == nil {
				c.paths[st.Ino] = "/" + strings.TrimPrefix(strings.TrimPrefix(at, root), "/")
			}
			return nil
		})
	}
	path, ok = c.paths[id]
	return path, ok
}

// cgroupRoot is where version 2 is mounted, by itself or beside version 1.
func (q *inquiry) cgroupRoot() string {
	for _, name := range []string{"fs/cgroup", "fs/cgroup/unified"} {
		root := filepath.Join(q.SysPath, name)
		var st unix.Statfs_t
		if unix.Statfs(root, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return root
		}
	}
	return ""
}

// socketOwner returns whose a socket is, given the ID of its cgroup, and the path of that.
func (q *inquiry) socketOwner(id uint64) (owner.Owner, string) {
	if id == 0 {
		return owner.Owner{}, ""
	}
	c, known := q.groups.known[id]
	if !known {
		c = ownedCgroup{path: fmt.Sprintf("(cgroup %d)", id)}
		if path, ok := q.cgroupPath(id); ok {
			c.Owner, _ = q.ownerOf([]byte("0::" + path + "\n"))
			c.path = parse.Printable(path)
		}
		if q.groups.known == nil {
			q.groups.known = map[uint64]ownedCgroup{}
		}
		q.groups.known[id] = c
	}
	return c.Owner, c.path
}
