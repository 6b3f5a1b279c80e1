package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/who"
)

// maxGroups bounds --top of who.
const maxGroups = 1000

func whoCommand() command {
	var q who.Question
	var by, format string
	return command{
		name:   "who",
		help:   "Print who uses up a limit: processes, units, pods, listeners or peers, the largest first. Without a resource, of the most saturated limit.",
		exits:  "exits with 0, or with 1 if it failed or was stopped before it had read everything.",
		failed: 1,
		define: func(cmd *kingpin.CmdClause) {
			arg := cmd.Arg("resource", "Name of the limit, as printed by check and in the label resource.")
			arg.StringVar(&q.Resource)
			offerArg(arg, who.Resources()...)
			var groupings []string
			for _, g := range who.Groupings() {
				groupings = append(groupings, string(g))
			}
			flag := cmd.Flag("by", "What to group by: process, unit, pod, listener, peer, source, destination, state, kind or interface. The default depends on the limit.")
			flag.EnumVar(&by, groupings...)
			offer(flag, groupings...)
			cmd.Flag("top", "Number of groups to show.").Default("10").IntVar(&q.Top)
			flag = cmd.Flag("format", "Output format: text, or json, an object with the groups and notes on what could not be read.").Default(formatText)
			flag.EnumVar(&format, formatText, formatJSON)
			offer(flag, formatText, formatJSON)
			cmd.Flag("pod", "Only this pod, as NAMESPACE/POD.").PlaceHolder("NAMESPACE/POD").StringVar(&q.Pod)
			cmd.Flag("netns", "Only this network namespace, as in the label netns of the metrics, or host.").PlaceHolder("NAME").StringVar(&q.Netns)
		},
		run: func(ctx context.Context, c *config, std streams) (int, error) {
			// The command runs once, on a host that may be short of memory.
			defer debug.SetGCPercent(debug.SetGCPercent(50))
			// It makes one long system call after another. With a single processor, Go's
			// scheduler takes the processor away at each of them; with two it does not.
			if os.Getenv("GOMAXPROCS") == "" {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2))
			}
			q.By = who.Grouping(by)
			if q.Top < 1 || q.Top > maxGroups {
				return 1, fmt.Errorf("--top=%d must be between 1 and %d", q.Top, maxGroups)
			}
			if q.Resource != "" {
				if err := who.Check(q); err != nil {
					return 1, err
				}
			}
			machine, err := c.machine(std.in)
			if err != nil {
				return 1, err
			}
			return c.who(ctx, machine, q, format, std)
		},
	}
}

// who answers a question about a machine.
func (c *config) who(ctx context.Context, machine *kernel.Machine, q who.Question, format string, std streams) (int, error) {
	limit := c.readLimit(ctx, machine, q.Resource)
	if q.Resource == "" {
		if limit.Reading == nil {
			return 1, cmp.Or(limit.Err, errors.New("no limit can be read"))
		}
		q.Resource = limit.Reading.Resource
		if err := who.Check(q); err != nil {
			return 1, err
		}
	}
	if limit.Reading != nil && q.Resource == "cgroup_memory" && len(limit.Reading.Items) > 0 {
		q.Cgroup = limit.Reading.Items[0].Key[0]
	}
	progress := newProgress(std.err)
	q.Progress = progress.show
	scope := collector.NewScope(machine, q.Top, slog.New(slog.DiscardHandler))
	defer scope.Close()
	answer, err := who.Ask(ctx, scope, q)
	progress.erase()
	if answer == nil {
		return 1, err
	}
	var out bytes.Buffer
	if format == formatJSON {
		err = answer.WriteJSON(&out, limit)
	} else {
		err = answer.WriteText(&out, limit)
	}
	if err == nil {
		_, err = std.out.Write(out.Bytes())
	}
	if err == nil && answer.Stopped {
		return 1, nil
	}
	return 0, err
}

// readLimit reads a limit or, if resource is empty, the nearest limit of the enabled
// collectors.
func (c *config) readLimit(ctx context.Context, machine *kernel.Machine, resource string) who.Limit {
	specs := c.specs
	if resource != "" {
		specs = slices.DeleteFunc(collector.Specs(), func(s collector.Spec) bool {
			return !slices.ContainsFunc(s.Limits, func(l collector.LimitInfo) bool { return l.Resource == resource })
		})
		if who.PerNetns(resource) {
			i := slices.IndexFunc(c.specs, func(s collector.Spec) bool { return s.Name == "netns" })
			if i >= 0 {
				specs = append(specs, c.specs[i])
			}
		}
	}
	set := collector.NewSet(machine, specs, collector.Config{Top: c.top, Logger: slog.New(slog.DiscardHandler)})
	defer closeSet(set)
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	reading := set.Read(ctx, collector.Query{})
	for _, l := range reading.Limits() { // nearest first
		if resource == "" || l.Resource == resource {
			return who.Limit{Reading: &l}
		}
	}
	return who.Limit{Err: reading.Results[0].Err}
}

// progress is a line on a terminal that reports the progress of a command.
type progress struct {
	out   io.Writer // nil if it is not a terminal
	shown time.Time
	long  bool
}

// progressInterval is the minimum time between updates of the line, and before the first.
const progressInterval = 200 * time.Millisecond

func newProgress(out io.Writer) *progress {
	p := &progress{shown: time.Now()}
	if ok, _ := terminal(out); ok {
		p.out = out
	}
	return p
}

func (p *progress) show(read, about uint64, things string) {
	if p.out == nil || time.Since(p.shown) < progressInterval {
		return
	}
	p.shown, p.long = time.Now(), true
	of := ""
	if about >= read {
		of = " of about " + who.Digits(about)
	}
	fmt.Fprintf(p.out, "\r\x1b[Kread %s%s %s", who.Digits(read), of, things)
}

// erase removes the line.
func (p *progress) erase() {
	if p.long {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
