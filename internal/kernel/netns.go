package kernel

import (
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/sockpressure/sockpressure_exporter/internal/ctnetlink"
	"github.com/sockpressure/sockpressure_exporter/internal/hostns"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// Netns is a network namespace: the host's or another one. Who reads it need not
// know which.
type Netns struct {
	files   *Files
	host    *hostns.Host // how it is entered
	netPath string       // of its files; empty where they are out of reach
	// file opens a file of it: kept for the host's, once for any other.
	file func(path string, o procfile.Options) File
	// kept is set where netlink sockets stay open between readings.
	kept bool
}

// Host returns the host's network namespace, that of process 1. Its files and its
// socket are kept open.
func (f *Files) Host() *Netns {
	return &Netns{files: f, host: f.host, netPath: f.netPath, file: f.keep, kept: true}
}

// Netns returns the network namespace of a process of the procfs. Nothing of it
// stays open, so it ends with its last process. It fails where this process cannot
// see its own.
func (f *Files) Netns(pid int) (*Netns, error) {
	host, err := hostns.Of(f.ProcPath, pid)
	if err != nil {
		return nil, err
	}
	return &Netns{files: f, host: host, netPath: filepath.Join(f.ProcPath, strconv.Itoa(pid), "net"), file: f.once}, nil
}

// File returns a file below <procfs>/<pid>/net, which follows the process and so
// belongs to the namespace whoever reads it.
func (n *Netns) File(name string) File {
	if n.netPath == "" {
		path := filepath.Join(n.files.ProcPath, "1/net", name)
		return n.file(path, n.files.procFile(path, func(string) (int, error) { return -1, hostns.ErrForeign }))
	}
	path := filepath.Join(n.netPath, name)
	return n.file(path, n.files.procFile(path, procfile.Open))
}

// Sysctl returns a setting by its dotted name.
func (n *Netns) Sysctl(name string) File { return n.files.setting(n.SysctlUsage(name)) }

// SysctlUsage returns a sysctl, by its dotted name, that the kernel itself changes. A
// file below <procfs>/sys/net belongs to the network namespace of the thread that
// opens it, so it is opened on one in this namespace.
func (n *Netns) SysctlUsage(name string) File {
	path := n.files.sysctlPath(name)
	return n.file(path, n.files.procFile(path, func(path string) (fd int, err error) {
		err = n.host.Do(func() error {
			fd, err = procfile.Open(path)
			return err
		})
		return fd, err
	}))
}

// SockDiag returns a client for the sockets of the namespace.
func (n *Netns) SockDiag() *sockdiag.Client {
	return client(n, n.files.DialSockDiag, sockdiag.Dial, sockdiag.New, sockdiag.NewOnce)
}

// CTNetlink returns a client for the statistics of the namespace's connection
// tracking.
func (n *Netns) CTNetlink() *ctnetlink.Client {
	return client(n, n.files.DialCTNetlink, ctnetlink.Dial, ctnetlink.New, ctnetlink.NewOnce)
}

// client returns a client over sockets that are opened with dial in a namespace:
// for the host's, one that keeps its socket, over recorded instead of dial if that
// is not nil; for any other, one that keeps none.
func client[C interface{ Close() }, T any](n *Netns, recorded, dial func() (T, error), kept, once func(func() (T, error)) C) C {
	inside := func() (T, error) { return Dial(n, dial) }
	if !n.kept {
		return once(inside)
	}
	if recorded != nil {
		inside = recorded
	}
	c := kept(inside)
	n.files.Defer(c.Close)
	return c
}

// Dial opens a socket with dial in a namespace. It fails with hostns.ErrForeign
// where that cannot be entered.
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
