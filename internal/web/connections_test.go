package web

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// few is a server that accepts at most ten connections. A response to /held does not end
// before the test does.
type few struct {
	*testing.T
	all    connections
	server *httptest.Server
}

// elsewhere is a listener that maps client addresses of 127.0.0.0/8 to 192.0.0.0/8, each of
// which counts as a separate client.
type elsewhere struct{ net.Listener }

func (l elsewhere) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return moved{conn}, nil
}

type moved struct{ net.Conn }

func (m moved) RemoteAddr() net.Addr { return elsewhereAddr(m.Conn.RemoteAddr()) }

// elsewhereAddr maps an address of 127.0.0.0/8 to one of 192.0.0.0/8.
func elsewhereAddr(addr net.Addr) net.Addr {
	a := *addr.(*net.TCPAddr)
	a.IP = a.IP.To4()
	a.IP = net.IPv4(192, a.IP[1], a.IP[2], a.IP[3])
	return &a
}

func serveFew(t *testing.T, secure bool) *few {
	t.Helper()
	f := &few{T: t, all: connections{limit: 10, closed: func(netip.Prefix) {}, open: map[net.Conn]*connection{}}}
	held := make(chan struct{})
	f.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "something")
		switch r.URL.Path {
		case "/held":
			_ = http.NewResponseController(w).Flush()
			<-held
		case "/long":
			_, _ = w.Write(make([]byte, 8<<20))
		}
	}))
	f.server.Config.ConnState = f.all.changed
	f.server.Listener = listener{elsewhere{f.server.Listener}}
	if secure {
		f.server.StartTLS()
	} else {
		f.server.Start()
	}
	t.Cleanup(func() {
		close(held)
		// No connection may be left after the clients have closed theirs.
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

// dialTLS opens a TLS connection.
func (f *few) dialTLS(from string) net.Conn {
	f.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(f.server.Certificate())
	conn := tls.Client(f.dial(from), &tls.Config{RootCAs: roots, ServerName: "example.com", MinVersion: tls.VersionTLS12})
	if err := conn.HandshakeContext(f.Context()); err != nil {
		f.Fatal(err)
	}
	return conn
}

// ask makes a request and returns once the server has finished it.
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
	// The client may have the response before the server marks the connection as idle.
	f.until("the connection is not idle", func() bool { return f.state(conn) == http.StateIdle })
	return nil
}

// begin makes a request and returns once the server has started it.
func (f *few) begin(conn net.Conn, path string) {
	f.Helper()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	f.until("no request has come", func() bool { return f.state(conn) == http.StateActive })
}

// current returns the state of the connection on the server. The caller must not hold the
// mutex.
func (f *few) current(conn net.Conn) http.ConnState {
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	return f.state(conn)
}

// state returns the state of the connection on the server. The caller must hold the mutex.
func (f *few) state(conn net.Conn) http.ConnState {
	// Connections of two addresses may have the same port.
	remote := elsewhereAddr(conn.LocalAddr())
	for c, o := range f.all.open {
		if c.RemoteAddr().String() == remote.String() {
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

// TestConnections checks that a client with very many connections loses its own, and that
// another client keeps its only one.
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
		t.Error("the oldest connection is still open")
	}
	if err := f.ask(greedy[49], "/"); err != nil {
		t.Error("the newest connection was closed:", err)
	}

	// If all connections of the greedy client have a request in progress, it loses the one
	// that has been open longest.
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

// TestCrowd checks that a client is served even if very many addresses have a connection each,
// and that its request is not aborted because of them.
func TestCrowd(t *testing.T) {
	for name, begin := range map[string]func(f *few, conn net.Conn){
		"idle": func(f *few, conn net.Conn) {
			if err := f.ask(conn, "/"); err != nil {
				f.Fatal(err)
			}
		},
		"new":     func(*few, net.Conn) {},
		"at work": func(f *few, conn net.Conn) { f.begin(conn, "/held") },
	} {
		t.Run(name, func(t *testing.T) {
			f := serveFew(t, false)
			n := 0
			crowd := func(size int) {
				for range size {
					n++
					begin(f, f.dial(fmt.Sprintf("127.0.1.%d", n)))
				}
			}
			crowd(30)
			for range 5 {
				prometheus := f.dial("127.0.0.2")
				if err := f.ask(prometheus, "/"); err != nil {
					t.Fatal("Prometheus is not served:", err)
				}
				f.begin(prometheus, "/held")
				crowd(map[string]int{"idle": 30, "new": 30, "at work": 4}[name])
				if got := f.current(prometheus); got != http.StateActive {
					t.Errorf("the connection of the scrape is %v", got)
				}
				_ = prometheus.Close()
			}
		})
	}
}

// TestClientOf checks that addresses that may belong to the same machine count as one client.
func TestClientOf(t *testing.T) {
	for _, same := range [][]string{
		{"192.0.2.1:1", "192.0.2.1:65535", "[::ffff:192.0.2.1]:1"},
		{"192.0.2.2:1"},
		{"127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "[::ffff:127.0.0.9]:2"},
		{"[2001:db8::1]:1", "[2001:db8::ffff:ffff:ffff:ffff]:2"},
		{"[2001:db8:0:1::1]:1"},
		{"[fe80::1%eth0]:1", "[fe80::2%eth1]:1"},
		{"", "@", "host(2):1024", "/run/socket"},
	} {
		for _, address := range same {
			if got, want := clientOf(address), clientOf(same[0]); got != want {
				t.Errorf("%s is %v, %s is %v", address, got, same[0], want)
			}
		}
		if got := clientOf(same[0]); got == clientOf("192.0.2.3:1") {
			t.Errorf("%s is %v", same[0], got)
		}
	}
}

// FuzzConnections checks, for connections that open, close and change state in any order, that
// there are never too many, and that only a client with the most loses one.
func FuzzConnections(f *testing.F) {
	f.Add([]byte("\x00\x10\x20\x30\x01\x02\x03\x11\x00\x00\x00"))
	f.Add([]byte("02801720"))
	f.Fuzz(func(t *testing.T, events []byte) {
		const limit = 4
		open := map[net.Conn]http.ConnState{}
		var conns []net.Conn
		c := connections{limit: limit, closed: func(netip.Prefix) {}, open: map[net.Conn]*connection{}}
		for _, e := range events {
			who, what := int(e>>4), e&15
			if what < 8 {
				// One of eight clients connects.
				conn := &stub{client: what}
				before := len(c.open)
				has, unused := map[byte]int{conn.client: 1}, 1
				for o, state := range open {
					has[o.(*stub).client]++
					if state == http.StateNew {
						unused++
					}
				}
				conns, open[conn] = append(conns, conn), http.StateNew
				c.changed(conn, http.StateNew)
				for o, state := range open {
					if !o.(*stub).closed {
						continue
					}
					if before < limit {
						t.Fatal("a connection was closed although there was room")
					}
					for _, n := range has {
						if n > has[o.(*stub).client] {
							t.Fatal("a client with fewer connections than another lost one")
						}
					}
					for other, s := range open {
						if other == conn || has[other.(*stub).client] != has[o.(*stub).client] {
							continue
						}
						if state != http.StateIdle && s == http.StateIdle {
							t.Fatal("a request was aborted although a connection was idle")
						}
						if state == http.StateActive && s == http.StateNew && unused > limit/2 {
							t.Fatal("a request was aborted although most connections had none yet")
						}
					}
					delete(open, o)
				}
			} else if len(conns) > 0 {
				// net/http reports a new state of a connection, possibly one that was closed.
				conn := conns[who%len(conns)]
				state := []http.ConnState{http.StateActive, http.StateIdle, http.StateClosed, http.StateHijacked}[what&3]
				c.changed(conn, state)
				if _, ok := open[conn]; ok {
					open[conn] = state
				}
				if state == http.StateClosed || state == http.StateHijacked {
					delete(open, conn)
				}
			}
			if len(c.open) > limit || len(c.open) != len(open) {
				t.Fatalf("%d connections are open, %d of them counted, want %d at most", len(open), len(c.open), limit)
			}
			for o := range open {
				if o.(*stub).closed {
					t.Fatal("a closed connection is still counted")
				}
			}
		}
	})
}

// stub is a connection that records whether it was closed.
type stub struct {
	net.Conn
	client byte
	closed bool
}

func (s *stub) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, s.client), Port: 1} }

func (s *stub) Close() error {
	s.closed = true
	return nil
}

// TestFlood checks that a client whose requests or responses never end loses only its own
// connections.
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
		"answers unread": {false, func(f *few) net.Conn {
			conn := f.dial("127.0.0.1")
			_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
			f.begin(conn, "/long")
			return conn
		}},
		"half a handshake": {true, func(f *few) net.Conn {
			conn := f.dial("127.0.0.1")
			_, _ = conn.Write([]byte{22, 3, 1, 2, 0, 1, 0, 255, 255}) // of a ClientHello
			return conn
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := serveFew(t, c.secure)
			dial := f.dial
			if c.secure {
				dial = f.dialTLS
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
			// Other clients can connect as well, even from the same address.
			for _, from := range []string{"127.0.0.3", "127.0.0.2", "127.0.0.1"} {
				if err := f.ask(dial(from), "/"); err != nil {
					t.Errorf("%s is not served: %v", from, err)
				}
			}
			if err := f.ask(prometheus, "/"); err != nil {
				t.Error("Prometheus has lost its connection in the end:", err)
			}
			f.until("the first connection was not closed, or the last one was", func() bool {
				return f.state(flood[0]) == http.StateClosed && f.state(flood[29]) != http.StateClosed
			})
		})
	}
}

// TestHTTP1 checks that HTTP/2 is never negotiated.
func TestHTTP1(t *testing.T) {
	f := few{T: t, server: httptest.NewUnstartedServer(nil)}
	f.server.Config = Server(recordedSet(t, nil), Config{TelemetryPath: "/metrics", MaxRequests: 1, Logger: slog.New(slog.DiscardHandler)})
	f.server.StartTLS()
	t.Cleanup(f.server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(f.server.Certificate())
	for _, c := range []struct {
		proposed []string
		want     string
	}{
		{nil, ""}, {[]string{"http/1.1"}, "http/1.1"}, {[]string{"h2", "http/1.1"}, "http/1.1"},
	} {
		conn := tls.Client(f.dial("127.0.0.1"), &tls.Config{RootCAs: roots, ServerName: "example.com", NextProtos: c.proposed, MinVersion: tls.VersionTLS12})
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != c.want {
			t.Errorf("proposed %q: %q was chosen", c.proposed, got)
		}
	}
	conn := f.dialTLS("127.0.0.1")
	_, _ = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	if answer, _ := io.ReadAll(conn); !strings.HasPrefix(string(answer), "HTTP/1.") {
		t.Errorf("the beginning of HTTP/2 is answered with %q", answer)
	}
}

// TestUnasked checks that a connection is closed if too much data precedes its request, but
// not if as much is sent in many requests.
func TestUnasked(t *testing.T) {
	f := serveFew(t, true)
	conn := f.dial("127.0.0.1")
	// A certificate of 256 KiB would be sent like this, in records of 16 KiB.
	record := append([]byte{22, 3, 1, 64, 0, 1, 0, 255, 255}, make([]byte, 16<<10-4)...)
	for range 4 {
		_, _ = conn.Write(record)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is still open")
	}
	secure := f.dialTLS("127.0.0.2")
	for range 100 {
		if err := f.ask(secure, "/?"+strings.Repeat("x", 1000)); err != nil {
			t.Fatal(err)
		}
	}
}
