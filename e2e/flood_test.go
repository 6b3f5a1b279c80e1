package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

var (
	floodExporter = flag.String("flood.exporter", "", "exporter that TestFlood attacks, that of this repository if empty")
	floodAttack   = flag.String("flood.attack", "", "part of the name of the attacks to try")
	floodTime     = flag.Duration("flood.time", 2*time.Second, "how long each attack of TestFlood lasts")
)

// What SECURITY.md promises under every attack of TestFlood.
const (
	// floodMemory is what the cgroup has: MemoryMax= of the unit, limits.memory of the
	// DaemonSet.
	floodMemory = 128 << 20
	// promisedMemory is what the exporter takes of it.
	promisedMemory = 96 << 20
	// promisedLines is how many lines above debug it logs within a minute.
	promisedLines = 12
	// promisedScrape is how long Prometheus waits at most.
	promisedScrape = 10 * time.Second
)

// An attack does its worst until the context ends.
type attack struct {
	name string
	// secure is with TLS and a password, verified with certificates of clients too.
	secure, verified bool
	// reconnects has Prometheus open a connection for each scrape.
	reconnects bool
	do         func(ctx context.Context, a *attacker)
}

// attacks are what a remote client can do to silence the exporter. Prometheus has an
// address of its own in all of them.
func attacks() []attack {
	return []attack{
		{name: "nothing", do: func(ctx context.Context, _ *attacker) { <-ctx.Done() }},
		{name: "HTTP/2 pings whose answers are not read", secure: true, do: func(ctx context.Context, a *attacker) {
			ping := append([]byte{0, 0, 8, 6, 0, 0, 0, 0, 0}, "12345678"...)
			pings := bytes.Repeat(ping, 1000)
			a.each(ctx, 134, a.one, func(conn net.Conn) {
				secure := tls.Client(conn, &tls.Config{RootCAs: a.roots, ServerName: "127.0.0.1", NextProtos: []string{"h2", "http/1.1"}, MinVersion: tls.VersionTLS12})
				fmt.Fprint(secure, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
				for {
					if _, err := secure.Write(pings); err != nil {
						return
					}
				}
			})
		}},
		{name: "headers of many short lines", do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, func(conn net.Conn) {
				for size := 64 << 10; size > 1<<10; size /= 2 {
					_, _ = conn.Write(shortLines(size))
					_, _ = io.Copy(io.Discard, conn)
				}
			})
		}},
		{name: "headers of many short lines, the most that is taken", do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, func(conn net.Conn) {
				_, _ = conn.Write(shortLines(8<<10 - 16))
				_, _ = io.Copy(io.Discard, conn)
			})
		}},
		{name: "half a TLS hello", secure: true, do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, func(conn net.Conn) {
				handshake(conn, 1, 64<<10-1)
				_, _ = io.Copy(io.Discard, conn)
			})
		}},
		{name: "certificates of 256 KiB", secure: true, verified: true, do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, func(conn net.Conn) {
				secure := tls.Client(hello{conn}, &tls.Config{ServerName: "127.0.0.1", MaxVersion: tls.VersionTLS12}) //nolint:gosec // its messages are not encrypted
				_ = secure.HandshakeContext(ctx)
				handshake(conn, 11, 256<<10-1)
				_, _ = io.Copy(io.Discard, conn)
			})
		}},
		{name: "TLS handshakes", secure: true, do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 100, a.many, func(conn net.Conn) {
				secure := tls.Client(conn, &tls.Config{RootCAs: a.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
				_ = secure.HandshakeContext(ctx)
			})
		}},
		{name: "wrong passwords", secure: true, do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 200, a.one, func(conn net.Conn) {
				secure := tls.Client(conn, &tls.Config{RootCAs: a.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS12})
				go func() { _, _ = io.Copy(io.Discard, secure) }()
				for i := 0; ; i++ {
					r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "https://exporter/metrics", http.NoBody)
					r.SetBasicAuth("prometheus", strconv.Itoa(i))
					if err := r.Write(secure); err != nil {
						return
					}
				}
			})
		}},
		{name: "pipelined requests", do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 41, a.one, pipeline(true, func(int) string { return "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" }))
		}},
		{name: "pipelined requests of all kinds", do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, pipeline(true, kinds))
		}},
		{name: "pipelined requests whose answers are not read", do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, pipeline(false, kinds))
		}},
		{name: "status pages", do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 300, a.many, pipeline(true, func(i int) string { return fmt.Sprintf("GET /?%d HTTP/1.1\r\nHost: x\r\n\r\n", i) }))
		}},
		{name: "no encoding will do", do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 41, a.one, pipeline(true, func(int) string {
				return "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: identity;q=0\r\n\r\n"
			}))
		}},
		{name: "scrapes without time", do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 41, a.one, pipeline(true, func(i int) string {
				return fmt.Sprintf("GET /metrics HTTP/1.1\r\nHost: x\r\nX-Prometheus-Scrape-Timeout-Seconds: %g\r\n\r\n", float64(i%20)/100)
			}))
		}},
		{name: "an idle connection from each of 400 addresses", reconnects: true, do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 400, a.crowd, func(conn net.Conn) {
				fmt.Fprint(conn, "GET /-/ready HTTP/1.1\r\nHost: x\r\n\r\n")
				_, _ = io.Copy(io.Discard, conn)
				time.Sleep(time.Second)
			})
		}},
		{name: "half a request from each of 400 addresses", reconnects: true, do: func(ctx context.Context, a *attacker) {
			a.each(ctx, 400, a.crowd, func(conn net.Conn) {
				fmt.Fprint(conn, "GET /metrics HTTP/1.1\r\nHo")
				_, _ = io.Copy(io.Discard, conn)
				time.Sleep(time.Second)
			})
		}},
	}
}

// kinds are requests with pages that cannot be shared.
func kinds(i int) string {
	names := []string{"sockstat", "tcp", "ports", "netstat", "conntrack", "filefd", "process", "memory", "softnet", "neighbour"}
	var query strings.Builder
	for bit, name := range names {
		if i>>bit&1 == 0 {
			query.WriteString("&collect[]=" + name)
		}
	}
	encoding := []string{"gzip", "identity"}[i&1]
	return "GET /metrics?" + query.String() + " HTTP/1.1\r\nHost: x\r\nAccept-Encoding: " + encoding + "\r\n\r\n"
}

// pipeline makes requests without waiting for the answers.
func pipeline(read bool, request func(i int) string) func(net.Conn) {
	var n atomic.Int64
	return func(conn net.Conn) {
		if read {
			go func() { _, _ = io.Copy(io.Discard, conn) }()
		}
		for {
			if _, err := io.WriteString(conn, request(int(n.Add(1)))); err != nil {
				return
			}
		}
	}
}

// shortLines is the beginning of a request, with as many headers as possible.
func shortLines(size int) []byte {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~"
	b := []byte("GET /metrics HTTP/1.1\r\nHost:x\n")
	for i := 0; len(b) < size; i++ {
		for n := i; n > 0; n /= len(letters) {
			b = append(b, letters[n%len(letters)])
		}
		b = append(b, 'A', ':', '\n')
	}
	return b[:size]
}

// handshake sends a message of a TLS handshake but for its last bytes.
func handshake(conn net.Conn, kind byte, size int) {
	message := append([]byte{kind, byte(size >> 16), byte(size >> 8), byte(size)}, make([]byte, size-16)...)
	for len(message) > 0 {
		n := min(len(message), 16<<10)
		record := append([]byte{22, 3, 3, byte(n >> 8), byte(n)}, message[:n]...)
		if _, err := conn.Write(record); err != nil {
			return
		}
		message = message[n:]
	}
}

// hello lets only the beginning of a handshake through.
type hello struct{ net.Conn }

func (hello) Read([]byte) (int, error) { return 0, io.EOF }
func (hello) Close() error             { return nil }

// attacker is where attacks come from.
type attacker struct {
	address string
	roots   *x509.CertPool
}

// one is the only address of an attack, many a hundred of them, crowd one for each
// connection.
func (a *attacker) one(int) string     { return "10.0.0.1" }
func (a *attacker) many(i int) string  { return fmt.Sprintf("10.0.1.%d", i%100) }
func (a *attacker) crowd(i int) string { return fmt.Sprintf("10.1.%d.%d", i/250, i%250) }

// each keeps so many connections busy, anew when they end.
func (a *attacker) each(ctx context.Context, connections int, from func(int) string, use func(net.Conn)) {
	var all sync.WaitGroup
	for i := range connections {
		all.Go(func() {
			for ctx.Err() == nil {
				conn, err := dialFrom(ctx, from(i), a.address)
				if err != nil {
					time.Sleep(10 * time.Millisecond)
					continue
				}
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				use(conn)
				stop()
				_ = conn.Close()
			}
		})
	}
	all.Wait()
}

func dialFrom(ctx context.Context, from, address string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	return d.DialContext(ctx, "tcp", address)
}

// insideFlood is the variable by which the test knows that it is in its network
// namespace.
const insideFlood = "SOCKPRESSURE_FLOOD_INSIDE"

// TestFlood attacks the exporter in a cgroup with the memory that the unit has, and
// expects what SECURITY.md promises. With -v it prints what was seen.
func TestFlood(t *testing.T) {
	needRoot(t)
	if os.Getenv(insideFlood) == "" {
		// All of the test's threads have to be in the namespace, where this machine has
		// sixteen million addresses.
		if *floodExporter == "" {
			*floodExporter = binary
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestFlood$", "-test.v",
			"-flood.exporter="+*floodExporter, "-flood.attack="+*floodAttack, "-flood.time="+floodTime.String())
		cmd.Env = append(os.Environ(), insideFlood+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Error(err)
		}
		return
	}
	command(t, "", "ip", "link", "set", "lo", "up")
	command(t, "", "ip", "route", "add", "local", "10.0.0.0/8", "dev", "lo")
	for _, a := range attacks() {
		if strings.Contains(a.name, *floodAttack) {
			t.Run(a.name, func(t *testing.T) { flood(t, a) })
		}
	}
}

func flood(t *testing.T, attack attack) {
	group := newMemoryGroup(t, floodMemory)
	dir := t.TempDir()
	var args []string
	a := &attacker{}
	if attack.secure {
		config := filepath.Join(dir, "web.yml")
		a.roots = selfSigned(t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
		// The hash is that of "right", at the cost that deploy/tls has.
		text := "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n"
		if attack.verified {
			text += "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: cert.pem\n"
		}
		hash, err := bcrypt.GenerateFromPassword([]byte("right"), 10)
		if err != nil {
			t.Fatal(err)
		}
		text += "basic_auth_users:\n  prometheus: " + string(hash) + "\n"
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args = []string{"--web.config.file=" + config}
	}
	// Attackers have machines of their own: theirs is not the exporter's CPU.
	e := start(t, func(cmd *exec.Cmd) {
		cmd.Args = append([]string{"sh", "-c", `echo $$ >"$0" && exec nice -n -10 "$@"`, group.procs(), *floodExporter}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
	}, args...)
	a.address = strings.TrimPrefix(e.url, "http://")
	if attack.secure {
		e.url = "https://" + a.address
	}
	prometheus := &http.Client{Timeout: promisedScrape, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			return dialFrom(ctx, "10.9.9.9", address)
		},
		TLSClientConfig:   &tls.Config{RootCAs: a.roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: attack.reconnects,
	}}
	defer prometheus.CloseIdleConnections()
	header := &http.Request{Header: http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {"10"}}}
	header.SetBasicAuth("prometheus", "right")

	// The attack is there before Prometheus.
	ctx, stop := context.WithTimeout(t.Context(), *floodTime)
	defer stop()
	attacked := make(chan struct{})
	began := time.Now()
	go func() {
		defer close(attacked)
		attack.do(ctx, a)
	}()
	time.Sleep(*floodTime / 10)
	scrapes, lost, longest := 0, 0, time.Duration(0)
	var failure string
	for ctx.Err() == nil && e.cmd.ProcessState == nil {
		asked := time.Now()
		got, err := e.send(prometheus, http.MethodGet, e.url+"/metrics", header.Header)
		scrapes++
		longest = max(longest, time.Since(asked))
		if err != nil || got.status != http.StatusOK || !strings.Contains(got.body, success("sockstat")+" 1") {
			lost++
			failure = fmt.Sprintf("%v %d %.100q", err, got.status, got.body)
		}
		time.Sleep(50 * time.Millisecond)
	}
	took := time.Since(began)
	cpu := cpuTime(e.cmd.Process.Pid)
	<-attacked
	lines := strings.Count(e.logged(), "\n")
	alive := syscall.Kill(e.cmd.Process.Pid, 0) == nil && cpu > 0
	t.Logf("%d of %d scrapes lost, the longest took %v; memory %.1f MB; %.2f cores; %d lines of log; alive: %t",
		lost, scrapes, longest.Round(time.Millisecond), float64(group.peak())/1e6, cpu.Seconds()/took.Seconds(), lines, alive)
	if !alive {
		t.Error("the exporter has ended")
	}
	if lost > 0 {
		t.Errorf("%d of %d scrapes are lost, the last one: %s", lost, scrapes, failure)
	}
	if got := group.peak(); got > promisedMemory {
		t.Errorf("it took %d bytes, more than %d", got, promisedMemory)
	}
	if lines > promisedLines {
		t.Errorf("it logged %d lines", lines)
	}
}

// cpuTime is what a process has taken, 0 if it is gone.
func cpuTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(after)
	if fields[0] == "Z" {
		return 0
	}
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * time.Second / 100 // USER_HZ
}

// memoryGroup is a cgroup with a limit of memory.
type memoryGroup struct {
	dir, limit, highest string
}

func newMemoryGroup(t *testing.T, bytes int) memoryGroup {
	t.Helper()
	root, g := "/sys/fs/cgroup", memoryGroup{limit: "memory.max", highest: "memory.peak"}
	if _, err := os.Stat(filepath.Join(root, "memory")); err == nil {
		root, g = filepath.Join(root, "memory"), memoryGroup{limit: "memory.limit_in_bytes", highest: "memory.max_usage_in_bytes"}
	} else if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
		t.Fatal(err)
	}
	g.dir = filepath.Join(root, fmt.Sprintf("sockpressure-flood-%d", os.Getpid()))
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The last process is gone a moment later.
		for range 100 {
			if err := os.Remove(g.dir); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("%s is left", g.dir)
	})
	if err := os.WriteFile(filepath.Join(g.dir, g.limit), []byte(strconv.Itoa(bytes)), 0); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g memoryGroup) procs() string { return filepath.Join(g.dir, "cgroup.procs") }

// peak is the most memory that the group has had.
func (g memoryGroup) peak() int {
	b, _ := os.ReadFile(filepath.Join(g.dir, g.highest))
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}
