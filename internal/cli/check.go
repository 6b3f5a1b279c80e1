package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/plan"
)

// unknown is the exit status of a monitoring plugin that could not check everything.
const unknown = 3

// maxWatch is how far back peaks look.
const maxWatch = time.Minute

// checkTime is the maximum duration of check. Monitoring gives up on a plugin after ten
// seconds.
const checkTime = 8 * time.Second

// The formats of check.
const (
	formatText   = "text"
	formatJSON   = "json"
	formatPlugin = "plugin"
)

func checkCommand() command {
	var format string
	var during time.Duration
	var levels thresholds
	return command{
		name:   "check",
		help:   "Print every limit once, the worst first. Exits with 0 if all limits are ok, 1 for a warning, 2 for a critical limit, and 3 if all limits read are ok but a collector failed or part of the host is not visible.",
		exits:  "exits with 0, 1, 2 or 3 like a monitoring plugin, see above.",
		failed: unknown,
		define: func(cmd *kingpin.CmdClause) {
			flag := cmd.Flag("format", "Output format: text; json, an object with state, exit_status, host_view, limits, failed_collectors and kernel_messages; or plugin, for Nagios, Icinga and the like.").Default(formatText)
			flag.EnumVar(&format, formatText, formatJSON, formatPlugin)
			offer(flag, formatText, formatJSON, formatPlugin)
			cmd.Flag("warning", "Saturation from which every limit is a warning, such as 0.8 or 80%, instead of the limit's own.").Short('w').PlaceHolder("RATIO").SetValue(&levels.warning)
			cmd.Flag("critical", "Saturation from which every limit is critical, instead of the limit's own.").Short('c').PlaceHolder("RATIO").SetValue(&levels.critical)
			cmd.Flag("for", "Watch for this long first, at most a minute, and also print the highest saturation in that time.").Default("0s").DurationVar(&during)
		},
		run: func(ctx context.Context, c *config, std streams) (int, error) {
			if during < 0 || during > maxWatch {
				return unknown, fmt.Errorf("--for=%v must be between 0s and %v", during, maxWatch)
			}
			if err := levels.validate(); err != nil {
				return unknown, err
			}
			// Failures are printed below the table, once.
			_, set, err := c.open(std.in, slog.New(slog.DiscardHandler))
			if err != nil {
				return unknown, err
			}
			defer closeSet(set)
			if during > 0 {
				// The first reading starts the sampler.
				readReport(ctx, set, levels)
				select {
				case <-time.After(during):
				case <-ctx.Done():
				}
			}
			return check(ctx, set, checkOptions{format, levels, during > 0}, std.out, std.err)
		},
	}
}

// checkOptions are the options of check on the command line.
type checkOptions struct {
	format string
	levels thresholds
	// watched is set if limits were watched for their peaks.
	watched bool
}

// check reads every limit once, prints the limits, and returns the exit status of a
// monitoring plugin: that of the worst limit.
func check(ctx context.Context, set *collector.Set, o checkOptions, stdout, stderr io.Writer) (int, error) {
	r := readReport(ctx, set, o.levels)
	r.watched = o.watched
	var out bytes.Buffer
	var err error
	switch o.format {
	case formatJSON:
		err = r.writeJSON(&out)
	case formatPlugin:
		err = r.writePlugin(&out)
	default:
		err = r.writeText(&out, painter(stdout))
	}
	if err == nil {
		_, err = stdout.Write(out.Bytes())
	}
	if err != nil {
		return unknown, err
	}
	for part, err := range r.view.All() {
		if err != nil {
			fmt.Fprintf(stderr, "cannot see the host's %s: %v\n", part, err)
		}
	}
	if o.format != formatJSON { // JSON includes them
		for _, f := range r.failed {
			// Do not report a collector that fails for the reason just given.
			if !errors.Is(f.Err, r.view.Processes) {
				fmt.Fprintf(stderr, "collector %s failed: %v\n", f.Collector, f.Err)
			}
		}
	}
	return r.status(), nil
}

// shownItems is the number of items printed below a limit that each item has separately.
const shownItems = 3

// report is the result of check.
type report struct {
	limits []collector.LimitReading // the worst first
	failed []collector.Result       // those with an error
	view   kernel.View
	// remedies are what to set, by resource, for limits that are not ok.
	remedies map[string][]string
	notes    []collector.Note // latest first
	// watched is set if peaks may differ from the present saturation.
	watched bool
}

func readReport(ctx context.Context, set *collector.Set, t thresholds) report {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	reading := set.Read(ctx, collector.Query{})
	limits := reading.Limits()
	for i, l := range limits {
		limits[i] = l.WithThresholds(float64(t.warning), float64(t.critical))
	}
	slices.SortStableFunc(limits, collector.LimitReading.Compare)
	return report{
		limits: limits,
		failed: slices.DeleteFunc(slices.Clone(reading.Results), func(r collector.Result) bool { return r.Err == nil }),
		view:   reading.View,
		notes:  reading.Notes(),
		// Read only once the limits are known, and only for those that are not ok.
		remedies: plan.Remedies(reading, limits),
	}
}

// status returns the level of the worst limit, or unknown if all limits that could be
// read are ok and some could not be read.
func (r report) status() int {
	worst := collector.OK
	for _, l := range r.limits {
		worst = max(worst, l.Level())
	}
	if worst == collector.OK && (len(r.limits) == 0 || len(r.failed) > 0 || !r.view.Whole()) {
		return unknown
	}
	return int(worst)
}

// writeText writes a table for people.
func (r report) writeText(out io.Writer, paint func(colour int, text string) string) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	peak := func(of string) string {
		if r.watched {
			return of + "\t"
		}
		return ""
	}
	fmt.Fprintf(w, "RESOURCE\t%s\tUSED\t%sUSAGE\tLIMIT\tSET BY\n", paint(plain, "STATE"), peak("PEAK"))
	for _, l := range r.limits {
		highest := l.Share() + "%"
		if higher := l.PeakShare(); higher != "" {
			highest = higher + "%"
		}
		usage, limit := l.Shown()
		where := ""
		if l.Elsewhere() {
			where = " in " + l.Netns.Title()
		}
		fmt.Fprintf(w, "%s\t%s\t%s%%\t%s%s\t%s\t%s%s\n",
			l.Resource, paint(colour(l.Level()), l.Level().String()), l.WorstShare(), peak(highest), l.Format(usage), l.Format(limit), l.SetBy(), where)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return r.writeDetails(out)
}

// writeDetails writes, for each limit that is not ok, its effect, its holder and what to
// set.
func (r report) writeDetails(out io.Writer) error {
	for _, l := range r.limits {
		if l.Level() != collector.OK {
			fmt.Fprintf(out, "When %s reaches its limit: %s\n", l.Resource, l.Effect)
			if at := slices.IndexFunc(r.notes, func(n collector.Note) bool { return slices.Contains(n.Resources, l.Resource) }); at >= 0 {
				fmt.Fprintf(out, "  the kernel said at %s: %s\n", r.notes[at].At.Format(time.DateTime), r.notes[at].Text)
			}
			if l.Netns != nil && (l.OwnLevel() < l.Level() || l.Netns.Saturation >= l.Saturation()) {
				fmt.Fprintf(out, "  in the network namespace %s: %s%% (%s)\n", l.Netns.Title(), l.Netns.Share(), l.NetnsAmount())
			}
			for _, item := range l.Items[:min(shownItems, len(l.Items))] {
				fmt.Fprintf(out, "  %s: %s%s\n", item.Name(), l.Amount(item.Usage, item.Limit), held(item.Holder))
			}
			if l.Holder != nil && len(l.Items) == 0 {
				fmt.Fprintf(out, "  %s\n", strings.TrimPrefix(held(l.Holder), ", "))
			}
			if l.Full > 0 {
				fmt.Fprintf(out, "  full in %v at the rate of the last minute\n", l.Full)
			}
			for _, line := range r.remedies[l.Resource] {
				fmt.Fprintf(out, "  to raise it: %s\n", line)
			}
			fmt.Fprintf(out, "  more: %s %s\n", name, l.WhoArgs())
		}
	}
	return nil
}

// held describes a holder. It returns "" for nil.
func held(h *collector.Holder) string {
	switch {
	case h == nil:
		return ""
	case h.Share < 1:
		return fmt.Sprintf(", held by %s, %s%% of it", h, h.Percent())
	default:
		return fmt.Sprintf(", held by %s", h)
	}
}

// Colours of a terminal. Each has two digits, because the escape sequences must have the
// same length in every row for the columns to be aligned.
const (
	red    = 31
	green  = 32
	yellow = 33
	plain  = 39
)

func colour(l collector.Level) int {
	return [...]int{collector.OK: green, collector.Warning: yellow, collector.Critical: red}[l]
}

// painter returns a function that colours text if w is a terminal and the user has not
// disabled colours (https://no-color.org).
func painter(w io.Writer) func(colour int, text string) string {
	ok, _ := terminal(w)
	ok = ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return func(colour int, text string) string {
		if !ok {
			return text
		}
		return fmt.Sprintf("\x1b[%dm%s\x1b[%dm", colour, text, plain)
	}
}

// terminal reports whether w is a terminal. The error is EIO for a terminal that was
// closed.
func terminal(w io.Writer) (bool, error) {
	f, ok := w.(*os.File)
	if !ok {
		return false, nil
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil, err
}
