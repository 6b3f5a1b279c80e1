package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/byhand"
	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

const (
	// port is the exporter's default port.
	port = "10058"
	// nobody is a user without capabilities.
	nobody = 65534
	// longest is the exporter's default length of lists.
	longest = 10
	// deadline is how long a scrape may take, which is Prometheus's default, tries how
	// often it is tried, and fresh how long a walk may be delayed.
	deadline = 10 * time.Second
	tries    = 5
	fresh    = time.Minute
	// again is how long to wait before asking for a walk again.
	again = 100 * time.Millisecond
	// compareEvery is the number of steps from one that is compared to the next.
	compareEvery = 10
	// attempts is how often a step is scraped until nothing differs.
	attempts = 4
)

// guest drives one scenario.
type guest struct {
	scenario.Scenario
	status bool // pages of it are wanted
	report *report
	log    *kernelLog

	exporter *exec.Cmd
	said     bytes.Buffer // by the exporter
	client   *http.Client
	hand     *byhand.Reader
	// in runs a function where the numbers are: in the scenario's own network namespace,
	// if it has one.
	in      func(func() error) error
	steps   int
	refused bool
	// args are the arguments of the exporter.
	args []string
	// collectors maps metrics to their collector.
	collectors map[string]string
	// seen are all series of the pages, agreed those that had the right value.
	seen, agreed map[string]bool
	floods       []scenario.Flood
}

// run runs the steps of the scenario.
func (g *guest) run() error {
	start := loads()[g.Name]
	if start == nil {
		return errors.New("no load for this scenario")
	}
	g.in = func(f func() error) error { return f() }
	l, err := start(g)
	if err != nil {
		return fmt.Errorf("preparing the load: %w", err)
	}
	proc, args := "/proc", []string(nil)
	if l.in != nil {
		g.in, proc = l.in, l.proc
		args = append(args, "--path.procfs="+proc)
	}
	if len(g.Walks) > 0 {
		args = append(args, "--collector.max-cpu=0")
	}
	g.args = args
	if g.Unsampled {
		args = append(args, "--collector.sample-interval=0s")
	}
	if err := g.startExporter(args...); err != nil {
		return err
	}
	// What was logged before does not count.
	if err := g.log.read(); err != nil {
		return err
	}
	g.log.reset()
	if g.hand, err = byhand.Open(proc); err != nil {
		return err
	}
	for range scenario.Before {
		if err := g.step(""); err != nil {
			return err
		}
	}
	if err := g.ramp(l); err != nil {
		return err
	}
	if l.release != nil {
		if err := l.release(); err != nil {
			return fmt.Errorf("releasing the load: %w", err)
		}
	}
	for range scenario.After {
		if err := g.step(""); err != nil {
			return err
		}
	}
	done := &scenario.Done{Agreed: len(g.agreed), Floods: g.floods}
	if done.Miscounted, err = g.miscounted(); err != nil {
		return err
	}
	for series := range g.seen {
		if !g.agreed[series] {
			done.Never = append(done.Never, series)
		}
	}
	slices.Sort(done.Never)
	g.report.send(scenario.Message{Done: done})
	return nil
}

// ramp increases the load on the kernel, until some steps after it has refused.
func (g *guest) ramp(l *load) error {
	past := 0
	for n := 1; past < scenario.Past; n++ {
		if g.Healthy && n > scenario.Ramp {
			return nil
		}
		if n > 2*scenario.Ramp {
			return fmt.Errorf("the kernel never refused in %d steps", n-1)
		}
		refused, err := l.step(n)
		if err != nil {
			return fmt.Errorf("load, step %d: %w", n, err)
		}
		if err := g.step(refused); err != nil {
			return err
		}
		if refused != "" || past > 0 {
			past++
		}
		if past == 1 && g.Sampled {
			if err := g.sampled(); err != nil {
				return err
			}
		}
		if refused != "" && g.Healthy {
			return fmt.Errorf("the kernel refused, but should not have: %s", refused)
		}
	}
	return nil
}

// step scrapes until nothing differs from what was read by hand, and reports. Not every
// step is compared, because reading by hand is slow.
func (g *guest) step(refused string) error {
	s := &scenario.Step{Refused: refused}
	compared := g.steps%compareEvery == 0 || refused != "" && !g.refused
	g.steps++
	if refused != "" && !g.refused && g.Who != "" {
		g.askWho(s)
	}
	g.refused = g.refused || refused != ""
	walks, differ := g.Walks, map[string]string{}
	for attempt := 0; attempt == 0 || attempt < attempts && len(differ) > 0; attempt++ {
		before, err := g.readings(compared)
		if err != nil {
			return err
		}
		if err := g.scrape(s, walks); err != nil {
			return err
		}
		after, err := g.readings(compared)
		if err != nil {
			return err
		}
		if compared && s.Page != "" {
			if err := g.compare(s.Page, before, after, differ); err != nil {
				return err
			}
		}
		for series := range differ {
			if c := g.from(series); !slices.Contains(walks, c) {
				walks = append(slices.Clone(walks), c)
			}
		}
	}
	for _, series := range slices.Sorted(maps.Keys(differ)) {
		s.Differ = append(s.Differ, series+": "+differ[series])
	}
	if err := g.log.read(); err != nil {
		return err
	}
	s.Log = g.log.take()
	if g.status {
		// A host that has run out of something need not answer.
		s.Status, _ = g.get("/")
	}
	g.report.send(scenario.Message{Step: s})
	return g.report.err
}

// askWho runs the command who, as an operator would when the kernel refuses.
func (g *guest) askWho(s *scenario.Step) {
	ctx, cancel := context.WithTimeout(context.Background(), fresh)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/exporter", append([]string{"who", g.Resource}, g.args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	s.Who = string(out)
	if err != nil {
		s.NoWho = fmt.Sprintf("%v; it said: %s", err, lastLines(stderr.String()))
	}
}

func (g *guest) readings(wanted bool) (r byhand.Readings, err error) {
	if !wanted {
		return nil, nil
	}
	err = g.in(func() error {
		// What takes sockets comes first, because the kernel counts them for a while.
		r = byhand.Readings{}
		if err := queues(r); err != nil {
			return err
		}
		table, err := byhand.Table()
		if err != nil {
			return err
		}
		files, err := g.hand.Read()
		r = r.Or(table).Or(files)
		return err
	})
	return r, err
}

// scrape fetches a page, repeatedly until the given walks are new.
func (g *guest) scrape(s *scenario.Step, walks []string) error {
	for end := time.Now().Add(fresh); ; time.Sleep(again) {
		began := time.Now()
		page, err := g.metrics()
		for range tries - 1 {
			if err == nil {
				break
			}
			s.Missed++
			page, err = g.metrics()
		}
		s.Seconds = time.Since(began).Seconds()
		s.Page, s.Silent = page, ""
		if err != nil {
			s.Silent = fmt.Sprintf("%v; the exporter said: %s", err, lastLines(g.said.String()))
			return nil
		}
		values, err := parsePage(page)
		if err != nil {
			return err
		}
		old := slices.ContainsFunc(walks, func(c string) bool {
			return values[ofCollector("success", c)] == 1 && values[ofCollector("age_seconds", c)] > 0
		})
		if !old {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the walks of %s were not repeated in %v", strings.Join(walks, " and "), fresh)
		}
	}
}

// bare scrapes before any module is loaded: what the kernel does not have then must be
// not supported, rather than an error.
func (g *guest) bare() error {
	if err := g.startExporter(); err != nil {
		return err
	}
	text, err := g.metrics()
	if err != nil {
		return err
	}
	page, err := parsePage(text)
	if err != nil {
		return err
	}
	for _, spec := range collector.Specs() {
		supported := 1.0
		// The guest loads their modules later.
		if slices.Contains([]string{"tcp", "ports", "unix", "udp", "conntrack"}, spec.Name) {
			supported = 0
		}
		if got, ok := page[ofCollector("supported", spec.Name)]; !ok || got != supported {
			return fmt.Errorf("supported of collector %s is %v, not %v", spec.Name, got, supported)
		}
		if got := page[ofCollector("success", spec.Name)]; got != 1 {
			return fmt.Errorf("success of collector %s is %v", spec.Name, got)
		}
	}
	g.client.CloseIdleConnections()
	if err := g.exporter.Process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	return g.exporter.Wait()
}
