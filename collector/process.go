package collector

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

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
	unreadable int
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
		Open: func(k *Kernel) func(context.Context, *processes) error {
			return func(ctx context.Context, s *processes) error { return readProcesses(ctx, k, s) }
		},
		Metrics: []Metric[processes]{
			{
				Name:   "process_open_file_descriptors",
				Help:   "Open descriptors of the process nearest to its limit of those with this name; names nearest to the limit only. From /proc/<pid>/fd.",
				Labels: []string{"process"},
				Values: func(s *processes, emit Emit) {
					for _, p := range s.worst {
						emit(number(p.open), p.name)
					}
				},
			},
			{
				Name:   "process_file_descriptors_limit",
				Help:   "The limit of that process, the soft one. From /proc/<pid>/limits.",
				Labels: []string{"process"},
				Values: func(s *processes, emit Emit) {
					for _, p := range s.worst {
						emit(number(p.limit), p.name)
					}
				},
			},
			{
				Name:  "processes_unreadable",
				Help:  "Processes whose descriptors this exporter may not count: they stand in no other number here.",
				Value: func(s *processes) Number { return number(s.unreadable) },
			},
		},
		Limits: []Limit[processes]{{
			LimitInfo: LimitInfo{
				Resource: "process_file_descriptors", Unit: Descriptors, Sysctl: "ulimit -n, LimitNOFILE=, up to fs.nr_open", Warning: 0.8, Critical: 0.95,
				Effect: "open, socket and accept of that process fail with EMFILE.",
			},
			Usage: func(s *processes) Number {
				return ofFirst(s.worst, func(p processFiles) float64 { return p.open })
			},
			Limit: func(s *processes) Number {
				return ofFirst(s.worst, func(p processFiles) float64 { return p.limit })
			},
		}},
	})
}

// readProcesses looks at every process. One that ends meanwhile is left out.
func readProcesses(ctx context.Context, k *Kernel, s *processes) error {
	procFS, err := procfs.NewFS(k.procPath)
	if err != nil {
		return err
	}
	// Who is not shown process 1 is shown no process but those of its own user, which
	// say nothing about the host.
	if _, err := os.Stat(filepath.Join(k.procPath, "1")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("processes are hidden (mount option hidepid), which root with CAP_SYS_PTRACE, or the group of its option gid, may see: %w", err)
	}
	procs, err := procFS.AllProcs()
	if err != nil {
		return fmt.Errorf("%s: %w", k.procPath, err)
	}
	sized := hasSizedFolders(k.procPath)
	// Its own descriptors are listed by one more, which is not open otherwise.
	self := ""
	if !sized {
		self, _ = os.Readlink(filepath.Join(k.procPath, "self"))
	}

	buf := make([]byte, 4096)
	var all []processFiles
	for _, p := range procs {
		if err := ctx.Err(); err != nil {
			return err
		}
		open, err := countFiles(k.procPath, p, sized)
		switch {
		case errors.Is(err, fs.ErrPermission):
			s.unreadable++
			continue
		case isGone(err), err == nil && open == 0:
			continue
		case err != nil:
			return fmt.Errorf("descriptors of process %d: %w", p.PID, err)
		}
		if strconv.Itoa(p.PID) == self {
			open--
		}
		limit, err := softLimit(filepath.Join(k.procPath, strconv.Itoa(p.PID), "limits"), buf)
		if isGone(err) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return fmt.Errorf("limits of process %d: %w", p.PID, err)
		}
		// No limit, or one of 0 under which a process may keep what it has open.
		if limit == 0 {
			continue
		}
		all = append(all, processFiles{pid: p.PID, open: float64(open), limit: float64(limit)})
	}

	slices.SortFunc(all, func(a, b processFiles) int {
		return cmp.Or(cmp.Compare(b.ratio(), a.ratio()), cmp.Compare(a.pid, b.pid))
	})
	seen := map[string]bool{}
	for _, p := range all {
		if len(s.worst) == k.top {
			break
		}
		comm, err := procfile.ReadOnce(filepath.Join(k.procPath, strconv.Itoa(p.pid), "comm"), buf)
		if err != nil {
			continue
		}
		// The name is what the process chose: any bytes.
		p.name = cmp.Or(strings.ToValidUTF8(string(bytes.TrimSpace(comm)), "?"), "?")
		if !seen[p.name] {
			seen[p.name] = true
			s.worst = append(s.worst, p)
		}
	}
	return nil
}

// hasSizedFolders says whether the size of /proc/<pid>/fd is the number of
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

func countFiles(proc string, p procfs.Proc, sized bool) (int, error) {
	if sized {
		return folderSize(filepath.Join(proc, strconv.Itoa(p.PID), "fd"))
	}
	return p.FileDescriptorsLen()
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

// isGone says whether err means that a process has ended.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
