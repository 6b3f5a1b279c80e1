package hostns

import (
	"errors"
)

// A Guest is a thread that enters one network namespace after another, and returns home
// after each. Only functions that run on that thread may use it.
type Guest struct {
	home   *home
	inside bool
	lost   error // why it cannot return home
}

// Travel runs fn on a thread of its own.
func Travel(fn func(*Guest) error) error {
	done := make(chan error, 1)
	go func() {
		done <- onThread(func(h *home) error { return fn(&Guest{home: h, lost: h.err}) })
	}()
	return <-done
}

// Enter enters the network namespace of a file, such as /proc/<pid>/ns/net, from home.
// That needs CAP_SYS_ADMIN, and CAP_SYS_PTRACE for the namespace of another user's
// process.
func (g *Guest) Enter(path string) error {
	if g.lost != nil {
		return g.lost
	}
	if g.inside {
		return errors.New("it is a guest already")
	}
	if err := setns(path); err != nil {
		return err
	}
	g.inside = true
	return nil
}

// Leave returns home. If that fails, the thread remains in the other namespace and has to
// end.
func (g *Guest) Leave() error {
	if !g.inside {
		return nil
	}
	if g.lost = g.home.enter(); g.lost != nil {
		return g.lost
	}
	g.inside = false
	return nil
}

// Inside reports whether the thread is in another namespace.
func (g *Guest) Inside() bool { return g.inside }

// FileID returns a number that identifies a network namespace: the inode number of
// sockstat in its folder of files, such as /proc/<pid>/net. Reading it needs no
// privilege. The number of a namespace that has ended may be reused by a new one.
func FileID(folder string) (uint64, error) { return inode(folder + "/sockstat") }

// MountID returns the inode number of a network namespace, given a file that it is bound
// to, or /proc/<pid>/ns/net.
func MountID(path string) (uint64, error) { return inode(path) }
