package collector

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
)

// sampledSet returns a set that takes a sample every second.
func sampledSet(specs ...Spec) *Set {
	return NewSet(new(kernel.Machine), specs, Config{SampleInterval: time.Second, Top: 10, Logger: slog.New(slog.DiscardHandler)})
}

// peak returns the peak of the set's first limit.
func peak(t *testing.T, set *Set) Number {
	t.Helper()
	limits := set.Read(t.Context(), Query{}).Limits()
	if len(limits) == 0 {
		t.Fatal("no limit")
	}
	return limits[0].Peak
}

// TestPeaks checks that a peak between two scrapes is exported for about a minute and then
// forgotten.
func TestPeaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		set := sampledSet(fake("limit", false, func(context.Context) (float64, error) {
			if d := time.Since(began); d > 20*time.Second && d < 23*time.Second {
				return 9, nil
			}
			return 1, nil
		}))
		defer closeSet(t, set)
		if p := peak(t, set); p.Value != 0.1 {
			t.Errorf("a peak of %v at the start", p)
		}
		for _, c := range []struct {
			at   time.Duration
			want float64
		}{{19 * time.Second, 0.1}, {30 * time.Second, 0.9}, {60 * time.Second, 0.9}, {80 * time.Second, 0.9}, {90 * time.Second, 0.1}} {
			time.Sleep(c.at - time.Since(began))
			if p := peak(t, set); p.Value != c.want {
				t.Errorf("a peak of %v after %v, want %v", p, c.at, c.want)
			}
		}
	})
}

// TestPeaksOff checks that there is no peak without samples.
func TestPeaksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := fakeSet(nil, fake("limit", false, always(5)))
		defer closeSet(t, set)
		if p := peak(t, set); p.Present {
			t.Errorf("a peak of %v", p)
		}
		set = sampledSet(fake("walk", true, always(5)))
		defer closeSet(t, set)
		if p := peak(t, set); p.Present {
			t.Errorf("a peak of %v of a walk", p)
		}
	})
}

// TestProofs checks that a limit counts as reached if its counter of refusals grew between two
// samples, unless all of the growth had another cause.
func TestProofs(t *testing.T) {
	type counters struct{ usage, drops, clashes Number }
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now := counters{number(1), number(100), number(40)}
		set := sampledSet(define(Definition[counters]{
			Name: "table",
			Open: func(*Scope) func(context.Context, *counters) error {
				return func(_ context.Context, s *counters) error {
					mu.Lock()
					defer mu.Unlock()
					*s = now
					return nil
				}
			},
			Metrics: []Metric[counters]{
				{Name: "usage", Help: "Usage.", Value: func(s *counters) Number { return s.usage }},
				{Name: "drops_total", Help: "Drops.", Value: func(s *counters) Number { return s.drops }},
				{Name: "clashes_total", Help: "Clashes.", Value: func(s *counters) Number { return s.clashes }},
			},
			Limits: []Limit[counters]{{
				LimitInfo: LimitInfo{
					Resource: "limit", Unit: Entries, Effect: "It ends.", SetWith: "the test", WarningRatio: 0.7, CriticalRatio: 0.9,
					Usage: series("usage"), Proofs: []Proof{{Counter: series("drops_total"), Less: series("clashes_total")}},
				},
				Most: func(*counters) Number { return number(10) },
			}},
		}))
		defer closeSet(t, set)
		for _, c := range []struct {
			drops, clashes float64
			want           float64
		}{{0, 0, 0.1}, {3, 3, 0.1}, {2, 0, 1}} {
			mu.Lock()
			now.drops.Value += c.drops
			now.clashes.Value += c.clashes
			mu.Unlock()
			time.Sleep(2 * time.Second)
			if p := peak(t, set); p.Value != c.want {
				t.Errorf("a peak of %v, want %v", p, c.want)
			}
		}
	})
}

// TestSampler checks that a sample is taken every second, and four per second for a collector
// that is sampled often once a quarter of its limit is used; that no sample is taken during a
// scrape; and that slow collectors are sampled less often, with the skipped samples counted.
func TestSampler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		samples, atOnce, cost, usage := 0, 0, time.Duration(0), 2.0
		// counted returns the number of samples since its last call, and sets how long the
		// next ones take.
		counted := func(next time.Duration) int {
			mu.Lock()
			defer mu.Unlock()
			n := samples
			samples, cost = 0, next
			return n
		}
		open := func(*Scope) func(context.Context, *Number) error {
			return func(_ context.Context, s *Number) error {
				mu.Lock()
				samples++
				atOnce++
				*s = number(usage)
				if atOnce > 1 {
					t.Error("two samples at the same time")
				}
				takes := cost
				mu.Unlock()
				time.Sleep(takes)
				mu.Lock()
				atOnce--
				mu.Unlock()
				return nil
			}
		}
		spec := define(Definition[Number]{
			Name: "often", Walk: true, Open: open, Sample: open, Often: true,
			Metrics: []Metric[Number]{{Name: "value", Help: "A value.", Value: func(s *Number) Number { return *s }}},
			Limits: []Limit[Number]{{
				LimitInfo: LimitInfo{
					Resource: "often", Unit: Entries, Effect: "It ends.", SetWith: "the test", WarningRatio: 0.7, CriticalRatio: 0.9,
					Usage: series("value"),
				},
				Most: func(*Number) Number { return number(10) },
			}},
		})
		set := sampledSet(spec)
		defer closeSet(t, set)
		skipped := func() float64 { return set.Read(t.Context(), Query{}).skipped.Value }
		skipped()
		counted(0)
		time.Sleep(10*time.Second + time.Millisecond)
		if n := counted(0); n != 10 || skipped() != 0 {
			t.Errorf("%d samples at low usage, %v skipped", n, skipped())
		}
		mu.Lock()
		usage = 2.5
		mu.Unlock()
		time.Sleep(time.Second)
		counted(0)
		time.Sleep(10 * time.Second)
		if n := counted(50 * time.Millisecond); n != 40 || skipped() != 0 {
			t.Errorf("%d samples, %v skipped", n, skipped())
		}
		time.Sleep(100 * time.Second)
		if n := counted(0); n < 18 || n > 22 {
			t.Errorf("%d samples of 50 ms each in 100 s", n)
		}
		if n := skipped(); n < 360 || n > 400 {
			t.Errorf("%v skipped", n)
		}
	})
}
