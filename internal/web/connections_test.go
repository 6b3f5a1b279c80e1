package web

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// few is a server that takes ten connections. It answers, at /held not to the end
// before the test is over.
type few struct {
	*testing.T
	all    connections
	server *httptest.Server
}

func serveFew(t *testing.T, secure bool) *few {
	t.Helper()
	f := &few{T: t, all: connections{limit: 10, open: map[net.Conn]*connection{}}}
	held := make(chan struct{})
	f.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "something")
		if r.URL.Path == "/held" {
			_ = http.NewResponseController(w).Flush()
			<-held
		}
	}))
	f.server.Config.ConnState = f.all.changed
	f.server.EnableHTTP2 = true
	if secure {
		f.server.StartTLS()
	} else {
		f.server.Start()
	}
	t.Cleanup(func() {
		close(held)
		// None is left when all are gone; the clients have closed theirs.
		f.until("connections are left", func() bool { return len(f.all.open) == 0 })
		f.server.Close()
	})
	return f
}

func (f *few) dial(from string) net.Conn {
	f.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.DialContext(f.Context(), "tcp", f.server.Listener.Addr().String())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	return conn
}

// dialTLS has a connection over TLS with this protocol on it.
func (f *few) dialTLS(from, protocol string) net.Conn {
	f.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(f.server.Certificate())
	conn := tls.Client(f.dial(from), &tls.Config{RootCAs: roots, ServerName: "example.com", NextProtos: []string{protocol}})
	if err := conn.HandshakeContext(f.Context()); err != nil {
		f.Fatal(err)
	}
	return conn
}

// ask makes a request, and returns once the server knows of its end too.
func (f *few) ask(conn net.Conn, path string) error {
	f.Helper()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	if path == "/held" {
		return nil
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.ReadAll(resp.Body); err != nil {
		return err
	}
	// The client has its answer a moment before the connection is idle.
	f.until("the connection is not idle", func() bool { return f.state(conn) == http.StateIdle })
	return nil
}

// state is what the server has the connection for.
func (f *few) state(conn net.Conn) http.ConnState {
	for c, o := range f.all.open {
		if c.RemoteAddr().String() == conn.LocalAddr().String() {
			return o.state
		}
	}
	return http.StateClosed
}

func (f *few) until(what string, done func() bool) {
	f.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		f.all.mu.Lock()
		ok, n := done(), len(f.all.open)
		f.all.mu.Unlock()
		if n > 10 {
			f.Fatalf("%d connections are open, want 10 at most", n)
		}
		if ok {
			return
		}
		if time.Now().After(end) {
			f.Fatal(what)
		}
	}
}

// TestConnections expects that a client with very many connections loses its own,
// and that another one keeps the one that it has had for longest.
func TestConnections(t *testing.T) {
	f := serveFew(t, false)
	prometheus := f.dial("127.0.0.2")
	if err := f.ask(prometheus, "/"); err != nil {
		t.Fatal(err)
	}
	var greedy []net.Conn
	for range 50 {
		conn := f.dial("127.0.0.1")
		if err := f.ask(conn, "/"); err != nil {
			t.Fatal("a new connection is not served:", err)
		}
		greedy = append(greedy, conn)
	}
	if err := f.ask(greedy[0], "/"); err == nil {
		t.Error("the oldest connection is still there")
	}
	if err := f.ask(greedy[49], "/"); err != nil {
		t.Error("the newest connection is gone:", err)
	}

	// Where all of the greedy one's are at work, it loses the one that is for longest.
	held := greedy[41:]
	for _, conn := range held {
		if err := f.ask(conn, "/held"); err != nil {
			t.Fatal(err)
		}
	}
	for _, from := range []string{"127.0.0.3", "127.0.0.1"} {
		if err := f.ask(f.dial(from), "/"); err != nil {
			t.Errorf("%s is not served: %v", from, err)
		}
	}
	for i, conn := range held {
		want := http.StateActive
		if i < 2 {
			want = http.StateClosed
		}
		f.until(fmt.Sprintf("request %d of those under way is not %v", i, want), func() bool { return f.state(conn) == want })
	}
	if err := f.ask(prometheus, "/"); err != nil {
		t.Error("the other client has lost its connection:", err)
	}
}

// TestCrowd expects that addresses with a connection each leave the others theirs.
func TestCrowd(t *testing.T) {
	f := serveFew(t, false)
	prometheus := f.dial("127.0.0.2")
	if err := f.ask(prometheus, "/"); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		conn := f.dial(fmt.Sprintf("127.0.1.%d", i+1))
		if err := f.ask(conn, "/"); (err == nil) != (i < 9) {
			t.Errorf("connection %d of others: %v", i+1, err)
		}
	}
	if err := f.ask(prometheus, "/"); err != nil {
		t.Error("Prometheus has lost its connection:", err)
	}
}

// TestFlood expects that a client whose requests or answers do not end closes only
// its own connections.
func TestFlood(t *testing.T) {
	for name, c := range map[string]struct {
		secure bool
		begin  func(f *few) net.Conn
	}{
		"nothing": {false, func(f *few) net.Conn { return f.dial("127.0.0.1") }},
		"half a header": {false, func(f *few) net.Conn {
			conn := f.dial("127.0.0.1")
			fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHo")
			return conn
		}},
		"no body": {false, func(f *few) net.Conn {
			conn := f.dial("127.0.0.1")
			fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
			f.until("no request has come", func() bool { return f.state(conn) == http.StateActive })
			return conn
		}},
		"answers unread": {true, func(f *few) net.Conn {
			conn := f.dialTLS("127.0.0.1", "h2")
			if answered, _ := leaveUnread(f.T, conn, 1); answered != 1 {
				f.Fatal("no request has come")
			}
			return conn
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := serveFew(t, c.secure)
			dial := f.dial
			if c.secure {
				dial = func(from string) net.Conn { return f.dialTLS(from, "http/1.1") }
			}
			prometheus := dial("127.0.0.2")
			if err := f.ask(prometheus, "/"); err != nil {
				t.Fatal(err)
			}
			var flood []net.Conn
			for range 30 {
				flood = append(flood, c.begin(f))
			}
			if err := f.ask(prometheus, "/"); err != nil {
				t.Error("Prometheus has lost its connection:", err)
			}
			// Others come in as well, and whoever shares the flood's address.
			for _, from := range []string{"127.0.0.3", "127.0.0.2", "127.0.0.1"} {
				if err := f.ask(dial(from), "/"); err != nil {
					t.Errorf("%s is not served: %v", from, err)
				}
			}
			if err := f.ask(prometheus, "/"); err != nil {
				t.Error("Prometheus has lost its connection at last:", err)
			}
			f.until("it was no flood", func() bool {
				return f.state(flood[0]) == http.StateClosed && f.state(flood[29]) != http.StateClosed
			})
		})
	}
}

// TestStreams expects few requests at once to be served on a connection by HTTP/2.
func TestStreams(t *testing.T) {
	c := Config{TelemetryPath: "/metrics", MaxRequests: 1000, Logger: slog.New(slog.DiscardHandler)}
	f := few{T: t, server: httptest.NewUnstartedServer(nil)}
	f.server.Config = Server(recordedSet(t, nil), c)
	f.server.EnableHTTP2 = true
	f.server.StartTLS()
	t.Cleanup(f.server.Close)
	if answered, refused := leaveUnread(t, f.dialTLS("127.0.0.1", "h2"), 250); answered != maxStreams || refused != 250-maxStreams {
		t.Errorf("%d requests are answered and %d refused, want %d answered", answered, refused, maxStreams)
	}
}

// leaveUnread makes requests by HTTP/2 with no room for the bodies of the answers,
// and waits until each is answered or refused.
func leaveUnread(t *testing.T, conn net.Conn, requests int) (answered, refused int) {
	t.Helper()
	const headers, reset, settings = 1, 3, 4
	frame := func(b []byte, kind, flags byte, stream int, payload string) []byte {
		b = append(b, 0, 0, byte(len(payload)), kind, flags)
		return append(binary.BigEndian.AppendUint32(b, uint32(stream)), payload...)
	}
	b := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	b = frame(b, settings, 0, 0, "\x00\x04\x00\x00\x00\x00") // INITIAL_WINDOW_SIZE 0
	for i := range requests {
		// GET, /, https from the static table, and x as the authority; that is all.
		b = frame(b, headers, 5, 2*i+1, "\x82\x84\x87\x01\x01x")
	}
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	for head := make([]byte, 9); answered+refused < requests; {
		if _, err := io.ReadFull(conn, head); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, conn, int64(head[1])<<8+int64(head[2])); err != nil {
			t.Fatal(err)
		}
		switch head[3] {
		case headers:
			answered++
		case reset:
			refused++
		}
	}
	return answered, refused
}
