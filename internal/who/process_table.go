package who

import (
	"bytes"
	"cmp"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// processTable holds what is known about processes.
type processTable struct {
	list   []*process
	byPID  map[int]uint32
	inodes holders
	users  map[uint32]string // nil until it was read

	// hidden counts the processes whose descriptors may not be read, crowded those that
	// were not read because there are too many, and failed those that could not be read;
	// why is the error of the first of these.
	hidden, crowded, failed int
	why                     error
}

// process is a process, and what is known about its descriptors.
type process struct {
	pid  int
	name string
	user uint32
	// table is the size of its descriptor table: the number of every open descriptor is
	// lower.
	table int
	// open is the number of descriptors, looked how many of them were read.
	open, looked int

	asked  bool
	owner  owner.Owner
	cgroup string // the path in version 2, or in the hierarchy of systemd
}

// weight returns how many descriptors each one that was read represents.
func (p *process) weight() float64 {
	if p.looked == 0 || p.looked >= p.open {
		return 1
	}
	return float64(p.open) / float64(p.looked)
}

// eachProcess calls visit with each process, whose folder is dir. It skips a process that
// ends in the meantime or cannot be read. It stops when the context is done, with the
// context's error, and when visit returns errEnough, with that.
func (q *inquiry) eachProcess(visit func(pid int, dir string) error) error {
	n := uint64(0)
	w := &q.processes
	w.failed, w.why = 0, nil
	err := procfile.EachProcess(q.ProcPath, func(pid int, _ uint64) error {
		if err := q.ctx.Err(); err != nil {
			return err
		}
		if n++; n%64 == 0 && q.Progress != nil {
			q.Progress(n, 0, "processes")
		}
		err := visit(pid, q.ProcPath+"/"+strconv.Itoa(pid))
		if err != nil && !procfile.IsGone(err) && !errors.Is(err, errEnough) {
			w.failed++
			w.why = cmp.Or(w.why, err)
			return nil
		}
		if errors.Is(err, errEnough) {
			return err
		}
		return nil
	})
	if w.failed > 0 {
		q.note("%s could not be read, first error: %v.", some(float64(w.failed), "processes"), w.why)
	}
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// errEnough stops a walk over processes.
var errEnough = errors.New("that is enough")

// processAt returns the index of a process in the list. If the process is not in the list,
// processAt adds it, with the values of its status.
func (q *inquiry) processAt(pid int, dir string) (uint32, error) {
	w := &q.processes
	if at, ok := w.byPID[pid]; ok {
		return at, nil
	}
	s, err := readStatus(dir)
	if err != nil {
		return 0, err
	}
	if w.byPID == nil {
		w.byPID = map[int]uint32{}
	}
	at := uint32(len(w.list))
	w.list = append(w.list, &process{pid: pid, name: s.name, user: s.user, table: s.table})
	w.byPID[pid] = at
	return at, nil
}

// status is the values that are read from /proc/<pid>/status (fs/proc/array.c).
type status struct {
	name  string
	user  uint32
	table int
}

func readStatus(dir string) (status, error) {
	s := status{name: "?"}
	b, err := procfile.ReadOnce(dir+"/status", make([]byte, 4096))
	if err != nil {
		return s, err
	}
	for line, b, ok := parse.NextLine(b); ok; line, b, ok = parse.NextLine(b) {
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch string(field) {
		case "Name":
			s.name = parse.Printable(string(value))
		case "Uid":
			first, _, _ := parse.NextField(value)
			id, _ := strconv.ParseUint(string(first), 10, 32)
			s.user = uint32(id)
		case "FDSize":
			s.table, _ = strconv.Atoi(string(value))
			return s, nil // it comes last
		}
	}
	return s, nil
}

// withOwner determines the owner of a process, once, and returns the process.
func (q *inquiry) withOwner(p *process) *process {
	if p.asked {
		return p
	}
	p.asked = true
	b, err := procfile.ReadOnce(filepath.Join(q.ProcPath, strconv.Itoa(p.pid), "cgroup"), make([]byte, 4096))
	if err != nil {
		return p
	}
	p.owner, p.cgroup = q.ownerOf(b)
	return p
}

// ownerOf returns the owner of a process, given the content of its file cgroup, and the
// path of the cgroup by which it is known.
func (q *inquiry) ownerOf(file []byte) (owner.Owner, string) {
	whose, err := q.groups.pods(q).Owner(file)
	if err != nil {
		q.note("Pods are missing: %v.", err)
	}
	var path string
	for line, b, ok := parse.NextLine(file); ok; line, b, ok = parse.NextLine(b) {
		id, rest, _ := bytes.Cut(line, []byte(":"))
		controllers, p, _ := bytes.Cut(rest, []byte(":"))
		if string(id) == "0" || string(controllers) == "name=systemd" && (path == "" || path == "/") {
			path = string(p)
		}
	}
	return whose, parse.Printable(path)
}

// haveUnits reports whether any process belongs to a unit, a container or a pod.
func (q *inquiry) haveUnits() bool {
	found := false
	_ = q.eachProcess(func(_ int, dir string) error {
		b, err := procfile.ReadOnce(dir+"/cgroup", make([]byte, 4096))
		if err != nil {
			return nil //nolint:nilerr // another one may say it
		}
		if owner.Claimed(b).Kind != "" {
			found = true
			return errEnough
		}
		return nil
	})
	return found
}

// user returns the name of a user on the machine, or the number if there is none.
func (q *inquiry) user(id uint32) string {
	w := &q.processes
	if w.users == nil {
		w.users = map[uint32]string{}
		// The machine's passwd: this process may be in a container.
		b, err := os.ReadFile(filepath.Join(q.ProcPath, "1/root/etc/passwd"))
		if err != nil && q.ProcPath == "/proc" {
			b, _ = os.ReadFile("/etc/passwd")
		}
		for line := range strings.Lines(string(b)) {
			fields := strings.Split(line, ":")
			if len(fields) < 3 {
				continue
			}
			if id, err := strconv.ParseUint(fields[2], 10, 32); err == nil && w.users[uint32(id)] == "" {
				w.users[uint32(id)] = parse.Printable(fields[0])
			}
		}
	}
	if name := w.users[id]; name != "" {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}
