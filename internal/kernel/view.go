package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/hostns"
	"github.com/sockpressure/sockpressure_exporter/internal/procmount"
)

// View describes which numbers are the machine's own. Each field is nil, or the reason
// why they are not.
type View struct {
	// Network is set if sysctls and sockets are out of reach, or are those of a
	// container's network namespace.
	Network error
	// Processes is set if processes are hidden, or only a container's are visible.
	Processes error
	// Memory is set if meminfo is a container's, or hidden.
	Memory error
}

// All yields the name of each part and its error, including nil errors.
func (v View) All() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		_ = yield("network", v.Network) && yield("processes", v.Processes) && yield("memory", v.Memory)
	}
}

// Whole reports whether every number is the machine's own.
func (v View) Whole() bool { return v == View{} }

// findView determines which numbers are the machine's own.
func (m *Machine) findView() View {
	return View{
		Network:   answer(m.ProcPath, m.hostNetwork),
		Processes: answer(m.ProcPath, m.mount.Processes),
		Memory:    answer(m.ProcPath, m.mount.Memory),
	}
}

// hostNetwork returns nil if sysctls and sockets are those of the machine's initial
// network namespace.
func (m *Machine) hostNetwork() error {
	if m.host.View() == hostns.Foreign {
		return fmt.Errorf("cannot enter the host's network namespace, which needs CAP_SYS_ADMIN and CAP_SYS_PTRACE, so its sysctls and sockets are not exported: %w", m.host.Why())
	}
	// The file of a limit that only the initial namespace has. Other errors, for example
	// because the host has no file descriptors left, prove nothing.
	err := m.host.Do(func() error {
		_, err := os.Stat(m.sysctlPath("net.ipv4.tcp_mem"))
		return m.mount.Absent(err)
	})
	switch {
	case errors.Is(err, procmount.ErrHidden):
		return fmt.Errorf("sysctls of %s are %w", m.ProcPath, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the network namespace of process 1 in %s is not the machine's initial one, so the limits of TCP and UDP memory, orphans, neighbours and the backlog are missing: in a container, mount the host's /proc and pass it with --path.procfs", m.ProcPath)
	}
	return nil
}

// patience bounds the time for each check that Open makes.
const patience = 5 * time.Second

// answer runs ask, which may block in the kernel forever, and gives up after patience.
func answer(path string, ask func() error) error {
	done := make(chan error, 1)
	go func() { done <- ask() }()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		return fmt.Errorf("%s did not answer within %v", path, patience)
	}
}
