package web

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// maxConnections is how many connections may be open: each takes some 20 kB while
// it is idle, and a file descriptor.
const maxConnections = 256

// maxStreams is how many requests may be under way on one connection by HTTP/2:
// each takes some 150 kB while its answer is not read. Prometheus makes one at a time.
const maxStreams = 1

// connections bounds how many connections are open at once. Where there are too
// many, the address that has the most loses one of its own: who opens many takes
// none from others, whatever state they are in, and not the one that Prometheus
// keeps.
type connections struct {
	limit int

	mu   sync.Mutex
	open map[net.Conn]*connection
	// changes counts the changes of state, to tell what came first.
	changes uint64
}

type connection struct {
	from  string // address, without the port
	state http.ConnState
	since uint64 // the change that brought the state
}

// changed is for ConnState of http.Server.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	switch state {
	case http.StateNew:
		from, _, err := net.SplitHostPort(conn.RemoteAddr().String())
		if err != nil {
			from = "" // a Unix socket's
		}
		c.open[conn] = &connection{from, state, c.changes}
		for len(c.open) > c.limit {
			c.cut(c.extra(from))
		}
	case http.StateActive, http.StateIdle:
		if o := c.open[conn]; o != nil {
			o.state, o.since = state, c.changes
		}
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	}
}

// cut closes a connection, whatever is under way on it.
func (c *connections) cut(conn net.Conn) {
	delete(c.open, conn)
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn() // a goodbye takes as long as the client likes
	}
	_ = conn.Close()
}

// cutUnused closes the connections that have not brought a whole request yet, such
// as those that a browser opens in advance: a server that stops would wait for them.
func (c *connections) cutUnused() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn, o := range c.open {
		if o.state == http.StateNew {
			c.cut(conn)
		}
	}
}

// extra chooses the connection to close after one came from an address. It is one
// of the address that has the most, of the new one's if others have as many: so a
// crowd of addresses with one connection each takes none from Prometheus either.
//
// Of these it is the one that is idle for longest, and if none is, the one that is
// in its state for longest. That is for Prometheus and a flood behind one address:
// it can lose its connection while it is idle, and then asks again on a new one by
// itself, while a scrape that is cut off is lost. The new one goes after all that
// wait already. Where no file descriptor is left, no new one comes, and none is
// closed for it.
func (c *connections) extra(from string) net.Conn {
	has := map[string]int{}
	for _, o := range c.open {
		has[o.from]++
	}
	for address, n := range has {
		if n > has[from] {
			from = address
		}
	}
	var chosen net.Conn
	for conn, o := range c.open {
		if o.from == from && (chosen == nil || o.before(c.open[chosen])) {
			chosen = conn
		}
	}
	return chosen
}

func (o *connection) before(other *connection) bool {
	if idle := o.state == http.StateIdle; idle != (other.state == http.StateIdle) {
		return idle
	}
	return o.since < other.since
}
