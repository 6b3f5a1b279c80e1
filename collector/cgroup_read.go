package collector

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/internal/cgroup"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// maxCgroups bounds how many groups are looked at: whoever has one may make more.
const maxCgroups = 1 << 14

// cgroupReader looks at every control group. It keeps none of their files open: an
// open one keeps the memory of a group that was removed.
type cgroupReader struct {
	*Scope
	pods  *owner.Pods
	kills killHistory
	buf   []byte
}

func newCgroupReader(k *Scope) *cgroupReader {
	return &cgroupReader{
		Scope: k, pods: owner.NewPods(k.PodsPath), buf: make([]byte, 16<<10),
		kills: killHistory{of: map[uint64]*groupKills{}},
	}
}

// cgroupFiles are the files of a version.
type cgroupFiles struct {
	usage, limit, events string
	// sockets is empty where memory.stat has them.
	sockets string
	stat    func([]byte, string) (parse.MemoryStat, error)
}

func cgroupVersion(version int) cgroupFiles {
	if version == 1 {
		return cgroupFiles{
			"memory.usage_in_bytes", "memory.limit_in_bytes", "memory.oom_control", "memory.kmem.tcp.usage_in_bytes", parse.MemoryStatV1,
		}
	}
	return cgroupFiles{"memory.current", "memory.max", "memory.events", "", parse.MemoryStatV2}
}

func (r *cgroupReader) read(ctx context.Context, s *cgroups) error {
	tree, err := cgroup.Memory(r.CgroupPath)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, cgroup.ErrForeign) {
		return &NotSupportedError{Feature: "control groups that account memory", Err: err}
	}
	if err != nil {
		return err
	}
	defer r.Place.Leave()
	files := cgroupVersion(tree.Version)
	var p parse.Problems
	names := map[string]bool{}
	var whose owner.Owner // of the group that the walk is in
	inside := ""          // the path of that one, empty if it is nobody's
	count := 0
	r.kills.begin()
	err = tree.Walk(ctx, func(g cgroup.Group) error {
		if count++; count > maxCgroups {
			return fmt.Errorf("%s: more than %d control groups", tree.Root, maxCgroups)
		}
		if !strings.HasPrefix(g.Path, inside+"/") {
			inside = ""
		}
		c := cgroupReading{inode: g.Inode, owner: whose}
		owns := false
		if inside == "" {
			claim := owner.Claimed([]byte("0::" + g.Path + "\n"))
			owns = claim.Kind != "" || g.Leaf
			c.owner, err = r.pods.Of(claim)
			p.Add(err)
			if c.owner.Name = parse.Printable(c.owner.Name); c.owner.Name == "" || names[c.owner.Name] {
				c.owner.Name = parse.Printable(g.Path)
			}
			names[c.owner.Name] = true
			if owns {
				whose, inside = c.owner, g.Path
			}
		}
		// Of version 2 a group's counter has those of the groups below it, of those that are
		// gone too.
		sum := tree.Version == 1 || strings.Count(g.Path, "/") == 1
		err := r.readGroup(tree.Root+g.Path, files, &c, owns, owns || sum)
		if cgroup.Gone(err) {
			return nil
		}
		p.Add(err)
		r.kills.note(&c, sum)
		if c.limit.Value > 0 && c.used.Present {
			s.bounded = append(s.bounded, c)
		}
		if owns {
			s.owners = append(s.owners, c)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.kills.end()
	s.count, s.kills = number(count), number(r.kills.total)
	return p.Err()
}

// readGroup reads the group in a folder: its limit, and what it has if it has a limit or
// is to be counted, and what was killed in it if events is set.
func (r *cgroupReader) readGroup(dir string, files cgroupFiles, c *cgroupReading, counted, events bool) (err error) {
	var p parse.Problems
	c.limit, err = read(r, dir, files.limit, parse.CgroupLimit)
	if cgroup.Gone(err) {
		return err // the file is there in every group
	}
	p.Add(err)
	if counted || c.limit.Value > 0 {
		usage, err := read(r, dir, files.usage, parse.CgroupLimit)
		p.Add(err)
		stat, err := read(r, dir, "memory.stat", files.stat)
		p.Add(err)
		// Both are read one after the other.
		if c.used = usage.Minus(stat.Files.OrZero(), stat.Slab.OrZero()); c.used.Value < 0 {
			c.used.Value = 0
		}
		c.sockets = stat.Sockets
		if counted && files.sockets != "" {
			c.sockets, err = read(r, dir, files.sockets, parse.CgroupLimit)
			p.Add(absent(err))
		}
	}
	if events {
		c.kills, err = read(r, dir, files.events, parse.CgroupOOMKills)
		p.Add(absent(err))
	}
	return p.Err()
}

// absent is the error of a file that not every kernel has.
func absent(err error) error {
	if isAbsent(err) {
		return nil
	}
	return err
}

// read reads a file of a group with parse.
func read[T any](r *cgroupReader, dir, name string, parse func([]byte, string) (T, error)) (value T, err error) {
	path := dir + "/" + name
	r.Place.Enter(&path)
	b, err := procfile.ReadOnce(path, r.buf)
	if err != nil {
		return value, err
	}
	return parse(b, path)
}

// killHistory adds up what the OOM killer has ended in all groups, those that are gone
// too.
type killHistory struct {
	of       map[uint64]*groupKills // by inode
	total    float64
	reading  int
	complete bool // after the first reading
}

// groupKills is what was killed in a group.
type groupKills struct {
	count         float64
	rose, reading int
}

func (h *killHistory) begin() { h.reading++ }

// note compares the counter of a group with what it was. What a new group has counted
// happened since the last reading, if there was one. It adds to the total if sum is set.
func (h *killHistory) note(c *cgroupReading, sum bool) {
	if !c.kills.Present {
		return
	}
	k := h.of[c.inode]
	if k == nil {
		k = &groupKills{count: c.kills.Value}
		if h.complete {
			k.count = 0
		}
		h.of[c.inode] = k
	}
	by := c.kills.Value - k.count
	if by < 0 {
		by = c.kills.Value // it is another group
	}
	if by > 0 {
		k.rose = h.reading
		if sum {
			h.total += by
		}
	}
	k.count, k.reading, c.rose = c.kills.Value, h.reading, k.rose
}

// end forgets the groups that are gone.
func (h *killHistory) end() {
	h.complete = true
	maps.DeleteFunc(h.of, func(_ uint64, k *groupKills) bool { return k.reading < h.reading })
}
