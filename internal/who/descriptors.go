package who

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// wholeProcess is the number of descriptors up to which all of a process are read.
	// Each takes some microseconds, and keeps 800 bytes in the kernel's caches as long as
	// it is open: for two million that would be ten seconds and 1.6 GB. For a process
	// with more, a random sample is read, and the total is estimated.
	wholeProcess = 1024
	// sampled and sampledWell are sample sizes: to name the processes of a group, and to
	// group by process.
	sampled     = 64
	sampledWell = 256
	// maxLooked bounds the sockets that are remembered by inode, to 8 MB.
	maxLooked = 1 << 19
)

// holders has, for each inode of a socket, the process that has it open. It is an
// open-addressed table of 8 bytes per entry, a third of what a map takes. Inodes of
// sockets have 32 bits, and 0 means none.
type holders struct {
	slots []holder // the length is a power of two
	n     int
}

type holder struct{ inode, process uint32 }

func (h *holders) place(inode uint32) uint32 {
	return (inode * 2654435769) & uint32(len(h.slots)-1) // Knuth's multiplier; it spreads runs of inodes
}

// set records the holder of an inode, and replaces the previous one.
func (h *holders) set(inode, process uint32) {
	if 4*(h.n+1) > 3*len(h.slots) {
		old := h.slots
		h.slots = make([]holder, max(2*len(old), 1024))
		h.n = 0
		for _, s := range old {
			if s.inode != 0 {
				h.set(s.inode, s.process)
			}
		}
	}
	for i := h.place(inode); ; i = (i + 1) & uint32(len(h.slots)-1) {
		switch h.slots[i].inode {
		case inode:
			h.slots[i].process = process
			return
		case 0:
			h.slots[i] = holder{inode, process}
			h.n++
			return
		}
	}
}

func (h *holders) find(inode uint32) (process uint32, ok bool) {
	if h.n == 0 {
		return 0, false
	}
	for i := h.place(inode); ; i = (i + 1) & uint32(len(h.slots)-1) {
		switch h.slots[i].inode {
		case inode:
			return h.slots[i].process, true
		case 0:
			return 0, false
		}
	}
}

// lookAtDescriptors finds the sockets that processes have open. Of a process with more
// than wholeProcess descriptors it reads a sample of the given size.
func (q *inquiry) lookAtDescriptors(sample int) error {
	w := &q.processes
	err := q.eachProcess(func(pid int, dir string) error {
		if w.inodes.n >= maxLooked {
			w.crowded++
			return nil
		}
		err := q.eachDescriptor(pid, dir, sample, func(at uint32, link []byte) {
			inode, ok := socketInode(link)
			if !ok {
				return
			}
			// If several share a socket it is the oldest, usually their parent.
			if other, known := w.inodes.find(inode); !known || pid < w.list[other].pid {
				w.inodes.set(inode, at)
			}
		})
		if errors.Is(err, fs.ErrPermission) {
			w.hidden++
			return nil
		}
		return err
	})
	if w.crowded > 0 {
		q.note("The descriptors of %s were not read because there are too many.", some(float64(w.crowded), "processes"))
	}
	if w.hidden > 0 {
		q.note("The descriptors of %s are hidden from this user (reading them needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH). Their sockets are listed by user, and by unit if the kernel reports it.", some(float64(w.hidden), "processes"))
	}
	return err
}

// firstOnes means a sample of the lowest descriptors, maxFirst at most.
const firstOnes = -1

// maxFirst is how many descriptors are read for firstOnes.
const maxFirst = 4096

// eachDescriptor calls visit with the link of each descriptor of a process, or of a
// sample if there are more than wholeProcess. at is the process's index in the list, to
// which it is added.
func (q *inquiry) eachDescriptor(pid int, dir string, sample int, visit func(at uint32, link []byte)) error {
	folder, err := unix.Open(dir+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir + "/fd", Err: err}
	}
	defer unix.Close(folder)
	at, err := q.processAt(pid, dir)
	if err != nil {
		return err
	}
	p := q.processes.list[at]
	numbers, open, err := descriptors(folder, p.table, sample)
	if err != nil {
		return err
	}
	enough := open
	switch {
	case sample == firstOnes:
		enough = min(open, maxFirst)
	case open > wholeProcess:
		enough = sample
	}
	p.open, p.looked = open, 0
	var link [256]byte
	for n := range numbers {
		size, err := unix.Readlinkat(folder, strconv.Itoa(n), link[:])
		switch {
		case errors.Is(err, unix.ENOENT):
			continue
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			return &fs.PathError{Op: "readlink", Path: dir + "/fd/" + strconv.Itoa(n), Err: err}
		case err != nil:
			return nil //nolint:nilerr // it has ended
		}
		p.looked++
		visit(at, link[:size])
		if p.looked == enough {
			break
		}
	}
	return nil
}

// descriptors returns the numbers of a process's descriptors, and how many are open. The
// numbers are in order, or random if a sample is enough; then some may not be open. table
// is the value from its status.
func descriptors(folder, table, sample int) (iter.Seq[int], int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(folder, &st); err != nil {
		return nil, 0, err
	}
	// The size is their number since Linux 6.2. A table that is nearly empty, or of
	// unknown size, is listed.
	open := int(st.Size)
	if !isProc(folder) || open == 0 || table == 0 || table > 4*open+64 {
		list, err := listed(folder)
		if err != nil {
			return nil, 0, err
		}
		if len(list) > wholeProcess && sample != firstOnes {
			random := rand.New(rand.NewPCG(1, uint64(len(list))))
			random.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		}
		return slices.Values(list), len(list), nil
	}
	if open <= wholeProcess || sample == firstOnes {
		return func(yield func(int) bool) {
			for n := 0; n < table && yield(n); n++ {
			}
		}, open, nil
	}
	return func(yield func(int) bool) {
		random := rand.New(rand.NewPCG(uint64(table), uint64(open)))
		seen := make(map[int]bool, 4*sample)
		for range 64 * sample {
			n := random.IntN(table)
			if seen[n] {
				continue
			}
			seen[n] = true
			if !yield(n) {
				return
			}
		}
	}, open, nil
}

// listed lists the descriptors in a folder.
func listed(folder int) ([]int, error) {
	fd, err := unix.FcntlInt(uintptr(folder), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "fd")
	defer f.Close()
	entries, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	list := make([]int, 0, len(entries))
	for _, e := range entries {
		if n, err := strconv.Atoi(e); err == nil {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, nil
}

// isProc reports whether a folder is in a procfs, and not in a copy.
func isProc(folder int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(folder, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

// socketInode returns the inode in a link such as socket:[123].
func socketInode(link []byte) (uint32, bool) {
	number, ok := bytes.CutPrefix(link, []byte("socket:["))
	if !ok {
		return 0, false
	}
	inode, err := strconv.ParseUint(string(bytes.TrimSuffix(number, []byte("]"))), 10, 32)
	return uint32(inode), err == nil && inode != 0
}

// kindOf returns the kind of file that a descriptor links to.
func kindOf(link string) string {
	kind, rest, ok := strings.Cut(link, ":")
	switch {
	case !ok || strings.HasPrefix(link, "/"):
		switch {
		case strings.HasPrefix(link, "/memfd:"):
			return "memfd"
		case strings.HasSuffix(link, " (deleted)"):
			return "deleted file"
		case strings.HasPrefix(link, "/dev/"):
			return "device"
		}
		return "file"
	case kind == "anon_inode":
		return strings.Trim(rest, "[]") // eventfd, eventpoll, timerfd, io_uring, ...
	}
	return kind // socket, pipe, ...
}

// findHolders searches the first descriptors of all processes for sockets by inode, and
// returns the processes that have each open. It is meant for listeners, which are opened
// early.
func (q *inquiry) findHolders(inodes map[uint32]bool) (map[uint32][]uint32, error) {
	of := map[uint32][]uint32{}
	if len(inodes) == 0 {
		return of, nil
	}
	w := &q.processes
	err := q.eachProcess(func(pid int, dir string) error {
		err := q.eachDescriptor(pid, dir, firstOnes, func(at uint32, link []byte) {
			if inode, ok := socketInode(link); ok && inodes[inode] && !slices.Contains(of[inode], at) {
				of[inode] = append(of[inode], at)
			}
		})
		if errors.Is(err, fs.ErrPermission) {
			w.hidden++
			return nil
		}
		return err
	})
	for _, held := range of {
		slices.SortFunc(held, func(a, b uint32) int { return cmp.Compare(w.list[a].pid, w.list[b].pid) })
	}
	if w.hidden > 0 {
		q.note("The descriptors of %s are hidden from this user (reading them needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH).", some(float64(w.hidden), "processes"))
	}
	return of, err
}
