package collector

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/hostns"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// Kernel is where collectors find the kernel's files and sockets, those of the
// host and never those of a container around the exporter.
type Kernel struct {
	procPath string
	sysPath  string
	netPath  string // empty where the host's is out of reach
	host     *hostns.Host

	// pageSize is the unit of what the kernel counts in pages, in bytes.
	pageSize float64
	// memoryUnit is the unit in which the kernel counts socket memory, in bytes.
	memoryUnit float64
	// top bounds every list of listeners, ports, processes, caches and zones.
	top int
	// dialSockDiag opens a sock_diag socket in the host's network namespace.
	dialSockDiag func() (sockdiag.Transport, error)

	closers []func()
}

// OpenKernel looks at the procfs at procPath, whose process 1 is the host's, and
// finds the host's network namespace. It fails where procPath cannot be read.
func OpenKernel(procPath, sysPath string, top int) (*Kernel, error) {
	// Reading the folder is what fails on a path without permission or procfs.
	if _, err := os.ReadDir(procPath); err != nil {
		return nil, fmt.Errorf("procfs: %w", err)
	}
	host, err := hostns.Find(procPath)
	if err != nil {
		return nil, err
	}
	k := &Kernel{
		procPath: procPath,
		sysPath:  sysPath,
		host:     host,
		pageSize: float64(os.Getpagesize()),
		top:      top,
	}
	version, err := os.ReadFile(filepath.Join(procPath, "version"))
	if err != nil {
		return nil, fmt.Errorf("%s is no procfs: %w", procPath, err)
	}
	k.memoryUnit = memoryUnit(k.pageSize, string(version))
	k.dialSockDiag = func() (sockdiag.Transport, error) { return dialHost(k, sockdiag.Dial) }

	k.netPath = filepath.Join(procPath, "1/net")
	if _, err := os.Stat(k.netPath); err != nil {
		switch host.View() {
		case hostns.Own, hostns.Files:
			k.netPath = filepath.Join(procPath, "net")
		default:
			k.netPath = ""
		}
	}
	return k, nil
}

// memoryUnit is what socket memory is counted in. It was SK_MEM_QUANTUM, 4096
// bytes whatever the page size, before Linux 6.0 (include/net/sock.h); the
// limits of tcp_mem and udp_mem have always been pages.
func memoryUnit(pageSize float64, version string) float64 {
	var major int
	if n, _ := fmt.Sscanf(version, "Linux version %d.", &major); n == 1 && major < 6 {
		return min(pageSize, 4096)
	}
	return pageSize
}

// Close closes every file and socket that was opened through k. No collector may
// be running.
func (k *Kernel) Close() {
	for _, c := range k.closers {
		c()
	}
	k.host.Close()
}

// InitialNetworkNamespace says whether the host's network namespace is the
// machine's first one. It is not where the "host" is a container itself, as is
// a container's own process 1: the file of a limit that only the first one has is
// absent there. That it cannot be read, as on a host without file descriptors, says
// nothing.
func (k *Kernel) InitialNetworkNamespace() bool {
	limit := k.sysctl("net.ipv4.tcp_mem")
	_, err := limit.Read()
	limit.Close()
	return !errors.Is(err, fs.ErrNotExist)
}

// file returns the file at path, to be opened with open.
func (k *Kernel) file(path string, open procfile.Opener) *procfile.File {
	f := procfile.New(path, open)
	k.closers = append(k.closers, f.Close)
	return f
}

// sockDiag returns a client for the sockets of the host's network namespace.
func (k *Kernel) sockDiag() *sockdiag.Client {
	c := sockdiag.New(k.dialSockDiag)
	k.closers = append(k.closers, c.Close)
	return c
}

// HostNetworkNamespace is nil where every number is of the host's network
// namespace. Otherwise it says why sysctls and sockets of the host's are out of
// reach; what they would have given is not exported.
func (k *Kernel) HostNetworkNamespace() error {
	if k.host.View() == hostns.Foreign {
		return k.host.Why()
	}
	return nil
}

// proc returns a file of procfs that is the same in every namespace.
func (k *Kernel) proc(name string) *procfile.File {
	return k.file(filepath.Join(k.procPath, name), nil)
}

// sys returns a file of sysfs that is opened with open.
func (k *Kernel) sys(name string, open procfile.Opener) *procfile.File {
	return k.file(filepath.Join(k.sysPath, name), open)
}

// net returns a file below <procfs>/1/net, which follows process 1 and so
// belongs to the host's network namespace whoever reads it.
func (k *Kernel) net(name string) *procfile.File {
	if k.netPath == "" {
		return k.file(filepath.Join(k.procPath, "1/net", name), func(string) (int, error) {
			return -1, hostns.ErrForeign
		})
	}
	return k.file(filepath.Join(k.netPath, name), nil)
}

// sysctl returns a sysctl by its dotted name. A file below <procfs>/sys/net
// belongs to the network namespace of the thread that opens it, so it is opened
// on one in the host's.
func (k *Kernel) sysctl(name string) *procfile.File {
	return k.file(k.sysctlPath(name), func(path string) (fd int, err error) {
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
	return k.file(k.sysctlPath(name), nil)
}

func (k *Kernel) sysctlPath(name string) string {
	return filepath.Join(k.procPath, "sys", strings.ReplaceAll(name, ".", "/"))
}

// dialHost opens a socket with dial in the host's network namespace.
func dialHost[T any](k *Kernel, dial func() (T, error)) (conn T, err error) {
	if k.host.View() == hostns.Files {
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
