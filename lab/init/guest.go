package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/byhand"
	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

const (
	// port is the exporter's default one.
	port = "10058"
	// nobody is a user without capabilities.
	nobody = 65534
	// longest is the exporter's default length of lists.
	longest = 10
	// deadline is how long a scrape may take, as for a Prometheus with its defaults,
	// and tries how often it is tried. fresh is how long a walk may be put off.
	deadline = 10 * time.Second
	tries    = 5
	fresh    = 30 * time.Second
	// again is how long to wait before asking for a walk again.
	again = 100 * time.Millisecond
	// compareEvery is the steps from one that is compared to the next.
	compareEvery = 10
	// attempts is how often a step is scraped until nothing differs.
	attempts = 4
)

// guest drives one scenario.
type guest struct {
	scenario.Scenario
	report *report
	log    *os.File // /dev/kmsg

	exporter *exec.Cmd
	said     bytes.Buffer // by the exporter
	client   *http.Client
	hand     *byhand.Reader
	// in runs something where the numbers are: in a network namespace of the
	// scenario's own, if it has one.
	in      func(func() error) error
	steps   int
	refused bool
	// collectors is the collector of each metric.
	collectors map[string]string
	// seen is every series of the pages, agreed those that had the right value.
	seen, agreed map[string]bool
}

// run goes through the steps of the scenario.
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
	if err := g.startExporter(args...); err != nil {
		return err
	}
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
	done := &scenario.Done{Agreed: len(g.agreed)}
	for series := range g.seen {
		if !g.agreed[series] {
			done.Never = append(done.Never, series)
		}
	}
	slices.Sort(done.Never)
	g.report.send(scenario.Message{Done: done})
	return nil
}

// ramp puts more and more load on the kernel, until some steps after it refused.
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
		if refused != "" && g.Healthy {
			return fmt.Errorf("the kernel refused, but should not have: %s", refused)
		}
	}
	return nil
}

// step scrapes until nothing differs from what was read by hand, and reports. Not
// every step is compared: reading by hand is slow.
func (g *guest) step(refused string) error {
	s := &scenario.Step{Refused: refused}
	compared := g.steps%compareEvery == 0 || refused != "" && !g.refused
	g.steps++
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
	s.Log = g.logged()
	g.report.send(scenario.Message{Step: s})
	return g.report.err
}

func (g *guest) readings(wanted bool) (r byhand.Readings, err error) {
	if !wanted {
		return nil, nil
	}
	err = g.in(func() error {
		// What takes sockets comes first: the kernel counts them for a while.
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

// scrape asks for a page, again until some walks are new.
func (g *guest) scrape(s *scenario.Step, walks []string) error {
	for end := time.Now().Add(fresh); ; time.Sleep(again) {
		began := time.Now()
		page, err := g.get("/metrics")
		for range tries - 1 {
			if err == nil {
				break
			}
			s.Missed++
			page, err = g.get("/metrics")
		}
		s.Seconds = time.Since(began).Seconds()
		s.Page, s.Silent = page, ""
		if err != nil {
			s.Silent = fmt.Sprintf("%v; the exporter said: %s", err, lastLines(g.said.String()))
			return nil
		}
		values, err := parse(page)
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

// compare notes by series where a page and two readings differ, and forgets what
// does not differ any more. What a collector read earlier, or not at all, is not
// compared.
func (g *guest) compare(page string, before, after byhand.Readings, differ map[string]string) error {
	values, err := parse(page)
	if err != nil {
		return err
	}
	// An unprivileged exporter is not shown the descriptors that the guest sees.
	old := func(series string) bool {
		c := g.from(series)
		return c != "" && (values[ofCollector("success", c)] != 1 || values[ofCollector("age_seconds", c)] > 0) ||
			g.Unprivileged && c == "process"
	}
	for series := range values {
		if !strings.Contains(series, "_scrape_collector_") && !strings.Contains(series, "_exporter_build_info") && !old(series) {
			g.seen[series] = true
		}
	}
	differences := byhand.Compare(values, longest, before, after)
	for series := range before.Or(after) {
		if old(series) {
			continue
		}
		v, shown := values[series]
		switch d, ok := differences[series]; {
		case ok && shown && moving(series) && (about(v, before[series]) || about(v, after[series])):
			g.agreed[series] = true
		case !ok:
			delete(differ, series)
			if shown {
				g.agreed[series] = true
			}
		case d.Hard && !moving(series):
			differ[series] = d.What
		}
	}
	return nil
}

// moving says which series the looking itself moves: it takes memory, TCP's too,
// for a moment, and the kernel counts a socket until a while after it was closed.
func moving(series string) bool {
	name := strings.TrimPrefix(series, "sockpressure_")
	if resource, ok := strings.CutPrefix(name, `saturation_ratio{resource="`); ok {
		name = resource
	}
	return slices.ContainsFunc([]string{"memory", "low_memory", "committed_memory", "tcp_memory", "sockets_used"}, func(prefix string) bool {
		return strings.HasPrefix(name, prefix)
	})
}

// about allows for what the looking moves: a twentieth, or a few sockets.
func about(v, read float64) bool {
	few := 0.0
	if read > 1 { // not a ratio
		few = 4
	}
	return math.Abs(v-read) <= max(read/20, few)
}

// collectorOf maps metrics, and the saturation of limits, to their collector.
func collectorOf() map[string]string {
	of := map[string]string{}
	for _, spec := range collector.Specs() {
		for _, m := range spec.Metrics {
			of["sockpressure_"+m.Name] = spec.Name
		}
		for _, l := range spec.Limits {
			of[byhand.Series("saturation_ratio", "resource", l.Resource)] = spec.Name
		}
	}
	return of
}

// from is the collector of a series, empty if it is none's.
func (g *guest) from(series string) string {
	family, _, _ := strings.Cut(series, "{")
	return cmp.Or(g.collectors[series], g.collectors[family])
}

func ofCollector(what, name string) string {
	return byhand.Series("scrape_collector_"+what, "collector", name)
}

// bare scrapes before any module is loaded: what the kernel does not have then is
// not supported, and no error.
func (g *guest) bare() error {
	if err := g.startExporter(); err != nil {
		return err
	}
	text, err := g.get("/metrics")
	if err != nil {
		return err
	}
	page, err := parse(text)
	if err != nil {
		return err
	}
	for _, spec := range collector.Specs() {
		supported := 1.0
		// Their modules are those that the guest loads.
		if spec.Name == "tcp" || spec.Name == "ports" || spec.Name == "conntrack" {
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

// startExporter runs the exporter with its default flags, as its service does: the
// OOM killer takes it last.
func (g *guest) startExporter(args ...string) error {
	g.exporter = exec.Command("/exporter", args...)
	g.exporter.Stderr = &g.said
	if g.Unprivileged {
		g.exporter.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if err := g.exporter.Start(); err != nil {
		return err
	}
	if err := writeFile(fmt.Sprintf("/proc/%d/oom_score_adj", g.exporter.Process.Pid), "-900"); err != nil {
		return err
	}
	// One connection that stays, as Prometheus has it.
	g.client = &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: deadline}
	for end := time.Now().Add(fresh); ; time.Sleep(20 * time.Millisecond) {
		if _, err := g.get("/-/ready"); err == nil {
			return nil
		} else if time.Now().After(end) {
			return fmt.Errorf("the exporter does not start: %w; it said: %s", err, lastLines(g.said.String()))
		}
	}
}

// get returns what of an answer is of the exporter's own metrics.
func (g *guest) get(path string) (string, error) {
	// Without room for neighbours of IPv4 its loopback is gone too: 127.0.0.1 is one.
	host := "127.0.0.1"
	if g.Name == "neighbours_ipv4" {
		host = "::1"
	}
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+net.JoinHostPort(host, port)+path, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", strconv.FormatFloat(deadline.Seconds(), 'f', -1, 64))
	answer, err := g.client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return "", errors.New(answer.Status)
	}
	var b strings.Builder
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "sockpressure_") {
			b.WriteString(lines.Text() + "\n")
		}
	}
	if err := lines.Err(); err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return b.String(), err
}

// parse reads the samples of a page.
func parse(page string) (map[string]float64, error) {
	values := map[string]float64{}
	for line := range strings.Lines(page) {
		at := strings.LastIndexByte(line, ' ')
		if at < 0 {
			return nil, fmt.Errorf("%q is no sample", line)
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(line[at+1:]), 64)
		if err != nil {
			return nil, fmt.Errorf("%q is no sample: %w", line, err)
		}
		values[line[:at]] = v
	}
	return values, nil
}

// logged reads what the kernel logged since it was asked last, as far as some
// scenario waits for it, each text once.
func (g *guest) logged() []string {
	var texts []string
	b := make([]byte, 8192)
	for {
		n, err := unix.Read(int(g.log.Fd()), b)
		if errors.Is(err, unix.EPIPE) {
			continue // some lines were lost
		}
		if err != nil {
			return texts
		}
		// "6,1234,567890,-;text", and lines about the device after it.
		_, text, _ := strings.Cut(string(b[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		awaited := slices.ContainsFunc(scenario.All(), func(s scenario.Scenario) bool { return s.Log != "" && strings.Contains(text, s.Log) })
		if awaited && !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
}

func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(len(lines)-3, 0):], " | ")
}
