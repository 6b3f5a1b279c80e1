package collector

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// This file has an example of each kind of addition that docs/architecture.md describes, and
// tests it, so that the description stays right.

// visitSpec is a collector that visits network namespaces, here those of the given processes.
func visitSpec(pids ...int) Spec {
	type namespace struct {
		pid   int
		inuse Number
	}
	type snapshot struct{ namespaces []namespace }
	return define(Definition[snapshot]{
		Name: "visit", Help: "Sockets of every network namespace.", Walk: true,
		Open: func(k *Scope) func(context.Context, *snapshot) error {
			return func(_ context.Context, s *snapshot) error {
				return k.Tour(func(tour *kernel.Tour) error {
					file := tour.File("sockstat")
					for _, pid := range pids {
						err := tour.Visit(strconv.Itoa(pid), func(error) error {
							b, err := required(file, "IPv4")
							if isNotSupported(err) {
								return nil // it has ended
							}
							if err != nil {
								return err
							}
							counts, err := parse.Sockstat(b, file.Path(), 0)
							s.namespaces = append(s.namespaces, namespace{pid, counts.TCP})
							return err
						})
						if err != nil {
							return err
						}
					}
					return nil
				})
			}
		},
		Lists: []Lister[snapshot]{List[snapshot, namespace]{
			Items:  func(s *snapshot) iter.Seq[namespace] { return slices.Values(s.namespaces) },
			Before: func(a, b namespace) bool { return a.inuse.Value > b.inuse.Value },
			Labels: []string{"netns"},
			Key:    func(n namespace) []string { return []string{strconv.Itoa(n.pid)} },
			Columns: []Metric[namespace]{{
				Name: "visit_tcp_sockets", Help: "TCP sockets of a network namespace.",
				Value: func(n *namespace) Number { return n.inuse },
			}},
		}},
	})
}

// TestAddNetns checks that a collector can read a namespace and leaves no file of it open.
func TestAddNetns(t *testing.T) {
	needs.Check(t, needs.Root)
	child := exec.CommandContext(t.Context(), "sleep", "60")
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	set := NewSet(machine(t, running()), []Spec{visitSpec(child.Process.Pid, 1<<30)}, Config{Top: 10, Logger: slog.New(slog.DiscardHandler)})
	defer closeSet(t, set)
	r := set.Read(t.Context(), Query{}).Results[0]
	if r.Err != nil || len(r.samples) != 1 || r.samples[0].value != 0 || r.samples[0].labels[0] != strconv.Itoa(child.Process.Pid) {
		t.Fatalf("%+v", r)
	}
	open, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range open {
		if at, _ := os.Readlink(fd); strings.Contains(at, fmt.Sprintf("/%d/", child.Process.Pid)) || strings.HasPrefix(at, "net:") {
			t.Errorf("%s is open", at)
		}
	}
}

// streamSpec is a collector with a goroutine that counts lines as they arrive.
func streamSpec(lines <-chan string) Spec {
	return define(Definition[Number]{
		Name: "stream", Help: "Lines of a stream.",
		Open: func(k *Scope) func(context.Context, *Number) error {
			counts := make(chan int)
			k.Go(func(ctx context.Context) {
				for n := 0; ; {
					select {
					case line := <-lines:
						if line == "panic" {
							panic(line)
						}
						n++
					case counts <- n:
					case <-ctx.Done():
						return
					}
				}
			})
			return func(ctx context.Context, n *Number) error {
				select {
				case v := <-counts:
					*n = number(v)
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		},
		Metrics: []Metric[Number]{{Name: "stream_lines_total", Help: "Lines.", Value: func(n *Number) Number { return *n }}},
	})
}

// TestAddStream checks that the count of a collector's goroutine is read, that a panic of the
// goroutine is an error of the collector, and that the goroutine ends when the set is closed.
func TestAddStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lines := make(chan string)
		set := fakeSet(nil, streamSpec(lines))
		for range 3 {
			lines <- "a line"
		}
		if r := set.Read(t.Context(), Query{}).Results[0]; r.Err != nil || r.samples[0].value != 3 {
			t.Errorf("%+v", r)
		}
		if err := set.Close(t.Context()); err != nil {
			t.Error(err)
		}
		set = fakeSet(nil, streamSpec(lines))
		lines <- "panic"
		synctest.Wait()
		if r := set.Read(t.Context(), Query{}).Results[0]; r.Err == nil || r.Err.Error() != "panic: panic" {
			t.Errorf("%+v", r)
		}
		if err := set.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// samplePeaks reads a set every interval until ctx ends. After each reading it calls keep with
// the highest saturation of each limit so far.
func samplePeaks(ctx context.Context, set *Set, q Query, interval time.Duration, keep func(map[string]float64)) {
	peaks := map[string]float64{}
	for ticker := time.NewTicker(interval); ; {
		for _, l := range set.Read(ctx, q).Limits() {
			peaks[l.Resource] = max(peaks[l.Resource], l.Saturation())
		}
		keep(peaks)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			ticker.Stop()
			return
		}
	}
}

// TestAddSampler checks that a sampler shares its readings with scrapes: a reading that is
// recent enough is not repeated.
func TestAddSampler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		usage, readings := 0.0, 0
		set := fakeSet(nil, fake("limit", false, func(context.Context) (float64, error) {
			readings++
			usage++
			return float64(int(usage) % 5), nil
		}))
		defer closeSet(t, set)
		ctx, cancel := context.WithCancel(t.Context())
		var peak float64
		done := make(chan bool)
		go func() {
			samplePeaks(ctx, set, Query{MaxAge: time.Second / 2}, time.Second, func(peaks map[string]float64) { peak = peaks["limit"] })
			close(done)
		}()
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		if peak != 0.4 || readings != 11 {
			t.Errorf("peak %v of %d readings", peak, readings)
		}
		set.Read(t.Context(), Query{MaxAge: time.Second / 2}) // a scrape that takes a sample
		if readings != 11 {
			t.Errorf("a recent reading was repeated")
		}
		set.Read(t.Context(), Query{})
		if readings != 12 {
			t.Errorf("the query did not cause a new reading")
		}
		cancel()
		<-done
	})
}
