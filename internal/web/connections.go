package web

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
)

const (
	// maxConnections is the maximum number of open connections: each takes a file
	// descriptor, and up to 300 kB before it is authenticated (see SECURITY.md).
	maxConnections = 128
	// maxHeader is the maximum size of a request's header in bytes, to which net/http
	// adds 4 KiB. A header of many short lines takes thirty times its length in memory.
	maxHeader = 4 << 10
	// maxUnasked is how many bytes a connection may send without making a request: a TLS
	// handshake with the client's certificates, and a header. crypto/tls alone would
	// accept 256 KiB of certificates.
	maxUnasked = 32 << 10
	// readBuffer and writeBuffer are the sizes of the kernel's buffers for a connection.
	// For a client that reads no answers, the kernel's own choice grows to megabytes
	// (net.ipv4.tcp_wmem), which are charged to a cgroup.
	readBuffer  = 16 << 10
	writeBuffer = 64 << 10
)

// clientOf returns what counts as one client for a remote address: an IPv4 address, a /64
// of IPv6, all loopback addresses of this machine together, or, as the zero Prefix,
// everything that has no IP address.
func clientOf(remote string) netip.Prefix {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Prefix{}
	}
	ip, bits := ap.Addr().Unmap().WithZone(""), 64
	if ip.IsLoopback() {
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if ip.Is4() {
		bits = 32
	}
	return netip.PrefixFrom(ip, bits).Masked()
}

// connections bounds how many connections are open at once. If there are too many, it
// closes one of a client that has the most, so a client that opens many takes none from
// clients with few.
type connections struct {
	limit int
	// closed is called with the client of a connection that was closed because there were
	// too many.
	closed func(client netip.Prefix)

	mu   sync.Mutex
	open map[net.Conn]*connection
	// changes counts the changes of state, to order them.
	changes uint64
}

type connection struct {
	client netip.Prefix
	state  http.ConnState
	since  uint64 // number of the change to this state
}

// changed is the ConnState callback of http.Server.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	switch state {
	case http.StateNew:
		c.open[conn] = &connection{clientOf(conn.RemoteAddr().String()), state, c.changes}
		for len(c.open) > c.limit {
			surplus := c.surplus()
			c.closed(c.open[surplus].client)
			c.cut(surplus)
		}
	case http.StateActive, http.StateIdle:
		if a, ok := transport(conn).(*accepted); ok {
			a.left.Store(maxUnasked)
		}
		if o := c.open[conn]; o != nil {
			o.state, o.since = state, c.changes
		}
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	}
}

// transport returns the connection below TLS.
func transport(conn net.Conn) net.Conn {
	if secure, ok := conn.(*tls.Conn); ok {
		return secure.NetConn()
	}
	return conn
}

// cut closes a connection, even if it is in use.
func (c *connections) cut(conn net.Conn) {
	delete(c.open, conn)
	// TLS would send a close notification, which a client may delay.
	_ = transport(conn).Close()
}

// cutUnused closes the connections on which no complete request has arrived yet, such as
// those that a browser opens in advance: a server that shuts down would wait for them.
func (c *connections) cutUnused() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn, o := range c.open {
		if o.state == http.StateNew {
			c.cut(conn)
		}
	}
}

// surplus chooses the connection to close: of the clients that have the most, the one
// that has been idle for longest. If none is idle, it is the one that has been in its
// state for longest; but if more than half of all connections have not made a request
// yet, it is one of those.
//
// So a client with many connections loses its own. In a crowd of clients with one
// connection each, Prometheus may lose an idle one, but can connect again, and a scrape
// in progress is cut only if half as many others as there may be make requests while it
// lasts.
func (c *connections) surplus() net.Conn {
	has, most, unused := map[netip.Prefix]int{}, 0, 0
	for _, o := range c.open {
		has[o.client]++
		most = max(most, has[o.client])
		if o.state == http.StateNew {
			unused++
		}
	}
	spare := unused > c.limit/2
	var chosen net.Conn
	for conn, o := range c.open {
		if o.since == c.changes {
			continue // it is new, and such a client has another one
		}
		if has[o.client] == most && (chosen == nil || o.before(c.open[chosen], spare)) {
			chosen = conn
		}
	}
	return chosen
}

// before reports whether o is to be closed rather than other. If spare is set, active
// connections are spared in favour of those without a request.
func (o *connection) before(other *connection, spare bool) bool {
	if idle := o.state == http.StateIdle; idle != (other.state == http.StateIdle) {
		return idle
	}
	if unused := o.state == http.StateNew; spare && unused != (other.state == http.StateNew) {
		return unused
	}
	return o.since < other.since
}

// listener bounds the resources of its connections.
type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if b, ok := conn.(interface {
		SetReadBuffer(bytes int) error
		SetWriteBuffer(bytes int) error
	}); ok {
		// A connection that is already closed reports that when it is read.
		_ = b.SetReadBuffer(readBuffer)
		_ = b.SetWriteBuffer(writeBuffer)
	}
	a := &accepted{Conn: conn}
	a.left.Store(maxUnasked)
	return a, nil
}

// accepted is a connection that is closed if it has sent too much without making a
// request.
type accepted struct {
	net.Conn
	left atomic.Int64 // bytes; renewed with each request
}

var errUnasked = errors.New("too much data was sent without a request")

func (a *accepted) Read(b []byte) (int, error) {
	left := a.left.Load()
	if left <= 0 {
		return 0, errUnasked
	}
	n, err := a.Conn.Read(b[:min(int64(len(b)), left)])
	a.left.Add(int64(-n))
	return n, err
}

// CloseWrite lets net/http send an error to a client that is still sending.
func (a *accepted) CloseWrite() error {
	if c, ok := a.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}
