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

// A Tour visits network namespaces other than the host's, one after another. Its Netns is
// always the one that is being visited, so that its readers need to be created only once.
type Tour struct {
	*Netns
	guest  *hostns.Guest
	inside uint64 // the ID of the namespace that the thread has entered, 0 if not known
}

// Tour runs fn with a tour, on a thread of its own. The tour, and everything created from
// its Netns, belongs to that thread.
func (f *Files) Tour(fn func(*Tour) error) error {
	return hostns.Travel(func(g *hostns.Guest) error {
		return fn(&Tour{Netns: &Netns{files: f, host: hostns.Unreachable(hostns.ErrForeign)}, guest: g})
	})
}

// Visit runs fn while the tour is at the network namespace of a process of the procfs,
// named by its folder: "<pid>", or "<pid>/task/<tid>" for a thread of it. While fn runs,
// the namespace's files can be read. Its sysctls and its sockets can be read only if
// entered, the error of entering the namespace, is nil. Nothing of the namespace is open
// after fn has returned. Visit returns the error of fn, or an error if the tour cannot
// continue.
//
// If the process ends in the meantime and its number is reused by another process, the
// files are those of that one's namespace. At detects that.
func (t *Tour) Visit(process string, fn func(entered error) error) error {
	folder := filepath.Join(t.files.ProcPath, process)
	return t.visit(folder+"/net", folder+"/ns/net", fn)
}

// VisitName is like Visit, for a namespace that a file is bound to, such as those below
// /run/netns. Such a namespace can only be entered, so fn is not run if that fails.
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

// At reports whether the namespace that is being visited has the given ID. It checks the
// process and, if the namespace was entered, the thread. A reading belongs to the
// namespace if At is true before and after it.
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

// thread returns the folder of the files of the namespace that this thread is in.
func (t *Tour) thread() string { return filepath.Join(t.files.ProcPath, "thread-self/net") }

// ID returns a number that identifies the network namespace of a process, which is named
// as for Tour.Visit. It needs no privilege. The ID of a namespace that has ended may be
// reused by a new one. In a copy of a procfs there is no ID; then ID returns an error for
// which errors.Is(err, errors.ErrUnsupported) holds.
func (m *Machine) ID(process string) (uint64, error) {
	if m.mount.Copied() {
		return 0, fmt.Errorf("network namespaces of a copied procfs: %w", errors.ErrUnsupported)
	}
	return hostns.FileID(m.ProcPath + "/" + process + "/net")
}

// MountID returns the inode number of the network namespace of a process, which is the
// same for all mounts of the namespace and is the number that lsns shows. It needs
// CAP_SYS_PTRACE for another user's process.
func (m *Machine) MountID(process string) (uint64, error) {
	return hostns.MountID(m.ProcPath + "/" + process + "/ns/net")
}

// ID returns the number that identifies the namespace that was entered.
func (t *Tour) ID() (uint64, error) { return hostns.FileID(t.thread()) }
