package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// answer is the response to a request.
type answer struct {
	status int
	header http.Header
	body   string
}

// send makes a request and returns the answer to it.
func (e *exporter) send(c *http.Client, method, url string, header http.Header) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return answer{}, err
	}
	if header != nil {
		r.Header = header
	}
	resp, err := c.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}

// metrics fetches /metrics with a header.
func (e *exporter) metrics(header http.Header) answer {
	e.t.Helper()
	a, err := e.send(http.DefaultClient, http.MethodGet, e.url+"/metrics", header)
	if err != nil {
		e.t.Fatal(err)
	}
	return a
}

// TestSlowClients checks that clients that do not finish their header, silent or slow, are
// disconnected, and that others are served meanwhile.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	e := start(t, nil)
	type end struct {
		after time.Duration
		err   error
	}
	const clients = 100
	ends := make(chan end, clients)
	for i := range clients {
		go func() {
			began := time.Now()
			err := sendHalf(strings.TrimPrefix(e.url, "http://"), i%2 == 0)
			ends <- end{time.Since(began), err}
		}()
	}
	served := 0
	for range 10 {
		e.scrape("")
		if len(ends) == 0 {
			served++
		}
	}
	if served == 0 {
		t.Error("no scrape was answered meanwhile")
	}
	for range clients {
		// The timeout is 5 s, and that of the client 20 s.
		if got := <-ends; got.err != nil || got.after < 4*time.Second {
			t.Errorf("a slow client was cut off after %v (%v)", got.after, got.err)
		}
	}
	e.scrape("")
}

// sendHalf sends half a request and returns when the server has closed the connection. With
// trickle it continues with a letter at a time.
func sendHalf(address string, trickle bool) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: exporter\r\nX-Hal"); err != nil {
		return err
	}
	if trickle {
		go func() {
			for err := error(nil); err == nil; _, err = io.WriteString(c, "f") {
				time.Sleep(200 * time.Millisecond)
			}
		}()
	}
	// A letter that arrives after the close causes a reset.
	if _, err = io.Copy(io.Discard, c); errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// TestMaxRequests checks that many scrapes and status pages that wait for one reading all get a
// page, although few are rendered at once.
func TestMaxRequests(t *testing.T) {
	// Opening a pipe without a writer blocks forever, and reading it where a file is expected
	// fails.
	proc := t.TempDir()
	pipe := filepath.Join(proc, "sys/fs/file-nr")
	if err := os.MkdirAll(filepath.Dir(pipe), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(proc, "version"), []byte("Linux version 6.12.0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	unblock := func() *os.File {
		f, err := os.OpenFile(pipe, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	writer := unblock()
	e := start(t, nil, "--web.max-requests=1", "--path.procfs="+proc, "--collector.disable-defaults", "--collector.filefd")
	_ = writer.Close()

	const requests = 20
	statuses := make(chan int)
	for path, want := range map[string]string{"/": "filefd", "/metrics": success("filefd")} {
		for range requests {
			go func() {
				a, err := e.send(http.DefaultClient, http.MethodGet, e.url+path,
					http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {"100"}})
				if err != nil || !strings.Contains(a.body, want) {
					t.Errorf("%s: %v %d %q", path, err, a.status, a.body)
				}
				statuses <- a.status
			}()
		}
	}
	for _, path := range []string{"/-/healthy", "/-/ready"} {
		if got, _ := e.get(path); got != http.StatusOK {
			t.Errorf("%s beside a scrape gave %d", path, got)
		}
	}
	select {
	case got := <-statuses:
		t.Errorf("a request gave %d before there was a reading", got)
	case <-time.After(500 * time.Millisecond):
	}
	writer = unblock()
	defer func() { _ = writer.Close() }()
	for range 2 * requests {
		if got := <-statuses; got != http.StatusOK {
			t.Errorf("what waited gave %d", got)
		}
	}
	e.scrape("")
}

// TestScrapeTimeout checks that no value of the scrape timeout header does harm.
func TestScrapeTimeout(t *testing.T) {
	e := start(t, nil)
	complete := e.scrape("").stable()
	for _, timeout := range []string{
		"", "0", "-1", "-0", "NaN", "Inf", "-Inf", "1e309", "1e308", "0x1p+9", "9223372036854775807", "ten",
		"1, 2", "10s", "\u221e", strings.Repeat("9", 10_000),
	} {
		a := e.metrics(http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {timeout}})
		if a.status != http.StatusOK {
			t.Fatalf("%.20q: %d", timeout, a.status)
		}
		compareSeries(t, parsePage(t, a.body).stable(), complete)
	}
	// There may be no time to read anything, but the page still reports that.
	for _, timeout := range []string{"1e-9", "5e-324", "0.001"} {
		a := e.metrics(http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {timeout}})
		if a.status != http.StatusOK || !strings.Contains(a.body, success("sockstat")) {
			t.Errorf("%q: %d", timeout, a.status)
		}
	}
	compareSeries(t, e.scrape("").stable(), complete)
}

// TestImpatientScrape checks that a scrape without time for a walk does not take its result away
// from others, at the default limit of walks.
func TestImpatientScrape(t *testing.T) {
	t.Parallel()
	// The exporter walks before it listens, so there must be another listener.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e := start(t, func(cmd *exec.Cmd) {
		cmd.Args = slices.DeleteFunc(cmd.Args, func(arg string) bool { return strings.HasPrefix(arg, "--collector.max-cpu") })
	})
	complete := e.scrape("").stable()
	// Long enough for several walks.
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end) && !t.Failed(); time.Sleep(50 * time.Millisecond) {
		a, err := e.send(http.DefaultClient, http.MethodGet, e.url+"/metrics?collect[]=tcp",
			http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {"1e-9"}})
		if err != nil || a.status != http.StatusOK {
			t.Fatal(a.status, err)
		}
		compareSeries(t, e.scrape("").stable(), complete)
	}
}

func TestMethods(t *testing.T) {
	e := start(t, nil)
	for _, path := range []string{"/metrics", "/", "/-/healthy", "/-/ready"} {
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
			a, err := e.send(http.DefaultClient, method, e.url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if a.status != http.StatusMethodNotAllowed || !strings.Contains(a.header.Get("Allow"), http.MethodGet) {
				t.Errorf("%s %s: %d, allowed is %q", method, path, a.status, a.header.Get("Allow"))
			}
		}
	}
}

// TestFormats checks that each format that a client may request has the same series.
func TestFormats(t *testing.T) {
	e := start(t, nil)
	want := e.scrape("").stable()

	a := e.metrics(http.Header{"Accept-Encoding": {"gzip"}})
	if got := a.header.Get("Content-Encoding"); got != "gzip" {
		t.Fatalf("the encoding is %q", got)
	}
	z, err := gzip.NewReader(strings.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	compareSeries(t, parsePage(t, string(plain)).stable(), want)

	a = e.metrics(http.Header{"Accept": {"application/openmetrics-text;version=1.0.0"}})
	if got := a.header.Get("Content-Type"); !strings.HasPrefix(got, "application/openmetrics-text; version=1.0.0") {
		t.Errorf("the type is %q", got)
	}
	text, ended := strings.CutSuffix(a.body, "\n# EOF\n")
	if !ended || strings.Contains(text, "# EOF") {
		t.Error("the page does not end with # EOF, once")
	}
	for series := range want {
		if name := family(series); strings.HasPrefix(name, "sockpressure_") && !strings.Contains(text, "\n"+name) {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	roots := selfSigned(t, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	config := filepath.Join(dir, "web.yml")
	// The hash is that of "right", at the lowest cost.
	err := os.WriteFile(config, []byte(`tls_server_config:
  cert_file: cert.pem
  key_file: key.pem
basic_auth_users:
  prometheus: $2a$04$soSj4sq3CLU8L6kTSUAKiuNrdP4gz4ZG/Vqc1mEM6Cp8NsHTSyF2a
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	e := start(t, nil, "--web.config.file="+config)
	url := "https" + strings.TrimPrefix(e.url, "http")
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}

	for _, path := range []string{"/metrics", "/"} {
		for _, c := range []struct {
			user, password string
			want           int
		}{
			{"prometheus", "right", http.StatusOK},
			{"prometheus", "wrong", http.StatusUnauthorized},
			{"prometheus", "", http.StatusUnauthorized},
			{"nobody", "right", http.StatusUnauthorized},
			{"", "", http.StatusUnauthorized},
		} {
			r := &http.Request{Header: http.Header{}}
			if c.user != "" {
				r.SetBasicAuth(c.user, c.password)
			}
			a, err := e.send(client, http.MethodGet, url+path, r.Header)
			if err != nil {
				t.Fatal(err)
			}
			if a.status != c.want || strings.Contains(a.body, "sockpressure_exporter") != (c.want == http.StatusOK) {
				t.Errorf("%s as %q with %q: %d, %.200q", path, c.user, c.password, a.status, a.body)
			}
		}
	}
	if a := e.metrics(nil); a.status != http.StatusBadRequest || !strings.Contains(a.body, "HTTPS") {
		t.Errorf("plain HTTP: %d %q", a.status, a.body)
	}
}

// selfSigned writes a certificate for 127.0.0.1 and its key, and returns a pool
// that trusts it.
func selfSigned(t *testing.T, certFile, keyFile string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	for _, f := range []struct {
		path string
		pem  pem.Block
	}{
		{certFile, pem.Block{Type: "CERTIFICATE", Bytes: cert}},
		{keyFile, pem.Block{Type: "PRIVATE KEY", Bytes: private}},
	} {
		var b bytes.Buffer
		if err := pem.Encode(&b, &f.pem); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.path, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		pool.AppendCertsFromPEM(b.Bytes())
	}
	return pool
}
