package e2e

import (
	"crypto/tls"
	"fmt"
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

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// hashOfRight is the hash of the password "right", at the lowest cost.
const hashOfRight = "$2a$04$soSj4sq3CLU8L6kTSUAKiuNrdP4gz4ZG/Vqc1mEM6Cp8NsHTSyF2a"

// TestWebFile checks that the exporter keeps answering whatever happens to the web configuration
// file, and never without the password, with and without TLS.
func TestWebFile(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("TLS %t", secure), func(t *testing.T) { testWebFile(t, nil, secure) })
		t.Run(fmt.Sprintf("TLS %t, unprivileged", secure), func(t *testing.T) {
			needs.Check(t, needs.Root)
			testWebFile(t, asNobody, secure)
		})
	}
}

func testWebFile(t *testing.T, wrap func(*exec.Cmd), secure bool) {
	needs.Check(t, "prlimit")
	// Not t.TempDir, which other users may not enter.
	dir, err := os.MkdirTemp("", "sockpressure-web-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "web.yml")
	text := "basic_auth_users:\n  prometheus: " + hashOfRight + "\n"
	transport := &http.Transport{MaxIdleConnsPerHost: 1}
	if secure {
		text += "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n"
		roots := selfSigned(t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{name, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")} {
			_ = os.Chmod(name, 0o644)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(path, text)
	e := start(t, wrap, "--web.config.file="+path)
	if secure {
		e.url = "https" + strings.TrimPrefix(e.url, "http")
	}
	kept := &http.Client{Transport: transport}
	defer transport.CloseIdleConnections()
	check := func(what string, password string, want int) {
		t.Helper()
		r := &http.Request{Header: http.Header{}}
		if password != "" {
			r.SetBasicAuth("prometheus", password)
		}
		got, err := e.send(kept, http.MethodGet, e.url+"/metrics", r.Header)
		if err != nil || got.status != want || strings.Contains(got.body, success("sockstat")+" 1") != (want == http.StatusOK) {
			t.Errorf("%s, password %q: %v %d, want %d", what, password, err, got.status, want)
		}
	}
	all := func(what string) {
		t.Helper()
		for range 5 {
			check(what, "right", http.StatusOK)
			check(what, "wrong", http.StatusUnauthorized)
			check(what, "", http.StatusUnauthorized)
		}
	}
	limit := func(soft string) {
		t.Helper()
		cmd := exec.Command("prlimit", "--pid", strconv.Itoa(e.cmd.Process.Pid), "--nofile="+soft+":")
		cmd.SysProcAttr = new(syscall.SysProcAttr)
		if wrap != nil {
			wrap(cmd)
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd, err, out)
		}
	}
	all("as it was")
	// No file can be opened, and none has to be.
	time.Sleep(1100 * time.Millisecond)
	all("settled")
	limit("3")
	all("without descriptors")
	if strings.Contains(e.logged(), "Keeping the previous web configuration") {
		t.Error("it opens the file although it did not change")
	}
	// The file is rewritten, and cannot be opened.
	write(path, "")
	all("without descriptors, made empty")
	write(path, strings.ReplaceAll(text, "prometheus", "somebody"))
	all("without descriptors, with another user")
	limit("1024")
	time.Sleep(1100 * time.Millisecond)
	check("with another user", "right", http.StatusUnauthorized)
	write(path, text)
	all("with the user again")
	if wrap != nil {
		if err := os.Chmod(path, 0); err != nil {
			t.Fatal(err)
		}
		all("not readable")
		write(path, text)
	}
	for what, content := range map[string]string{
		"made empty": "", "no users": "http_server_config:\n  http2: true\n", "no YAML": "basic_auth_users: [",
	} {
		write(path, content)
		all(what)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	all("removed")
	// Each failure is logged once, however many requests there are.
	if n := strings.Count(e.logged(), "Keeping the previous web configuration"); n < 4 || n > 8 {
		t.Errorf("%d warnings", n)
	}
	write(path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	all("replaced")
}

// TestLogReader checks that the exporter keeps working when its log cannot be written.
func TestLogReader(t *testing.T) {
	for name, stderr := range map[string]func(t *testing.T) *os.File{
		"pipe without a reader": func(t *testing.T) *os.File {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = w.Close() })
			_ = r.Close()
			return w
		},
		"pipe that nobody reads": func(t *testing.T) *os.File {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = r.Close()
				_ = w.Close()
			})
			// The pipe has room for a page, most of which is used.
			if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize()); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(make([]byte, os.Getpagesize()-500)); err != nil {
				t.Fatal(err)
			}
			return w
		},
		"full disk": func(t *testing.T) *os.File {
			f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = f.Close() })
			return f
		},
	} {
		t.Run(name, func(t *testing.T) {
			// The exporter cannot log its address.
			address := freeAddress(t)
			cmd := exec.CommandContext(t.Context(), binary, "--log.level=debug", "--web.listen-address="+address)
			cmd.Stderr = stderr(t)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			e := &exporter{t: t, url: "http://" + address, cmd: cmd}
			served := 0
			for end := time.Now().Add(patience); served < 50 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				select {
				case err := <-ended:
					t.Fatal("it ended:", err)
				default:
				}
				sendNonsense(address)
				got, err := e.send(http.DefaultClient, http.MethodGet, e.url+"/metrics", nil)
				if err == nil && got.status == http.StatusOK {
					served++
				}
			}
			if served < 50 {
				t.Error("it does not answer")
			}
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				if err != nil {
					t.Error("it did not stop cleanly:", err)
				}
			case <-time.After(patience):
				t.Error("it does not stop")
				_ = cmd.Process.Kill()
				t.Log(<-ended)
			}
		})
	}
}

// sendNonsense makes the exporter log a line at level debug, by closing a connection without
// reading the page.
func sendNonsense(address string) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	_ = c.(*net.TCPConn).SetLinger(0)
	_, _ = c.Write([]byte("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))
}

// freeAddress returns a loopback address that is not in use.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}
