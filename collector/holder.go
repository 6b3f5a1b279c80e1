package collector

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/cgroup"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// Holder is the process, user or owner that holds part of what a limit counts.
type Holder struct {
	// Process is the command name of the process and PID its number in the procfs. They
	// are empty and 0 if not known.
	Process string
	PID     int
	// UID is the user that the process runs as, or that opened the sockets.
	UID Number
	// Owner is the pod, container or unit that the process or its sockets belong to.
	Owner owner.Owner
	// Share is the part of the usage that it holds, from 0 to 1.
	Share float64

	amount float64 // in the unit of the limit, 0 for all
}

// Percent formats the share as a percentage, for people.
func (h *Holder) Percent() string { return share(100 * h.Share) }

// of returns the holder with its share of usage, nil if h is nil.
func (h *Holder) of(usage float64) *Holder {
	if h == nil {
		return nil
	}
	shared := *h
	shared.Share = 1
	if h.amount > 0 && h.amount < usage {
		shared.Share = h.amount / usage
	}
	return &shared
}

// String describes the holder for people, as in "haproxy (process 812, user 99) of
// unit/haproxy.service".
func (h *Holder) String() string {
	var who, details []string
	if h.PID != 0 {
		details = append(details, "process "+strconv.Itoa(h.PID))
	}
	if h.UID.Present {
		details = append(details, "user "+strconv.FormatFloat(h.UID.Value, 'f', -1, 64))
	}
	if h.Process != "" {
		who = append(who, h.Process)
	}
	if h.Process != "" && len(details) > 0 {
		who = append(who, "("+strings.Join(details, ", ")+")")
	}
	if h.Process != "" && h.Owner.Name != "" {
		who = append(who, "of")
	}
	if h.Owner.Name != "" {
		who = append(who, h.Owner.Name)
	}
	if h.Process == "" && h.Owner.Name == "" {
		who = details
	}
	return strings.Join(who, " ")
}

// labels returns the label values for saturation_holder_ratio.
func (h *Holder) labels(resource, item string) []string {
	return []string{resource, item, h.Process, h.Owner.Name, parse.Printable(h.Owner.Namespace), parse.Printable(h.Owner.Pod)}
}

// A holding is what a reading found out about a holder: numbers, which holders resolves
// to names.
type holding struct {
	// resource is the limit, if it is not that of the list.
	resource string
	pid      int
	// sockets are the inodes of some sockets of the holder, and uid is their user.
	sockets []uint32
	cgroup  uint64
	uid     Number
	owner   owner.Owner
	amount  float64 // in the unit of the limit, 0 for all
}

// near reports whether a limit is near enough to determine its holder.
func near(saturation, warning float64) bool { return saturation >= warning/2 }

// holders determines the holders of limits. It is used for a few limits at a time, when
// they are near: to find the process of a socket, it searches the descriptors of
// processes.
type holders struct {
	machine *kernel.Machine
	pods    *owner.Pods
	// found is where sockets were found at recent searches: most are still there.
	found map[uint32]descriptor
}

// descriptor is an open file of a process.
type descriptor struct{ pid, fd int }

const (
	// maxDescriptors bounds how many descriptors of each process are read, and maxLooks
	// those of all processes together, which takes 0.1 s. Listeners are opened first, and
	// any thousand descriptors contain some of a pair's thousands of connections.
	maxDescriptors = 1024
	maxLooks       = 100_000
	// maxFound bounds the memory.
	maxFound = 64
)

func newHolders(m *kernel.Machine) *holders {
	return &holders{machine: m, pods: owner.NewPods(m.PodsPath), found: map[uint32]descriptor{}}
}

// name returns the holders that the holdings belong to, nil for those of which nothing is
// known.
func (h *holders) name(ctx context.Context, of []holding) []*Holder {
	h.find(ctx, of)
	named := make([]*Holder, len(of))
	for i, o := range of {
		who := Holder{PID: o.pid, UID: o.uid, Owner: o.owner, amount: o.amount}
		switch {
		case o.pid != 0:
			h.describe(&who)
		case o.cgroup != 0:
			who.Owner = h.ownerOf(ctx, o.cgroup)
		}
		if who.Process != "" || who.Owner.Name != "" || who.UID.Present {
			named[i] = &who
		}
	}
	return named
}

// describe adds the name, the user and the owner of a process, unless it has ended.
func (h *holders) describe(who *Holder) {
	dir := filepath.Join(h.machine.ProcPath, strconv.Itoa(who.PID))
	buf := make([]byte, 4096)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		who.PID = 0
		return
	}
	if comm, err := procfile.ReadOnce(dir+"/comm", buf); err == nil {
		who.Process = parse.Printable(strings.TrimSpace(string(comm)))
	}
	who.UID = number(st.Uid)
	if b, err := procfile.ReadOnce(dir+"/cgroup", buf); err == nil && who.Owner.Name == "" {
		who.Owner, _ = h.pods.Owner(b)
		who.Owner.Name = parse.Printable(who.Owner.Name)
	}
	// If the inode has changed, the PID is another process's.
	var after unix.Stat_t
	if err := unix.Stat(dir, &after); err != nil || after.Ino != st.Ino {
		*who = Holder{amount: who.amount}
	}
}

// ownerOf returns the owner of the cgroup with the given ID, the zero Owner if it cannot
// be determined. Any user may look up a cgroup, whereas processes of others are hidden
// from most users.
func (h *holders) ownerOf(ctx context.Context, id uint64) owner.Owner {
	tree, err := cgroup.Unified(h.machine.CgroupPath)
	if err != nil {
		return owner.Owner{}
	}
	path, ok := tree.Path(ctx, id)
	if !ok {
		return owner.Owner{}
	}
	whose, _ := h.pods.Owner([]byte("0::" + path + "\n"))
	whose.Name = parse.Printable(whose.Name)
	return whose
}

// find finds the processes that the sockets of holdings belong to, as far as this user
// may see them.
func (h *holders) find(ctx context.Context, of []holding) {
	wanted := map[uint32]*holding{}
	for i := range of {
		o := &of[i]
		for _, inode := range o.sockets {
			if at, ok := h.found[inode]; ok && o.pid == 0 && h.link(at) == inode {
				o.pid = at.pid
			}
		}
		if o.pid != 0 {
			continue
		}
		for _, inode := range o.sockets {
			if inode != 0 {
				wanted[inode] = o
			}
		}
	}
	if len(wanted) == 0 {
		return
	}
	looks := 0
	_ = procfile.EachProcess(h.machine.ProcPath, func(pid int, _ uint64) error {
		if looks >= maxLooks || len(wanted) == 0 {
			return context.Canceled
		}
		dir, err := os.Open(filepath.Join(h.machine.ProcPath, strconv.Itoa(pid), "fd"))
		if err != nil {
			return ctx.Err()
		}
		defer dir.Close()
		names, _ := dir.Readdirnames(maxDescriptors)
		for _, name := range names {
			looks++
			fd, err := strconv.Atoi(name)
			if err != nil {
				continue
			}
			at := descriptor{pid, fd}
			inode := h.link(at)
			o := wanted[inode]
			if o == nil {
				continue
			}
			o.pid = pid
			if len(h.found) >= maxFound {
				clear(h.found)
			}
			h.found[inode] = at
			for _, inode := range o.sockets {
				delete(wanted, inode)
			}
		}
		return ctx.Err()
	})
}

// link returns the inode of the socket that a descriptor refers to, 0 if it is not a
// socket.
func (h *holders) link(at descriptor) uint32 {
	var buf [64]byte
	n, err := unix.Readlink(filepath.Join(h.machine.ProcPath, strconv.Itoa(at.pid), "fd", strconv.Itoa(at.fd)), buf[:])
	if err != nil {
		return 0
	}
	inode, ok := strings.CutPrefix(string(buf[:n]), "socket:[")
	number, err := strconv.ParseUint(strings.TrimSuffix(inode, "]"), 10, 32)
	if !ok || err != nil {
		return 0
	}
	return uint32(number)
}

// socketGroup identifies the sockets of an item that one user opened in one cgroup.
type socketGroup struct {
	cgroup uint64
	uid    uint32
}

// socketGroups counts the sockets of one item by user and cgroup.
type socketGroups map[socketGroup]*holding

const (
	// maxGroups bounds the number of groups that are distinguished, maxSockets the number
	// of inodes that are kept for each.
	maxGroups  = 64
	maxSockets = 16
)

func (g socketGroups) add(key socketGroup, inode uint32) {
	h := g[key]
	if h == nil {
		if len(g) == maxGroups {
			return
		}
		h = &holding{cgroup: key.cgroup, uid: number(key.uid)}
		g[key] = h
	}
	h.amount++
	if inode != 0 && len(h.sockets) < maxSockets {
		h.sockets = append(h.sockets, inode)
	}
}

// most returns the group with the most sockets.
func (g socketGroups) most() (most holding) {
	for _, h := range g {
		if h.amount > most.amount || h.amount == most.amount && slices.Compare(h.sockets, most.sockets) < 0 {
			most = *h
		}
	}
	return most
}
