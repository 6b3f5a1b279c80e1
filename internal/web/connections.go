package web

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxConnections is how many connections may be open: each takes some 20 kB while
// it is idle, and a file descriptor.
const maxConnections = 256

// connections bounds how many connections are open at once. Where there are too
// many, the address that has the most loses the one that was idle for longest: who
// opens many loses their own, and not the one that Prometheus keeps.
type connections struct {
	limit int

	mu   sync.Mutex
	open map[net.Conn]*connection
}

type connection struct {
	from string // address, without the port
	// idle is since when no request is served, zero while one is.
	idle time.Time
}

// changed is for ConnState of http.Server.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		from, _, err := net.SplitHostPort(conn.RemoteAddr().String())
		if err != nil {
			from = "" // a Unix socket's
		}
		c.open[conn] = &connection{from, time.Now()}
		for len(c.open) > c.limit {
			extra := c.extra(conn)
			delete(c.open, extra)
			if secure, ok := extra.(*tls.Conn); ok {
				extra = secure.NetConn() // a goodbye takes as long as the client likes
			}
			_ = extra.Close()
		}
	case http.StateActive:
		if o := c.open[conn]; o != nil {
			o.idle = time.Time{}
		}
	case http.StateIdle:
		if o := c.open[conn]; o != nil {
			o.idle = time.Now()
		}
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	}
}

// extra chooses the connection to close, the one that has just come if requests
// are being served on all others.
func (c *connections) extra(last net.Conn) net.Conn {
	idle := map[string]int{}
	for _, o := range c.open {
		if !o.idle.IsZero() {
			idle[o.from]++
		}
	}
	chosen := last
	for conn, o := range c.open {
		if o.idle.IsZero() {
			continue
		}
		than := c.open[chosen]
		if n, most := idle[o.from], idle[than.from]; n > most || n == most && o.idle.Before(than.idle) {
			chosen = conn
		}
	}
	return chosen
}
