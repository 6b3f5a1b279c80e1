package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// unknown is the exit status of a monitoring plugin that could not see all.
const unknown = 3

// check prints the table of limits and returns the exit status of a monitoring
// plugin: that of the worst limit.
func check(ctx context.Context, set *collector.Set, stdout, stderr io.Writer) int {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	results := set.Read(ctx, collector.All)
	limits := collector.Limits(results)

	paint := painter(stdout)
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "RESOURCE\t%s\tUSED\tUSAGE\tLIMIT\tMOVED BY\n", paint(plain, "STATE"))
	worst := collector.OK
	for _, l := range limits {
		worst = max(worst, l.Level())
		fmt.Fprintf(w, "%s\t%s\t%.1f%%\t%s\t%s\t%s\n",
			l.Resource, paint(colour(l.Level()), l.Level().String()), l.Percent(), l.Format(l.Usage), l.Format(l.Limit), l.Sysctl)
	}
	if err := w.Flush(); err != nil {
		fmt.Fprintln(stderr, err)
		return unknown
	}
	for _, l := range limits {
		if l.Level() != collector.OK {
			fmt.Fprintf(stdout, "When %s is met: %s\n", l.Resource, l.Effect)
		}
	}

	// The log has said why.
	failed := len(limits) == 0 || set.HostNetworkNamespace() != nil || !set.InitialNetworkNamespace()
	for _, r := range results {
		if r.Err != nil {
			fmt.Fprintf(stderr, "collector %s failed: %v\n", r.Collector, r.Err)
			failed = true
		}
	}
	if failed && worst == collector.OK {
		return unknown
	}
	return int(worst)
}

// Colours of a terminal, each with two digits: what is written has to be of the
// same length in every row, or the columns would not stand below each other.
const (
	red    = 31
	green  = 32
	yellow = 33
	plain  = 39
)

func colour(l collector.Level) int {
	return [...]int{collector.OK: green, collector.Warning: yellow, collector.Critical: red}[l]
}

// painter returns a function that colours text if it goes to a terminal and the
// user has nothing against it (https://no-color.org).
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

// terminal reports whether w is a terminal. The error is EIO for one that was closed.
func terminal(w io.Writer) (bool, error) {
	f, ok := w.(*os.File)
	if !ok {
		return false, nil
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil, err
}
