package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/internal/cgroup"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

const (
	// maxCgroups bounds the number of the host's cgroups that are read and, separately,
	// the number of cgroups below those of all owners together. The latter can be created
	// by a user or inside a container, and must not take the place of another owner.
	maxCgroups = 1 << 14
	// maxBelow bounds the number of cgroups below one owner's. A cluster in a container
	// has hundreds.
	maxBelow = 1 << 12
	// maxCgroupPath is the length of the longest path that is used as a name.
	maxCgroupPath = 256
)

// cgroupReader reads every cgroup. It keeps none of their files open, because an open
// file keeps the memory of a removed cgroup allocated.
type cgroupReader struct {
	*Scope
	pods   *owner.Pods
	vmstat kernel.File
	past   cgroupHistory
	buf    []byte
}

func newCgroupReader(k *Scope) *cgroupReader {
	return &cgroupReader{
		Scope: k, pods: owner.NewPods(k.PodsPath), vmstat: k.Proc("vmstat"), buf: make([]byte, 16<<10),
		past: cgroupHistory{of: map[uint64]*cgroupPast{}},
	}
}

// cgroupFiles are the files of one cgroup version.
type cgroupFiles struct {
	usage, limit, events string
	// sockets is empty if memory.stat has the socket memory.
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
		return &NotSupportedError{Feature: "cgroups that account for memory", Err: err}
	}
	if err != nil {
		return err
	}
	w := cgroupWalk{cgroupReader: r, tree: tree, files: cgroupVersion(tree.Version), s: s}
	w.Add(r.past.begin(r.vmstat))
	defer r.Place.Leave()
	if err := tree.Walk(ctx, func(g cgroup.Group) error { return w.visit(ctx, g) }); err != nil {
		return err
	}
	w.nearest()
	r.past.end()
	distinguish(s.owners, s.bounded)
	s.count, s.unreadable = number(w.seen+w.below), number(w.unread)
	s.kills = number(r.past.kills)
	if tree.Version == 2 {
		s.ooms = number(r.past.ooms)
	}
	return w.Err()
}

// cgroupWalk is one walk through the tree.
type cgroupWalk struct {
	*cgroupReader
	parse.Problems
	tree  cgroup.Hierarchy
	files cgroupFiles
	s     *cgroups
	// bounded are the cgroups that have a limit.
	bounded []*cgroupReading
	// seen counts the cgroups that are not below an owner's, below the others.
	seen, below, unread int
}

// visit reads a cgroup that is not below an owner's and, if it has an owner itself, the
// cgroups below it.
func (w *cgroupWalk) visit(ctx context.Context, g cgroup.Group) error {
	if w.seen == maxCgroups {
		w.unread++
		w.Add(fmt.Errorf("%s: more than %d cgroups", w.tree.Root, maxCgroups))
		return fs.SkipAll
	}
	w.seen++
	claim := owner.Claimed([]byte("0::" + g.Path + "\n"))
	owns := claim.Kind != "" || g.Leaf || !w.divides(g)
	whose, err := w.pods.Of(claim)
	w.Add(err)
	c := &cgroupReading{path: g.Path, inode: g.Inode, group: g, owner: whose, past: w.past.find(g.Inode)}
	if !w.look(c, owns) {
		return nil
	}
	// In version 2 a cgroup's counters include those of the cgroups below it, even of
	// those that no longer exist.
	switch v1, top := w.tree.Version == 1, strings.Count(g.Path, "/") == 1; {
	case v1 || top:
		w.count(c, true, !v1)
	case owns:
		w.count(c, false, false)
	}
	if !owns {
		return nil
	}
	if err := w.within(ctx, c); err != nil {
		return err
	}
	if w.tree.Version == 1 {
		c.events.Kills = number(c.past.within)
	}
	w.s.owners = append(w.s.owners, c)
	return fs.SkipDir
}

// within reads the cgroups below an owner's.
func (w *cgroupWalk) within(ctx context.Context, whose *cgroupReading) error {
	if whose.group.Leaf {
		return nil
	}
	below := 0
	return w.tree.WalkBelow(ctx, whose.path, func(g cgroup.Group) error {
		if below == maxBelow || w.below == maxCgroups {
			w.unread++
			return fs.SkipAll
		}
		below++
		w.below++
		c := &cgroupReading{path: g.Path, inode: g.Inode, group: whose.group, owner: whose.owner, past: w.past.find(g.Inode)}
		if w.look(c, false) && w.tree.Version == 1 {
			w.count(c, true, false)
			whose.past.within += c.past.grew
			whose.past.rose = max(whose.past.rose, c.past.rose)
		}
		return nil
	})
}

// divides reports whether the cgroups below g account for memory themselves. If they do
// not, their memory is accounted to g.
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

// failed records that part of a cgroup could not be read, unless the cgroup has been
// removed in the meantime.
func (w *cgroupWalk) failed(c *cgroupReading, err error) {
	if err == nil || cgroup.Gone(err) {
		return
	}
	w.Add(err)
	if !c.failed {
		c.failed = true
		w.unread++
	}
}

// look reads the limit of a cgroup and, if the cgroup has a limit or an owner, its usage.
// It returns false for a cgroup that was removed or does not account for memory.
func (w *cgroupWalk) look(c *cgroupReading, owns bool) bool {
	dir, past := w.tree.Root+c.path, c.past
	if past.limitRead == 0 || past.near || (uint64(w.past.reading)+c.inode)%freshEvery == 0 {
		limit, err := read(w.cgroupReader, dir, w.files.limit, parse.CgroupLimit)
		if cgroup.Gone(err) {
			return false
		}
		w.failed(c, err)
		past.limit, past.limitRead = limit, w.past.reading
		if err != nil {
			past.limitRead = 0
		}
	}
	c.limit = past.limit
	if !owns && c.limit.Value == 0 {
		return true
	}
	var err error
	c.usage, err = read(w.cgroupReader, dir, w.files.usage, parse.CgroupLimit)
	if cgroup.Gone(err) {
		return false
	}
	w.failed(c, err)
	if owns {
		w.stat(c)
		if w.files.sockets != "" {
			c.sockets, err = read(w.cgroupReader, dir, w.files.sockets, parse.CgroupLimit)
			w.failed(c, absent(err))
		}
	}
	if c.limit.Value > 0 && c.usage.Present {
		w.bounded = append(w.bounded, c)
	}
	return true
}

// stat reads how a cgroup's usage is composed. It is called right after reading usage.
func (w *cgroupWalk) stat(c *cgroupReading) {
	stat, err := read(w.cgroupReader, w.tree.Root+c.path, "memory.stat", w.files.stat)
	w.failed(c, err)
	c.sockets = stat.Sockets
	if err != nil {
		return // used would be too high without this part
	}
	if c.used = c.usage.Minus(stat.Files.OrZero(), stat.Slab.OrZero()); c.used.Value < 0 {
		c.used.Value = 0
	}
}

// nearest finds the cgroups that are nearest to their limit. memory.stat is the most
// expensive file to read, and a cgroup cannot be nearer to its limit than its whole usage
// is, so memory.stat is read only for cgroups that may be among the first.
func (w *cgroupWalk) nearest() {
	slices.SortFunc(w.bounded, func(a, b *cgroupReading) int {
		return cmp.Compare(b.usage.Value/b.limit.Value, a.usage.Value/a.limit.Value)
	})
	first := top[*cgroupReading]{
		n:      w.Top,
		before: func(a, b *cgroupReading) bool { return a.saturation() > b.saturation() },
		same:   func(a, b *cgroupReading) bool { return a.group.Inode == b.group.Inode },
	}
	for _, c := range w.bounded {
		if c.past.near = false; !c.used.Present && !c.failed {
			atMost := *c
			atMost.used = c.usage
			if !first.admits(&atMost) {
				continue
			}
			usage, err := read(w.cgroupReader, w.tree.Root+c.path, w.files.usage, parse.CgroupLimit)
			w.failed(c, err)
			if err != nil {
				continue
			}
			c.usage = usage
			w.stat(c)
		}
		if c.used.Present {
			c.past.near = near(c.saturation(), cgroupWarning)
			first.offer(c)
			w.s.bounded = append(w.s.bounded, c)
		}
	}
}

// count reads the number of kills in a cgroup and, if total is set, adds it to the number
// for all cgroups. If there were no kills on the machine, the number has not changed;
// then the file is read only if always is set.
func (w *cgroupWalk) count(c *cgroupReading, total, always bool) {
	if always || w.past.killing || !c.past.known {
		var err error
		c.events, err = read(w.cgroupReader, w.tree.Root+c.path, w.files.events, parse.CgroupEvents)
		w.failed(c, absent(err))
		w.past.note(c, total)
		return
	}
	c.events.Kills, c.past.grew = c.past.kills, 0
}

// absent returns nil for the error of a file that not every kernel has, and err
// otherwise.
func absent(err error) error {
	if isAbsent(err) {
		return nil
	}
	return err
}

// read reads a file of a cgroup with parse.
func read[T any](r *cgroupReader, dir, name string, parse func([]byte, string) (T, error)) (value T, err error) {
	path := dir + "/" + name
	r.Place.Enter(&path)
	b, err := procfile.ReadOnce(path, r.buf)
	if err != nil {
		return value, err
	}
	return parse(b, path)
}

// distinguish names each cgroup that has no owner, or that would share its name with
// another, by its path. If the path cannot be displayed, the name is the inode number.
func distinguish(lists ...[]*cgroupReading) {
	named := map[string]uint64{} // by name, 0 if several cgroups would have it
	for _, list := range lists {
		for _, c := range list {
			c.owner.Name = parse.Printable(c.owner.Name)
			if of, ok := named[c.owner.Name]; ok && of != c.group.Inode {
				named[c.owner.Name] = 0
			} else {
				named[c.owner.Name] = c.group.Inode
			}
		}
	}
	for _, list := range lists {
		for _, c := range list {
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

// cgroupHistory keeps the counters of cgroups, and values that seldom change.
type cgroupHistory struct {
	of map[uint64]*cgroupPast // by inode
	// kills and ooms count over all cgroups since the first reading, including cgroups
	// that no longer exist.
	kills, ooms float64
	reading     int // number of the current reading
	complete    bool
	// now is the number of processes killed on the machine, before that number at the
	// last complete reading. killing is set if it has changed, or changed at the reading
	// before: the machine's counter is incremented a moment before the cgroup's.
	now, before        Number
	killing, unsettled bool
}

// cgroupPast is the state of a cgroup at earlier readings.
type cgroupPast struct {
	// known is set once the counters have been read.
	known       bool
	kills, ooms Number
	grew        float64 // kills at the last reading
	within      float64 // kills recorded in it and in the cgroups below it
	// rose is the last reading at which kills grew, reading the last reading at which the
	// cgroup existed.
	rose, reading int
	since         int // the first reading at which it existed
	// limitRead is the reading at which the limit was read, 0 if it was not. near is set
	// if the cgroup is near its limit.
	limit     Number
	limitRead int
	near      bool
}

func (h *cgroupHistory) begin(vmstat kernel.File) (err error) {
	h.reading++
	b, err := optional(vmstat)
	h.now = Number{}
	if b != nil {
		h.now, err = parse.OOMKills(b, vmstat.Path())
	}
	changed := !h.now.Present || h.now != h.before
	h.killing, h.unsettled = changed || h.unsettled, changed
	return err
}

// find returns the past of a cgroup, or a new one for a new cgroup.
func (h *cgroupHistory) find(inode uint64) *cgroupPast {
	past := h.of[inode]
	if past == nil {
		past = &cgroupPast{since: h.reading}
		h.of[inode] = past
	}
	past.reading = h.reading
	return past
}

// note compares the counters of a cgroup with their previous values and, if total is set,
// adds the differences to those of all cgroups. Everything that a new cgroup has counted
// happened since the last reading, unless the cgroup existed before and could not be
// read, or this is the first reading.
func (h *cgroupHistory) note(c *cgroupReading, total bool) {
	past := c.past
	counts := past.known || h.complete && past.since == h.reading
	past.known = past.known || c.events.Kills.Present
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
}

func (h *cgroupHistory) end() {
	h.complete, h.before = true, h.now
	forget(h.of, 2*maxCgroups, func(p *cgroupPast) int { return p.reading })
}
