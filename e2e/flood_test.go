package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

var (
	floodExporter = flag.String("flood.exporter", "", "exporter that TestFlood attacks, that of this repository if empty")
	floodAttack   = flag.String("flood.attack", "", "part of the names of the attacks to try")
	floodTime     = flag.Duration("flood.time", 2*time.Second, "how long each attack of TestFlood lasts")
)

// The guarantees of SECURITY.md under every attack of TestFlood.
const (
	// floodMemory is the memory limit of the cgroup: MemoryMax= of the unit, limits.memory of the
	// DaemonSet.
	floodMemory = 128 << 20
	// promisedMemory is the most memory that the exporter uses of it.
	promisedMemory = 64 << 20
	// promisedLines is the most lines that an attack adds to the log within a minute.
	promisedLines = 6
	// promisedScrape is the longest that a scrape takes.
	promisedScrape = 10 * time.Second
)

// attack is one of the attacks of bench/flood.
type attack struct {
	name string
	// secure serves with TLS and a password, verified also checks client certificates.
	secure, verified bool
	// reconnects makes Prometheus open a connection for each scrape, shared makes it use the
	// attack's address.
	reconnects, shared bool
}

// floods returns all attacks.
func floods() []attack {
	return []attack{
		{name: "nothing"},
		{name: "HTTP/2 pings whose answers are not read", secure: true},
		{name: "headers of many short lines"},
		{name: "headers of many short lines, the most that is taken"},
		{name: "half a TLS hello", secure: true},
		{name: "certificates of 256 KiB", secure: true, verified: true},
		{name: "TLS handshakes", secure: true},
		{name: "wrong passwords", secure: true},
		{name: "pipelined requests"},
		{name: "pipelined requests, from the scraper's address", shared: true},
		{name: "pipelined requests of all kinds"},
		{name: "pipelined requests whose answers are not read"},
		{name: "status pages"},
		{name: "no encoding will do"},
		{name: "scrapes without time"},
		{name: "an idle connection from each of 400 addresses", reconnects: true},
		{name: "half a request from each of 400 addresses", reconnects: true},
	}
}

// insideFlood is the environment variable that is set when the test runs in its network
// namespace.
const insideFlood = "SOCKPRESSURE_FLOOD_INSIDE"

// TestFlood checks the guarantees of SECURITY.md while it attacks the exporter in a cgroup with
// the memory of the unit. With -v it prints what it measured.
func TestFlood(t *testing.T) {
	needs.Check(t, needs.Root, "chrt", "ip")
	if *floodAttack == "" {
		needs.Check(t, needs.CI) // all attacks take a minute
	}
	if os.Getenv(insideFlood) == "" {
		// All threads of the test have to be in the namespace, where sixteen million addresses
		// are local.
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
	flood := filepath.Join(t.TempDir(), "flood")
	command(t, "", "go", "build", "-o", flood, "../bench/flood")
	for _, a := range floods() {
		if strings.Contains(a.name, *floodAttack) {
			t.Run(a.name, func(t *testing.T) { testFlood(t, flood, a) })
		}
	}
}

func testFlood(t *testing.T, program string, attack attack) {
	group := newMemoryGroup(t, floodMemory)
	dir := t.TempDir()
	var args []string
	var roots *x509.CertPool
	if attack.secure {
		config := filepath.Join(dir, "web.yml")
		roots = selfSigned(t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
		// The password is "right", hashed at the cost that deploy/tls uses.
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
	e := start(t, func(cmd *exec.Cmd) {
		cmd.Args = append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, group.procs(), *floodExporter}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
	}, args...)
	address := strings.TrimPrefix(e.url, "http://")
	if attack.secure {
		e.url = "https://" + address
	}
	from := "10.9.9.9"
	if attack.shared {
		from = "10.0.0.1"
	}
	prometheus := &http.Client{Timeout: promisedScrape, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			return d.DialContext(ctx, "tcp", address)
		},
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: attack.reconnects,
	}}
	defer prometheus.CloseIdleConnections()
	header := &http.Request{Header: http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {"10"}}}
	header.SetBasicAuth("prometheus", "right")

	// The attack starts before Prometheus. Attackers have machines of their own, so the attack
	// only gets CPU time that the exporter does not need.
	before := strings.Count(e.logged(), "\n")
	cmd := exec.CommandContext(t.Context(), "chrt", "--idle", "0", program, "-address="+address, "-attack="+attack.name, "-time="+floodTime.String())
	if attack.secure {
		cmd.Args = append(cmd.Args, "-ca="+filepath.Join(dir, "cert.pem"))
	}
	var said strings.Builder
	cmd.Stderr = &said
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	attacked := make(chan error, 1)
	go func() { attacked <- cmd.Wait() }()
	time.Sleep(*floodTime / 10)
	scrapes, lost, longest := 0, 0, time.Duration(0)
	var failure string
	for time.Since(began) < *floodTime {
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
	if err := <-attacked; err != nil {
		t.Errorf("the attack failed: %v %s", err, said.String())
	}
	lines := strings.Count(e.logged(), "\n") - before
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

// cpuTime returns the CPU time of a process, 0 if it has ended.
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

// memoryGroup is a cgroup with a memory limit.
type memoryGroup struct {
	dir, limit, highest string
}

func newMemoryGroup(t *testing.T, bytes int) memoryGroup {
	t.Helper()
	root, g := "/sys/fs/cgroup", memoryGroup{limit: "memory.max", highest: "memory.peak"}
	if _, err := os.Stat(filepath.Join(root, "memory")); err == nil {
		root, g = filepath.Join(root, "memory"), memoryGroup{limit: "memory.limit_in_bytes", highest: "memory.max_usage_in_bytes"}
	} else if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
		needs.Skip(t, "cgroups with memory that root may make: "+err.Error())
	}
	g.dir = filepath.Join(root, fmt.Sprintf("sockpressure-%s-%d", strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")), os.Getpid()))
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		needs.Skip(t, "cgroups with memory that root may make: "+err.Error())
	}
	t.Cleanup(func() {
		// The last process disappears a moment later.
		for range 100 {
			if err := os.Remove(g.dir); err == nil || errors.Is(err, fs.ErrNotExist) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("%s is left", g.dir)
	})
	if _, err := os.Stat(filepath.Join(g.dir, g.highest)); err != nil {
		needs.Skip(t, "memory.peak of cgroups, Linux 5.19")
	}
	if err := os.WriteFile(filepath.Join(g.dir, g.limit), []byte(strconv.Itoa(bytes)), 0); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g memoryGroup) procs() string { return filepath.Join(g.dir, "cgroup.procs") }

// peak returns the highest memory usage of the group.
func (g memoryGroup) peak() int {
	b, _ := os.ReadFile(filepath.Join(g.dir, g.highest))
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}
