package exporter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/namespaces"
)

// Apart runs this program again, in its own network and mount namespace, with the path of
// the exporter as --program. If that is empty, the exporter is built.
func Apart(ctx context.Context, program string, args []string) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make namespaces")
	}
	if program == "" {
		dir, err := os.MkdirTemp("", "bench-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		program = filepath.Join(dir, "sockpressure_exporter")
		if err := GoTool(ctx, dir, "build", "-o", program, Ours); err != nil {
			return err
		}
	}
	return namespaces.Run(ctx, 0, append(args, "--program="+program)...)
}

// PrepareApart makes these namespaces usable, from inside. In a PID namespace the
// exporter would not read processes at all, so it sees the machine's, and this one as
// process 1, whose network namespace it takes for the host's.
func PrepareApart() error {
	if err := namespaces.Prepare(); err != nil {
		return err
	}
	if err := unix.Mount("/proc/"+strconv.Itoa(os.Getpid()), "/proc/1", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /proc/1: %w", err)
	}
	return nil
}
