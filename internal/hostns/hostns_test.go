package hostns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

// entered returns a host in a new network namespace.
func entered(t *testing.T) *Host {
	t.Helper()
	needs.Check(t, needs.Root)
	type result struct {
		file *os.File
		err  error
	}
	made := make(chan result)
	go func() {
		// The file keeps the namespace. The thread goes back: if it is the main one, it
		// cannot end.
		runtime.LockOSThread()
		var r result
		own, err := os.Open("/proc/thread-self/ns/net")
		if r.err = err; r.err == nil {
			r.err = nettest.Unshare()
		}
		if r.err == nil {
			r.file, r.err = os.Open("/proc/thread-self/ns/net")
		}
		if r.err == nil {
			r.err = unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
		}
		made <- r
	}()
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = r.file.Close() })
	return &Host{view: Entered, path: fmt.Sprintf("/proc/self/fd/%d", r.file.Fd())}
}

// network returns the inode number of the network namespace of this thread.
func network(t *testing.T) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		t.Error(err)
	}
	return st.Ino
}

// TestDo expects functions to run in the namespace, however others there end, and
// no thread of this process to stay in it.
func TestDo(t *testing.T) {
	h := entered(t)
	own := network(t)
	var inside uint64
	if err := h.Do(func() error { inside = network(t); return nil }); err != nil || inside == own {
		t.Fatalf("%v, in namespace %d, which is its own", err, inside)
	}
	broken := errors.New("broken")
	if err := h.Do(func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("an error became %v", err)
	}
	if err := h.Do(func() error { panic("oops") }); err == nil || !strings.Contains(err.Error(), "oops") {
		t.Errorf("a panic became %v", err)
	}

	// One that hangs holds up no other.
	release := make(chan struct{})
	var hanging sync.WaitGroup
	hanging.Go(func() {
		_ = h.Do(func() error {
			<-release
			return nil
		})
	})
	for range 20 {
		done := make(chan error, 1)
		go func() { done <- h.Do(func() error { return nil }) }()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it waits for the one that hangs")
		}
	}
	close(release)
	hanging.Wait()

	// Threads end a moment after their goroutine.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		there := 0
		for _, task := range tasks {
			var st unix.Stat_t
			if unix.Stat("/proc/self/task/"+task.Name()+"/ns/net", &st) == nil && st.Ino == inside {
				there++
			}
		}
		if there == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d threads stay in the namespace", there)
		}
	}
}

// TestForeign expects nothing to run where the namespace cannot be reached.
func TestForeign(t *testing.T) {
	why := errors.New("not allowed")
	h := Unreachable(why)
	err := h.Do(func() error {
		t.Error("it ran")
		return nil
	})
	if !errors.Is(err, ErrForeign) || !errors.Is(h.Why(), why) || h.View() != Foreign {
		t.Errorf("%v, %v", err, h.Why())
	}
	if h := (&Host{view: Entered, path: "/nowhere"}); !errors.Is(h.Do(func() error { return nil }), unix.ENOENT) {
		t.Error("it entered nowhere")
	}
}

// TestFind expects this process to be in the network namespace of process 1 or not,
// as the links of both say.
func TestFind(t *testing.T) {
	h, err := Find("/proc")
	if err != nil {
		t.Fatal(err)
	}
	host, err := os.Readlink("/proc/1/ns/net")
	if err != nil {
		t.Skip("this user may not look at process 1:", err)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if (h.View() == Own) != (own == host) {
		t.Errorf("view %v, process 1 is in %s, this one in %s", h.View(), host, own)
	}
}
