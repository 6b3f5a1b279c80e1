// Package cli is the command line of the exporter: its commands, flags, man page and
// completions.
package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
)

const name = "sockpressure_exporter"

// commands is the table of commands. The first is the one of a command line that
// names none.
func commands() []command {
	return []command{serveCommand(), checkCommand(), whoCommand(), planCommand()}
}

// command is a row of the table. Help, man page and completions are made of it.
type command struct {
	name string
	help string
	// exits is what the man page has of its exit statuses: a sentence that the name
	// begins.
	exits string
	// failed is the exit status with an error, even in the command line only.
	failed int
	// define adds the flags and arguments that it has beside the program's flags. It
	// is nil where there are none.
	define func(cmd *kingpin.CmdClause)
	// run does what the command is for until ctx ends, and returns the exit status.
	run func(ctx context.Context, c *config, std streams) (status int, err error)
}

// streams are standard input, output and error.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// Run does what args, the command line without the program's name, say until ctx
// ends, and returns the exit status. An error is one line on stderr.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return run(ctx, commands(), args, streams{in: stdin, out: stdout, err: stderr})
}

// run is Run with the given commands.
func run(ctx context.Context, table []command, args []string, std streams) int {
	c, exit, err := parseFlags(table, args, std.out)
	if exit {
		return 0
	}
	status := c.command.failed
	if err == nil {
		status, err = c.command.run(ctx, c, std)
	}
	if err != nil {
		var parts []string
		for line := range strings.Lines(err.Error()) {
			parts = append(parts, strings.TrimSpace(line))
		}
		fmt.Fprintf(std.err, "%s: error: %s\n", name, strings.Join(parts, " "))
		return c.command.failed
	}
	return status
}

// meant returns the command that args are for, as far as that can be told where
// something is wrong with them. Where more are named it is the one with the highest
// status of failure: monitoring takes 1 for a warning about the host.
func meant(table []command, args []string) command {
	m := table[0]
	for _, c := range table[1:] {
		if c.failed > m.failed && slices.Contains(args, c.name) {
			m = c
		}
	}
	return m
}

// machine opens the machine that the flags ask for.
func (c *config) machine(stdin io.Reader) (*kernel.Machine, error) {
	return kernel.Open(kernel.Options{ProcPath: c.procPath, SysPath: c.sysPath, CgroupPath: c.cgroupPath, PodsPath: c.podLogs, OpenLog: openLog(stdin)})
}

// open opens the machine and the collectors that the flags ask for. closeSet ends
// these.
func (c *config) open(stdin io.Reader, logger *slog.Logger) (*kernel.Machine, *collector.Set, error) {
	machine, err := c.machine(stdin)
	if err != nil {
		return nil, nil, err
	}
	return machine, collector.NewSet(machine, c.specs, collector.Config{MaxCPU: c.maxCPU, Top: c.top, SampleInterval: c.sampleInterval, Logger: logger}), nil
}

// lastReadings bounds the readings that are under way at the end.
const lastReadings = 200 * time.Millisecond

// closeSet ends the collectors. One that hangs is left as it is: the process ends.
func closeSet(set *collector.Set) {
	ctx, cancel := context.WithTimeout(context.Background(), lastReadings)
	defer cancel()
	_ = set.Close(ctx)
}
