package kernel

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/sockpressure/sockpressure_exporter/internal/hostns"
)

// ErrLost means that a tour is in a network namespace that it cannot leave, and has to
// end.
var ErrLost = errors.New("cannot continue with the next network namespace")

// A Tour visits network namespaces other than the host's, one after another. Its Netns
// is the one that is being visited, so that what reads it is made once.
type Tour struct {
	*Netns
	guest  *hostns.Guest
	inside uint64 // the ID of the namespace that the thread has entered, 0 if not known
}

// Tour runs fn with a tour, on a thread of its own. The tour, and what was made of its
// Netns, belongs to that thread.
func (f *Files) Tour(fn func(*Tour) error) error {
	return hostns.Travel(func(g *hostns.Guest) error {
		return fn(&Tour{Netns: &Netns{files: f, host: hostns.Unreachable(hostns.ErrForeign)}, guest: g})
	})
}

// Visit runs fn while the tour is at the network namespace of a process of the procfs,
// named by its folder: "<pid>", or "<pid>/task/<tid>" for a thread of it.
// Then its files can be read; its sysctls and its sockets too if entered is nil, which
// is the error otherwise. Nothing of it is open when fn has returned. The error of
// Visit is fn's, or that the tour cannot go on.
//
// If the process ends meanwhile and its number is given to another one, the files are
// those of that one's namespace: ask At.
func (t *Tour) Visit(process string, fn func(entered error) error) error {
	folder := filepath.Join(t.files.ProcPath, process)
	return t.visit(folder+"/net", folder+"/ns/net", fn)
}

// VisitName is Visit for a namespace that a file is bound to, such as those below
// /run/netns. It can only be entered, so fn is not run if that fails.
func (t *Tour) VisitName(path string, fn func() error) error {
	return t.visit(t.thread(), path, func(entered error) error {
		if entered != nil {
			return entered
		}
		return fn()
	})
}

func (t *Tour) visit(netPath, nsPath string, fn func(entered error) error) (err error) {
	defer func() {
		if e := t.guest.Leave(); e != nil {
			err = fmt.Errorf("%w: %w", ErrLost, e)
		}
	}()
	entered := t.guest.Enter(nsPath)
	t.netPath, t.host, t.inside = netPath, new(hostns.Host), 0
	if entered != nil {
		t.host = hostns.Unreachable(entered)
	}
	defer func() { t.netPath, t.host = "", hostns.Unreachable(hostns.ErrForeign) }()
	return fn(entered)
}

// At reports whether the namespace that is being visited has an ID: the process's and,
// if it was entered, the thread's. The process's before and after a reading tells whose
// that is.
func (t *Tour) At(id uint64) bool {
	now, err := hostns.FileID(t.netPath)
	if err != nil || now != id {
		return false
	}
	if t.guest.Inside() && t.inside == 0 {
		if t.inside, err = hostns.FileID(t.thread()); err != nil {
			return false
		}
	}
	return t.inside == 0 || t.inside == id
}

// thread is the folder of the files of the namespace that this thread is in.
func (t *Tour) thread() string { return filepath.Join(t.files.ProcPath, "thread-self/net") }

// ID returns what tells the network namespace of a process, named as for Tour.Visit,
// from others. It needs no
// privilege. A namespace that has ended leaves its ID to a new one. In a copy of a procfs
// nothing tells, which is an error for which errors.Is(err, errors.ErrUnsupported) holds.
func (m *Machine) ID(process string) (uint64, error) {
	if m.mount.Copied() {
		return 0, fmt.Errorf("network namespaces of a copied procfs: %w", errors.ErrUnsupported)
	}
	return hostns.FileID(m.ProcPath + "/" + process + "/net")
}

// MountID returns what tells mounts of the network namespace of a process from those of
// others: the number that lsns shows. It needs CAP_SYS_PTRACE for another user's process.
func (m *Machine) MountID(process string) (uint64, error) {
	return hostns.MountID(m.ProcPath + "/" + process + "/ns/net")
}

// ID returns what tells the namespace that was entered from others.
func (t *Tour) ID() (uint64, error) { return hostns.FileID(t.thread()) }
