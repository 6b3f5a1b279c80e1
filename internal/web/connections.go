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
	// maxConnections is how many connections may be open: each takes a file
	// descriptor, and up to 300 kB before it is authenticated (see SECURITY.md).
	maxConnections = 128
	// maxHeader is the longest header of a request in bytes, to which net/http adds
	// 4 KiB. A header of many short lines takes thirty times its length in memory.
	maxHeader = 4 << 10
	// maxUnasked is how many bytes a connection may send without making a request:
	// a TLS handshake with the client's certificates, and a header. crypto/tls alone
	// would let it have 256 KiB of certificates.
	maxUnasked = 32 << 10
	// readBuffer and writeBuffer are the kernel's buffers of a connection. Its own
	// choice for one that reads no answers goes up to megabytes (net.ipv4.tcp_wmem),
	// which a cgroup is charged for.
	readBuffer  = 16 << 10
	writeBuffer = 64 << 10
)

// clientOf returns what counts as one client of a remote address: an IPv4 address,
// a /64 of IPv6, all of this machine's loopback addresses together, or, as the zero
// Prefix, everything that has no IP address.
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

// connections bounds how many connections are open at once. Where there are too
// many, a client with the most loses one: a client that opens many takes none from those
// with few.
type connections struct {
	limit int
	// closed is told of a connection that was closed because there were too many.
	closed func(client netip.Prefix)

	mu   sync.Mutex
	open map[net.Conn]*connection
	// changes counts the changes of state, to tell what came first.
	changes uint64
}

type connection struct {
	client netip.Prefix
	state  http.ConnState
	since  uint64 // the change that brought the state
}

// changed is for ConnState of http.Server.
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

// cut closes a connection, whatever is under way on it.
func (c *connections) cut(conn net.Conn) {
	delete(c.open, conn)
	// TLS would say goodbye, for which a client may take its time.
	_ = transport(conn).Close()
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

// surplus chooses the connection to close: of the clients that have the most, the
// one that is idle for longest. If none is idle it is the one that is in its state for
// longest, but where more than half of all connections have brought no request yet, it
// is one of those.
//
// So a client with many loses its own. In a crowd of clients with a connection each,
// Prometheus may lose one that is idle, but gets in again, and a scrape under way is
// cut off only if half as many others as there may be make requests while it lasts.
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
			continue // it has just come, and there is another one of such a client
		}
		if has[o.client] == most && (chosen == nil || o.before(c.open[chosen], spare)) {
			chosen = conn
		}
	}
	return chosen
}

// before reports whether a connection is to be closed rather than another one. spare
// has one that is at work be spared for one that has brought no request.
func (o *connection) before(other *connection, spare bool) bool {
	if idle := o.state == http.StateIdle; idle != (other.state == http.StateIdle) {
		return idle
	}
	if unused := o.state == http.StateNew; spare && unused != (other.state == http.StateNew) {
		return unused
	}
	return o.since < other.since
}

// listener bounds what its connections take.
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
		// One that is gone already says so when it is read.
		_ = b.SetReadBuffer(readBuffer)
		_ = b.SetWriteBuffer(writeBuffer)
	}
	a := &accepted{Conn: conn}
	a.left.Store(maxUnasked)
	return a, nil
}

// accepted is a connection that ends when it has sent too much without making a
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

// CloseWrite lets net/http send an error to a client that still writes.
func (a *accepted) CloseWrite() error {
	if c, ok := a.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}
