package collector

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A collector marked Often is sampled often times as frequently as others while the peak
// of one of its limits is at least restless, which shows bursts. Other hosts do not pay
// for this, because waking up costs more than the sample itself.
const (
	often    = 4
	restless = 0.25
)

// idleShare is how many times the duration of a round of samples the sampler rests after
// it. A host that is short of CPU, or has too many listeners to read quickly, gets fewer
// samples.
const idleShare = 99

// sampler reads limits between scrapes for their peaks. It reads only limits whose
// reading takes the same time under any load.
type sampler struct {
	interval time.Duration
	runners  []*runner
	skipped  atomic.Uint64

	start  sync.Once
	cancel context.CancelFunc
	done   chan struct{}
}

func newSampler(interval time.Duration) *sampler {
	return &sampler{interval: interval, cancel: func() {}, done: make(chan struct{})}
}

// begin starts the sampler, unless it is running or disabled.
func (s *sampler) begin() {
	if s.interval <= 0 {
		return
	}
	s.start.Do(func() {
		var ctx context.Context
		ctx, s.cancel = context.WithCancel(context.Background())
		go s.run(ctx)
	})
}

// end stops the sampler and waits until it has stopped or ctx is done.
func (s *sampler) end(ctx context.Context) error {
	started := true
	s.start.Do(func() { started = false })
	if !started || s.interval <= 0 {
		return nil
	}
	s.cancel()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the sampler is still reading: %w", ctx.Err())
	}
}

func (s *sampler) run(ctx context.Context) {
	defer close(s.done)
	step := s.interval / often
	timer := time.NewTimer(step)
	defer timer.Stop()
	due := time.Now().Add(step)
	for n := 0; ; {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		for _, r := range s.runners {
			if n%often == 0 || r.restless() {
				r.takeSample(ctx, s.interval)
			}
		}
		next := time.Now().Add(idleShare * time.Since(began))
		for {
			n++
			due = due.Add(step)
			if n%often != 0 && !slices.ContainsFunc(s.runners, (*runner).restless) {
				continue
			}
			if !due.Before(next) {
				break
			}
			s.skipped.Add(1)
		}
		timer.Reset(time.Until(due))
	}
}

// restless reports whether the collector is sampled more often than others.
func (r *runner) restless() bool {
	return r.spec.Often && slices.ContainsFunc(r.spec.Limits, func(l LimitInfo) bool {
		return r.peaks.peak(l.Resource).Value >= restless
	})
}

// takeSample reads what the limits of a collector depend on, unless the collector is
// being read.
func (r *runner) takeSample(ctx context.Context, patience time.Duration) {
	select {
	case r.reading <- struct{}{}:
	default:
		return
	}
	defer func() { <-r.reading }()
	defer func() {
		if p := recover(); p != nil {
			r.logger.Debug("panic", "sample", p, "stack", string(debug.Stack()))
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r.scope.sampling = true
	defer func() { r.scope.sampling = false }()
	reading, err := r.sample(ctx, r.peaks.counts)
	r.peaks.observe(reading)
	r.trends.observe(reading.limits, time.Now())
	if err != nil {
		r.logger.Log(ctx, slog.LevelDebug, "sample failed", "err", err)
	}
}
