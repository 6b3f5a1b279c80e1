package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/byhand"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/nettest"
)

// init locks the first thread of the process to TestMain. /proc/self/net is that thread's, so no
// test may move it to another network namespace.
func init() { runtime.LockOSThread() } //nolint:gochecknoinits // later than this, the main goroutine may be on another thread

// patience is the limit of every wait of these tests, for a very busy machine: on an idle one
// they all end within milliseconds.
const patience = 20 * time.Second

// netns is a network namespace of a test. The goroutine of the test is in it, and so are the
// sockets that it opens and the commands that it starts. It reads /proc/thread-self/net and
// /proc/sys/net of that namespace.
type netns struct {
	t     *testing.T
	open  map[int]bool // descriptors of sockets
	lossy bool         // there is a table of this name
}

// enterNetns creates and enters a namespace, for a test that also needs the given programs. The
// thread ends with the test, and the namespace with it, so nothing is left behind.
func enterNetns(t *testing.T, programs ...string) *netns {
	t.Helper()
	needs.Check(t, append([]string{needs.Root, needs.MountedRoot, "unshare"}, programs...)...)
	runtime.LockOSThread()
	if err := nettest.Unshare(); err != nil {
		t.Fatal(err)
	}
	n := &netns{t: t, open: map[int]bool{}}
	t.Cleanup(func() {
		if n.lossy {
			// The resets that end the connections must not be dropped.
			n.nft("delete table inet lossy")
		}
		for fd := range n.open {
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			_ = unix.Close(fd)
		}
	})
	return n
}

// command runs a program in the network namespace of the calling goroutine and returns its
// output.
func command(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return string(out)
}

// nft changes the packet filter of the namespace in one transaction. Rules that drop packets
// belong in the table inet lossy.
func (n *netns) nft(commands string) {
	n.t.Helper()
	command(n.t, commands, "nft", "-f", "-")
	n.lossy = n.lossy || strings.Contains(commands, "table inet lossy")
}

// sysctl changes a sysctl of the namespace.
func (n *netns) sysctl(name, value string) {
	n.t.Helper()
	path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		n.t.Fatal(err)
	}
}

// line is an exporter with a connection to it that stays open, so that scrapes neither create nor
// end sockets.
type line struct {
	*exporter
	http *http.Client
}

// connect opens the connection from the namespace of the calling goroutine.
func connect(e *exporter) *line {
	e.t.Helper()
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(e.url, "http://"), patience)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { _ = conn.Close() })
	l := &line{e, &http.Client{
		Timeout: patience,
		Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		},
	}}
	// The server allows an idle connection for minutes, but not before its first request.
	l.scrape()
	return l
}

// asHost makes a command use the namespace that it runs in as the host's: the network of process
// 1 is its own. It sees the processes of the machine. before is run by the shell that then
// executes the command.
func asHost(cmd *exec.Cmd, before string, args ...string) {
	const script = `
		mount --make-rprivate /
		mount --bind /proc/$$/net /proc/1/net
		`
	cmd.Args = slices.Concat([]string{"unshare", "--mount", "sh", "-ec", script + before + `
		exec "$@"`, "sh"}, args, cmd.Args)
	cmd.Path = "/usr/bin/unshare"
}

// start runs the exporter in the namespace, as if that were the host's. Otherwise the exporter
// would enter the host's.
func (n *netns) start(args ...string) *line {
	n.t.Helper()
	return connect(start(n.t, func(cmd *exec.Cmd) { asHost(cmd, "") }, args...))
}

// scrape fetches a page over the open connection, and checks that all its values were read for
// it.
func (l *line) scrape() page {
	l.t.Helper()
	resp, err := l.http.Get(l.url + "/metrics")
	if err != nil {
		l.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		l.t.Fatalf("GET /metrics: %d: %s", resp.StatusCode, body)
	}
	p := parsePage(l.t, string(body))
	for _, series := range p.with("sockpressure_scrape_collector_age_seconds") {
		if p[series] != 0 {
			l.t.Fatalf("%s is %v", series, p[series])
		}
	}
	return p
}

// socket opens a nonblocking socket of the family of an address.
func (n *netns) socket(a netip.Addr, kind, protocol int) int {
	n.t.Helper()
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		n.t.Fatal("socket:", err)
	}
	n.open[fd] = true
	return fd
}

func (n *netns) close(fds ...int) {
	n.t.Helper()
	for _, fd := range fds {
		delete(n.open, fd)
		if err := unix.Close(fd); err != nil {
			n.t.Fatal("close:", err)
		}
	}
}

// set sets an option to 1.
func (n *netns) set(fd, level, option int) {
	n.t.Helper()
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		n.t.Fatal("setsockopt:", err)
	}
}

func (n *netns) bind(fd int, at netip.AddrPort) {
	n.t.Helper()
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		n.t.Fatalf("bind %s: %v", at, err)
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// listen opens a listener. Several may share an address.
func (n *netns) listen(at netip.AddrPort, backlog int) int {
	n.t.Helper()
	fd := n.socket(at.Addr(), unix.SOCK_STREAM, 0)
	n.set(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	n.bind(fd, at)
	if err := unix.Listen(fd, backlog); err != nil {
		n.t.Fatalf("listen %s: %v", at, err)
	}
	return fd
}

// bound returns a TCP socket with an address. connect chooses the port, depending on the
// destination.
func (n *netns) bound(from netip.AddrPort) int {
	n.t.Helper()
	fd := n.socket(from.Addr(), unix.SOCK_STREAM, 0)
	n.set(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT)
	n.bind(fd, from)
	return fd
}

// dialing starts a connection. from is an address with port 0, or invalid.
func (n *netns) dialing(from, to netip.AddrPort) int {
	n.t.Helper()
	var fd int
	if from.IsValid() {
		fd = n.bound(from)
	} else {
		fd = n.socket(to.Addr(), unix.SOCK_STREAM, 0)
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		n.t.Fatalf("connect %s: %v", to, err)
	}
	return fd
}

// dial makes a connection.
func (n *netns) dial(from, to netip.AddrPort) int {
	n.t.Helper()
	fd := n.dialing(from, to)
	n.poll(fd, unix.POLLOUT)
	if e, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || e != 0 {
		n.t.Fatalf("connect %s: %v %v", to, err, unix.Errno(e))
	}
	return fd
}

func (n *netns) accept(listener int) int {
	n.t.Helper()
	n.poll(listener, unix.POLLIN)
	fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		n.t.Fatal("accept:", err)
	}
	n.open[fd] = true
	return fd
}

// pair is the two ends of a connection.
type pair struct{ client, server int }

// pairs makes connections to a listener and accepts them.
func (n *netns) pairs(listener int, from, to netip.AddrPort, count int) []pair {
	n.t.Helper()
	var p []pair
	for range count {
		c := n.dial(from, to)
		p = append(p, pair{c, n.accept(listener)})
	}
	return p
}

// poll waits for an event on a socket.
func (n *netns) poll(fd int, event int16) {
	n.t.Helper()
	n.until("poll", func() bool {
		got, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: event}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			n.t.Fatal("poll:", err)
		}
		return got == 1
	})
}

// reach waits until a socket is in a state.
func (n *netns) reach(fd int, state byhand.State) {
	n.t.Helper()
	n.until(fmt.Sprintf("state %s", state), func() bool {
		info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		if err != nil {
			n.t.Fatal("TCP_INFO:", err)
		}
		return byhand.State(info.State) == state
	})
}

// until waits for a condition.
func (n *netns) until(what string, done func() bool) {
	n.t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			n.t.Fatalf("not reached after %v: %s", patience, what)
		}
	}
}
