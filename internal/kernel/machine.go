// Package kernel opens the kernel's files and sockets: those of the machine, never those
// of a container around this process, and those of each network namespace.
//
// A Machine has everything that exists once: procfs, sysfs, the page size, and which
// parts of it can be seen. A Netns is one network namespace. Files opens files of both
// for one owner, and closes them at the end. The host's files are kept open, so that they
// can be read when no descriptors are left. Those of any other namespace are opened for
// each reading, because an open file would keep the namespace alive after its last
// process.
package kernel

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/ctnetlink"
	"github.com/sockpressure/sockpressure_exporter/internal/hostns"
	"github.com/sockpressure/sockpressure_exporter/internal/kmsg"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
	"github.com/sockpressure/sockpressure_exporter/internal/procmount"
	"github.com/sockpressure/sockpressure_exporter/internal/skmem"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// Options describe where the machine is. The fields after the paths are determined from
// the kernel if they are zero; for a recorded machine they must be set.
type Options struct {
	// ProcPath and SysPath are where procfs and sysfs are mounted. Process 1 of the
	// procfs is the host's.
	ProcPath, SysPath string
	// CgroupPath is where cgroups are mounted. The default is fs/cgroup of SysPath.
	CgroupPath string
	// PodsPath is the folder of the logs of the pods that run here. Pods are named after
	// its entries.
	PodsPath string
	// PageSize is the unit of what the kernel counts in pages, in bytes.
	PageSize int
	// MemoryUnit returns the unit in which the kernel counts socket memory, in bytes.
	MemoryUnit func() (int, error)
	// DialSockDiag opens a sock_diag socket in the host's network namespace.
	DialSockDiag func() (sockdiag.Transport, error)
	// DialCTNetlink opens a netfilter socket in the host's network namespace.
	DialCTNetlink func() (ctnetlink.Conn, error)
	// OpenLog opens the kernel's log.
	OpenLog func() (kmsg.Log, error)
	// View overrides which parts of the machine can be seen.
	View *View
}

// Machine is the machine whose kernel is read. It keeps nothing open.
type Machine struct {
	Options
	mount   *procmount.Mount
	host    *hostns.Host
	netPath string // of the host's namespace; empty if it is out of reach
	view    View
}

// Open examines the procfs and finds the host's network namespace. It returns an error if
// the procfs cannot be read, or does not answer within some seconds.
func Open(o Options) (*Machine, error) {
	var m *Machine
	err := answer(o.ProcPath, func() (err error) {
		m, err = find(o)
		return err
	})
	if err != nil {
		return nil, err
	}
	if o.View != nil {
		m.view = *o.View
	} else {
		m.view = m.findView()
	}
	return m, nil
}

func find(o Options) (*Machine, error) {
	mount, err := procmount.Find(o.ProcPath)
	if err != nil {
		return nil, err
	}
	host := new(hostns.Host)
	if !mount.Copied() {
		if host, err = hostns.Find(o.ProcPath); err != nil {
			return nil, err
		}
	}
	if o.CgroupPath == "" {
		o.CgroupPath = filepath.Join(o.SysPath, "fs/cgroup")
	}
	if o.PageSize == 0 {
		o.PageSize = os.Getpagesize()
	}
	if o.MemoryUnit == nil {
		o.MemoryUnit = skmem.Unit
	}
	if o.OpenLog == nil {
		o.OpenLog = func() (kmsg.Log, error) {
			if mount.Copied() {
				// The procfs is a copy, and the log of this machine is not that of the
				// original.
				return nil, &fs.PathError{Op: "open", Path: kmsg.Path, Err: fs.ErrNotExist}
			}
			log, err := kmsg.Open(kmsg.Path)
			if err != nil {
				// A container that may read the log need not have the device.
				if log, e := kmsg.OpenSyslog(); e == nil {
					return log, nil
				}
			}
			return log, err
		}
	}
	m := &Machine{Options: o, mount: mount, host: host, netPath: filepath.Join(o.ProcPath, "1/net")}
	if _, err := os.Stat(m.netPath); err != nil {
		m.netPath = ""
		if host.View() == hostns.Own {
			m.netPath = filepath.Join(o.ProcPath, "net")
		}
	}
	return m, nil
}

// View returns which numbers are the machine's own. Open determines it once.
func (m *Machine) View() View { return m.view }

// PIDMax reports whether kernel.pid_max is the machine's. Since Linux 6.14 each PID
// namespace has its own, and a reader sees that of its own namespace.
func (m *Machine) PIDMax() bool {
	var name unix.Utsname
	if m.mount.FirstPIDs() || unix.Uname(&name) != nil {
		return m.mount.FirstPIDs()
	}
	var major, minor int
	_, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor)
	return err == nil && (major < 6 || major == 6 && minor < 14)
}

func (m *Machine) sysctlPath(name string) string {
	return filepath.Join(m.ProcPath, "sys", strings.ReplaceAll(name, ".", "/"))
}

// procFile returns the options for reading a file of procfs that is opened with open.
// Opening it fails if something else is mounted over the file.
func (m *Machine) procFile(path string, open procfile.Opener) procfile.Options {
	return procfile.Options{
		Sysctl: strings.HasPrefix(path, filepath.Join(m.ProcPath, "sys")+"/"),
		Open: func(path string) (int, error) {
			fd, err := open(path)
			if err != nil {
				return -1, m.mount.Absent(err)
			}
			if err := m.mount.Check(fd); err != nil {
				_ = unix.Close(fd)
				return -1, err
			}
			return fd, nil
		},
	}
}
