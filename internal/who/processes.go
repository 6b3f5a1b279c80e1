package who

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// A measurement is how much of something a process has, and its limit, 0 for none.
type measurement struct {
	amount
	limit float64
}

// readProcesses answers by what each process has.
func readProcesses(measure func(q *inquiry, dir string) (measurement, error)) func(*inquiry) error {
	return func(q *inquiry) error {
		// A unit is its index in whose, because keys are numbers.
		var whose []owner.Owner
		var paths []string
		units := map[string]uint64{}
		hidden := 0
		err := q.eachProcess(func(pid int, dir string) error {
			m, err := measure(q, dir)
			if errors.Is(err, fs.ErrPermission) {
				hidden++
				return nil
			}
			if err != nil || m.count == 0 && m.bytes == 0 {
				return err
			}
			k := key{id: uint64(pid)}
			if q.By != ByProcess || q.Pod != "" || q.Netns != "" || q.Cgroup != "" {
				b, err := procfile.ReadOnce(dir+"/cgroup", make([]byte, 4096))
				if err != nil {
					return err
				}
				o, cgroup := q.ownerOf(b)
				if q.Cgroup != "" && o.Name != q.Cgroup && cgroup != q.Cgroup && !strings.HasPrefix(cgroup, q.Cgroup+"/") {
					return nil
				}
				if asked, err := q.asked(o, strconv.Itoa(pid)); !asked {
					return err
				}
				if q.By != ByProcess {
					name := cmp.Or(o.Name, cgroup)
					id, known := units[name]
					if !known {
						id = uint64(len(whose))
						units[name], whose, paths = id, append(whose, o), append(paths, cgroup)
					}
					k.id = id
				}
			}
			score := m.count
			switch {
			case m.limit > 0:
				score = m.count / m.limit
			case q.row.memory:
				score = m.bytes
			}
			at := q.tally.add(k, m.amount, score)
			if q.By != ByProcess { // the process with the most
				g := &q.tally.groups[at]
				if score > g.votes {
					g.votes, g.limit = score, float64(pid)
				}
				return nil
			}
			q.tally.groups[at].limit = m.limit
			return nil
		})
		if hidden > 0 {
			q.note("%s are hidden from this user (reading them needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH).", some(float64(hidden), "processes"))
		}
		q.answer.Count, q.answer.Memory, q.answer.TooLow = q.tally.all.count, q.tally.all.bytes, q.tally.dropped
		for _, t := range q.tally.groups {
			g := Group{Count: t.count, Memory: t.bytes, score: t.score}
			if q.By != ByProcess {
				o := whose[t.id]
				g.Who = cmp.Or(o.Name, paths[t.id])
				if g.Who == "" || g.Who == "/" {
					g.Who = "in no unit"
				}
				if q.By == ByPod {
					g.Who = "in no pod"
					if o.Pod != "" {
						g.Who = o.Namespace + "/" + o.Pod
					}
				}
				g.Namespace, g.Pod = o.Namespace, o.Pod
				g.PID = int(t.limit) // until it is named
			} else {
				g.PID, g.Limit = int(t.id), t.limit
			}
			q.answer.add(g)
		}
		q.answer.merge()
		q.answer.finish(q.Question.Top)
		q.nameShown()
		return err
	}
}

// nameShown names the processes that are shown, including those in groups.
func (q *inquiry) nameShown() {
	for i := range q.answer.Groups {
		g := &q.answer.Groups[i]
		name := "ended"
		at, err := q.processAt(g.PID, q.ProcPath+"/"+strconv.Itoa(g.PID))
		var p *process
		if err == nil {
			p = q.withOwner(q.processes.list[at])
			name = p.name
		}
		label := (&process{pid: g.PID, name: name}).label()
		if q.By != ByProcess {
			g.Processes, g.PID = []string{label}, 0
			continue
		}
		g.Who = label
		if p != nil {
			g.User, g.Unit = q.user(p.user), cmp.Or(p.owner.Name, p.cgroup)
			g.Namespace, g.Pod = p.owner.Namespace, p.owner.Pod
			if q.row.kinds {
				g.Mostly = q.mostKind(p)
			}
		}
	}
}

// mostKind returns the kind of more than half of a process's descriptors, from a sample
// if there are many. It is empty if there is none, or if the descriptors are hidden.
func (q *inquiry) mostKind(p *process) string {
	of := map[string]int{}
	_ = q.eachDescriptor(p.pid, q.ProcPath+"/"+strconv.Itoa(p.pid), sampled, func(_ uint32, link []byte) {
		of[kindOf(string(link))]++
	})
	for kind, n := range of {
		if 2*n > p.looked {
			return parse.Printable(kind)
		}
	}
	return ""
}

// merge merges groups with the same name, such as all that are in no pod.
func (a *Answer) merge() {
	at := map[string]int{}
	merged := a.Groups[:0]
	for _, g := range a.Groups {
		if i, known := at[g.Who]; known && g.Who != "" {
			if g.score > merged[i].score {
				merged[i].PID = g.PID
			}
			merged[i].Count += g.Count
			merged[i].Memory += g.Memory
			merged[i].score += g.score
			continue
		}
		at[g.Who] = len(merged)
		merged = append(merged, g)
	}
	a.Groups = merged
}

// asked reports whether the question is about a process, given its owner.
func (q *inquiry) asked(o owner.Owner, process string) (bool, error) {
	if q.Pod != "" {
		return o.Namespace+"/"+o.Pod == q.Pod, nil
	}
	if q.Netns == "" {
		return true, nil
	}
	id, err := q.ID(process)
	if err != nil {
		return false, err
	}
	for i, p := range q.places {
		if p.skipped {
			continue
		}
		if i == 0 {
			if p.ID, err = q.ID("1"); err != nil {
				return false, err
			}
		}
		if p.ID == id {
			return true, nil
		}
	}
	return false, nil
}

// countDescriptors counts the open descriptors of a process.
func countDescriptors(_ *inquiry, dir string) (m measurement, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir+"/fd", &st); err != nil {
		return m, &fs.PathError{Op: "stat", Path: dir + "/fd", Err: err}
	}
	if st.Size > 0 { // their number since Linux 6.2
		m.count = float64(st.Size)
		var mount unix.Statfs_t
		if unix.Statfs(dir, &mount) == nil && mount.Type == unix.PROC_SUPER_MAGIC {
			return m, nil
		}
	}
	f, err := os.Open(dir + "/fd")
	if err != nil {
		return m, err
	}
	defer f.Close()
	all, err := f.Readdirnames(-1)
	m.count = float64(len(all))
	return m, err
}

// countThreads counts the threads of a process: the link count of its folder of threads
// is their number plus two.
func countThreads(_ *inquiry, dir string) (m measurement, err error) {
	var st unix.Stat_t
	if err := unix.Stat(dir+"/task", &st); err != nil {
		return m, &fs.PathError{Op: "stat", Path: dir + "/task", Err: err}
	}
	m.count = float64(max(int64(st.Nlink)-2, 0))
	return m, nil
}

// countAgainstLimit counts the open descriptors of a process, with its limit.
func countAgainstLimit(q *inquiry, dir string) (measurement, error) {
	m, err := countDescriptors(q, dir)
	if err != nil || m.count == 0 {
		return m, err
	}
	b, err := procfile.ReadOnce(dir+"/limits", make([]byte, 4096))
	if err != nil || len(b) == 0 {
		return measurement{}, err
	}
	limit, err := parse.SoftLimit(b, dir+"/limits")
	if err != nil || limit == 0 {
		return measurement{}, err
	}
	m.limit = float64(limit)
	return m, nil
}

// Fields of /proc/<pid>/statm (fs/proc/task_mmu.c), in pages.
const (
	statmResident = 1
	statmShared   = 2 // of files and of shared memory
	statmData     = 5 // writable private memory, and stacks
)

// residentMemory returns the resident memory of a process, without that of files and
// shared memory.
func residentMemory(q *inquiry, dir string) (measurement, error) {
	f, err := statm(q, dir)
	return measurement{amount: amount{1, max(f[statmResident]-f[statmShared], 0)}}, err
}

// promisedMemory returns the memory that a process may write and was promised.
func promisedMemory(q *inquiry, dir string) (measurement, error) {
	f, err := statm(q, dir)
	return measurement{amount: amount{1, f[statmData]}}, err
}

func statm(q *inquiry, dir string) (f [statmData + 1]float64, err error) {
	b, err := procfile.ReadOnce(dir+"/statm", make([]byte, 256))
	if err != nil {
		return f, err
	}
	for i := range f {
		var field []byte
		field, b, _ = parse.NextField(bytes.TrimSpace(b))
		n, err := parse.Uint(field, 10)
		if err != nil {
			return f, parse.FieldError(dir+"/statm", strconv.Itoa(i), err)
		}
		f[i] = float64(n) * float64(q.PageSize)
	}
	return f, nil
}

// readKinds answers by the kinds of descriptors, from a sample if a process has very
// many.
func readKinds(q *inquiry) error {
	hidden := 0
	estimated := false
	kinds := map[string]uint64{}
	var names []string
	err := q.eachProcess(func(pid int, dir string) error {
		b, err := procfile.ReadOnce(dir+"/cgroup", make([]byte, 4096))
		if err != nil {
			return err
		}
		if o, _ := q.ownerOf(b); q.Pod != "" || q.Netns != "" {
			if asked, err := q.asked(o, strconv.Itoa(pid)); !asked {
				return err
			}
		}
		of := map[string]float64{}
		at := uint32(0)
		err = q.eachDescriptor(pid, dir, sampledWell, func(place uint32, link []byte) {
			at = place
			of[kindOf(string(link))]++
		})
		if errors.Is(err, fs.ErrPermission) {
			hidden++
			return nil
		}
		if err != nil || len(of) == 0 {
			return err
		}
		p := q.processes.list[at]
		estimated = estimated || p.weight() > 1
		for kind, n := range of {
			id, known := kinds[kind]
			if !known {
				id = uint64(len(names))
				kinds[kind], names = id, append(names, kind)
			}
			a := amount{count: n * p.weight()}
			q.tally.hold(q.tally.add(key{id: id}, a, a.count), at).add(a)
		}
		return nil
	})
	if hidden > 0 {
		q.note("The descriptors of %s are hidden from this user (reading them needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH).", some(float64(hidden), "processes"))
	}
	q.answer.Count, q.answer.TooLow = q.tally.all.count, q.tally.dropped
	for i, held := range q.tally.heldOf() {
		t := &q.tally.groups[i]
		g := Group{Who: parse.Printable(strings.TrimSpace(names[t.id])), Count: t.count, score: t.score, Estimated: estimated}
		of := map[*process]amount{}
		for _, h := range held {
			of[q.processes.list[h.process]] = h.amount
		}
		q.nameProcesses(&g, of)
		q.answer.add(g)
	}
	return err
}
