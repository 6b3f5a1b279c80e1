package who

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/cgroup"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// cgroups finds the cgroups of version 2 by their IDs.
type cgroups struct {
	podsOf *owner.Pods
	paths  map[uint64]string // nil until they were read
	known  map[uint64]ownedCgroup
}

// ownedCgroup is the owner of a cgroup, and its path.
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

// maxCgroups bounds the number of cgroups that are remembered.
const maxCgroups = 1 << 17

// cgroupPath returns the path of the cgroup with the given ID, as in /proc/<pid>/cgroup.
// ok is false if the cgroup was removed, or if there is no version 2 or only a
// container's.
func (q *inquiry) cgroupPath(id uint64) (path string, ok bool) {
	c := &q.groups
	if c.paths == nil {
		c.paths = map[uint64]string{}
		unified, err := cgroup.Unified(q.CgroupPath)
		if err != nil {
			return "", false
		}
		// The ID is the inode number of the folder on 64-bit machines. On others the
		// inode number is the lower half of the ID.
		var root unix.Stat_t
		if unix.Stat(unified.Root, &root) == nil {
			c.paths[root.Ino] = "/"
		}
		// Names take little time to read, and are also needed for what was found before a
		// stop.
		_ = unified.Walk(context.WithoutCancel(q.ctx), func(g cgroup.Group) error {
			if len(c.paths) < maxCgroups {
				c.paths[g.Inode] = g.Path
			}
			return nil
		})
	}
	path, ok = c.paths[id]
	return path, ok
}

// socketOwner returns the owner of a socket, given the ID of its cgroup, and the path of
// that cgroup.
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
