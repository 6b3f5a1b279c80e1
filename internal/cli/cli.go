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

// commands is the table of commands. The first one runs if the command line names none.
func commands() []command {
	return []command{serveCommand(), checkCommand(), whoCommand(), planCommand()}
}

// command is a row of the table. Help, man page and completions are made from it.
type command struct {
	name string
	help string
	// exits describes the exit statuses in the man page. The sentence starts with the
	// name, which exits omits.
	exits string
	// failed is the exit status after an error, including an error in the command line.
	failed int
	// define adds the command's own flags and arguments. It is nil if there are none.
	define func(cmd *kingpin.CmdClause)
	// run runs the command until ctx ends, and returns the exit status.
	run func(ctx context.Context, c *config, std streams) (status int, err error)
}

// streams are standard input, output and error.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// Run runs the command in args, the command line without the program's name, until ctx
// ends, and returns the exit status. It prints an error as one line on stderr.
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

// meant returns the command that args probably name, for args that could not be parsed.
// If they name several, it is the one with the highest failure status, because monitoring
// interprets 1 as a warning about the host.
func meant(table []command, args []string) command {
	m := table[0]
	for _, c := range table[1:] {
		if c.failed > m.failed && slices.Contains(args, c.name) {
			m = c
		}
	}
	return m
}

// machine opens the machine that the flags name.
func (c *config) machine(stdin io.Reader) (*kernel.Machine, error) {
	return kernel.Open(kernel.Options{ProcPath: c.procPath, SysPath: c.sysPath, CgroupPath: c.cgroupPath, PodsPath: c.podLogs, OpenLog: openLog(stdin)})
}

// open opens the machine and the collectors that the flags select. The collectors must be
// closed with closeSet.
func (c *config) open(stdin io.Reader, logger *slog.Logger) (*kernel.Machine, *collector.Set, error) {
	machine, err := c.machine(stdin)
	if err != nil {
		return nil, nil, err
	}
	return machine, collector.NewSet(machine, c.specs, collector.Config{MaxCPU: c.maxCPU, Top: c.top, SampleInterval: c.sampleInterval, Logger: logger}), nil
}

// lastReadings bounds how long readings in progress are waited for at the end.
const lastReadings = 200 * time.Millisecond

// closeSet closes the collectors. It abandons one that hangs, because the process ends.
func closeSet(set *collector.Set) {
	ctx, cancel := context.WithTimeout(context.Background(), lastReadings)
	defer cancel()
	_ = set.Close(ctx)
}
