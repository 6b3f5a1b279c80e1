package collector

import (
	"bytes"
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// processes is one reading of the file descriptors of every process.
type processes struct {
	// worst is, of each group of processes with the same name, the one nearest to
	// its limit; the nearest first, at most Top of them.
	worst []processFiles
	// unreadable counts the processes that this user may not look into.
	unreadable Number
}

// processFiles is the descriptors of one process.
type processFiles struct {
	name        string
	pid         int
	open, limit float64
}

func (p processFiles) ratio() float64 { return p.open / p.limit }

func processSpec() Spec {
	return define(Definition[processes]{
		Name:      "process",
		Help:      "File descriptors of processes against their limit (RLIMIT_NOFILE), from /proc/<pid>/fd and /proc/<pid>/limits.",
		Privilege: "Before Linux 6.2 the descriptors of other users' processes need root or CAP_DAC_READ_SEARCH. Where /proc is mounted with hidepid, all need CAP_SYS_PTRACE or the group of its option gid.",
		Walk:      true,
		Open: func(k *Scope) func(context.Context, *processes) error {
			return func(ctx context.Context, s *processes) error { return readProcesses(ctx, k, s) }
		},
		Metrics: []Metric[processes]{{
			Name:  "processes_unreadable",
			Help:  "Processes whose descriptors this exporter may not count. If they are more than one in fifty, the collector fails: the worst process may be among them.",
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
					Help:  "Open descriptors of the process nearest to its limit of those with this name; names nearest to the limit only. From /proc/<pid>/fd.",
					Value: func(p *processFiles) Number { return number(p.open) },
				},
				{
					Name:  "process_file_descriptors_limit",
					Help:  "The limit of that process, the soft one. From /proc/<pid>/limits.",
					Value: func(p *processFiles) Number { return number(p.limit) },
				},
			},
			Limit: &ItemLimit[processFiles]{LimitInfo: LimitInfo{
				Resource: "process_file_descriptors", Unit: Descriptors, WarningRatio: 0.8, CriticalRatio: 0.95,
				Effect: "open, socket and accept of that process fail with EMFILE.",
				Usage:  series("process_open_file_descriptors"), Max: series("process_file_descriptors_limit"),
				List: &ListInfo{
					Title: "Processes nearest to their limit of descriptors", Column: "process",
					Hidden: series("processes_unreadable"), HiddenNote: "processes are missing: this user may not look into them.",
				},
				Moves:     "ulimit -n, LimitNOFILE=, up to fs.nr_open",
				Sysctls:   []Sysctl{{"fs.nr_open", Descriptors, false}},
				UnitBytes: 192 + 8, // filp, its place in the table
			}},
		}},
	})
}

// maxUnreadable is the share of processes that may be out of sight before nothing
// can be said of the worst one.
const maxUnreadable = 0.02

// candidates is how many processes are looked at for different names.
const candidates = 1024

// readProcesses looks at every process. One that ends meanwhile is left out.
func readProcesses(ctx context.Context, k *Scope, s *processes) error {
	if err := k.View().Processes; err != nil {
		return err
	}
	sized := hasSizedFolders(k.ProcPath)
	// The walk's own descriptors are not open otherwise: that of the procfs, and that
	// by which a process's are listed.
	self, ours := -1, 1
	if link, err := os.Readlink(filepath.Join(k.ProcPath, "self")); err == nil {
		self, _ = strconv.Atoi(link)
	}
	if !sized {
		ours++
	}

	defer k.Place.Leave()
	var p problems
	buf := make([]byte, 4096)
	worst := nearestProcesses{n: max(candidates, k.Top)}
	all, unreadable := 0, 0
	err := eachProcess(k.ProcPath, func(pid int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := k.ProcPath + "/" + strconv.Itoa(pid)
		k.Place.Enter(&dir)
		all++
		open, err := countFiles(dir, sized)
		switch {
		case errors.Is(err, fs.ErrPermission):
			unreadable++
			return nil
		case isGone(err), err == nil && open == 0:
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
			return err
		case err != nil:
			p.add(fmt.Errorf("descriptors of process %d: %w", pid, err))
			unreadable++
			return nil
		}
		if pid == self {
			open -= ours
		}
		limit, err := softLimit(dir+"/limits", buf)
		switch {
		case isGone(err):
			return nil
		case errors.Is(err, fs.ErrPermission):
			unreadable++
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
			return err
		case err != nil:
			p.add(fmt.Errorf("limits of process %d: %w", pid, err))
			unreadable++
			return nil
		}
		// No limit, or one of 0 under which a process may keep what it has open.
		if limit > 0 {
			worst.offer(processFiles{pid: pid, open: float64(open), limit: float64(limit)})
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.unreadable = number(unreadable)
	if float64(unreadable) > maxUnreadable*float64(all) {
		p.add(fmt.Errorf("%d of %d processes are hidden from this user, and the worst may be among them", unreadable, all))
		return p.err()
	}

	procs, err := procfs.NewFS(k.ProcPath)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, f := range worst.sorted() {
		if len(s.worst) == k.Top {
			break
		}
		proc, err := procs.Proc(f.pid)
		if err != nil {
			continue
		}
		comm, err := proc.Comm()
		if err != nil {
			continue
		}
		f.name = cmp.Or(printable(comm), "?")
		if !seen[f.name] {
			seen[f.name] = true
			s.worst = append(s.worst, f)
		}
	}
	return p.err()
}

// eachProcess calls visit for every process of a procfs. It holds a few hundred
// names at a time: there can be four million.
func eachProcess(procPath string, visit func(pid int) error) error {
	dir, err := os.Open(procPath)
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(512)
		for _, name := range names {
			if pid, err := strconv.Atoi(name); err == nil {
				if err := visit(pid); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", procPath, err)
		}
	}
}

// before orders processes: the nearest to its limit is first.
func (p processFiles) before(o processFiles) bool {
	return cmp.Or(cmp.Compare(o.ratio(), p.ratio()), cmp.Compare(p.pid, o.pid)) < 0
}

// nearestProcesses keeps the n processes that are nearest to their limit, as a heap
// whose root is the farthest of them.
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

// sorted returns them, the nearest first. Nothing may be offered after it.
func (h *nearestProcesses) sorted() []processFiles {
	slices.SortFunc(h.heap, func(a, b processFiles) int {
		if a.before(b) {
			return -1
		}
		return 1
	})
	return h.heap
}

// hasSizedFolders reports whether the size of /proc/<pid>/fd is the number of
// descriptors (Linux 6.2), which spares listing them. A process has some, so
// without that the size is 0. Only a real procfs can be asked.
func hasSizedFolders(proc string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(proc, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		return false
	}
	size, err := folderSize("/proc/self/fd")
	return err == nil && size > 0
}

// countFiles counts the open descriptors of the process whose folder is dir.
func countFiles(dir string, sized bool) (int, error) {
	fds := dir + "/fd"
	if sized {
		return folderSize(fds)
	}
	f, err := os.Open(fds)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n := 0
	for {
		names, err := f.Readdirnames(512)
		n += len(names)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func folderSize(path string) (int, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return int(st.Size()), nil
}

// softLimit reads the soft limit of descriptors of a process; 0 where there is
// none.
func softLimit(path string, buf []byte) (uint64, error) {
	b, err := procfile.ReadOnce(path, buf)
	if err != nil || len(b) == 0 { // empty when the process is just ending
		return 0, err
	}
	return parseSoftLimit(b, path)
}

// parseSoftLimit reads /proc/<pid>/limits (fs/proc/base.c, Linux 2.6.24).
func parseSoftLimit(b []byte, path string) (uint64, error) {
	_, rest, _ := bytes.Cut(b, []byte("\nMax open files "))
	soft, _, _ := procfile.NextField(rest)
	if string(soft) == "unlimited" {
		return 0, nil
	}
	v, err := procfile.Uint(soft, 10)
	if err != nil {
		return 0, fieldError(path, "Max open files", err)
	}
	return v, nil
}

// isGone reports whether err means that a process has ended.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
