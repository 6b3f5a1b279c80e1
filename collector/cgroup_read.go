package collector

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/internal/cgroup"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

const (
	// maxCgroups bounds how many groups of the host are looked at, and how many groups
	// below an owner's of all owners together: those may be made by a user or in a
	// container, and take no other owner's place.
	maxCgroups = 1 << 14
	// maxBelow bounds the latter for each owner. A cluster in a container has hundreds.
	maxBelow = 1 << 12
	// maxCgroupPath is the longest path that is shown as a name.
	maxCgroupPath = 256
)

// cgroupReader looks at every control group. It keeps none of their files open: an
// open one keeps the memory of a group that was removed.
type cgroupReader struct {
	*Scope
	pods *owner.Pods
	past cgroupHistory
	buf  []byte
}

func newCgroupReader(k *Scope) *cgroupReader {
	return &cgroupReader{
		Scope: k, pods: owner.NewPods(k.PodsPath), buf: make([]byte, 16<<10),
		past: cgroupHistory{of: map[uint64]*cgroupPast{}},
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
	w := cgroupWalk{cgroupReader: r, tree: tree, files: cgroupVersion(tree.Version), s: s}
	r.past.reading++
	if err := tree.Walk(ctx, func(g cgroup.Group) error { return w.visit(ctx, g) }); err != nil {
		return err
	}
	r.past.end()
	distinguish(s.owners, s.bounded)
	s.count, s.unreadable = number(w.seen+w.below), number(w.unread)
	s.kills = number(r.past.kills)
	if tree.Version == 2 {
		s.ooms = number(r.past.ooms)
	}
	return w.Err()
}

// cgroupWalk is one way through the tree.
type cgroupWalk struct {
	*cgroupReader
	parse.Problems
	tree  cgroup.Hierarchy
	files cgroupFiles
	s     *cgroups
	// seen counts the groups that are below no owner's, below the others.
	seen, below, unread int
}

// visit reads a group that is below no owner's, and if it is an owner's those below it.
func (w *cgroupWalk) visit(ctx context.Context, g cgroup.Group) error {
	if w.seen == maxCgroups {
		w.unread++
		w.Add(fmt.Errorf("%s: more than %d control groups", w.tree.Root, maxCgroups))
		return fs.SkipAll
	}
	w.seen++
	claim := owner.Claimed([]byte("0::" + g.Path + "\n"))
	owns := claim.Kind != "" || g.Leaf || !w.divides(g)
	c := cgroupReading{inode: g.Inode, group: g}
	var err error
	c.owner, err = w.pods.Of(claim)
	w.Add(err)
	// Of version 2 a group's counters have those of the groups below it in them, of those
	// that are gone too.
	total := w.tree.Version == 1 || strings.Count(g.Path, "/") == 1
	if !w.look(g, &c, owns, owns || total) {
		return nil
	}
	past := w.past.note(&c, total)
	if owns {
		if err := w.within(ctx, c, past); err != nil {
			return err
		}
		if w.tree.Version == 1 {
			c.events.Kills = number(past.within)
		}
		c.rose = past.rose
		w.s.owners = append(w.s.owners, c)
		return fs.SkipDir
	}
	return nil
}

// within reads the groups below that of an owner.
func (w *cgroupWalk) within(ctx context.Context, whose cgroupReading, past *cgroupPast) error {
	if whose.group.Leaf {
		return nil
	}
	v1, below := w.tree.Version == 1, 0
	return w.tree.WalkBelow(ctx, whose.group.Path, func(g cgroup.Group) error {
		if below == maxBelow || w.below == maxCgroups {
			w.unread++
			return fs.SkipAll
		}
		below++
		w.below++
		c := cgroupReading{inode: g.Inode, group: whose.group, owner: whose.owner}
		if w.look(g, &c, false, v1) && v1 {
			inner := w.past.note(&c, true)
			past.within += inner.grew
			past.rose = max(past.rose, inner.rose)
		}
		return nil
	})
}

// divides reports whether the groups below one account memory. Those that do not are
// their parent's.
func (w *cgroupWalk) divides(g cgroup.Group) bool {
	if w.tree.Version == 1 {
		return true
	}
	controllers, err := read(w.cgroupReader, w.tree.Root+g.Path, "cgroup.subtree_control", func(b []byte, _ string) (string, error) { return string(b), nil })
	if !cgroup.Gone(err) {
		w.Add(err)
	}
	return err != nil || slices.Contains(strings.Fields(controllers), "memory")
}

// look reads a group: its limit, what it has if it has a limit or is to be counted, and
// what was killed in it if events is set. It is false for one that was removed.
func (w *cgroupWalk) look(g cgroup.Group, c *cgroupReading, counted, events bool) bool {
	err := w.readGroup(w.tree.Root+g.Path, w.files, c, counted, events)
	if cgroup.Gone(err) {
		return false
	}
	if err != nil {
		w.unread++
		w.Add(err)
	}
	if c.limit.Value > 0 && c.used.Present {
		w.s.bounded = append(w.s.bounded, *c)
	}
	return true
}

// readGroup reads the group in a folder.
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
		c.events, err = read(r, dir, files.events, parse.CgroupEvents)
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

// distinguish gives groups that are nobody's their path as a name, and those of which
// several would have one name. A path that cannot be shown is the inode number.
func distinguish(lists ...[]cgroupReading) {
	named := map[string]uint64{} // by name, 0 where several groups would have it
	for _, list := range lists {
		for i := range list {
			c := &list[i]
			c.owner.Name = parse.Printable(c.owner.Name)
			if of, ok := named[c.owner.Name]; ok && of != c.group.Inode {
				named[c.owner.Name] = 0
			} else {
				named[c.owner.Name] = c.group.Inode
			}
		}
	}
	for _, list := range lists {
		for i := range list {
			c := &list[i]
			if c.owner.Name != "" && named[c.owner.Name] != 0 {
				continue
			}
			c.owner.Name = c.group.Path
			if len(c.owner.Name) > maxCgroupPath || parse.Printable(c.owner.Name) != c.owner.Name {
				c.owner.Name = "inode/" + strconv.FormatUint(c.group.Inode, 10)
			}
		}
	}
}

// cgroupHistory remembers the counters of groups.
type cgroupHistory struct {
	of map[uint64]*cgroupPast // by inode
	// kills and ooms are those of all groups since the first reading, of groups that are
	// gone too.
	kills, ooms float64
	reading     int // counts them
	complete    bool
}

// cgroupPast is a group as it was.
type cgroupPast struct {
	// known is set once it was read.
	known       bool
	kills, ooms Number
	grew        float64 // kills, at the last reading
	within      float64 // kills in it and in groups below it, as far as they were noted
	// rose is the last reading at which kills grew, reading the last at which it was
	// there.
	rose, reading int
}

// note compares the counters of a group with what they were, and adds to those of all
// groups if total is set. What a new one has counted happened since the last reading,
// unless it was there before and could not be read, or nobody knows because this is the
// first reading.
func (h *cgroupHistory) note(c *cgroupReading, total bool) *cgroupPast {
	past := h.of[c.inode]
	counts := h.complete
	if past == nil {
		past = new(cgroupPast)
		h.of[c.inode] = past
	} else {
		counts = past.known
	}
	past.known, past.reading = past.known || c.events.Kills.Present, h.reading
	past.grew = grown(c.events.Kills, &past.kills)
	past.within += past.grew
	ooms := grown(c.events.OOMs, &past.ooms)
	if counts && past.grew > 0 {
		past.rose = h.reading
	}
	if counts && total {
		h.kills += past.grew
		h.ooms += ooms
	}
	return past
}

func (h *cgroupHistory) end() {
	h.complete = true
	forget(h.of, maxCgroups, func(p *cgroupPast) int { return p.reading })
}
