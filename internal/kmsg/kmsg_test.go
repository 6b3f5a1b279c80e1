package kmsg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// ring is a log whose oldest records are overwritten.
type ring struct {
	mu            sync.Mutex
	size, written int // records
	// cost is how long it takes to read a record.
	cost time.Duration
	// flood makes a record available at every read.
	flood bool
}

type reader struct {
	*ring
	next int
}

// write adds n records and sets whether more arrive all the time.
func (r *ring) write(n int, flood bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written += n
	r.flood = flood
}

func (r *ring) open() (Log, error) {
	return &reader{ring: r, next: max(r.written-r.size, 0)}, nil
}

func (r *reader) Next(b []byte) (int, error) {
	time.Sleep(r.cost)
	r.mu.Lock()
	defer r.mu.Unlock()
	if oldest := r.written - r.size; r.next < oldest {
		r.next = oldest
		return 0, unix.EPIPE
	}
	if r.flood {
		r.written += 10
	}
	if r.next == r.written {
		return 0, unix.EAGAIN
	}
	r.next++
	return copy(b, fmt.Sprintf("4,%d,0,-;text\n", r.next)), nil
}

func (r *reader) Wait(ctx context.Context) error {
	for ctx.Err() == nil {
		r.mu.Lock()
		there := r.flood || r.next < r.written
		r.mu.Unlock()
		if there {
			return nil
		}
		sleep(ctx, time.Millisecond)
	}
	return nil
}

func (r *reader) Close() error { return nil }

// follow runs a follower of a ring. It returns the counts of records, and a function that ends
// the follower.
func follow(t *testing.T, r *ring) (old, visited, lost *uint64, end func()) {
	t.Helper()
	old, visited, lost = new(uint64), new(uint64), new(uint64)
	start := time.Now()
	f := Follower{
		Open:  r.open,
		clock: func() time.Duration { return time.Since(start) },
		Visit: func(_ parse.Record, before bool) {
			if before {
				*old++
			} else {
				*visited++
			}
		},
		Lost:  func(n uint64) { *lost += n },
		Ready: func() {},
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	time.Sleep(time.Millisecond) // to read the old records
	return old, visited, lost, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestFollow checks that each record is visited once and that overwritten records are counted.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &ring{size: 100, written: 250}
		old, visited, lost, end := follow(t, r)
		for _, n := range []int{1, 30, 100, 400, 2} {
			r.write(n, false)
			time.Sleep(2 * time.Second)
			synctest.Wait()
		}
		if *old != 100 || *visited != 1+30+100+100+2 || *lost != 300 {
			t.Errorf("%d old, %d visited, %d lost", *old, *visited, *lost)
		}
		end()
	})
}

// TestFlood checks that reading a flood takes 5 % of the time and that the unread records are
// counted as lost.
func TestFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &ring{size: 1000, written: 10, cost: 20 * time.Microsecond}
		_, visited, lost, end := follow(t, r)
		synctest.Wait()
		before := r.written
		r.write(0, true)
		began := time.Now()
		time.Sleep(time.Minute)
		r.write(0, false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		reading := time.Duration(*visited) * r.cost
		if share := float64(reading) / float64(time.Since(began)); share > 0.05 || share < 0.01 {
			t.Errorf("%v of the time", share)
		}
		if *visited+*lost != uint64(r.written-before) || *lost == 0 {
			t.Errorf("%d visited and %d lost of %d", *visited, *lost, r.written-before)
		}
		end()
	})
}

// TestOpen checks that only the device itself is accepted.
func TestOpen(t *testing.T) {
	for _, path := range []string{"/dev/null", t.TempDir(), "/nowhere"} {
		if _, err := Open(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// TestWait checks that Wait returns once there is something to read or the context ends.
func TestWait(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pipe[1]) }()
	log, err := newDevice(pipe[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()

	began := time.Now()
	time.AfterFunc(100*time.Millisecond, func() { _, _ = unix.Write(pipe[1], []byte("4,1,0,-;text\n")) })
	if err := log.Wait(t.Context()); err != nil || time.Since(began) < 100*time.Millisecond {
		t.Errorf("it waited %v for a record: %v", time.Since(began), err)
	}
	b := make([]byte, 100)
	if n, err := log.Next(b); err != nil || n == 0 {
		t.Errorf("%q: %v", b[:n], err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := log.Wait(ctx); err != nil || ctx.Err() == nil {
		t.Errorf("it did not wait for the end: %v", err)
	}
}
