package ctnetlink_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/ctnetlink"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

func TestMain(m *testing.M) { os.Exit(needs.Run(m)) }

// TestLive checks, in a new network namespace, that the statistics agree with those of /proc
// for each CPU and column.
func TestLive(t *testing.T) {
	needs.Check(t, needs.Root, "nft")
	// The goroutine never unlocks its thread, so the thread ends with the test, and the
	// namespace with it.
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
	c := ctnetlink.New(ctnetlink.Dial)
	defer c.Close()
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
			// Unsolicited replies are invalid. Of the connections that the rule gives the same
			// source, all but the first fail.
			for range 3 + i {
				send(t, unix.SOCK_RAW, unix.IPPROTO_ICMP, 0, []byte{0, 0, 0xff, 0xff, 0, 0, 0, 0})
			}
			for range 7 + 2*i + round {
				send(t, unix.SOCK_DGRAM, unix.IPPROTO_UDP, 1001, nil)
			}
		}

		// Packets may still be in transit, so /proc is read before and after.
		var got, want map[cell]uint32
		for want == nil || !maps.Equal(want, table(t)) {
			want = table(t)
			stats, err := c.Stats(ctx)
			if errors.Is(err, ctnetlink.ErrNotSupported) {
				needs.Skip(t, "a kernel with CONFIG_NF_CT_NETLINK")
			}
			if err != nil {
				t.Fatal(err)
			}
			got = map[cell]uint32{}
			for _, cpu := range stats {
				for column, n := range counters(cpu) {
					if n.Present {
						got[cell{int(cpu.ID), column}] = n.Value
					}
				}
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("ctnetlink gives:\n%v\n/proc has:\n%v", got, want)
		}
		for _, cpu := range cpus {
			if want[cell{cpu, "invalid"}] == 0 || want[cell{cpu, "insert_failed"}] == 0 {
				t.Errorf("CPU %d counted nothing: %v", cpu, want)
			}
		}
	}
}

// TestLiveRefused checks that the kernel refuses a process without capabilities, twice over
// the same socket.
func TestLiveRefused(t *testing.T) {
	// The goroutine never unlocks its thread, so its capabilities end with it.
	runtime.LockOSThread()
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		t.Fatal(err)
	}
	dialled := 0
	c := ctnetlink.New(func() (ctnetlink.Conn, error) {
		dialled++
		return ctnetlink.Dial()
	})
	defer c.Close()
	for range 2 {
		stats, err := c.Stats(t.Context())
		if errors.Is(err, ctnetlink.ErrNotSupported) {
			return // no netfilter in this kernel
		}
		if !errors.Is(err, ctnetlink.ErrNotPermitted) || stats != nil {
			t.Errorf("%v, %v", stats, err)
		}
	}
	if dialled != 1 {
		t.Errorf("%d netlink sockets were opened", dialled)
	}
}

// cell identifies a row and a column of /proc/net/stat/nf_conntrack.
type cell struct {
	cpu    int
	column string
}

// counters returns the counters of a CPU by their names in /proc.
func counters(c ctnetlink.CPU) map[string]ctnetlink.Counter {
	return map[string]ctnetlink.Counter{
		"drop": c.Drop, "early_drop": c.EarlyDrop, "insert_failed": c.InsertFailed,
		"invalid": c.Invalid, "search_restart": c.SearchRestart,
	}
}

// table reads the columns that counters returns, for the thread's network namespace.
func table(t *testing.T) map[cell]uint32 {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/stat/nf_conntrack")
	if errors.Is(err, os.ErrNotExist) {
		needs.Skip(t, "a kernel with CONFIG_NF_CONNTRACK_PROCFS")
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	names := counters(ctnetlink.CPU{})
	cells := map[cell]uint32{}
	for cpu, line := range lines[1:] {
		fields := strings.Fields(line)
		for i, column := range strings.Fields(lines[0]) {
			if _, known := names[column]; !known {
				continue
			}
			v, err := strconv.ParseUint(fields[i], 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			cells[cell{cpu, column}] = uint32(v)
		}
	}
	return cells
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

// send sends a datagram to this host from a new socket. Some of the datagrams of these tests
// are refused.
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

// nft changes the packet filter in the network namespace of the current thread.
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
