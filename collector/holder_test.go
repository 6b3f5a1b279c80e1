package collector

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/owner"
)

// TestHolders checks that the process that holds a socket is found, that its place is
// remembered, and that it is not found after the socket is closed.
func TestHolders(t *testing.T) {
	h := newHolders(machine(t, running()))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	inode := uint32(st.Ino)
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	of := []holding{{sockets: []uint32{inode}, uid: number(7)}, {sockets: []uint32{1<<32 - 1}, uid: number(8)}, {}}
	for range 2 {
		got := h.name(t.Context(), of)
		if who := got[0]; who == nil || who.PID != os.Getpid() || who.Process != strings.TrimSpace(string(comm)) || who.UID != number(os.Getuid()) {
			t.Errorf("the socket of this process is held by %v", who)
		}
		if who := got[1]; who == nil || who.PID != 0 || who.Process != "" || who.UID != number(8) {
			t.Errorf("a socket that does not exist is held by %v", who)
		}
		if got[2] != nil {
			t.Errorf("the empty holding is held by %v", got[2])
		}
		if _, ok := h.found[inode]; !ok {
			t.Error("the place of the socket was not remembered")
		}
		of[0].pid = 0
	}
	_, _ = l.Close(), file.Close()
	if got := h.name(t.Context(), of); got[0] == nil || got[0].PID != 0 {
		t.Errorf("a closed socket is held by %v", got[0])
	}
}

// TestHolderGone checks that there is no holder if the process has ended.
func TestHolderGone(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if got := newHolders(machine(t, running())).name(t.Context(), []holding{{pid: cmd.Process.Pid}}); got[0] != nil {
		t.Errorf("held by %v", got[0])
	}
}

// TestHolderWords checks how a holder is described, and its share.
func TestHolderWords(t *testing.T) {
	unit := owner.Owner{Name: "unit/a.service"}
	for want, h := range map[string]Holder{
		"haproxy (process 812, user 99) of unit/a.service": {Process: "haproxy", PID: 812, UID: number(99), Owner: unit},
		"haproxy (process 812)":                            {Process: "haproxy", PID: 812},
		"unit/a.service":                                   {UID: number(99), Owner: unit},
		"user 99":                                          {UID: number(99)},
	} {
		if got := h.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	half := (&Holder{amount: 5}).of(10)
	all := (&Holder{}).of(10)
	more := (&Holder{amount: 11}).of(10) // counted later than the total
	if half.Share != 0.5 || all.Share != 1 || more.Share != 1 || (*Holder)(nil).of(1) != nil {
		t.Errorf("%v, %v, %v", half, all, more)
	}
}

// TestSocketGroups checks that the group with the most sockets is returned, and that the
// numbers of groups and of kept sockets are bounded.
func TestSocketGroups(t *testing.T) {
	g := socketGroups{}
	for i := range uint32(3 * maxSockets) {
		g.add(socketGroup{1, 0}, i)
		g.add(socketGroup{2, 1000}, i)
	}
	g.add(socketGroup{2, 1000}, 0)
	for i := range uint64(2 * maxGroups) {
		g.add(socketGroup{3 + i, 0}, 1)
	}
	most := g.most()
	if most.cgroup != 2 || most.uid != number(1000) || most.amount != 3*maxSockets+1 || len(most.sockets) != maxSockets || len(g) != maxGroups {
		t.Errorf("%+v of %d groups", most, len(g))
	}
}
