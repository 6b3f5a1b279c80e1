package web

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestConnections expects that a client with very many connections loses its own,
// and that another one keeps the one that it has had for longest.
func TestConnections(t *testing.T) {
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	held := make(chan struct{})
	all := connections{limit: 10, open: map[net.Conn]*connection{}}
	server := &http.Server{ConnState: all.changed, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-held
		}
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })

	dial := func(from string) net.Conn {
		t.Helper()
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		conn, err := dialer.DialContext(t.Context(), "tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	ask := func(conn net.Conn, path string) error {
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil) //nolint:bodyclose // it may not end; the connection is closed
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %s", resp.Status)
		}
		return err
	}

	// The client has its answer a moment before the connection is idle.
	until := func(what string, done func() bool) {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Microsecond) {
			all.mu.Lock()
			ok := done()
			all.mu.Unlock()
			if ok {
				return
			}
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	idle := func() bool {
		for _, o := range all.open {
			if o.idle.IsZero() {
				return false
			}
		}
		return true
	}

	prometheus := dial("127.0.0.2")
	if err := ask(prometheus, "/"); err != nil {
		t.Fatal(err)
	}
	var greedy []net.Conn
	for range 50 {
		conn := dial("127.0.0.1")
		if err := ask(conn, "/"); err != nil {
			t.Fatal("a new connection is not served:", err)
		}
		until("a connection is not idle again", idle)
		greedy = append(greedy, conn)
	}
	all.mu.Lock()
	if n := len(all.open); n > 10 {
		t.Errorf("%d connections are open, want 10 at most", n)
	}
	all.mu.Unlock()
	if err := ask(prometheus, "/"); err != nil {
		t.Error("the other client has lost its connection:", err)
	}
	if err := ask(greedy[0], "/"); err == nil {
		t.Error("the oldest connection is still there")
	}
	if err := ask(greedy[49], "/"); err != nil {
		t.Error("the newest connection is gone:", err)
	}

	// Where all are at work, it is the new one that has to go.
	for _, conn := range append(greedy[41:], prometheus) {
		if err := ask(conn, "/held"); err != nil {
			t.Fatal(err)
		}
	}
	if err := ask(dial("127.0.0.3"), "/"); err == nil {
		t.Error("a connection beyond the limit is served while none is idle")
	}
	close(held)

	// None is left when all are gone.
	for _, conn := range append(greedy, prometheus) {
		_ = conn.Close()
	}
	until("connections are left", func() bool { return len(all.open) == 0 })
}
