// Package namespaces runs a benchmark in its own namespaces, so that there are no other
// sockets and processes, no sysctl of the machine is changed, and nothing is left behind.
package namespaces

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside is the environment variable by which the program knows that it is already in its
// namespaces.
const inside = "SOCKPRESSURE_BENCH_INSIDE"

// Inside reports whether this program was started by Run.
func Inside() bool { return os.Getenv(inside) != "" }

// Run runs this program again, in a network namespace, a mount namespace, and those of
// flags (CLONE_NEW...). In a PID namespace it is process 1, whose network namespace the
// exporter takes for the host's. It needs root.
func Run(ctx context.Context, flags uintptr, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | flags,
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd.Run()
}

// Prepare makes the namespaces usable, from inside: with a /proc that shows them, and
// with loopback up.
func Prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback up: %w", err)
	}
	return nil
}

// SetSysctl sets a sysctl of the network namespace.
func SetSysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
}
