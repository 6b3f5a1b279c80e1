package collector

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
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
	// MaxCPU is the share of one core that all collectors marked Walk together may take,
	// at most 1. 0 means no bound: they run at every scrape.
	MaxCPU float64
	// Top bounds the length of every list.
	Top int
	// SampleInterval is how often limits are read between scrapes for their peaks. 0
	// means never.
	SampleInterval time.Duration
	Logger         *slog.Logger

	cpuTime func() time.Duration // of the process; nil for the real one
}

// Set is a set of enabled collectors, ready to be read.
type Set struct {
	machine *kernel.Machine
	health  *health
	runners []*runner
	sampler *sampler
}

// NewSet prepares the given collectors. It opens nothing: files are opened at the first
// read.
func NewSet(m *kernel.Machine, specs []Spec, c Config) *Set {
	s := &Set{machine: m, health: healthRows(), sampler: newSampler(c.SampleInterval)}
	peaks, trends := newPeaks(specs), newTrends()
	walks := &budget{maxCPU: c.MaxCPU, cpuTime: c.cpuTime, took: map[string]time.Duration{}}
	if walks.cpuTime == nil {
		walks.cpuTime = processCPUTime
	}
	for _, spec := range specs {
		logger := c.Logger.With("collector", spec.Name)
		r := &runner{spec: spec, logger: logger, scope: NewScope(m, c.Top, logger), trends: trends, reading: make(chan struct{}, 1)}
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

// Close stops what the collectors started and closes what they opened. If some collectors
// are still reading when ctx is done, Close returns an error that names them and does not
// close them.
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

// Names returns the names of the collectors, in order.
func (s *Set) Names() []string {
	names := make([]string, len(s.runners))
	for i, r := range s.runners {
		names[i] = r.spec.Name
	}
	return names
}

// Result is the result of one collector in one read.
type Result struct {
	Collector string
	// Infos are all limits of the collector, whether they were read or not.
	Infos []LimitInfo
	// Limits, Notes and the samples are those of one reading.
	Limits []LimitReading
	Notes  []Note
	// Err is a failure, a timeout or a panic. Limits and samples that do not depend on
	// what could not be read are present even if Err is set.
	Err error
	// Unsupported is set if this kernel does not provide what the collector reads.
	Unsupported error
	// Duration is how long the reading took. Age is the time from the start of the
	// reading until it was served, 0 for one that was made for this read.
	Duration, Age time.Duration

	samples []sample
	netns   []NetnsLimit
	holders map[string]*Holder
	run     *run // nil if none ended in time
}

// Same reports whether both results are from the same reading.
func (r Result) Same(other Result) bool { return r.run != nil && r.run == other.run }

// Query describes what to read.
type Query struct {
	// Choose reports whether to read a collector; nil means all.
	Choose func(name string) bool
	// MaxAge is how old the reading of a collector may be, counted from its start. If it
	// is 0, a reading is made for this query, or shared with queries that arrive while it
	// is in progress. The reading of a walk may be older, if its budget requires that.
	MaxAge time.Duration
}

// Reading is the results of a set's collectors at one time. It does not change.
type Reading struct {
	// Results are in the order of the set's collectors.
	Results []Result
	// Machine is the machine that was read.
	Machine *kernel.Machine
	// View reports which parts of the machine the exporter sees.
	View kernel.View

	health *health
	// skipped is the number of samples for peaks that were skipped, absent without
	// sampling.
	skipped Number
}

// Read reads the chosen collectors concurrently. It returns when each has given its
// result or the deadline of ctx has passed.
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

// Limits returns the limits of all results, the most saturated first. Each includes the
// network namespace that is nearest to its own limit of this kind.
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
	// A limit that nothing on the host itself has, such as the queue of a unix socket.
	for _, r := range r.Results {
		for i, info := range r.Infos {
			read := func(l LimitReading) bool { return l.Resource == info.Resource }
			l := LimitReading{LimitInfo: &r.Infos[i], Limit: math.Inf(1), OnlyNetns: true, Netns: netns[info.Resource]}
			if l.Level() != OK && !slices.ContainsFunc(limits, read) {
				limits = append(limits, l)
			}
		}
	}
	slices.SortStableFunc(limits, LimitReading.Compare)
	return limits
}

// Notes returns the kernel's log messages, latest first.
func (r *Reading) Notes() []Note {
	var notes []Note
	for _, r := range r.Results {
		notes = append(notes, r.Notes...)
	}
	slices.SortStableFunc(notes, func(a, b Note) int { return b.At.Compare(a.At) })
	return notes
}

// A runner reads one collector, one reading at a time.
type runner struct {
	spec   Spec
	read   reader
	budget *budget // nil: read at every scrape
	// sample reads what the limits depend on; nil if that is not read between scrapes.
	// peaks records the readings.
	sample reader
	peaks  *peaks
	trends *trends
	// reading is a semaphore of one, held while reading for a scrape or a sample.
	reading chan struct{}
	logger  *slog.Logger
	scope   *Scope

	mu      sync.Mutex
	running *run
	last    *run // the last one that ended
	// reported is the last error that was logged, without digits, and reportedAt when.
	reported   string
	reportedAt time.Time
}

// A run is one reading, made by one goroutine and shared by all scrapes that arrive while
// it is in progress.
type run struct {
	done  chan struct{} // closed at the end; the fields below are set by then
	began time.Time
	took  time.Duration
	reading
	err error
	// taken is set, under the runner's lock, when a scrape has received the result. A
	// result that came too late for every scrape is kept for the next.
	taken bool
	// hangs is set, under the runner's lock, when a scrape has waited for it in vain for
	// at least hangTime. Later scrapes do not wait.
	hangs bool
}

func (r *run) ended() time.Time { return r.began.Add(r.took) }

// A ticket is one scrape's place at a run.
type ticket struct {
	*runner
	run *run
}

// join returns the run that a scrape has to wait for: the last one while it may be
// reused, the one in progress, or a new one.
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

// idle waits until no reading is in progress, and reports whether that happened before
// ctx was done.
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

// lateness is how long a result that came too late for its scrape is kept.
const lateness = time.Minute

// failurePause is the longest time for which the failure of a walk is served before the
// walk is tried again.
const failurePause = time.Minute

// pause returns how long after the start of the last run the next one may start.
func (r *runner) pause() time.Duration {
	if r.budget == nil {
		return 0
	}
	if r.last.err != nil {
		return min(r.budget.interval(r.spec.Name), failurePause)
	}
	return r.budget.interval(r.spec.Name)
}

// patience is how long a reading may take. It is independent of the deadline of the
// scrape that asked for it: a reading continues when that scrape has timed out or was
// canceled, and its result is kept for the next one. So a client with a short timeout
// does not harm others, and a host that has become too slow for its scrapes still exports
// numbers, although older ones.
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
	r.trends.observe(run.limits, time.Now())
}

var errDeadline = errors.New("no result before the deadline of the scrape")

// hangTime is the minimum duration of a reading before scrapes no longer wait for it. If
// a client gives a collector less time, that does not mean the collector hangs.
const hangTime = 2 * time.Second

// ended waits for the run and reports whether it has ended. It does not wait for a run
// that is known to hang, which counts as a failure until it returns.
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
	// Both may be ready by now, if the ticket before this one took all the time.
	select {
	case <-t.run.done:
		return true
	default:
		return false
	}
}

// missed returns the result for a run that has not ended.
func (t ticket) missed(ctx context.Context, asked time.Time) Result {
	err := errDeadline
	if path := t.scope.place.String(); path != "" {
		err = fmt.Errorf("%w: %s did not answer", errDeadline, path)
	}
	// A client that disconnected before its deadline does not show that the collector is
	// slow.
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
		l.Since, l.Longer, l.Full = t.trends.last(l.Resource)
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

// reportPause is the minimum time between reports of failures of one collector. Without
// it, clients with short timeouts could fill the log.
const reportPause = time.Minute

// report logs the state of a collector if it has changed. A change of only the digits in
// its error does not count.
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
