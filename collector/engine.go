package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
)

// Config configures how collectors are run.
type Config struct {
	// MaxCPU is the share of one core that all collectors marked Walk together may
	// take, at most 1. 0 means no bound: they run at every scrape.
	MaxCPU float64
	// Top bounds every list.
	Top int
	// SampleInterval is how often limits are read between scrapes for their peaks, 0
	// for never.
	SampleInterval time.Duration
	Logger         *slog.Logger

	cpuTime func() time.Duration // of the process; nil for the real one
}

// Set is the collectors that are enabled, ready to be read.
type Set struct {
	machine *kernel.Machine
	health  *health
	runners []*runner
	sampler *sampler
}

// NewSet prepares the given collectors. It keeps nothing open yet: the first read
// does.
func NewSet(m *kernel.Machine, specs []Spec, c Config) *Set {
	s := &Set{machine: m, health: healthRows(), sampler: newSampler(c.SampleInterval)}
	peaks, course := newPeaks(specs), newCourses()
	walks := &budget{maxCPU: c.MaxCPU, cpuTime: c.cpuTime, took: map[string]time.Duration{}}
	if walks.cpuTime == nil {
		walks.cpuTime = processCPUTime
	}
	for _, spec := range specs {
		logger := c.Logger.With("collector", spec.Name)
		r := &runner{spec: spec, logger: logger, scope: NewScope(m, c.Top, logger), course: course, reading: make(chan struct{}, 1)}
		r.read = spec.open(r.scope)
		if spec.Walk {
			r.budget = walks
		}
		switch {
		case !spec.Sampled() || !peaks.of(spec) || c.SampleInterval <= 0:
		case spec.sample != nil:
			r.sample = spec.sample(r.scope)
		default:
			r.sample = r.read
		}
		if r.sample != nil {
			r.peaks = peaks
			s.sampler.runners = append(s.sampler.runners, r)
		}
		s.runners = append(s.runners, r)
	}
	return s
}

// Close ends what the collectors started and closes what they opened. It fails,
// with their names, where some still read when ctx ends: those it leaves as they
// are.
func (s *Set) Close(ctx context.Context) error {
	errs := []error{s.sampler.end(ctx)}
	if errs[0] != nil {
		return errs[0]
	}
	for _, r := range s.runners {
		if !r.idle(ctx) {
			errs = append(errs, fmt.Errorf("collector %s is still reading: %w", r.spec.Name, ctx.Err()))
			continue
		}
		r.scope.Close()
	}
	return errors.Join(errs...)
}

// Names returns the names of the collectors in their order.
func (s *Set) Names() []string {
	names := make([]string, len(s.runners))
	for i, r := range s.runners {
		names[i] = r.spec.Name
	}
	return names
}

// Result is what became of one collector in one read.
type Result struct {
	Collector string
	// Infos are the limits that the collector has, read or not.
	Infos []LimitInfo
	// Limits, notes and the samples are those of one reading.
	Limits []LimitReading
	Notes  []Note
	// Err is a real failure, a timeout, or a panic. There may be limits and samples
	// beside it: those that do not depend on what could not be read.
	Err error
	// Unsupported is set where this kernel does not have what the collector
	// reads.
	Unsupported error
	// Duration is how long the reading took, Age how long ago it began to be
	// served: 0 for one that was made for this read.
	Duration, Age time.Duration

	samples []sample
	netns   []NetnsLimit
	holders map[string]*Holder
	run     *run // nil where none ended in time
}

// Same reports whether both are what one reading found.
func (r Result) Same(other Result) bool { return r.run != nil && r.run == other.run }

// Query is what a reader asks for.
type Query struct {
	// Choose reports whether a collector is wanted; nil wants all.
	Choose func(name string) bool
	// MaxAge is how old the reading of a collector may be, counted from its beginning.
	// At 0 it is made for this query, or shared with others that come meanwhile. A
	// walk may be older, as its budget has it.
	MaxAge time.Duration
}

// Reading is what the collectors of a set gave at one time. It does not change.
type Reading struct {
	// Results are in the order of the set's collectors.
	Results []Result
	// Machine is what was read.
	Machine *kernel.Machine
	// View is what the exporter sees of the machine.
	View kernel.View

	health *health
	// skipped is how many samples for peaks were not taken, absent without sampling.
	skipped Number
}

// Read reads the collectors that are asked for, all at once, and returns when each
// has given its result or the context's deadline has come.
func (s *Set) Read(ctx context.Context, q Query) *Reading {
	asked := time.Now()
	s.sampler.begin()
	var tickets []ticket
	for _, r := range s.runners {
		if q.Choose == nil || q.Choose(r.spec.Name) {
			tickets = append(tickets, r.join(ctx, q.MaxAge))
		}
	}
	reading := &Reading{Results: make([]Result, len(tickets)), Machine: s.machine, View: s.machine.View(), health: s.health}
	for i, t := range tickets {
		reading.Results[i] = t.wait(ctx, asked)
	}
	if s.sampler.interval > 0 {
		reading.skipped = number(s.sampler.skipped.Load())
	}
	return reading
}

// Limits returns the limits of all results, each with the network namespace that is the
// nearest to one of its own, the most saturated first.
func (r *Reading) Limits() []LimitReading {
	var limits []LimitReading
	netns, holders := map[string]*NetnsLimit{}, map[string]*Holder{}
	for _, r := range r.Results {
		limits = append(limits, r.Limits...)
		for i, n := range r.netns {
			netns[n.Resource] = &r.netns[i]
		}
		maps.Copy(holders, r.holders)
	}
	for i := range limits {
		l := &limits[i]
		l.Netns = netns[l.Resource]
		if len(l.Items) > 0 {
			l.Holder = l.Items[0].Holder
		} else if near(max(l.Saturation(), l.Peak.Value), l.Warning()) {
			l.Holder = holders[l.Resource].of(l.Usage)
		}
	}
	slices.SortStableFunc(limits, func(a, b LimitReading) int { return cmp.Compare(b.Worst(), a.Worst()) })
	return limits
}

// Notes returns what the kernel has logged, the latest first.
func (r *Reading) Notes() []Note {
	var notes []Note
	for _, r := range r.Results {
		notes = append(notes, r.Notes...)
	}
	slices.SortStableFunc(notes, func(a, b Note) int { return b.At.Compare(a.At) })
	return notes
}

// A runner reads one collector, never twice at the same time.
type runner struct {
	spec   Spec
	read   reader
	budget *budget // nil: read at every scrape
	// sample reads what the limits depend on, nil if that is not read between scrapes.
	// peaks is where readings are taken note of.
	sample reader
	peaks  *peaks
	course *courses
	// reading has room for one: what reads, for a scrape or a sample.
	reading chan struct{}
	logger  *slog.Logger
	scope   *Scope

	mu      sync.Mutex
	running *run
	last    *run // the last one that ended
	// reported is what the log was told last, without its numbers, and when.
	reported   string
	reportedAt time.Time
}

// A run is one reading, made by one goroutine and shared by all scrapes that
// come while it lasts.
type run struct {
	done  chan struct{} // closed at the end; what follows is set by then
	began time.Time
	took  time.Duration
	reading
	err error
	// taken is set when some scrape got the result, under the runner's lock. One
	// that came too late for all of them is there for the next.
	taken bool
	// hangs is set when a scrape has waited for it in vain and for long, under the
	// runner's lock. The next ones do not wait.
	hangs bool
}

func (r *run) ended() time.Time { return r.began.Add(r.took) }

// A ticket is one scrape's place at a run.
type ticket struct {
	*runner
	run *run
}

// join finds the run that a scrape is to wait for: the last one while the budget
// lasts, the one that is under way, or a new one.
func (r *runner) join(ctx context.Context, maxAge time.Duration) ticket {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running != nil {
		return ticket{r, r.running}
	}
	if l := r.last; l != nil && (!l.taken && time.Since(l.ended()) < lateness || time.Since(l.began) < max(r.pause(), maxAge)) {
		l.taken = true
		return ticket{r, l}
	}
	r.running = &run{done: make(chan struct{}), began: time.Now()}
	go r.start(ctx, r.running)
	return ticket{r, r.running}
}

// idle waits until no reading is under way, and reports whether that came before
// the context's end.
func (r *runner) idle(ctx context.Context) bool {
	r.mu.Lock()
	running := r.running
	r.mu.Unlock()
	if running == nil {
		return true
	}
	select {
	case <-running.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// lateness is how long a result that came too late for its scrape is of use.
const lateness = time.Minute

// failurePause is the longest time for which the failure of a walk is served in
// place of another try.
const failurePause = time.Minute

// pause is how long after its beginning the last run may be repeated.
func (r *runner) pause() time.Duration {
	if r.budget == nil {
		return 0
	}
	if r.last.err != nil {
		return min(r.budget.interval(r.spec.Name), failurePause)
	}
	return r.budget.interval(r.spec.Name)
}

// patience is how long a reading may take. It is not the deadline of the scrape
// that asked for it: a reading goes on when that scrape has given up or gone
// away, and what it finds is there for the next one. So a client without
// patience takes nothing from the others, and a host that has become too slow
// for its scrapes still gets numbers, if older ones.
const patience = 30 * time.Second

// start reads the collector and publishes the result.
func (r *runner) start(ctx context.Context, run *run) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	var spent time.Duration // CPU time of the process before the walk
	if r.budget != nil {
		spent = r.budget.cpuTime()
	}
	defer func() {
		if p := recover(); p != nil {
			run.reading = reading{}
			run.err = fmt.Errorf("panic: %v", p)
			r.logger.Debug("panic", "stack", string(debug.Stack()))
		}
		run.took = time.Since(run.began)
		if r.budget != nil {
			// On a host that is short of CPU a walk waits for most of its time. What other
			// goroutines used meanwhile counts too, but never more than that time.
			r.budget.spend(r.spec.Name, min(run.took, r.budget.cpuTime()-spent))
		}
		r.mu.Lock()
		r.running, r.last = nil, run
		r.mu.Unlock()
		close(run.done)
	}()
	r.reading <- struct{}{}
	defer func() { <-r.reading }()
	if run.err = r.scope.err(); run.err == nil {
		run.reading, run.err = r.read(ctx, nil)
	}
	if r.peaks != nil {
		r.peaks.observe(run.reading)
	}
	r.course.observe(run.limits, time.Now())
}

var errDeadline = errors.New("no result before the deadline of the scrape")

// hangTime is how long a reading takes at least until scrapes no longer wait for
// it: a client that leaves a collector less time says nothing of it.
const hangTime = 2 * time.Second

// ended waits for the run and reports whether it has ended. One that is known to
// hang is not waited for: it is a failure until it comes back.
func (t ticket) ended(ctx context.Context) bool {
	t.mu.Lock()
	hangs := t.run.hangs
	t.mu.Unlock()
	if !hangs {
		select {
		case <-t.run.done:
		case <-ctx.Done():
		}
	}
	// Both may be true by now: the one before this one took all the time.
	select {
	case <-t.run.done:
		return true
	default:
		return false
	}
}

// missed is the result of a run that has not ended.
func (t ticket) missed(ctx context.Context, asked time.Time) Result {
	err := errDeadline
	if path := t.scope.place.String(); path != "" {
		err = fmt.Errorf("%w: %s did not answer", errDeadline, path)
	}
	// A client that went away before its deadline says nothing of the collector.
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.mu.Lock()
		t.run.hangs = t.run.hangs || time.Since(t.run.began) >= hangTime
		t.mu.Unlock()
		t.report(err)
	}
	return Result{Collector: t.spec.Name, Infos: t.spec.Limits, Err: err, Duration: time.Since(asked)}
}

// wait returns the result of the run.
func (t ticket) wait(ctx context.Context, asked time.Time) Result {
	if !t.ended(ctx) {
		return t.missed(ctx, asked)
	}
	t.report(t.run.err)
	t.mu.Lock()
	t.run.taken = true
	t.mu.Unlock()

	res := Result{
		Collector: t.spec.Name,
		Infos:     t.spec.Limits,
		Duration:  t.run.took,
		Limits:    t.run.limits,
		Notes:     t.run.notes,
		samples:   t.run.samples,
		netns:     t.run.netns,
		holders:   t.run.holders,
		run:       t.run,
	}
	res.Limits = slices.Clone(res.Limits)
	for i := range res.Limits {
		l := &res.Limits[i]
		if t.peaks != nil {
			l.Peak = t.peaks.peak(l.Resource)
		}
		l.Since, l.Full = t.course.last(l.Resource)
	}
	if t.run.ended().Before(asked) {
		res.Age = asked.Sub(t.run.began)
	}
	if unsupported, ok := errors.AsType[*NotSupportedError](t.run.err); ok {
		res.Unsupported = unsupported
	} else {
		res.Err = t.run.err
	}
	return res
}

// reportPause is how long after a report a collector may fail in another way, or
// again, before that is reported. Clients that leave it too little time could fill
// the log otherwise.
const reportPause = time.Minute

// report logs what became of a collector when that has changed, and not when only
// the numbers in its error have.
func (r *runner) report(err error) {
	msg := ""
	if err != nil {
		msg = strings.Map(func(r rune) rune {
			if unicode.IsDigit(r) {
				return -1
			}
			return r
		}, err.Error())
	}
	r.mu.Lock()
	changed := msg != r.reported && (msg == "" || time.Since(r.reportedAt) >= reportPause)
	if changed {
		r.reported, r.reportedAt = msg, time.Now()
	}
	r.mu.Unlock()
	if !changed {
		return
	}
	unsupported, ok := errors.AsType[*NotSupportedError](err)
	switch {
	case err == nil:
		r.logger.Info("collector recovered")
	case ok:
		r.logger.Info("collector is not supported on this kernel", "reason", unsupported.Feature)
	default:
		r.logger.Warn("collector failed", "err", err)
	}
}
