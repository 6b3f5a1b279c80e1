// Command preview draws a dashboard with the data of a running Prometheus, as one
// page without scripts, roughly as Grafana would: for the pictures in the
// documentation, and for a look at a change where there is no Grafana.
//
//	go run ./dashboards/preview -prometheus http://localhost:9090 dashboards/sockpressure-fleet.json >fleet.html
//
// The pictures in docs/ are of recorded kernels; dashboards/README.md says how
// they were made.
package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"io"
	"os"
	"time"
)

//go:embed page.html
var pageHTML string

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "preview:", err)
		os.Exit(1)
	}
}

func run(args []string, out, log io.Writer) error {
	flags := flag.NewFlagSet("preview", flag.ContinueOnError)
	flags.SetOutput(log)
	address := flags.String("prometheus", "http://localhost:9090", "the Prometheus")
	job := flags.String("job", ".+", "jobs chosen, a regular expression")
	instance := flags.String("instance", ".+", "instances chosen, a regular expression")
	at := flags.String("at", "", "end of the time shown, as 2026-01-31T12:00:00Z; now by default")
	last := flags.Duration("last", 15*time.Minute, "length of the time shown")
	interval := flags.Duration("step", 15*time.Second, "time between two points, that of the scrapes")
	rows := flags.Int("rows", 0, "stop after so many rows; 0 draws all")
	row := flags.String("row", "", "draw the row of this title only")
	note := flags.String("note", "", "what the data are, below the title")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("want the file of one dashboard")
	}
	if *last <= 0 || *interval <= 0 {
		return errors.New("-last and -step must be above 0")
	}
	end := time.Now()
	if *at != "" {
		var err error
		if end, err = time.Parse(time.RFC3339, *at); err != nil {
			return fmt.Errorf("-at: %w", err)
		}
	}
	text, err := os.ReadFile(flags.Arg(0))
	if err != nil {
		return err
	}
	var b board
	if err := json.Unmarshal(text, &b); err != nil {
		return fmt.Errorf("%s: %w", flags.Arg(0), err)
	}

	end = end.Truncate(*interval).UTC()
	p := prometheus{*address, end.Add(-*last), end, *interval, map[string]string{
		"cluster": ".*", "job": *job, "instance": *instance, "resource": ".+", "__range": fmt.Sprintf("%ds", int(last.Seconds())), "__rate_interval": fmt.Sprintf("%ds", int(4*interval.Seconds())),
	}}
	page, err := b.draw(p, *rows, *row)
	if err != nil {
		return err
	}
	page.Note = *note
	return template.Must(template.New("page").Parse(pageHTML)).Execute(out, page)
}
