package e2e

import (
	"context"
	"math"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestChurn scrapes a hundred times, in CI five hundred, while a thousand connections
// a second are opened and closed. What is counted by walks and by counters is never of one instant,
// and yet no sample may be negative or absurd, and no counter may fall.
func TestChurn(t *testing.T) {
	scrapes := 100
	if needs.InCI() && !testing.Short() {
		scrapes = 500
	}
	e := start(t, nil)
	stop := churn(t, 1000)
	before := page{}
	for i := range scrapes {
		p := e.scrape("")
		for series, v := range p {
			switch {
			case !strings.HasPrefix(series, "sockpressure_"):
			case math.IsNaN(v) || math.IsInf(v, 0) || v < 0:
				t.Fatalf("scrape %d: %s is %v", i, series, v)
			case strings.Contains(series, "_total") && v < before[series]:
				t.Fatalf("scrape %d: %s fell from %v to %v", i, series, before[series], v)
			// The accept queue of whatever else runs here may be full.
			case strings.HasPrefix(series, "sockpressure_saturation_ratio") && v > 1 && !strings.Contains(series, "accept_queue"):
				t.Fatalf("scrape %d: %s is %v", i, series, v)
			// Each connection leaves a TIME_WAIT for a minute; nothing else is here
			// by the ten thousand.
			case strings.HasPrefix(series, "sockpressure_tcp_sockets{") && v > 70_000:
				t.Fatalf("scrape %d: %s is %v", i, series, v)
			}
		}
		for _, collector := range []string{"tcp", "ports", "sockstat", "netstat"} {
			if p.value(t, `sockpressure_scrape_collector_success{collector="`+collector+`"}`) != 1 {
				t.Fatalf("scrape %d: %s failed", i, collector)
			}
		}
		before = p
	}
	if n := stop(); n < scrapes {
		t.Errorf("only %d connections were made meanwhile", n)
	}
}

// churn opens and closes connections over loopback, so many a second, until stop
// is called or a minute has passed. stop returns how many there were.
func churn(t *testing.T, perSecond int) (stop func() int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	})
	made := 0
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		var dialer net.Dialer
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for range perSecond / 100 {
				c, err := dialer.DialContext(ctx, "tcp", l.Addr().String())
				if err != nil {
					continue
				}
				_ = c.Close()
				made++
			}
		}
	})
	stop = func() int {
		cancel()
		_ = l.Close()
		wg.Wait()
		return made
	}
	t.Cleanup(func() { stop() })
	return stop
}
