package e2e

import (
	"context"
	"math"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestChurn checks a hundred scrapes, five hundred in CI, while a thousand connections a second
// are opened and closed in a namespace of its own. Values from walks and from counters are never
// of the same instant, but no sample may be negative or absurd, and no counter may fall.
func TestChurn(t *testing.T) {
	scrapes := 100
	if needs.InCI() && !testing.Short() {
		scrapes = 500
	}
	n := enterNetns(t)
	n.sysctl("net.ipv4.tcp_max_tw_buckets", "200000") // more than there will be
	e := n.start()
	stop := n.churn(1000)
	before := page{}
	for i := range scrapes {
		p := e.scrape()
		for series, v := range p {
			switch {
			case !strings.HasPrefix(series, "sockpressure_"):
			case math.IsNaN(v) || math.IsInf(v, 0) || v < 0:
				t.Fatalf("scrape %d: %s is %v", i, series, v)
			case strings.Contains(series, "_total") && v < before[series]:
				t.Fatalf("scrape %d: %s fell from %v to %v", i, series, before[series], v)
			case strings.HasPrefix(series, "sockpressure_saturation_ratio") && v > 1 && !ofMachine(series):
				t.Fatalf("scrape %d: %s is %v", i, series, v)
			// Each connection leaves a TIME_WAIT for a minute, and there is nothing else.
			case strings.HasPrefix(series, "sockpressure_tcp_sockets{") && v > 70_000:
				t.Fatalf("scrape %d: %s is %v", i, series, v)
			}
		}
		for _, collector := range []string{"tcp", "ports", "sockstat", "netstat"} {
			if p.value(t, success(collector)) != 1 {
				t.Fatalf("scrape %d: %s failed", i, collector)
			}
		}
		before = p
	}
	made := stop()
	if seen := e.scrape().value(t, "sockpressure_tcp_passive_opens_total"); made < scrapes || seen < float64(made) {
		t.Errorf("%d connections were made meanwhile, and %v seen", made, seen)
	}
}

// churn opens and closes connections over loopback at the given rate, until stop is called or a
// minute has passed. stop returns how many there were.
func (n *netns) churn(perSecond int) (stop func() int) {
	n.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
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
		defer own.Close()
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
			n.t.Error("setns:", err)
			return
		}
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
	n.t.Cleanup(func() { stop() })
	return stop
}
