package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/sockpressure/sockpressure_exporter/internal/plan"
)

// unplanned is the exit status of the plan command if there is no plan.
const unplanned = 3

// The formats of plan, in addition to formatJSON.
const (
	formatTable  = "table"
	formatSysctl = "sysctl"
)

func planCommand() command {
	var (
		d      plan.Demand
		format string
		given  = map[string]*bool{} // the flags of the demand that are on the command line
	)
	return command{
		name: "plan",
		help: "Print which limits must be raised to hold a number of TCP connections, to which values, how much memory that takes, and which limit is reached first. Without --connections, print how far the present load can grow. " +
			"Exits with 0 if the host can hold them as it is, 1 if settings must be changed, 2 if it cannot hold them, and 3 on errors.",
		exits:  "exits with 0 if the host can hold the connections as it is, with 1 if settings must be changed, with 2 if it cannot hold them, and with 3 on errors.",
		failed: unplanned,
		define: func(cmd *kingpin.CmdClause) {
			ask := func(name, help string) *kingpin.FlagClause {
				given[name] = new(bool)
				return cmd.Flag(name, help).IsSetByUser(given[name])
			}
			ask("connections", "TCP connections open at the same time.").Int64Var(&d.Connections)
			ask("outbound", "How many of the connections the host opens itself.").Int64Var(&d.Outbound)
			ask("destinations", "Number of pairs of a local address and a destination (address and port) over which outbound connections are spread evenly.").Int64Var(&d.Destinations)
			ask("opens-per-second", "Connections opened per second.").Int64Var(&d.Opens)
			ask("closes-per-second", "Connections per second that the host closes first.").Int64Var(&d.Closes)
			ask("unread", "Unread data in each connection, for example 4KiB.").SetValue((*size)(&d.Unread))
			ask("processes", "Number of processes over which the connections are spread evenly.").Default("1").Int64Var(&d.Processes)
			ask("listen-pause", "Longest time during which the program does not accept connections, for example 100ms.").DurationVar(&d.Pause)
			ask("tls", "The programs use TLS: include the memory that it takes.").BoolVar(&d.TLS)
			ask("proxy", "The host opens another connection for each one that it accepts.").BoolVar(&d.Proxy)
			ask("loopback", "Both ends of each connection are on the host.").BoolVar(&d.Loopback)
			ask("memory", "Memory of the host, for example 64GiB, if different from this one's.").SetValue((*size)(&d.Memory))
			ask("application-memory", "Memory of all programs, excluding TLS.").SetValue((*size)(&d.ApplicationMemory))
			flag := cmd.Flag("format", "Output format: table; sysctl, a file for /etc/sysctl.d; or json.").Default(formatTable)
			flag.EnumVar(&format, formatTable, formatSysctl, formatJSON)
			offer(flag, formatTable, formatSysctl, formatJSON)
		},
		run: func(ctx context.Context, c *config, std streams) (int, error) {
			asked, err := checkDemand(d, given, format)
			if err != nil {
				return unplanned, err
			}
			c.sampleInterval = 0
			machine, set, err := c.open(std.in, slog.New(slog.DiscardHandler))
			if err != nil {
				return unplanned, err
			}
			defer closeSet(set)
			ctx, cancel := context.WithTimeout(ctx, planTime)
			defer cancel()
			facts, err := plan.Read(ctx, machine, set)
			if err != nil {
				return unplanned, err
			}
			var out bytes.Buffer
			status := 0
			if asked {
				p := plan.Make(d, facts)
				status, err = int(p.Verdict), writePlan(&out, p, format)
			} else {
				err = writeGrowth(&out, plan.Grow(facts), format)
			}
			if err == nil {
				_, err = std.out.Write(out.Bytes())
			}
			return status, err
		},
	}
}

// planTime is how long the readings may take. A walk over millions of sockets takes
// seconds, and unlike check this command is not run by monitoring.
const planTime = 30 * time.Second

// checkDemand reports whether a demand is given, and returns an error if it is not valid.
func checkDemand(d plan.Demand, given map[string]*bool, format string) (asked bool, err error) {
	if !*given["connections"] {
		for _, name := range slices.Sorted(maps.Keys(given)) {
			if *given[name] {
				return false, fmt.Errorf("--%s needs --connections", name)
			}
		}
		if format == formatSysctl {
			return false, errors.New("--format=sysctl needs --connections")
		}
		return false, nil
	}
	counts := map[string]int64{
		"outbound": d.Outbound, "destinations": d.Destinations, "opens-per-second": d.Opens, "closes-per-second": d.Closes, "unread": d.Unread,
		"listen-pause": int64(d.Pause), "memory": d.Memory, "application-memory": d.ApplicationMemory,
	}
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if *given[name] && counts[name] == 0 {
			return false, fmt.Errorf("--%s=0 has no effect, omit it", name)
		}
	}
	return true, d.Validate()
}

// size is a number of bytes on the command line.
type size int64

// Set parses a whole number, with or without a unit.
func (s *size) Set(text string) error {
	digits := strings.TrimRight(text, "KMGTiB")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return errors.New("not a size such as 4096, 4KiB or 64GiB")
	}
	shift, ok := map[string]int{"": 0, "B": 0, "K": 10, "KiB": 10, "M": 20, "MiB": 20, "G": 30, "GiB": 30, "T": 40, "TiB": 40}[text[len(digits):]]
	if !ok {
		return fmt.Errorf("unknown unit %q, want a size such as 4096, 4KiB or 64GiB", text[len(digits):])
	}
	if n > math.MaxInt64>>shift || n < 0 {
		return errors.New("out of range")
	}
	*s = size(n << shift)
	return nil
}

func (s *size) String() string { return strconv.FormatInt(int64(*s), 10) }
