package collector

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/hostns"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
	"github.com/sockpressure/sockpressure_exporter/internal/procmount"
	"github.com/sockpressure/sockpressure_exporter/internal/skmem"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// Kernel is where collectors find the kernel's files and sockets, those of the
// host and never those of a container around the exporter.
type Kernel struct {
	procPath string
	sysPath  string
	netPath  string // empty where the host's is out of reach
	mount    *procmount.Mount
	host     *hostns.Host
	view     HostView

	// pageSize is the unit of what the kernel counts in pages, in bytes.
	pageSize float64
	// memoryUnit returns the unit in which the kernel counts socket memory, in bytes.
	memoryUnit func() (int, error)
	// top bounds every list of listeners, ports, processes, caches and zones.
	top int
	// dialSockDiag opens a sock_diag socket in the host's network namespace.
	dialSockDiag func() (sockdiag.Transport, error)

	// place is where the collector that this Kernel was given to says what it reads.
	place   *procfile.Place
	closers *[]func()
}

// HostView says which of its numbers are the machine's own. Each is nil, or the
// reason why not.
type HostView struct {
	// Network is set where sysctls and sockets are out of reach, or where what they
	// show is a container's network namespace.
	Network error
	// Processes is set where processes are hidden, or only a container's are seen.
	Processes error
	// Memory is set where meminfo is a container's, or hidden.
	Memory error
}

// All yields the name of each part and its error, nil ones too.
func (v HostView) All() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		_ = yield("network", v.Network) && yield("processes", v.Processes) && yield("memory", v.Memory)
	}
}

// Whole reports whether every number is the machine's own.
func (v HostView) Whole() bool { return v == HostView{} }

// openPatience bounds each question that OpenKernel asks.
const openPatience = 5 * time.Second

// OpenKernel looks at the procfs at procPath, whose process 1 is the host's, and
// finds the host's network namespace. It fails where procPath cannot be read, or
// does not answer within some seconds.
func OpenKernel(procPath, sysPath string, top int) (*Kernel, error) {
	var k *Kernel
	err := answer(procPath, func() (err error) {
		k, err = findKernel(procPath, sysPath, top)
		return err
	})
	if err != nil {
		return nil, err
	}
	k.view = HostView{
		Network:   answer(procPath, k.hostNetwork),
		Processes: answer(procPath, k.mount.Processes),
		Memory:    answer(procPath, k.mount.Memory),
	}
	return k, nil
}

// answer runs ask, which may block in the kernel for ever, and gives up on it after
// openPatience.
func answer(path string, ask func() error) error {
	done := make(chan error, 1)
	go func() { done <- ask() }()
	select {
	case err := <-done:
		return err
	case <-time.After(openPatience):
		return fmt.Errorf("%s does not answer within %v", path, openPatience)
	}
}

func findKernel(procPath, sysPath string, top int) (*Kernel, error) {
	mount, err := procmount.Find(procPath)
	if err != nil {
		return nil, err
	}
	host := new(hostns.Host)
	if !mount.Copied() {
		if host, err = hostns.Find(procPath); err != nil {
			return nil, err
		}
	}
	k := &Kernel{
		procPath:   procPath,
		sysPath:    sysPath,
		mount:      mount,
		host:       host,
		pageSize:   float64(os.Getpagesize()),
		memoryUnit: skmem.Unit,
		top:        top,
		closers:    new([]func()),
	}
	k.dialSockDiag = func() (sockdiag.Transport, error) { return dialHost(k, sockdiag.Dial) }

	k.netPath = filepath.Join(procPath, "1/net")
	if _, err := os.Stat(k.netPath); err != nil {
		k.netPath = ""
		if host.View() == hostns.Own {
			k.netPath = filepath.Join(procPath, "net")
		}
	}
	return k, nil
}

// hostNetwork is nil where sysctls and sockets are those of the machine's first
// network namespace.
func (k *Kernel) hostNetwork() error {
	if k.host.View() == hostns.Foreign {
		return fmt.Errorf("cannot enter the host's network namespace, which needs CAP_SYS_ADMIN and CAP_SYS_PTRACE, so its sysctls and sockets are not exported: %w", k.host.Why())
	}
	// The file of a limit that only the first one has. That it cannot be looked at,
	// as on a host without file descriptors, says nothing.
	err := k.host.Do(func() error {
		_, err := os.Stat(k.sysctlPath("net.ipv4.tcp_mem"))
		return k.mount.Absent(err)
	})
	switch {
	case errors.Is(err, procmount.ErrHidden):
		return fmt.Errorf("sysctls of %s are %w", k.procPath, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the network namespace of process 1 of %s is not the machine's first one, so the limits of TCP and UDP memory, orphans, neighbours and the backlog are missing: in a container, mount the host's /proc and name it with --path.procfs", k.procPath)
	}
	return nil
}

// View says which numbers are the machine's own. It was found out once, by
// OpenKernel.
func (k *Kernel) View() HostView { return k.view }

// Close closes every file and socket that was opened through k. No collector may
// be running.
func (k *Kernel) Close() {
	for _, c := range *k.closers {
		c()
	}
}

// at returns k for a collector that says at place what it reads.
func (k *Kernel) at(place *procfile.Place) *Kernel {
	c := *k
	c.place = place
	return &c
}

// file returns the file at path.
func (k *Kernel) file(path string, o procfile.Options) *procfile.File {
	o.Place = k.place
	f := procfile.New(path, o)
	*k.closers = append(*k.closers, f.Close)
	return f
}

// procFile returns a file of procfs that is opened with open. It has to be the
// procfs's own.
func (k *Kernel) procFile(path string, open procfile.Opener) *procfile.File {
	o := procfile.Options{Sysctl: strings.HasPrefix(path, filepath.Join(k.procPath, "sys")+"/")}
	o.Open = func(path string) (int, error) {
		fd, err := open(path)
		if err != nil {
			return -1, k.mount.Absent(err)
		}
		if err := k.mount.Check(fd); err != nil {
			_ = unix.Close(fd)
			return -1, err
		}
		return fd, nil
	}
	return k.file(path, o)
}

// sockDiag returns a client for the sockets of the host's network namespace.
func (k *Kernel) sockDiag() *sockdiag.Client {
	c := sockdiag.New(k.dialSockDiag)
	*k.closers = append(*k.closers, c.Close)
	return c
}

// proc returns a file of procfs that is the same in every namespace.
func (k *Kernel) proc(name string) *procfile.File {
	return k.procFile(filepath.Join(k.procPath, name), procfile.Open)
}

// sys returns a file of sysfs that is opened with open.
func (k *Kernel) sys(name string, open procfile.Opener) *procfile.File {
	return k.file(filepath.Join(k.sysPath, name), procfile.Options{Open: open})
}

// net returns a file below <procfs>/1/net, which follows process 1 and so
// belongs to the host's network namespace whoever reads it.
func (k *Kernel) net(name string) *procfile.File {
	if k.netPath == "" {
		return k.procFile(filepath.Join(k.procPath, "1/net", name), func(string) (int, error) {
			return -1, hostns.ErrForeign
		})
	}
	return k.procFile(filepath.Join(k.netPath, name), procfile.Open)
}

// sysctl returns a sysctl by its dotted name. A file below <procfs>/sys/net
// belongs to the network namespace of the thread that opens it, so it is opened
// on one in the host's.
func (k *Kernel) sysctl(name string) *procfile.File {
	return k.procFile(k.sysctlPath(name), func(path string) (fd int, err error) {
		err = k.host.Do(func() error {
			fd, err = procfile.Open(path)
			return err
		})
		return fd, err
	})
}

// globalSysctl returns a sysctl that has the same value in every network
// namespace.
func (k *Kernel) globalSysctl(name string) *procfile.File {
	return k.procFile(k.sysctlPath(name), procfile.Open)
}

func (k *Kernel) sysctlPath(name string) string {
	return filepath.Join(k.procPath, "sys", strings.ReplaceAll(name, ".", "/"))
}

// dialHost opens a socket with dial in the host's network namespace.
func dialHost[T any](k *Kernel, dial func() (T, error)) (conn T, err error) {
	if k.mount.Copied() {
		return conn, fmt.Errorf("%w: %s is not a procfs", hostns.ErrForeign, k.procPath)
	}
	err = k.host.Do(func() error {
		conn, err = dial()
		return err
	})
	return conn, err
}

func (k *Kernel) dialNetfilter() (*netlink.Conn, error) {
	return dialHost(k, func() (*netlink.Conn, error) {
		return netlink.Dial(unix.NETLINK_NETFILTER, nil)
	})
}
