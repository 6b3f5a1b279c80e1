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

// TestLeak checks that a thousand scrapes, ten thousand in CI, leak no descriptors, goroutines or
// memory. bench/soak runs for a day, and also checks resident memory and threads, which depend on
// the load of the machine.
func TestLeak(t *testing.T) {
	scrapes := 1_000
	if needs.InCI() && !testing.Short() {
		scrapes = 10_000
	}
	e := start(t, nil)
	scrapeByFour(t, e, 200)
	before := e.held()

	// A garbage collection may run while scrapes are being answered, so the memory in use varies.
	// A leak raises even the lowest value.
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

	// The server notices closed connections a moment later, and one or two goroutines may be
	// running. A leak is one for each scrape, or for some.
	few := scrapes / 100
	after := e.held()
	for end := time.Now().Add(patience); after.descriptors > before.descriptors+few || after.goroutines > before.goroutines+few; after = e.held() {
		if time.Now().After(end) {
			t.Fatalf("%d scrapes left something open: %+v before, %+v after", scrapes, before, after)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// scrapeByFour distributes n scrapes over four clients that keep their connections open until the
// end.
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

// held is the resources that an exporter process holds.
type held struct {
	descriptors int
	goroutines  int
	memory      int // in use at the last garbage collection, in bytes
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
		// With GOGC=100 the next collection is at twice the memory in use, or at 4 MiB.
		memory: int(p.value(e.t, "go_memstats_next_gc_bytes")) / 2,
	}
}
