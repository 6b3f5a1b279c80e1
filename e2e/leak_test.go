package e2e

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestLeak expects that a thousand scrapes, in CI ten thousand, leave no descriptor,
// no goroutine and no memory behind.
func TestLeak(t *testing.T) {
	scrapes := 1_000
	if needs.InCI() && !testing.Short() {
		scrapes = 10_000
	}
	e := start(t, nil)
	scrapeByFour(t, e, 200)
	before := e.held()

	// Garbage makes resident memory go up and down by a megabyte or two. What
	// leaks stays, even where it is lowest.
	const batch = 500
	var memory []int
	for range scrapes / batch {
		scrapeByFour(t, e, batch)
		memory = append(memory, e.held().memory)
	}
	lowest := slices.Min(memory[len(memory)*3/4:])
	if grown := lowest - before.memory; grown > 3<<20 {
		t.Errorf("%d scrapes left %d bytes of memory behind: from %d it went to %v", scrapes, grown, before.memory, memory)
	}

	// The server notices closed connections a moment later.
	after := e.held()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); after = e.held() {
		if after.descriptors <= before.descriptors && after.goroutines <= before.goroutines {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d scrapes left something open: %+v before, %+v after", scrapes, before, after)
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
	memory      int // resident, in bytes
}

func (e *exporter) held() held {
	e.t.Helper()
	var h held
	h.goroutines = int(e.scrape("?collect[]=filefd").value(e.t, "go_goroutines"))
	dir := "/proc/" + strconv.Itoa(e.cmd.Process.Pid)
	descriptors, err := os.ReadDir(dir + "/fd")
	if err != nil {
		e.t.Fatal(err)
	}
	h.descriptors = len(descriptors)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		e.t.Fatal(err)
	}
	_, status, _ = bytes.Cut(status, []byte("\nVmRSS:"))
	if _, err := fmt.Sscanf(string(status), "%d kB", &h.memory); err != nil {
		e.t.Fatalf("VmRSS: %v", err)
	}
	h.memory <<= 10
	return h
}
