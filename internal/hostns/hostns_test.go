package hostns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

// elsewhere returns the directory in /proc of a thread that is in a new network namespace
// until the test ends.
func elsewhere(t *testing.T) string {
	t.Helper()
	needs.Check(t, needs.Root)
	entered, leave := make(chan error), make(chan struct{})
	var thread string
	var move func()
	move = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// This is the main thread, whose namespace /proc/self shows, so it must not
			// change. While this goroutine holds it, another goroutine gets another thread.
			defer runtime.UnlockOSThread()
			go move()
			<-leave
			return
		}
		// The goroutine ends without unlocking its thread, which ends with it.
		err := nettest.Unshare()
		thread = fmt.Sprintf("/proc/self/task/%d", unix.Gettid())
		entered <- err
		if err == nil {
			<-leave
		}
	}
	go move()
	if err := <-entered; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(leave) })
	return thread
}

// network returns the inode number of the network namespace of the current thread.
func network(t *testing.T) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		t.Error(err)
	}
	return st.Ino
}

// TestDo checks that functions run in the namespace, even if others there fail, panic or hang,
// and that no thread of this process stays in it except the one that created it.
func TestDo(t *testing.T) {
	h := &Host{view: Entered, path: elsewhere(t) + "/ns/net"}
	own := network(t)
	var inside uint64
	if err := h.Do(func() error { inside = network(t); return nil }); err != nil || inside == own {
		t.Fatalf("%v, in namespace %d, want another one than that of this thread", err, inside)
	}
	broken := errors.New("broken")
	if err := h.Do(func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("an error became %v", err)
	}
	if err := h.Do(func() error { panic("oops") }); err == nil || !strings.Contains(err.Error(), "oops") {
		t.Errorf("a panic became %v", err)
	}

	// A function that hangs does not delay others.
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
			t.Fatal("it waits for the function that hangs")
		}
	}
	close(release)
	hanging.Wait()

	// A thread may end after its goroutine.
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
		if there == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d threads are in the namespace, want only the one that created it", there)
		}
	}
}

// TestForeign checks that nothing runs if the namespace cannot be reached.
func TestForeign(t *testing.T) {
	why := errors.New("not allowed")
	h := Unreachable(why)
	err := h.Do(func() error {
		t.Error("the function ran")
		return nil
	})
	if !errors.Is(err, ErrForeign) || !errors.Is(h.Why(), why) || h.View() != Foreign {
		t.Errorf("%v, %v", err, h.Why())
	}
	if h := (&Host{view: Entered, path: "/nowhere"}); !errors.Is(h.Do(func() error { return nil }), unix.ENOENT) {
		t.Error("no error for a namespace that does not exist")
	}
}

// TestFind checks that the namespace of process 1 is found.
func TestFind(t *testing.T) {
	procfs := func(t *testing.T, names map[string]string) string {
		t.Helper()
		proc := t.TempDir()
		for name, target := range names {
			if err := os.Symlink(target, filepath.Join(proc, name)); err != nil {
				t.Fatal(err)
			}
		}
		return proc
	}
	find := func(t *testing.T, proc string, want View) *Host {
		t.Helper()
		h, err := Find(proc)
		if err != nil {
			t.Fatal(err)
		}
		if h.View() != want {
			t.Errorf("view %v (%v), want %v", h.View(), h.Why(), want)
		}
		return h
	}
	t.Run("own", func(t *testing.T) {
		find(t, procfs(t, map[string]string{"self": "/proc/self", "1": "/proc/self"}), Own)
		// A procfs of a PID namespace in which this process does not exist.
		find(t, procfs(t, map[string]string{"1": "/proc/self"}), Own)
	})
	t.Run("entered", func(t *testing.T) {
		thread := elsewhere(t)
		h := find(t, procfs(t, map[string]string{"self": "/proc/self", "1": thread}), Entered)
		var st unix.Stat_t
		if err := unix.Stat(thread+"/ns/net", &st); err != nil {
			t.Fatal(err)
		}
		if err := h.Do(func() error {
			if n := network(t); n != st.Ino {
				t.Errorf("in namespace %d, process 1 is in %d", n, st.Ino)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	t.Run("hidden", func(t *testing.T) {
		find(t, procfs(t, map[string]string{"self": "/proc/self"}), Foreign)
		proc := procfs(t, map[string]string{"self": "/proc/self"})
		// tcp_mem exists only in the initial network namespace.
		if err := os.MkdirAll(filepath.Join(proc, "sys/net/ipv4"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, "sys/net/ipv4/tcp_mem"), []byte("1\t2\t3\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		find(t, proc, Own)
	})
}
