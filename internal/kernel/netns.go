package kernel

import (
	"fmt"
	"path/filepath"

	"github.com/sockpressure/sockpressure_exporter/internal/ctnetlink"
	"github.com/sockpressure/sockpressure_exporter/internal/hostns"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// Netns is a network namespace: the host's or another one. Readers need not know which.
type Netns struct {
	files   *Files
	host    *hostns.Host // how it is entered
	netPath string       // of its files; empty if they are out of reach
	// kept is set for the host's namespace: its files and netlink sockets stay open
	// between readings. For any other namespace nothing stays open.
	kept bool
}

// Host returns the host's network namespace, that of process 1. Its files and sockets are
// kept open.
func (f *Files) Host() *Netns {
	return &Netns{files: f, host: f.host, netPath: f.netPath, kept: true}
}

// File returns a file below <procfs>/<pid>/net. Which namespace it belongs to depends on
// that process, not on the reader.
func (n *Netns) File(name string) File {
	if !n.kept {
		return n.once(func() string { return filepath.Join(n.netPath, name) }, false, procfile.Open)
	}
	if n.netPath == "" {
		path := filepath.Join(n.files.ProcPath, "1/net", name)
		return n.files.keep(path, n.files.procFile(path, func(string) (int, error) { return -1, hostns.ErrForeign }))
	}
	path := filepath.Join(n.netPath, name)
	return n.files.keep(path, n.files.procFile(path, procfile.Open))
}

// Sysctl returns a sysctl by its dotted name.
func (n *Netns) Sysctl(name string) File {
	if !n.kept {
		return n.SysctlUsage(name) // each namespace has its own
	}
	return n.files.setting(n.SysctlUsage(name))
}

// SysctlUsage returns a sysctl, by its dotted name, that the kernel itself changes. A
// file below <procfs>/sys/net belongs to the network namespace of the thread that opens
// it, so it is opened on a thread in this namespace.
func (n *Netns) SysctlUsage(name string) File {
	path := n.files.sysctlPath(name)
	inside := func(path string) (fd int, err error) {
		err = n.host.Do(func() error {
			fd, err = procfile.Open(path)
			return err
		})
		return fd, err
	}
	if !n.kept {
		return n.once(func() string { return path }, true, inside)
	}
	return n.files.keep(path, n.files.procFile(path, inside))
}

// once returns a file that is opened for each reading, at the path that it has then.
func (n *Netns) once(path func() string, sysctl bool, open procfile.Opener) File {
	o := n.files.procFile("", open)
	o.Sysctl, o.Place = sysctl, n.files.Place
	return &visited{procfile.NewOnce("", o), path}
}

// A visited is a file of the namespace that is being visited.
type visited struct {
	file *procfile.Once
	path func() string
}

func (v *visited) Path() string { return v.path() }

func (v *visited) Read() ([]byte, error) {
	v.file.At(v.path())
	return v.file.Read()
}

// SockDiag returns a client for the sockets of the namespace.
func (n *Netns) SockDiag() *sockdiag.Client {
	if !n.kept {
		return sockdiag.NewOnce(func() (sockdiag.Transport, error) { return Dial(n, sockdiag.DialBlocking) })
	}
	return kept(n, n.files.DialSockDiag, sockdiag.Dial, sockdiag.New)
}

// CTNetlink returns a client for the connection tracking statistics of the namespace.
func (n *Netns) CTNetlink() *ctnetlink.Client {
	if !n.kept {
		return ctnetlink.NewOnce(func() (ctnetlink.Conn, error) { return Dial(n, ctnetlink.Dial) })
	}
	return kept(n, n.files.DialCTNetlink, ctnetlink.Dial, ctnetlink.New)
}

// kept returns a client that keeps its socket in the host's namespace open. If recorded
// is not nil, the client uses it instead of dial.
func kept[C interface{ Close() }, T any](n *Netns, recorded, dial func() (T, error), client func(func() (T, error)) C) C {
	inside := recorded
	if inside == nil {
		inside = func() (T, error) { return Dial(n, dial) }
	}
	c := client(inside)
	n.files.Defer(c.Close)
	return c
}

// Dial opens a socket with dial in a namespace. It returns hostns.ErrForeign if the
// namespace cannot be entered.
func Dial[T any](n *Netns, dial func() (T, error)) (conn T, err error) {
	if n.files.mount.Copied() {
		return conn, fmt.Errorf("%w: %s is not a procfs", hostns.ErrForeign, n.files.ProcPath)
	}
	err = n.host.Do(func() error {
		conn, err = dial()
		return err
	})
	return conn, err
}
