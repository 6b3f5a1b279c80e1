package e2e

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestManyListeners checks that of 10,000 listeners, one of them with a full queue, ten have
// series, the full one first.
func TestManyListeners(t *testing.T) {
	const listeners = 10_000
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Cur < listeners+500 {
		needs.Skip(t, fmt.Sprintf("ulimit -n %d", listeners+500))
	}
	var addr unix.SockaddrInet4
	socket := func() int {
		t.Helper()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	for i := range listeners {
		addr.Addr = [4]byte{127, 98, byte(i / 100), byte(i%100 + 1)}
		fd := socket()
		if err := unix.Bind(fd, &addr); err != nil {
			t.Fatal(err)
		}
		if err := unix.Listen(fd, 4); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			continue
		}
		// The kernel chooses a port, which the other listeners use too.
		bound, err := unix.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		addr.Port = bound.(*unix.SockaddrInet4).Port
	}
	addr.Addr = [4]byte{127, 98, 50, 1}
	for range 5 { // a backlog of 4 allows one more
		if err := unix.Connect(socket(), &addr); err != nil {
			t.Fatal(err)
		}
	}

	e := start(t, nil)
	p := e.scrape("?collect[]=tcp")
	if got := p.value(t, "sockpressure_tcp_listeners"); got < listeners || got >= 2*listeners {
		// Other tests and programs of this machine listen too.
		t.Errorf("%v listeners", got)
	}
	for _, name := range []string{"sockpressure_accept_queue_length", "sockpressure_accept_queue_limit", "sockpressure_accept_queue_saturation_ratio"} {
		if n := len(p.with(name)); n != 10 {
			t.Errorf("%d series of %s", n, name)
		}
	}
	if got := p.value(t, fmt.Sprintf(`sockpressure_accept_queue_length{listener="127.98.50.1:%d"}`, addr.Port)); got != 5 {
		t.Errorf("the full queue has %v", got)
	}
	if got := p.value(t, fmt.Sprintf(`sockpressure_accept_queue_saturation_ratio{listener="127.98.50.1:%d"}`, addr.Port)); got != 1.25 {
		t.Errorf("its saturation is %v", got)
	}
	// A queue of another program on this machine may be even fuller.
	if got := p.value(t, `sockpressure_saturation_ratio{resource="accept_queue"}`); got < 1.25 {
		t.Errorf("saturation is %v", got)
	}
	t.Logf("a walk over %d listeners took %v s", listeners, p.value(t, `sockpressure_scrape_collector_duration_seconds{collector="tcp"}`))
}
