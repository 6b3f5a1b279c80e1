// Command fleet measures what a fleet of nodes costs the systems that store and watch it:
// memory, samples per second, the time of every group of rules, and that of every query
// of the dashboards. It starts the engine, writes samples of varying synthetic nodes to
// it, makes it evaluate the rules, sends the queries of the dashboards, and prints tables
// in Markdown:
//
//	go run ./bench/fleet -nodes=1000 -engine=prometheus
//	go run ./bench/fleet -nodes=1000 -engine=victoriametrics -programs=DIR
//	go run ./bench/fleet -nodes=1000 -engine=thanos -programs=DIR
//
// DIR contains victoria-metrics and vmalert, or thanos built with the tag slicelabels. Ten
// thousand nodes take 16 GB of memory and a quarter of an hour.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/exporter"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	nodes, trouble, clusters, tries, rounds int
	engine, prometheus, programs, also      string
	rules, dashboards, recordings, dir      string
	interval, before, ahead, live           time.Duration
	slow                                    time.Duration
	queries                                 bool
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	var o options
	flags := flag.NewFlagSet("fleet", flag.ContinueOnError)
	flags.IntVar(&o.nodes, "nodes", 100, "how many nodes")
	flags.IntVar(&o.trouble, "trouble", 20, "how many of a thousand nodes are in trouble")
	flags.IntVar(&o.clusters, "clusters", 4, "how many clusters they are in; 0 for no such label")
	flags.StringVar(&o.engine, "engine", "prometheus", "prometheus, victoriametrics or thanos")
	flags.StringVar(&o.prometheus, "prometheus", "prometheus", "path of Prometheus")
	flags.StringVar(&o.programs, "programs", "", "folder of victoria-metrics and vmalert, or of thanos")
	flags.StringVar(&o.rules, "rules", "alerts", "folder of the rule files")
	flags.StringVar(&o.dashboards, "dashboards", "dashboards", "folder of the dashboards")
	flags.StringVar(&o.recordings, "recordings", "lab/recordings", "folder of the recordings")
	flags.StringVar(&o.dir, "dir", "", "folder for the engine's data, a temporary one if empty")
	flags.DurationVar(&o.interval, "interval", scrape, "time between two scrapes")
	flags.DurationVar(&o.before, "before", 7*time.Minute, "how much of the past has every series")
	flags.DurationVar(&o.ahead, "ahead", 5*time.Minute, "how much of the future is written before the rules run: the time that writing takes, and -live")
	flags.DurationVar(&o.live, "live", 2*time.Minute, "how long the rules are watched; with 0 they are not loaded, only asked, and -ahead is nothing")
	flags.StringVar(&o.also, "also", "", "folder of other rule files, which are asked too, to compare")
	flags.DurationVar(&o.slow, "slow", 0, "list queries that take this long, and no others")
	flags.IntVar(&o.tries, "tries", 3, "how often a query is asked, of which the fastest counts")
	flags.IntVar(&o.rounds, "rounds", 3, "scrapes of all nodes that are written one by one, for samples a second")
	flags.BoolVar(&o.queries, "queries", true, "ask what rules and dashboards ask, one by one")
	if err := flags.Parse(args); err != nil {
		return err
	}
	begin := engines()[o.engine]
	if begin == nil {
		return fmt.Errorf("-engine=%s: want one of %s", o.engine, strings.Join(slices.Sorted(maps.Keys(engines())), ", "))
	}
	f, err := readFleet(o.recordings)
	if err != nil {
		return err
	}
	f.nodes, f.trouble, f.clusters = o.nodes, o.trouble, o.clusters
	rules, recorded, err := readRules(o.rules)
	if err != nil {
		return err
	}
	f.recorded = recorded
	panels, err := readPanels(o.dashboards, f.node(0).labels[0].Value)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "fleet")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	machine, err := exporter.Machine()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d nodes, %d of 1,000 in trouble, %s; %s\n\n", o.nodes, o.trouble, o.engine, machine)

	e, err := begin(ctx, o, dir)
	if e != nil {
		defer e.stop()
	}
	if err != nil {
		return err
	}
	m := measurement{o: o, e: e, f: f, out: out, w: &writer{url: e.write}}
	if err := m.load(ctx); err != nil {
		return err
	}
	if o.live > 0 {
		pattern, err := filepath.Abs(filepath.Join(o.rules, "*.rules.yml"))
		if err != nil {
			return err
		}
		if err := e.loadRules(ctx, pattern); err != nil {
			return err
		}
		if err := m.watch(ctx); err != nil {
			return err
		}
		if err := e.unloadRules(ctx); err != nil {
			return err
		}
		m.at = time.Now().Truncate(scrape).Add(-time.Minute)
	}
	if o.queries {
		parts := []struct {
			title string
			all   []asked
		}{{"Queries of rules", rules}, {"Queries of panels", panels}}
		if o.also != "" {
			others, _, err := readRules(o.also)
			if err != nil {
				return err
			}
			parts = append(parts, parts[0])
			parts[2].title, parts[2].all = "Queries of the other rules", others
		}
		for _, part := range parts {
			if err := m.ask(ctx, part.title, part.all); err != nil {
				return err
			}
		}
	}
	return m.rounds(ctx)
}

// measurement is one run.
type measurement struct {
	o    options
	e    *engine
	f    *fleet
	w    *writer
	out  io.Writer
	last time.Time // of the samples that are written
	at   time.Time // of queries
}

// load writes the past that rules and panels look back at, minutes apart.
func (m *measurement) load(ctx context.Context) error {
	now := time.Now().Truncate(scrape)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	began := time.Now()
	before, err := m.e.used()
	if err != nil {
		return err
	}
	// Alerts look back at these over minutes, in which they were recorded at each evaluation.
	latest := func(r recorded) bool { return r.counter != "" || strings.HasSuffix(r.name, ":max1m") }
	// Oldest first. The maximum of an hour needs the whole hour; other values are looked
	// up at one time.
	type window struct{ from, to, step time.Duration }
	perNode := []window{{24*time.Hour + 6*time.Minute, 24*time.Hour - 5*time.Minute, time.Minute}, {6*time.Hour + 6*time.Minute, 0, 2 * time.Minute}}
	perLimit := []window{{2*time.Hour + 6*time.Minute, 2*time.Hour - 5*time.Minute, time.Minute}, {64 * time.Minute, 0, time.Minute}}
	moments := []window{{64 * time.Minute, 58 * time.Minute, time.Minute}, {34 * time.Minute, 28 * time.Minute, time.Minute}, {19 * time.Minute, 13 * time.Minute, time.Minute}}
	for _, part := range []struct {
		windows []window
		keep    func(recorded) bool
	}{
		{perNode, func(r recorded) bool { return r.perNode }},
		{perLimit, func(r recorded) bool { return !r.perNode && r.from > 0 && !latest(r) }},
		{[]window{{10 * time.Minute, 0, time.Minute}}, func(r recorded) bool { return !r.perNode && r.from == 0 && !latest(r) }},
		{[]window{{10 * time.Minute, 0, scrape}}, latest},
	} {
		for _, w := range part.windows {
			if err := m.w.writeRecorded(ctx, m.f, ago(w.from), ago(w.to), w.step, part.keep); err != nil {
				return err
			}
		}
	}
	looked := func(s *series) bool {
		return s.labels[0].Value == "sockpressure_saturation_ratio" || s.labels[0].Value == "up"
	}
	for _, w := range moments {
		if err := m.w.write(ctx, m.f, ago(w.from), ago(w.to), w.step, looked); err != nil {
			return err
		}
	}
	thin := m.w.samples.Load()
	m.w.series.Store(0)
	m.last, m.at = now, now
	if m.o.live > 0 {
		m.last = now.Add(m.o.ahead)
	}
	if err := m.w.write(ctx, m.f, ago(m.o.before), m.last, m.o.interval, nil); err != nil {
		return err
	}
	after, err := m.e.used()
	if err != nil {
		return err
	}
	took := time.Since(began)
	all := m.w.samples.Load()
	fmt.Fprintf(m.out, "| loaded | |\n|---|---|\n| series | %d, %.0f a node |\n| samples | %d, of which %d of the past |\n| time | %.0f s, %.0f s of CPU of the engine |\n| samples a second, in batches | %.0f |\n| memory | %.1f GiB |\n\n",
		m.w.series.Load(), float64(m.w.series.Load())/float64(m.f.nodes), all, thin, took.Seconds(), (after.cpu - before.cpu).Seconds(), float64(all)/took.Seconds(), gib(after.resident))
	return nil
}

func gib(bytes uint64) float64 { return float64(bytes) / (1 << 30) }

// watch has the rules evaluated, and prints what that took.
func (m *measurement) watch(ctx context.Context) error {
	// The first evaluations find no state, and no series of their own.
	if _, _, err := m.e.watch(ctx, 35*time.Second); err != nil {
		return err
	}
	before, err := m.e.used()
	if err != nil {
		return err
	}
	began := time.Now()
	groups, failures, err := m.e.watch(ctx, m.o.live)
	if err != nil {
		return err
	}
	after, err := m.e.used()
	if err != nil {
		return err
	}
	over := time.Since(began)
	if left := time.Until(m.last); left < 0 {
		fmt.Fprintf(m.out, "The samples ended %s before the rules did: give a longer -ahead.\n\n", -left)
	}
	fmt.Fprintf(m.out, "| group | interval | median | longest | share of the interval |\n|---|---|---|---|---|\n")
	sum := 0.0
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		g := groups[name]
		if len(g.took) == 0 {
			continue
		}
		slices.Sort(g.took)
		median := g.took[len(g.took)/2]
		share := "?"
		if g.interval > 0 {
			share = fmt.Sprintf("%.3f", median.Seconds()/g.interval.Seconds())
			sum += median.Seconds() / g.interval.Seconds()
		}
		fmt.Fprintf(m.out, "| %s | %s | %.3f s | %.3f s | %s |\n", strings.TrimPrefix(g.name, "sockpressure-"), g.interval, median.Seconds(), g.took[len(g.took)-1].Seconds(), share)
	}
	fmt.Fprintf(m.out, "| sum | | | | %.3f |\n\nCPU of the engine meanwhile: %.3f of a core; memory %.1f GiB; %g evaluations failed.\n\n",
		sum, (after.cpu-before.cpu).Seconds()/over.Seconds(), gib(after.resident), failures)
	return nil
}

// ask prints what each query took and, for rules, the total of each group.
func (m *measurement) ask(ctx context.Context, title string, all []asked) error {
	fmt.Fprintf(m.out, "%s:\n\n| query | time | CPU | samples read | series | bytes |\n|---|---|---|---|---|---|\n", title)
	var took, cpu time.Duration
	groups, of, read, looked := []asked{}, map[string]time.Duration{}, map[string]int{}, 0
	for _, q := range all {
		before := time.Now()
		a := m.e.ask(ctx, q, m.at, m.o.tries)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if a.err != nil {
			fmt.Fprintf(m.out, "| %s | %s | | | failed: %v | |\n", q.name, time.Since(before), a.err)
			continue
		}
		took, cpu = took+a.took, cpu+a.cpu
		if _, ok := of[q.group]; !ok {
			groups = append(groups, q)
		}
		of[q.group] += a.cpu
		read[q.group] += a.read
		looked += a.read
		if a.cpu >= m.o.slow {
			fmt.Fprintf(m.out, "| %s | %.3f s | %.3f s | %d | %d | %d |\n", q.name, a.took.Seconds(), a.cpu.Seconds(), a.read, a.series, a.bytes)
		}
	}
	fmt.Fprintf(m.out, "| %d together | %.3f s | %.3f s | %d | | |\n\n", len(all), took.Seconds(), cpu.Seconds(), looked)
	if len(groups) < 2 {
		return nil
	}
	fmt.Fprintf(m.out, "| group | interval | CPU of its queries | share of the interval | samples read, a second |\n|---|---|---|---|---|\n")
	sum, perSecond := 0.0, 0.0
	for _, g := range groups {
		share := of[g.group].Seconds() / g.interval.Seconds()
		sum += share
		pace := float64(read[g.group]) / g.interval.Seconds()
		perSecond += pace
		fmt.Fprintf(m.out, "| %s | %s | %.3f s | %.4f | %.0f |\n", strings.TrimPrefix(g.group, "sockpressure-"), g.interval, of[g.group].Seconds(), share, pace)
	}
	fmt.Fprintf(m.out, "| sum | | | %.4f | %.0f |\n\n", sum, perSecond)
	return nil
}

// rounds writes a sample of every series at one time, as scrapes do.
func (m *measurement) rounds(ctx context.Context) error {
	if m.o.rounds == 0 {
		return nil
	}
	before, err := m.e.used()
	if err != nil {
		return err
	}
	began, samples := time.Now(), m.w.samples.Load()
	for range m.o.rounds {
		m.last = m.last.Add(m.o.interval)
		if err := m.w.write(ctx, m.f, m.last, m.last, m.o.interval, nil); err != nil {
			return err
		}
	}
	after, err := m.e.used()
	if err != nil {
		return err
	}
	n := float64(m.w.samples.Load() - samples)
	fmt.Fprintf(m.out, "%d rounds, each with a sample of every series: %.0f samples a second; the engine had %.2f of a core, %.2f s for a million samples. Memory %.1f GiB.\n",
		m.o.rounds, n/time.Since(began).Seconds(), (after.cpu-before.cpu).Seconds()/time.Since(began).Seconds(), (after.cpu-before.cpu).Seconds()/n*1e6, gib(after.resident))
	return nil
}
