package collector

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
)

// fake returns a collector that exports the result of read.
func fake(name string, walk bool, read func(context.Context) (float64, error)) Spec {
	return define(Definition[Number]{
		Name: name, Walk: walk,
		Open: func(*Scope) func(context.Context, *Number) error {
			return func(ctx context.Context, s *Number) error {
				v, err := read(ctx)
				if err == nil {
					*s = number(v)
				}
				return err
			}
		},
		Metrics: []Metric[Number]{{Name: name + "_value", Help: "A value.", Value: func(s *Number) Number { return *s }}},
		Limits: []Limit[Number]{{
			LimitInfo: LimitInfo{
				Resource: name, Unit: Entries, Effect: "It ends.", SetWith: "the test", WarningRatio: 0.7, CriticalRatio: 0.9,
				Usage: series(name + "_value"),
			},
			Most: func(*Number) Number { return number(10) },
		}},
	})
}

func fakeSet(logger *slog.Logger, specs ...Spec) *Set {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	// The fake clock also serves as CPU time: a collector that sleeps uses CPU time.
	began := time.Now()
	return NewSet(new(kernel.Machine), specs, Config{MaxCPU: 0.02, Logger: logger, cpuTime: func() time.Duration { return time.Since(began) }})
}

func always(v float64) func(context.Context) (float64, error) {
	return func(context.Context) (float64, error) { return v, nil }
}

// TestOneFailsAlone checks that a collector that fails, panics or times out exports nothing
// and does not affect the others.
func TestOneFailsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := fakeSet(nil,
			fake("good", false, always(1)),
			fake("failed", false, func(context.Context) (float64, error) { return 2, errors.New("broken") }),
			fake("panicked", false, func(context.Context) (float64, error) { panic("oops") }),
			fake("slow", false, func(context.Context) (float64, error) {
				time.Sleep(time.Minute)
				return 3, nil
			}),
			fake("absent", false, func(context.Context) (float64, error) { return 4, &NotSupportedError{Feature: "a thing"} }),
		)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		reading := set.Read(ctx, Query{})
		results := reading.Results
		if took := time.Since(began); took != time.Second {
			t.Errorf("it took %v", took)
		}
		for i, want := range []struct {
			err         string
			unsupported bool
			samples     int
		}{{"", false, 1}, {"broken", false, 0}, {"panic: oops", false, 0}, {errDeadline.Error(), false, 0}, {"", true, 0}} {
			r := results[i]
			if (r.Err == nil) != (want.err == "") || r.Err != nil && r.Err.Error() != want.err {
				t.Errorf("%s: error %v, want %q", r.Collector, r.Err, want.err)
			}
			if (r.Unsupported != nil) != want.unsupported {
				t.Errorf("%s: unsupported is %v", r.Collector, r.Unsupported)
			}
			if len(r.samples) != want.samples || len(r.Limits) != want.samples {
				t.Errorf("%s: %d samples, %d limits", r.Collector, len(r.samples), len(r.Limits))
			}
		}

		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(reading.Collector())
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if name := f.GetName(); strings.Contains(name, "scrape_collector_") && len(f.GetMetric()) != 5 {
				t.Errorf("%s for %d collectors of 5", name, len(f.GetMetric()))
			}
		}
		time.Sleep(time.Minute) // the slow one ends
	})
}

// TestShared checks that scrapes that arrive while a collector runs wait for it and share its
// result.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		set := fakeSet(nil, fake("slow", false, func(context.Context) (float64, error) {
			time.Sleep(3 * time.Second)
			return float64(runs.Add(1)), nil
		}))
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Millisecond)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if r := set.Read(ctx, Query{}).Results[0]; r.Err != nil || r.samples[0].value != 1 || r.Age != 0 {
					t.Errorf("scrape %d: %+v", i, r)
				}
			})
		}
		wg.Wait()
		if runs.Load() != 1 {
			t.Errorf("%d runs", runs.Load())
		}
	})
}

// TestStuck checks that a collector that does not return is started only once, however many
// scrapes time out, and that scrapes no longer wait for it after hangTime.
func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int32
		release := make(chan struct{})
		set := fakeSet(nil, fake("stuck", false, func(context.Context) (float64, error) {
			runs.Add(1)
			<-release
			return 7, nil
		}))
		for i := range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			r := set.Read(ctx, Query{}).Results[0]
			if !errors.Is(r.Err, errDeadline) {
				t.Errorf("%+v", r)
			}
			want := time.Second
			if i >= 2 { // it has hung for hangTime
				want = 0
			}
			if r.Duration != want {
				t.Errorf("scrape %d waited %v, want %v", i, r.Duration, want)
			}
			cancel()
		}
		if runs.Load() != 1 {
			t.Errorf("%d runs", runs.Load())
		}
		close(release)
		synctest.Wait()
		// A result that came too late for all scrapes is returned to the next one, once, if
		// that one comes soon enough.
		time.Sleep(time.Second)
		for i, want := range []struct {
			runs int32
			age  time.Duration
		}{{1, 3 * time.Second}, {2, 0}} {
			if r := set.Read(t.Context(), Query{}).Results[0]; r.Err != nil || r.Age != want.age || runs.Load() != want.runs {
				t.Errorf("read %d after it ended: %+v, %d runs", i, r, runs.Load())
			}
		}
	})
}

// TestDeadlineOfAnother checks that a scrape is not limited by the shorter deadline of the
// scrape that started the run, and that a later scrape with little time gets the result of
// that run.
func TestDeadlineOfAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		set := fakeSet(nil, fake("slow", true, func(ctx context.Context) (float64, error) {
			select {
			case <-time.After(3 * time.Second):
				return 1, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}))
		var wg sync.WaitGroup
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if r := set.Read(ctx, Query{}).Results[0]; r.Err == nil {
				t.Error("the first scrape got a result past its deadline")
			}
		})
		time.Sleep(time.Millisecond)
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if r := set.Read(ctx, Query{}).Results[0]; r.Err != nil {
				t.Errorf("the second scrape: %v", r.Err)
			}
		})
		wg.Wait()
		time.Sleep(time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if r := set.Read(ctx, Query{}).Results[0]; r.Err != nil || r.Age == 0 {
			t.Errorf("the third scrape: %v, age %v", r.Err, r.Age)
		}
	})
}

// TestClientGoesAway checks that a reading continues for the other scrapes that share it if
// its own scrape is canceled, and that nothing is logged.
func TestClientGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		set := fakeSet(slog.New(slog.NewTextHandler(&log, nil)), fake("slow", false, func(ctx context.Context) (float64, error) {
			time.Sleep(2 * time.Second)
			return 1, ctx.Err()
		}))
		first, goAway := context.WithCancel(t.Context())
		go set.Read(first, Query{})
		synctest.Wait()
		time.AfterFunc(time.Second, goAway)
		if r := set.Read(t.Context(), Query{}).Results[0]; r.Err != nil {
			t.Error(r.Err)
		}
		if log.Len() > 0 {
			t.Errorf("the log is %q, want none", log.String())
		}
	})
}

// TestBudgetIsShared checks that two walks of 0.3 s and one of 0.1 s together take 2 % of one
// core.
func TestBudgetIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var busy atomic.Int64
		walk := func(name string, took time.Duration) Spec {
			return fake(name, true, func(context.Context) (float64, error) {
				time.Sleep(took)
				busy.Add(int64(took))
				return 0, nil
			})
		}
		set := fakeSet(nil, walk("a", 300*time.Millisecond), walk("b", 300*time.Millisecond), walk("c", 100*time.Millisecond))
		began := time.Now()
		for time.Since(began) < time.Hour {
			set.Read(t.Context(), Query{})
			time.Sleep(time.Second)
		}
		if share := time.Duration(busy.Load()).Seconds() / time.Since(began).Seconds(); share < 0.019 || share > 0.0202 {
			t.Errorf("the walks took %.2f %% of a core", 100*share)
		}
	})
}

// TestBudget checks that a walk that takes 0.3 s is repeated after 15 s, which is 2 % of one
// core, and that results in between have the age of the last walk.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		walks, reads := 0, 0
		set := fakeSet(nil,
			fake("walk", true, func(context.Context) (float64, error) {
				walks++
				time.Sleep(300 * time.Millisecond)
				return float64(walks), nil
			}),
			fake("cheap", false, func(context.Context) (float64, error) {
				reads++
				return 0, nil
			}),
		)
		began := time.Now()
		for i := range 300 {
			time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second)))
			r := set.Read(t.Context(), Query{}).Results[0]
			if i%15 == 0 && r.Age != 0 || i%15 != 0 && r.Age != time.Duration(i%15)*time.Second {
				t.Fatalf("at %d s: age %v", i, r.Age)
			}
			if r.samples[0].value != float64(1+i/15) {
				t.Fatalf("at %d s: walk %v", i, r.samples[0].value)
			}
		}
		if walks != 20 || reads != 300 {
			t.Errorf("%d walks, %d reads in 300 s", walks, reads)
		}
	})
}

// TestBudgetOfBusyHost checks that the CPU time of a walk counts: one that takes 10 s but uses
// only 0.1 s of CPU time is repeated after 5 s, not 500 s.
func TestBudgetOfBusyHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		walks := 0
		var used time.Duration
		set := NewSet(new(kernel.Machine), []Spec{fake("walk", true, func(context.Context) (float64, error) {
			walks++
			used += 100 * time.Millisecond
			time.Sleep(10 * time.Second)
			return 0, nil
		})}, Config{MaxCPU: 0.02, Logger: slog.New(slog.DiscardHandler), cpuTime: func() time.Duration { return used }})
		for range 10 {
			if age := set.Read(t.Context(), Query{}).Results[0].Age; age != 0 {
				t.Errorf("walk %d is %v old", walks, age)
			}
		}
		if walks != 10 {
			t.Errorf("%d walks at 10 scrapes", walks)
		}
	})
}

// TestFairBudget checks that a walk that takes more than all others, for example because a
// user creates thousands of namespaces, gets half of the share, and that the others are
// repeated as if the other half were theirs alone.
func TestFairBudget(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		took []time.Duration // a, b, c
		want []time.Duration
	}{
		{[]time.Duration{100 * ms}, []time.Duration{5000 * ms}},
		{[]time.Duration{10 * ms, 10 * ms, 20 * ms}, []time.Duration{2000 * ms, 2000 * ms, 2000 * ms}},
		{[]time.Duration{1 * ms, 2 * ms, 4000 * ms}, []time.Duration{300 * ms, 300 * ms, 400000 * ms}},
	} {
		b := budget{maxCPU: 0.02, took: map[string]time.Duration{}}
		names := []string{"a", "b", "c"}
		for i, took := range c.took {
			b.spend(names[i], took)
		}
		share := 0.0
		for i, want := range c.want {
			got := b.interval(names[i])
			if got != want {
				t.Errorf("%v: %s is repeated after %v, want %v", c.took, names[i], got, want)
			}
			share += c.took[i].Seconds() / got.Seconds()
		}
		if share < 0.0199 || share > 0.0201 {
			t.Errorf("%v: they take %v of a core", c.took, share)
		}
	}
}

// TestFailedWalk checks that a walk that failed after a long time is repeated within about a
// minute, not only after the time that its duration would require.
func TestFailedWalk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		walks := 0
		set := fakeSet(nil, fake("walk", true, func(ctx context.Context) (float64, error) {
			if walks++; walks == 2 {
				<-ctx.Done()
				return 0, ctx.Err()
			}
			return 1, nil
		}))
		failed := time.Duration(0)
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if r := set.Read(ctx, Query{}).Results[0]; r.Err != nil {
				failed += 15 * time.Second
			}
			cancel()
			time.Sleep(15 * time.Second)
		}
		if failed == 0 || failed > 2*time.Minute {
			t.Errorf("it failed for %v", failed)
		}
	})
}

// TestReport checks that a lasting failure and its end are each logged once.
func TestReport(t *testing.T) {
	var b bytes.Buffer
	fail := true
	set := fakeSet(slog.New(slog.NewTextHandler(&b, nil)), fake("flaky", false, func(context.Context) (float64, error) {
		if fail {
			return 0, errors.New("broken")
		}
		return 0, nil
	}))
	for range 5 {
		set.Read(t.Context(), Query{})
	}
	fail = false
	for range 5 {
		set.Read(t.Context(), Query{})
	}
	// Failures that come and go are no longer logged.
	for range 10 {
		fail = !fail
		set.Read(t.Context(), Query{})
	}
	if got := b.String(); strings.Count(got, "\n") != 2 || strings.Count(got, "broken") != 1 || !strings.Contains(got, "recovered") {
		t.Errorf("the log:\n%s", got)
	}
}

func TestPerCPU(t *testing.T) {
	p := newPerCPU(1)
	total := 0.0
	step := func(what string, want float64, values ...uint64) {
		t.Helper()
		for cpu, v := range values {
			p.add(cpu, 0, v)
		}
		p.end()
		if got := p.total(0).Value; got != want || got < total {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
		total = p.total(0).Value
	}
	const top = 1<<32 - 10
	step("first reading", top+5, top, 5)
	step("one CPU wraps", top+25, 10, 5)
	step("nothing happens", top+25, 10, 5)
	step("both grow", top+28, 11, 7)
	step("the module is loaded again", top+28, 0, 0)
	step("and counts again", top+32, 3, 1)
	step("a CPU appears, with what it counted before", top+32, 3, 1, 9)
	step("and counts on", top+33, 3, 1, 10)
	step("a CPU disappears", top+34, 4, 1)
	step("and comes back", top+37, 4, 1, 13)
	p.forget()
	step("after forget, the CPUs of earlier values are unknown", top+37, 7, 500, 2)
	const wide = 1 << 40
	step("a counter of 64 bits", top+37+wide, 7+wide, 500, 2)
}

func TestTop(t *testing.T) {
	for _, n := range []int{0, 1, 3, 10} {
		keep := top[int]{n: n, before: func(a, b int) bool { return a > b }}
		for _, v := range []int{5, 1, 9, 7, 3, 8} {
			keep.offer(v)
		}
		want := []int{9, 8, 7, 5, 3, 1}
		want = want[:min(n, len(want))]
		if len(keep.items) != len(want) {
			t.Fatalf("top %d: %v", n, keep.items)
		}
		for i := range want {
			if keep.items[i] != want[i] {
				t.Errorf("top %d: %v", n, keep.items)
			}
		}
	}
}
