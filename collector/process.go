package collector

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// processes is one reading of the file descriptors of every process.
type processes struct {
	// worst is, for each name, the process nearest to its limit; nearest first, at most
	// Top of them.
	worst []processFiles
	// most is the process with the most open descriptors.
	most processFiles
	// unreadable counts the processes that this user may not look into.
	unreadable Number
}

// processFiles is the descriptors of one process. Until the process is shown, name may be
// a previous one.
type processFiles struct {
	name        string
	pid         int
	open, limit float64
	place       int  // index in processMemory
	fresh       bool // the limit was read in this reading
}

func (p processFiles) ratio() float64 { return p.open / p.limit }

func processSpec() Spec {
	return define(Definition[processes]{
		Name:      "process",
		Help:      "File descriptors of processes and their limit (RLIMIT_NOFILE), from /proc/<pid>/fd and /proc/<pid>/limits.",
		Privilege: "Before Linux 6.2, counting the descriptors of other users' processes needs root or CAP_DAC_READ_SEARCH. If /proc is mounted with hidepid, it needs CAP_SYS_PTRACE or membership of the group given by the gid mount option.",
		Walk:      true,
		Open: func(k *Scope) func(context.Context, *processes) error {
			return newProcessReader(k).read
		},
		Metrics: []Metric[processes]{{
			Name:  "processes_unreadable",
			Help:  "Processes whose descriptors this exporter may not count, and which are not included in any other metric. The collector fails above 2 % of all processes.",
			Value: func(s *processes) Number { return s.unreadable },
		}},
		Lists: []Lister[processes]{List[processes, processFiles]{
			Items: func(s *processes) iter.Seq[processFiles] {
				if s.worst == nil {
					return nil
				}
				return slices.Values(s.worst)
			},
			Before: processFiles.before,
			Labels: []string{"process"},
			Key:    func(p processFiles) []string { return []string{p.name} },
			Columns: []Metric[processFiles]{
				{
					Name:  "process_open_file_descriptors",
					Help:  "Open file descriptors of the process closest to its limit, per process name, for the names closest to their limit. From /proc/<pid>/fd.",
					Value: func(p *processFiles) Number { return number(p.open) },
				},
				{
					Name:  "process_file_descriptors_limit",
					Help:  "Soft limit on open file descriptors of that process. From /proc/<pid>/limits.",
					Value: func(p *processFiles) Number { return number(p.limit) },
				},
			},
			Holders: func(_ context.Context, _ *processes, of []processFiles) []holding {
				held := make([]holding, len(of))
				for i, p := range of {
					held[i] = holding{pid: p.pid}
				}
				return held
			},
			Limit: &ItemLimit[processFiles]{LimitInfo: LimitInfo{
				Resource: "process_file_descriptors", Unit: Descriptors, WarningRatio: 0.8, CriticalRatio: 0.95,
				Effect: "open, socket and accept of that process fail with EMFILE.",
				Usage:  series("process_open_file_descriptors"), Max: series("process_file_descriptors_limit"),
				List: &ListInfo{
					Title: "Processes closest to their file descriptor limit", Column: "process",
					Hidden: series("processes_unreadable"), HiddenNote: "processes are missing because this user may not inspect them.",
				},
				SetWith: "ulimit -n, LimitNOFILE=, up to fs.nr_open",
				Sysctls: []Sysctl{{"fs.nr_open", Descriptors, false}},
				Sizing: Sizing{
					Needs:   func(l Load) float64 { return l.Ends() / max(l.Processes, 1) },
					Rule:    "connections of one process (two for each client of a proxy), plus its other files",
					Initial: "1,024 (soft); `fs.nr_open` 1,048,576",
					Objects: []Object{{"filp", 192}, {"an entry in the descriptor table", 8}}, OfSocket: true,
					Fresh: 1024, // INR_OPEN_CUR (include/uapi/linux/fs.h), which systemd keeps
					Most:  math.MaxInt32 &^ 63,
					Settings: []Setting{
						{"a systemd unit", "LimitNOFILE=%.0f"},
						{"a container, if its runtime sets no limit", "--ulimit nofile=%.0[1]f:%.0[1]f"},
					},
				},
			}},
		}},
		Holders: func(s *processes) []holding {
			return []holding{{resource: "file_descriptors", pid: s.most.pid, amount: s.most.open}}
		},
	})
}

// maxUnreadable is the largest share of processes that may be unreadable before nothing
// can be said about the worst one.
const maxUnreadable = 0.02

// candidates is how many processes are considered to find different names.
const candidates = 1024

// processReader reads every process.
type processReader struct {
	*Scope
	memory processMemory
	buf    []byte
}

func newProcessReader(k *Scope) *processReader {
	return &processReader{Scope: k, buf: make([]byte, 4096)}
}

// read reads every process. One that ends in the meantime is left out.
func (r *processReader) read(ctx context.Context, s *processes) error {
	if err := r.View().Processes; err != nil {
		return err
	}
	sized := hasSizedFolders(r.ProcPath)
	// The walk's own descriptors are not otherwise open: that of the procfs, and the one
	// through which a process's are listed.
	self, ours := -1, 1
	if link, err := os.Readlink(filepath.Join(r.ProcPath, "self")); err == nil {
		self, _ = strconv.Atoi(link)
	}
	if !sized {
		ours++
	}

	defer r.Place.Leave()
	var p parse.Problems
	worst := nearestProcesses{n: max(candidates, r.Top)}
	all, unreadable := 0, 0
	r.memory.begin(time.Now())
	err := procfile.EachProcess(r.ProcPath, func(pid int, _ uint64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := r.ProcPath + "/" + strconv.Itoa(pid)
		r.Place.Enter(&dir)
		all++
		open, id, err := countFiles(dir, sized)
		if pid == self {
			open -= ours
		}
		f := processFiles{pid: pid, open: float64(open)}
		if err == nil && f.open > s.most.open {
			s.most = f
		}
		what := "descriptors"
		if err == nil && open > 0 {
			what = "limits"
			var k knownLimit
			k, f.place, err = r.memory.find(pid, id, func() (float64, error) { return softLimit(dir+"/limits", r.buf) })
			f.name, f.limit, f.fresh = k.name, k.limit, r.memory.fresh(k)
		}
		switch {
		case procfile.IsGone(err):
			return nil
		case errors.Is(err, fs.ErrPermission):
			unreadable++
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
			return err
		case err != nil:
			p.Add(fmt.Errorf("%s of process %d: %w", what, pid, err))
			unreadable++
		// The limit is 0 if there is none, or if it is 0; then the process may keep what
		// it has open.
		case f.limit > 0:
			worst.offer(f)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.unreadable = number(unreadable)
	if float64(unreadable) > maxUnreadable*float64(all) {
		p.Add(fmt.Errorf("%d of %d processes are hidden from this user, so the process closest to its limit may be missing", unreadable, all))
		return p.Err()
	}
	p.Add(r.choose(s, worst.heap))
	return p.Err()
}

// choose names the processes that are shown, one for each name, with their present limits
// and names. If the limit or name of a running process cannot be read, it fails and shows
// none, because that process may be the worst.
func (r *processReader) choose(s *processes, of []processFiles) (err error) {
	defer func() {
		if err != nil {
			s.worst = nil
		}
	}()
	nearest := nearestFirst(of)
	heap.Init(&nearest)
	seen := map[string]bool{}
	for len(nearest) > 0 && len(s.worst) < r.Top {
		f := &nearest[0]
		dir := r.ProcPath + "/" + strconv.Itoa(f.pid)
		r.Place.Enter(&dir)
		if seen[f.name] {
			heap.Pop(&nearest)
			continue
		}
		if !f.fresh {
			// With its present limit it may no longer be the first.
			limit, err := softLimit(dir+"/limits", r.buf)
			if err != nil && !procfile.IsGone(err) {
				return fmt.Errorf("limits of process %d: %w", f.pid, err)
			}
			if err != nil || limit == 0 { // it has ended, or no longer has a limit
				heap.Pop(&nearest)
				continue
			}
			f.limit, f.fresh = limit, true
			r.memory.note(f.place, limit, "")
			heap.Fix(&nearest, 0)
			continue
		}
		chosen := heap.Pop(&nearest).(processFiles)
		comm, err := procfile.ReadOnce(dir+"/comm", r.buf)
		if procfile.IsGone(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("name of process %d: %w", chosen.pid, err)
		}
		chosen.name = cmp.Or(parse.Printable(strings.TrimSpace(string(comm))), "?")
		r.memory.note(chosen.place, chosen.limit, chosen.name)
		if !seen[chosen.name] {
			seen[chosen.name] = true
			s.worst = append(s.worst, chosen)
		}
	}
	return nil
}

// before orders processes by how near they are to their limit, nearest first.
func (p processFiles) before(o processFiles) bool {
	return cmp.Or(cmp.Compare(o.ratio(), p.ratio()), cmp.Compare(p.pid, o.pid)) < 0
}

// nearestProcesses keeps the n processes that are nearest to their limit, as a heap whose
// root is the farthest of them.
type nearestProcesses struct {
	n    int
	heap []processFiles
}

func (h *nearestProcesses) Len() int           { return len(h.heap) }
func (h *nearestProcesses) Less(i, j int) bool { return h.heap[j].before(h.heap[i]) }
func (h *nearestProcesses) Swap(i, j int)      { h.heap[i], h.heap[j] = h.heap[j], h.heap[i] }
func (h *nearestProcesses) Push(x any)         { h.heap = append(h.heap, x.(processFiles)) }
func (h *nearestProcesses) Pop() any           { panic("unused") }

func (h *nearestProcesses) offer(p processFiles) {
	switch {
	case len(h.heap) < h.n:
		heap.Push(h, p)
	case p.before(h.heap[0]):
		h.heap[0] = p
		heap.Fix(h, 0)
	}
}

// nearestFirst is a heap of processes whose root is the nearest to its limit.
type nearestFirst []processFiles

func (h nearestFirst) Len() int           { return len(h) }
func (h nearestFirst) Less(i, j int) bool { return h[i].before(h[j]) }
func (h nearestFirst) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *nearestFirst) Push(any)          { panic("unused") }
func (h *nearestFirst) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// hasSizedFolders reports whether the size of /proc/<pid>/fd is the number of descriptors
// (Linux 6.2), which makes listing them unnecessary. A process has some descriptors, so
// on older kernels the size is 0. Only a real procfs can be asked.
func hasSizedFolders(proc string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(proc, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		return false
	}
	size, _, err := countFiles("/proc/self", true)
	return err == nil && size > 0
}

// countFiles counts the open descriptors of the process whose folder is dir. id is the
// inode number of its fd folder, as in processMemory.
func countFiles(dir string, sized bool) (n int, id uint64, err error) {
	fds := dir + "/fd"
	var st unix.Stat_t
	if err := unix.Stat(fds, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "stat", Path: fds, Err: err}
	}
	if sized {
		return int(st.Size), st.Ino, nil
	}
	f, err := os.Open(fds)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(512)
		n += len(names)
		if errors.Is(err, io.EOF) {
			return n, st.Ino, nil
		}
		if err != nil {
			return 0, 0, err
		}
	}
}

// softLimit reads the soft limit of descriptors of a process, 0 if there is none.
func softLimit(path string, buf []byte) (float64, error) {
	b, err := procfile.ReadOnce(path, buf)
	if err != nil || len(b) == 0 { // empty while the process is ending
		return 0, err
	}
	limit, err := parse.SoftLimit(b, path)
	return float64(limit), err
}
