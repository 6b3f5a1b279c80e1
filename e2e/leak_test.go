package e2e

import (
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestLeak expects that a thousand scrapes, in CI ten thousand, leave no descriptor,
// no goroutine and no memory behind. bench/soak does it for a day, with resident
// memory and threads, which depend on what else the machine does.
func TestLeak(t *testing.T) {
	scrapes := 1_000
	if needs.InCI() && !testing.Short() {
		scrapes = 10_000
	}
	e := start(t, nil)
	scrapeByFour(t, e, 200)
	before := e.held()

	// The collector of garbage finds scrapes that are being answered, so not always
	// the same. What leaks stays, even where it is lowest.
	const batch = 100
	var memory []int
	for range scrapes / batch {
		scrapeByFour(t, e, batch)
		memory = append(memory, e.held().memory)
	}
	lowest := slices.Min(memory[len(memory)/2:])
	if grown := lowest - before.memory; grown > 1<<20 {
		t.Errorf("%d scrapes left %d bytes of memory behind: from %d it went to %v", scrapes, grown, before.memory, memory)
	}

	// The server notices closed connections a moment later, and one or two goroutines
	// may just be at work. A leak is one for each scrape, or for some.
	few := scrapes / 100
	after := e.held()
	for end := time.Now().Add(patience); after.descriptors > before.descriptors+few || after.goroutines > before.goroutines+few; after = e.held() {
		if time.Now().After(end) {
			t.Fatalf("%d scrapes left something open: %+v before, %+v after", scrapes, before, after)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// scrapeByFour shares n scrapes among four clients that keep their connections
// until the end.
func scrapeByFour(t *testing.T, e *exporter, n int) {
	t.Helper()
	const clients = 4
	c := keepAlive(e.url, clients)
	defer c.http.CloseIdleConnections()
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range n / clients {
				if _, err := c.get("/metrics", "10"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// held is what a process of the exporter holds.
type held struct {
	descriptors int
	goroutines  int
	memory      int // in use at the last collection of garbage, in bytes
}

func (e *exporter) held() held {
	e.t.Helper()
	p := e.scrape("?collect[]=filefd")
	descriptors, err := os.ReadDir("/proc/" + strconv.Itoa(e.cmd.Process.Pid) + "/fd")
	if err != nil {
		e.t.Fatal(err)
	}
	return held{
		descriptors: len(descriptors),
		goroutines:  int(p.value(e.t, "go_goroutines")),
		// With GOGC=100 the next collection is at twice as much, or at 4 MiB.
		memory: int(p.value(e.t, "go_memstats_next_gc_bytes")) / 2,
	}
}
