package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

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

	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RESOURCE\tSTATE\tUSED\tUSAGE\tLIMIT\tMOVED BY")
	worst := collector.OK
	for _, l := range collector.Limits(results) {
		worst = max(worst, l.Level())
		fmt.Fprintf(w, "%s\t%s\t%.1f%%\t%s\t%s\t%s\n",
			l.Resource, l.Level(), l.Percent(), l.Format(l.Usage), l.Format(l.Limit), l.Sysctl)
	}
	if err := w.Flush(); err != nil {
		fmt.Fprintln(stderr, err)
		return unknown
	}

	failed := len(collector.Limits(results)) == 0
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
