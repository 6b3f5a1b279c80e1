package web

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	toolkit "github.com/prometheus/exporter-toolkit/web"
	"golang.org/x/crypto/bcrypt"
)

// hash returns the bcrypt hash of a password.
func hash(t *testing.T, password string, cost int) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), cost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

func users(t *testing.T, passwords map[string]string) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("basic_auth_users:\n")
	for user, password := range passwords {
		fmt.Fprintf(&b, "  %s: %s\n", user, hash(t, password, bcrypt.MinCost))
	}
	return b.String()
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// guarded is a handler protected by a web configuration file.
type guarded struct {
	*testing.T
	path  string
	log   logged
	guard *guard
}

func newGuarded(t *testing.T, content string) *guarded {
	t.Helper()
	g := &guarded{T: t, path: filepath.Join(t.TempDir(), "web.yml")}
	write(t, g.path, content)
	logger := slog.New(slog.NewTextHandler(&g.log, nil))
	file, err := openWebFile(g.path, logger)
	if err != nil {
		t.Fatal(err)
	}
	g.guard = newGuard(file, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("secret")) }), logger)
	return g
}

// ask returns the status of a request with the given password, or without one if it is empty.
func (g *guarded) ask(password string) int { return g.askAs("prometheus", password).Code }

func (g *guarded) askAs(user, password string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(g.Context(), http.MethodGet, "/metrics", http.NoBody)
	if password != "" {
		r.SetBasicAuth(user, password)
	}
	w := httptest.NewRecorder()
	g.guard.ServeHTTP(w, r)
	if strings.Contains(w.Body.String(), "secret") != (w.Code == http.StatusOK) {
		g.Errorf("%d with %s", w.Code, w.Body)
	}
	return w
}

// eventually waits until done is true, for a few times lookAgain.
func (g *guarded) eventually(what string, done func() bool) {
	g.Helper()
	for end := time.Now().Add(5 * lookAgain); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			g.Fatal(what)
		}
	}
}

// TestWebFileKept checks that a web configuration that is invalid or protects less is ignored,
// with one line of log when that starts and one when it ends.
func TestWebFileKept(t *testing.T) {
	before := users(t, map[string]string{"prometheus": "right", "other": "right"})
	for name, change := range map[string]func(t *testing.T, path string){
		"users removed in place": func(t *testing.T, path string) { write(t, path, "http_server_config:\n  http2: false\n") },
		"no users":               func(t *testing.T, path string) { write(t, path, "basic_auth_users: {}\n") },
		"made empty":             func(t *testing.T, path string) { write(t, path, "") },
		"invalid YAML":           func(t *testing.T, path string) { write(t, path, "basic_auth_users:\n prometheus") },
		"unknown key":            func(t *testing.T, path string) { write(t, path, before+"basic_auth: true\n") },
		"half a hash":            func(t *testing.T, path string) { write(t, path, before[:len(before)-20]) },
		"no hash":                func(t *testing.T, path string) { write(t, path, "basic_auth_users:\n  prometheus: right\n") },
		"unknown header": func(t *testing.T, path string) {
			write(t, path, before+"http_server_config:\n  headers:\n    X-Y: z\n")
		},
		"half of TLS": func(t *testing.T, path string) { write(t, path, before+"tls_server_config:\n  cert_file: none\n") },
		"removed": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
		"not readable": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t, before)
			change(t, g.path)
			for range 20 {
				for password, want := range map[string]int{"": http.StatusUnauthorized, "wrong": http.StatusUnauthorized, "right": http.StatusOK} {
					if got := g.ask(password); got != want {
						t.Fatalf("%q: %d", password, got)
					}
				}
			}
			kept := func() string {
				var lines []string
				for line := range strings.Lines(g.log.String()) {
					if !strings.Contains(line, "wrong user name or password") {
						lines = append(lines, line)
					}
				}
				return strings.Join(lines, "")
			}
			if got := kept(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=WARN") || !strings.Contains(got, "Keeping the previous web configuration") {
				t.Errorf("the log is %s", got)
			}
			_ = os.Remove(g.path)
			// Replace the file as the documentation says.
			write(t, g.path+".new", users(t, map[string]string{"prometheus": "new"}))
			if err := os.Rename(g.path+".new", g.path); err != nil {
				t.Fatal(err)
			}
			if got := g.ask("right"); got != http.StatusUnauthorized {
				t.Errorf("the old password gives %d", got)
			}
			if got := g.ask("new"); got != http.StatusOK {
				t.Errorf("the new password gives %d", got)
			}
			if got := kept(); !strings.Contains(got, "Reloaded the web configuration") {
				t.Errorf("the log is %s", got)
			}
		})
	}
}

// TestWebFileChanged checks that a change that protects as much is applied.
func TestWebFileChanged(t *testing.T) {
	g := newGuarded(t, "http_server_config:\n  headers:\n    X-Frame-Options: deny\n")
	if w := g.askAs("", ""); w.Code != http.StatusOK || w.Header().Get("X-Frame-Options") != "deny" {
		t.Errorf("without users: %d %v", w.Code, w.Header())
	}
	write(t, g.path, users(t, map[string]string{"prometheus": "one", "other": "two"}))
	for _, c := range []struct {
		user, password string
		want           int
	}{
		{"prometheus", "one", 200},
		{"other", "two", 200},
		{"prometheus", "two", 401},
		{"nobody", "one", 401},
		{"", "one", 401},
		{"prometheus", "", 401},
	} {
		if got := g.askAs(c.user, c.password); got.Code != c.want || (got.Header().Get("WWW-Authenticate") != "") != (c.want == 401) {
			t.Errorf("%q %q: %d %v", c.user, c.password, got.Code, got.Header())
		}
	}
	// A file of the same size and modification time: the change is noticed a second later.
	text := users(t, map[string]string{"other": "abc"})
	write(t, g.path, text)
	_ = g.ask("one")
	write(t, g.path, strings.Replace(text, "other", "othrr", 1))
	g.eventually("a second change in place was not seen", func() bool { return g.askAs("othrr", "abc").Code == http.StatusOK })
	if got := g.askAs("other", "abc").Code; got != http.StatusUnauthorized {
		t.Errorf("a user that was removed gets %d", got)
	}
	// Once the file has settled, it is not read again.
	g.eventually("it does not settle", func() bool {
		g.guard.file.get()
		return g.guard.file.settled
	})
	looked := g.guard.file.looked
	time.Sleep(lookAgain + 100*time.Millisecond)
	if _ = g.askAs("othrr", "abc"); g.guard.file.looked != looked {
		t.Error("the file was read again although it has not changed")
	}
}

// TestWebFileAtStart checks that an invalid file is an error at startup.
func TestWebFileAtStart(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"missing": "", "invalid": ":", "hash": "basic_auth_users: {a: b}\n", "tls": "tls_server_config: {cert_file: x, key_file: y}\n",
	} {
		path := filepath.Join(dir, name)
		if content != "" {
			write(t, path, content)
		}
		if _, err := openWebFile(path, slog.New(slog.DiscardHandler)); err == nil || strings.TrimSpace(err.Error()) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// secured is a running server with TLS.
type secured struct {
	*testing.T
	dir, address string
	log          logged
}

func secure(t *testing.T, config string) *secured {
	t.Helper()
	s := &secured{T: t, dir: t.TempDir()}
	s.certificate("server", "first")
	s.certificate("client", "client")
	write(t, s.file("web.yml"), config)
	server := Server(recordedSet(t, nil), Config{TelemetryPath: "/metrics", MaxRequests: 1, Logger: slog.New(slog.DiscardHandler)})
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	_ = l.Close()
	path, socket := s.file("web.yml"), false
	ended := make(chan error)
	go func() {
		ended <- ListenAndServe(server, &toolkit.FlagConfig{
			WebListenAddresses: &[]string{s.address}, WebSystemdSocket: &socket, WebConfigFile: &path,
		}, slog.New(slog.NewTextHandler(&s.log, nil)))
	}()
	for !strings.Contains(s.log.String(), "TLS is") {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-ended; err != http.ErrServerClosed { //nolint:errorlint // it is this one
			t.Error(err)
		}
	})
	return s
}

func (s *secured) file(name string) string { return filepath.Join(s.dir, name) }

// certificate writes a self-signed certificate and its key.
func (s *secured) certificate(file, name string) {
	s.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.Fatal(err)
	}
	write(s.T, s.file(file+".crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	write(s.T, s.file(file+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}

// serves returns the name in the certificate of the server, or the error.
func (s *secured) serves(client ...tls.Certificate) string {
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, Certificates: client}} //nolint:gosec // it is the name that is asked for
	ctx, cancel := context.WithTimeout(s.Context(), 10*time.Second)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", s.address)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = conn.Close() }()
	// A server that requires another certificate reports it after the handshake.
	_, _ = conn.Write([]byte("GET /-/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return err.Error()
	}
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Subject.CommonName
}

func (s *secured) expect(what, want string, client ...tls.Certificate) {
	s.Helper()
	got := ""
	for end := time.Now().Add(5 * lookAgain); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if got = s.serves(client...); strings.Contains(got, want) {
			return
		}
	}
	s.Errorf("%s: %s, want %s", what, got, want)
}

const withTLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"

// TestCertificates checks that a renewed certificate is served once it is complete, and the
// last valid one until then.
func TestCertificates(t *testing.T) {
	s := secure(t, withTLS)
	s.expect("at first", "first")
	old, err := os.ReadFile(s.file("server.crt"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.file("server.crt"), "")
	s.expect("made empty", "first")
	write(t, s.file("server.crt"), string(old[:len(old)/2]))
	s.expect("half written", "first")
	s.certificate("next", "second")
	if err := os.Rename(s.file("next.crt"), s.file("server.crt")); err != nil {
		t.Fatal(err)
	}
	s.expect("with another's key", "first")
	if err := os.Rename(s.file("next.key"), s.file("server.key")); err != nil {
		t.Fatal(err)
	}
	s.expect("both replaced", "second")
	s.certificate("server", "third")
	s.expect("written in place", "third")
	for _, name := range []string{"server.crt", "server.key"} {
		if err := os.Remove(s.file(name)); err != nil {
			t.Fatal(err)
		}
	}
	s.expect("removed", "third")
	s.certificate("server", "fourth")
	s.expect("there again", "fourth")
	for _, config := range []string{"", users(t, map[string]string{"a": "b"}), "tls_server_config:\n  cert_file: server.crt\n"} {
		write(t, s.file("web.yml"), config)
		s.expect("a file without TLS", "fourth")
	}
}

// TestClientCertificates checks that the requirements on clients never become weaker than at
// startup.
func TestClientCertificates(t *testing.T) {
	config := withTLS + "  min_version: TLS13\n  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: client.crt\n  client_allowed_sans: [client]\n"
	s := secure(t, config)
	load := func() tls.Certificate {
		c, err := tls.LoadX509KeyPair(s.file("client.crt"), s.file("client.key"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	client := load()
	s.certificate("other", "other")
	other, err := tls.LoadX509KeyPair(s.file("other.crt"), s.file("other.key"))
	if err != nil {
		t.Fatal(err)
	}
	for name, weaker := range map[string]string{
		"as it was":    config,
		"made empty":   "",
		"no policy":    strings.ReplaceAll(config, "RequireAndVerify", "Request"),
		"no authority": strings.ReplaceAll(config, "  client_ca_file: client.crt\n", ""),
		"any name":     strings.ReplaceAll(config, "  client_allowed_sans: [client]\n", ""),
		"older TLS":    strings.ReplaceAll(config, "  min_version: TLS13\n", ""),
		"only server":  withTLS,
	} {
		s.log.take()
		write(t, s.file("web.yml"), weaker)
		s.expect(name, "first", client)
		s.expect(name+", without a certificate", "certificate required")
		s.expect(name+", with another's", "certificate", other)
		if got := strings.Count(s.log.String(), "Keeping the previous web configuration"); (got == 1) != (weaker != config) {
			t.Errorf("%s: the log is %s", name, s.log.String())
		}
		write(t, s.file("web.yml"), config)
		s.expect(name+", undone", "first", client)
	}
	// Renew the authority.
	write(t, s.file("client.crt"), "")
	s.expect("an empty authority", "first", client)
	s.certificate("client", "client")
	s.expect("another authority", "first", load())
	s.expect("the old one's", "certificate", client)
}

// TestManyPasswords checks that a client with the right password is served while another one
// tries very many wrong ones, and that the right password is remembered.
func TestManyPasswords(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector makes each comparison of passwords ten times as slow")
	}
	g := newGuarded(t, "basic_auth_users:\n  prometheus: "+hash(t, "right", 10)+"\n")
	ctx, stop := context.WithCancel(t.Context())
	ask := func(ctx context.Context, remote, user, password string) (int, time.Duration) {
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", http.NoBody)
		r.RemoteAddr = remote
		r.SetBasicAuth(user, password)
		w := httptest.NewRecorder()
		began := time.Now()
		g.guard.ServeHTTP(w, r)
		return w.Code, time.Since(began)
	}
	// Take the shortest of several, because this machine may be busy.
	refusal := func(user string) time.Duration {
		quickest := time.Hour
		for range 5 {
			_, d := ask(ctx, "192.0.2.9:1", user, "wrong")
			quickest = min(quickest, d)
			time.Sleep(5 * d) // the pause after a wrong password
		}
		return quickest
	}
	known := refusal("prometheus")
	if unknown := refusal("nobody"); unknown < known/3 {
		t.Errorf("an unknown user is refused after %v, a known one after %v", unknown, known)
	}
	var flood sync.WaitGroup
	for i := range 100 {
		flood.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				code, _ := ask(ctx, "192.0.2.1:"+strconv.Itoa(i+1), "prometheus", fmt.Sprint(i, n))
				if code != http.StatusUnauthorized && code != http.StatusServiceUnavailable {
					t.Errorf("a wrong password gives %d", code)
				}
			}
		})
	}
	for g.guard.turns.clients() == 0 {
		time.Sleep(time.Millisecond)
	}
	var took []time.Duration
	for range 5 {
		code, d := ask(ctx, "192.0.2.2:1", "prometheus", "right")
		if code != http.StatusOK {
			t.Errorf("the right password gives %d", code)
		}
		took = append(took, d)
	}
	t.Logf("a wrong password takes %v, the right one among them %v", known, took)
	// At first, two wrong passwords may be ahead of it, each followed by a pause.
	if took[0] > max(40*known, 5*time.Second) || slices.Max(took[1:]) > max(2*known, 50*time.Millisecond) {
		t.Error("the right password waits for too long")
	}
	stop()
	flood.Wait()
	if g.guard.turns.clients() > 0 {
		t.Error("requests are still waiting")
	}
}

// TestRateLimit checks that the rate limit of the web configuration is applied.
func TestRateLimit(t *testing.T) {
	g := newGuarded(t, "rate_limit: {burst: 3, interval: 1h}\n")
	for i := range 5 {
		want := http.StatusOK
		if i >= 3 {
			want = http.StatusTooManyRequests
		}
		if got := g.ask(""); got != want {
			t.Errorf("request %d gives %d", i, got)
		}
	}
}

// TestListenAndServe checks that several addresses are served, and none if one of them is
// invalid or in use.
func TestListenAndServe(t *testing.T) {
	var log logged
	none, socket := "", false
	serve := func(ctx context.Context, addresses ...string) error {
		server := Server(recordedSet(t, nil), Config{TelemetryPath: "/metrics", MaxRequests: 1, Logger: slog.New(slog.DiscardHandler)})
		stop := context.AfterFunc(ctx, func() { _ = server.Close() })
		defer stop()
		return ListenAndServe(server, &toolkit.FlagConfig{WebListenAddresses: &addresses, WebSystemdSocket: &socket, WebConfigFile: &none},
			slog.New(slog.NewTextHandler(&log, nil)))
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- serve(ctx, "127.0.0.1:0", "127.0.0.2:0") }()
	for strings.Count(log.String(), "TLS is disabled") < 2 {
		time.Sleep(time.Millisecond)
	}
	var address string
	for _, a := range found(log.String(), `msg="Listening on" address=(\S+)`) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+a+"/-/ready", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		_ = resp.Body.Close()
		if b.String() != "ready\n" {
			t.Errorf("%s: %q", a, b.String())
		}
		address = a
	}
	for _, addresses := range [][]string{{"127.0.0.1:0", address}, {"nonsense"}, {"vsock://"}, {"vsock://:x"}} {
		if err := serve(t.Context(), addresses...); err == nil {
			t.Errorf("%q: no error", addresses)
		}
	}
	stop()
	if err := <-ended; err != http.ErrServerClosed { //nolint:errorlint // it is this one
		t.Error(err)
	}
}
