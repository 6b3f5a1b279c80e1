package collector

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

// init keeps the first thread of the process to the main goroutine, which runs no
// test. /proc/self/net is that thread's, and a test that took it into another
// network namespace would show all others that one.
func init() { runtime.LockOSThread() } //nolint:gochecknoinits // nowhere else can the first thread be kept //nolint:gochecknoinits // later than this, the main goroutine may be on another thread

// TestConntrackNetlinkAgrees compares the statistics of ctnetlink with those of
// /proc, CPU by CPU and column by column, in a network namespace of its own.
func TestConntrackNetlinkAgrees(t *testing.T) {
	needs.Check(t, needs.Root, "nft")
	// The thread is never given back: it ends with the test, and the namespace too.
	runtime.LockOSThread()
	if err := nettest.Unshare(); err != nil {
		t.Fatal(err)
	}
	nft(t, `
		table ip tracked {
			chain in {
				type filter hook input priority 0
				ct state invalid counter
			}
			chain post {
				type nat hook postrouting priority 100
				udp dport 1001 snat to 127.0.0.9:5000
			}
		}`)
	byNetlink := newConntrackNetlink(dialNetfilter)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	cpus := onlineCPUs(t)
	for round := range 3 {
		for i, cpu := range cpus {
			var set unix.CPUSet
			set.Set(cpu)
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				t.Fatal(err)
			}
			// Answers that nobody asked for are invalid. Of connections that the rule
			// gives the same source, all but the first fail.
			for range 3 + i {
				send(t, unix.SOCK_RAW, unix.IPPROTO_ICMP, 0, []byte{0, 0, 0xff, 0xff, 0, 0, 0, 0})
			}
			for range 7 + 2*i + round {
				send(t, unix.SOCK_DGRAM, unix.IPPROTO_UDP, 1001, nil)
			}
		}

		// Packets may still be on their way, so /proc is read before and after.
		var got, want map[conntrackCell]uint64
		visits := 0
		for want == nil || !maps.Equal(want, conntrackTable(t)) {
			got, want, visits = map[conntrackCell]uint64{}, conntrackTable(t), 0
			err := byNetlink.read(ctx, func(cpu, counter int, v uint64) {
				visits++
				got[conntrackCell{cpu, conntrackColumns()[counter]}] = v
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		if visits == 0 {
			needs.Skip(t, "a kernel with CONFIG_NF_CT_NETLINK")
		}
		if !maps.Equal(got, want) || visits != len(want) {
			t.Errorf("ctnetlink gives %d numbers:\n%v\n/proc has:\n%v", visits, got, want)
		}
		for _, cpu := range cpus {
			if want[conntrackCell{cpu, "invalid"}] == 0 || want[conntrackCell{cpu, "insert_failed"}] == 0 {
				t.Errorf("CPU %d counted nothing: %v", cpu, want)
			}
		}
	}
}

// conntrackCell is a row and a column of /proc/net/stat/nf_conntrack.
type conntrackCell struct {
	cpu    int
	column string
}

// conntrackTable reads the columns that the exporter has a use for, of the
// thread's namespace.
func conntrackTable(t *testing.T) map[conntrackCell]uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
	if errors.Is(err, os.ErrNotExist) {
		needs.Skip(t, "a kernel with CONFIG_NF_CONNTRACK_PROCFS")
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	table := map[conntrackCell]uint64{}
	for cpu, line := range lines[1:] {
		fields := strings.Fields(line)
		for i, column := range strings.Fields(lines[0]) {
			if !slices.Contains(conntrackColumns()[:conntrackCounters], column) {
				continue
			}
			if table[conntrackCell{cpu, column}], err = strconv.ParseUint(fields[i], 16, 64); err != nil {
				t.Fatal(err)
			}
		}
	}
	return table
}

// onlineCPUs lists the CPUs that this thread may run on.
func onlineCPUs(t *testing.T) []int {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	var cpus []int
	for cpu := range 1024 {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// send sends a datagram to this host, by a new socket. Some of what the tests send
// is refused.
func send(t *testing.T, kind, protocol, port int, b []byte) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		t.Fatal("socket:", err)
	}
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	if err := unix.Sendto(fd, b, 0, to); err != nil && !errors.Is(err, unix.EPERM) {
		t.Fatal("sendto:", err)
	}
}

// nft changes the packet filter of the thread of the calling goroutine.
func nft(t *testing.T, commands string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(commands)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("nft: %w: %s", err, out))
	}
}
