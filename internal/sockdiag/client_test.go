package sockdiag_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag/sockdiagtest"
)

// tally counts the sockets of a walk by family and state.
type tally struct {
	resets int
	counts map[string]int
}

func (v *tally) Reset() {
	v.resets++
	v.counts = map[string]int{}
}

func (v *tally) Visit(s *sockdiag.Socket) {
	v.counts[fmt.Sprintf("%d %s", s.Family, s.State)]++
}

func recording(t testing.TB, kernel string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../testdata", kernel, "sock_diag/tcpdiag_getsock_all_states.bin"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// client returns a client whose only transport is r.
func client(r *sockdiagtest.Replay) *sockdiag.Client {
	return sockdiag.New(func() (sockdiag.Transport, error) { return r, nil })
}

// TestWalk checks the sockets of the recorded load: 12 connections to 127.0.0.1:8080 and
// [::1]:8081, one of them half closed and one in TIME_WAIT.
func TestWalk(t *testing.T) {
	for _, kernel := range []string{"linux-5.10", "linux-6.1", "linux-6.1-686-pae", "linux-6.12", "linux-7.2"} {
		var v tally
		r := &sockdiagtest.Replay{Dump: recording(t, kernel)}
		if err := client(r).Walk(t.Context(), sockdiag.Request{States: sockdiag.AllStates}, &v); err != nil {
			t.Fatal(err)
		}
		want := map[string]int{
			"2 listen": 1, "10 listen": 1, "2 established": 12, "10 established": 8,
			"2 fin_wait2": 1, "2 time_wait": 1, "2 close_wait": 1,
		}
		if !maps.Equal(v.counts, want) {
			t.Errorf("%s: %v, want %v", kernel, v.counts, want)
		}
	}
}

// TestRequests checks that the bytes that are sent are those of the kernel's structures, field
// by field.
func TestRequests(t *testing.T) {
	r := &sockdiagtest.Replay{RefuseLegacy: unix.EOPNOTSUPP}
	err := client(r).Walk(t.Context(), sockdiag.Request{
		States: 0xf7c, Ports: []sockdiag.PortRange{{Low: 32768, High: 50050}, {Low: 50052, High: 60999}},
	}, &tally{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Requests) != 3 {
		t.Fatalf("%d requests", len(r.Requests))
	}
	u16 := func(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }
	u32 := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	bytecode := slices.Concat(
		u16(4+36), u16(1), // nlattr: INET_DIAG_REQ_BYTECODE
		[]byte{2, 8}, u16(40), u16(0), u16(32768), // source port >= 32768, or jump past the end
		[]byte{3, 8}, u16(12), u16(0), u16(50050), // source port <= 50050, or try the next range
		[]byte{1, 4}, u16(20), // jump to the end
		[]byte{2, 8}, u16(20), u16(0), u16(50052),
		[]byte{3, 8}, u16(12), u16(0), u16(60999),
	)
	for i, want := range [][]byte{
		slices.Concat([]byte{unix.AF_INET, 0, 0, 0}, make([]byte, 48), u32(0xf7c), u32(0), bytecode),
		slices.Concat([]byte{unix.AF_INET, unix.IPPROTO_TCP, 0, 0}, u32(0xf7c), make([]byte, 48), bytecode),
		slices.Concat([]byte{unix.AF_INET6, unix.IPPROTO_TCP, 0, 0}, u32(0xf7c), make([]byte, 48), bytecode),
	} {
		m := r.Requests[i]
		if typ := []uint16{18, 20, 20}[i]; uint16(m.Header.Type) != typ || m.Header.Flags != unix.NLM_F_REQUEST|unix.NLM_F_DUMP {
			t.Errorf("request %d has type %d and flags %x", i, m.Header.Type, uint16(m.Header.Flags))
		}
		if !slices.Equal(m.Data, want) {
			t.Errorf("request %d\nis   %x\nwant %x", i, m.Data, want)
		}
	}
}

// TestFallback checks that one request for each family returns the same sockets if the kernel
// refuses the request for both.
func TestFallback(t *testing.T) {
	dump := recording(t, "linux-6.12")
	var want, got tally
	if err := client(&sockdiagtest.Replay{Dump: dump}).Walk(t.Context(), sockdiag.Request{States: sockdiag.AllStates}, &want); err != nil {
		t.Fatal(err)
	}
	r := &sockdiagtest.Replay{Dump: dump, RefuseLegacy: unix.EINVAL}
	if err := client(r).Walk(t.Context(), sockdiag.Request{States: sockdiag.AllStates}, &got); err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(want.counts, got.counts) {
		t.Errorf("%v, want %v", got.counts, want.counts)
	}
}

func TestNotSupported(t *testing.T) {
	err := client(&sockdiagtest.Replay{RefuseAll: unix.ENOENT}).Walk(t.Context(), sockdiag.Request{}, &tally{})
	if !errors.Is(err, sockdiag.ErrNotSupported) {
		t.Error(err)
	}
	err = client(&sockdiagtest.Replay{RefuseAll: unix.EPERM}).Walk(t.Context(), sockdiag.Request{}, &tally{})
	if errors.Is(err, sockdiag.ErrNotSupported) || !errors.Is(err, unix.EPERM) {
		t.Errorf("a denied permission gives %v", err)
	}
}

// TestInterrupted checks that an interrupted walk starts over once, and fails if that one is
// interrupted too.
func TestInterrupted(t *testing.T) {
	dump := recording(t, "linux-6.12")
	for torn, ok := range map[int]bool{0: true, 1: true, 2: false} {
		var v tally
		err := client(&sockdiagtest.Replay{Dump: dump, Interrupt: torn}).Walk(t.Context(), sockdiag.Request{States: sockdiag.AllStates}, &v)
		if (err == nil) != ok {
			t.Errorf("torn %d times: %v", torn, err)
		}
		if ok && v.counts["2 established"] != 12 {
			t.Errorf("torn %d times: %v", torn, v.counts)
		}
	}
}

func TestDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	err := client(&sockdiagtest.Replay{Dump: recording(t, "linux-6.12")}).Walk(ctx, sockdiag.Request{States: sockdiag.AllStates}, &tally{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// TestDeadlineInTheMiddle checks that a walk after one that ended at its deadline is complete,
// over the same netlink socket.
func TestDeadlineInTheMiddle(t *testing.T) {
	// More than the kernel sends at once.
	for range 600 {
		l, err := net.Listen("tcp4", "127.99.2.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	dialled := 0
	c := sockdiag.New(func() (sockdiag.Transport, error) {
		dialled++
		return sockdiag.Dial()
	})
	defer c.Close()
	r := sockdiag.Request{States: sockdiag.MaskOf(sockdiag.Listen)}
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		visited := 0
		err := c.Walk(deadlined{ctx}, r, visitor(func() {
			if visited++; visited == 10 {
				cancel()
			}
		}))
		if !errors.Is(err, context.DeadlineExceeded) || visited >= 600 {
			t.Fatalf("%v after %d sockets", err, visited)
		}
		visited = 0
		if err := c.Walk(t.Context(), r, visitor(func() { visited++ })); err != nil || visited < 600 {
			t.Fatalf("the next walk: %v after %d sockets", err, visited)
		}
	}
	// A walk whose deadline has already passed sends nothing.
	ctx, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	if err := c.Walk(ctx, r, &tally{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := c.Walk(t.Context(), r, &tally{}); err != nil {
		t.Error(err)
	}
	if dialled != 1 {
		t.Errorf("%d netlink sockets were opened", dialled)
	}
}

// deadlined is a context that reports its end as an exceeded deadline.
type deadlined struct{ context.Context }

func (d deadlined) Err() error {
	if d.Context.Err() != nil {
		return context.DeadlineExceeded
	}
	return nil
}

type visitor func()

func (visitor) Reset()                   {}
func (v visitor) Visit(*sockdiag.Socket) { v() }

// TestDetails checks the inodes, users and memory of sockets of this process, and that they
// are absent if they were not requested.
func TestDetails(t *testing.T) {
	l, err := net.Listen("tcp4", "127.99.4.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	out, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	udp, err := net.ListenPacket("udp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	const sent = 5000
	for _, to := range []struct {
		by func([]byte) (int, error)
	}{{out.Write}, {func(b []byte) (int, error) { return udp.WriteTo(b, udp.LocalAddr()) }}} {
		if _, err := to.by(make([]byte, sent)); err != nil {
			t.Fatal(err)
		}
	}
	inode := func(c any) uint32 {
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := raw.Control(func(fd uintptr) { err = unix.Fstat(int(fd), &st) }); err != nil {
			t.Fatal(err)
		}
		return uint32(st.Ino)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	c := sockdiag.New(sockdiag.Dial)
	defer c.Close()
	for _, protocol := range []sockdiag.Protocol{sockdiag.TCP, sockdiag.UDP} {
		var got details
		r := sockdiag.Request{States: sockdiag.AllStates, Protocol: protocol, Ports: []sockdiag.PortRange{{Low: port, High: port}}, Details: true}
		if err := c.Walk(t.Context(), r, &got); err != nil {
			t.Fatal(err)
		}
		with := func(c any) sockdiag.Socket {
			t.Helper()
			i := slices.IndexFunc(got, func(s sockdiag.Socket) bool { return s.Inode == inode(c) })
			if i < 0 {
				t.Fatalf("no socket of %v with inode %d in %v", protocol, inode(c), got)
			}
			if got[i].UID != uint32(os.Getuid()) {
				t.Errorf("user %d", got[i].UID)
			}
			return got[i]
		}
		if protocol == sockdiag.UDP {
			if s := with(udp); s.Memory.Receive < sent || s.Memory.Charged()%4096 != 0 {
				t.Errorf("memory %+v", s.Memory)
			}
			continue
		}
		with(l)
		if s := with(in); s.Memory.Receive < sent || s.Memory.Charged()%4096 != 0 {
			t.Errorf("memory %+v", s.Memory)
		}
		// A client that does not request details gets none.
		got = nil
		r.Details = false
		if err := c.Walk(t.Context(), r, &got); err != nil || got[0].Inode != 0 || got[0].Memory != (sockdiag.Memory{}) {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

type details []sockdiag.Socket

func (d *details) Reset()                   { *d = nil }
func (d *details) Visit(s *sockdiag.Socket) { *d = append(*d, *s) }

// TestLive walks this machine's sockets with both kinds of request.
func TestLive(t *testing.T) {
	c := sockdiag.New(sockdiag.Dial)
	defer c.Close()
	// Use as many ranges as can be sent: every odd port, from the lowest.
	var ports []sockdiag.PortRange
	for i := range sockdiag.MaxRanges {
		ports = append(ports, sockdiag.PortRange{Low: uint16(2*i + 1), High: uint16(2*i + 1)})
	}
	for range 3 {
		if err := c.Walk(t.Context(), sockdiag.Request{States: sockdiag.AllStates}, &tally{}); err != nil {
			t.Fatal(err)
		}
		if err := c.Walk(t.Context(), sockdiag.Request{States: sockdiag.AllStates, Ports: ports}, &tally{}); err != nil {
			t.Fatal(err)
		}
	}
}
