package byhand

import (
	"os"
	"path/filepath"
	"strings"
)

// processes lists the descriptors of every process.
func (p *pass) processes(proc string) {
	type files struct {
		pid         int
		open, limit float64
	}
	worst := map[string]files{}
	fullest := 0.0
	dirs, err := filepath.Glob(p.root + proc + "/[0-9]*")
	if err != nil {
		p.file = proc
		p.fail(err)
	}
	for _, dir := range dirs {
		f := files{open: descriptors(dir)}
		dir = strings.TrimPrefix(dir, p.root)
		for _, l := range p.lines(dir + "/limits") {
			if strings.HasPrefix(strings.Join(l, " "), "Max open files") && l.at(3) != "unlimited" {
				f.limit = p.decimal(l.at(3))
			}
		}
		f.pid = int(p.decimal(filepath.Base(dir)))
		name := strings.TrimSuffix(p.text(dir+"/comm"), "\n")
		if f.open <= 0 || f.limit == 0 || name == "" {
			continue
		}
		fullest = max(fullest, f.open/f.limit)
		w, ok := worst[name]
		if !ok || f.open/f.limit > w.open/w.limit || f.open/f.limit == w.open/w.limit && f.pid < w.pid {
			worst[name] = f
		}
	}
	for name, f := range worst {
		p.Set(f.open, "process_open_file_descriptors", "process", name)
		p.Set(f.limit, "process_file_descriptors_limit", "process", name)
	}
	p.Set(0, "processes_unreadable")
	if len(worst) > 0 {
		p.Set(fullest, "saturation_ratio", "resource", "process_file_descriptors")
	}
}

// descriptors counts the descriptors of a process, which may end in the meantime. A
// thread that waits in accept has reserved another one, which counts but is not listed:
// the size of the folder includes it (Linux 6.2).
func descriptors(dir string) float64 {
	names, _ := os.ReadDir(dir + "/fd")
	open := len(names)
	// The PID of this process in that procfs, if it has one there.
	if self, err := os.Readlink(filepath.Join(filepath.Dir(dir), "self")); err == nil && self == filepath.Base(dir) {
		open-- // the one that lists them
	}
	threads, _ := os.ReadDir(dir + "/task")
	if st, err := os.Stat(dir + "/fd"); err == nil && st.Size() > int64(open) && st.Size() <= int64(open+len(threads)) {
		open = int(st.Size())
	}
	return float64(open)
}
