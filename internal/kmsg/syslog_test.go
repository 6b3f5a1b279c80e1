package kmsg

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// TestSyslog checks that each line is returned once, although the kernel returns earlier lines
// again, and that lost lines are noticed.
func TestSyslog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var text string
		read := func(b []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return copy(b, text), nil
		}
		log, err := newSyslog(1<<10, read)
		if !errors.Is(err, errors.ErrUnsupported) || log != nil {
			t.Errorf("an empty log: %v", err)
		}
		text = "<6>[    0.000000] Linux version\n<14>[    1.500000][    T1] of a program\n"
		log, err = newSyslog(1<<10, read)
		if err != nil {
			t.Fatal(err)
		}
		var old, visited []string
		lost := uint64(0)
		f := Follower{
			Open: func() (Log, error) { return log, nil },
			Visit: func(r parse.Record, before bool) {
				told := fmt.Sprintf("%d %v %s", r.Facility, r.Time, r.Text)
				if before {
					old = append(old, told)
				} else {
					visited = append(visited, told)
				}
			},
			Lost:  func(n uint64) { lost += n },
			Ready: func() {},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		show := func(more string) {
			time.Sleep(2 * time.Second)
			synctest.Wait()
			mu.Lock()
			text = more
			mu.Unlock()
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		show(text)
		first := text + "<4>[    2.000000] TCP: too many orphaned sockets\n<4>[    2.000000] TCP: out of memory\n"
		show(first)
		_, second, _ := strings.Cut(first, "program\n")
		show(second + "<4>[12345.678901] third\n")
		show("<4>[12346.000000] after a gap\n")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if want := []string{"0 0s Linux version", "1 1.5s of a program"}; !slices.Equal(old, want) {
			t.Errorf("old: %q", old)
		}
		want := []string{"0 2s TCP: too many orphaned sockets", "0 2s TCP: out of memory", "0 3h25m45.678901s third", "0 3h25m46s after a gap"}
		if !slices.Equal(visited, want) || lost != 1 {
			t.Errorf("visited %q, lost %d", visited, lost)
		}
	})
}

func FuzzSyslog(f *testing.F) {
	f.Add([]byte("<4>[   12.345678][    C0] net_ratelimit: 3 callbacks suppressed\n"))
	f.Add([]byte("<30>[    0.000001] systemd[1]: x\n<6>no time\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		log, err := newSyslog(len(b), func(into []byte) (int, error) { return copy(into, b), nil })
		if err != nil {
			return
		}
		buf := make([]byte, maxRecord)
		for {
			n, err := log.Next(buf)
			if err != nil {
				return
			}
			if n == len(buf) {
				continue // cut
			}
			if _, err := parse.Kmsg(buf[:n], "syslog"); err != nil {
				t.Errorf("%q: %v", buf[:n], err)
			}
		}
	})
}
