package sockdiag

import (
	"net"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// BenchmarkReceive compares ways to receive a dump of 2,000 listeners: that of this package,
// and those of the netlink package. All of them decode every socket.
func BenchmarkReceive(b *testing.B) {
	for range 2000 {
		l, err := net.Listen("tcp4", "127.99.3.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
	}
	r := Request{States: MaskOf(Listen)}

	b.Run("ours", func(b *testing.B) {
		c := New(Dial)
		defer c.Close()
		v := new(counter)
		b.ReportAllocs()
		for b.Loop() {
			if err := c.Walk(b.Context(), r, v); err != nil {
				b.Fatal(err)
			}
		}
		if v.states[Listen] < 2000 {
			b.Fatalf("%d listeners", v.states[Listen])
		}
	})

	for name, config := range map[string]*netlink.Config{
		"Execute":                       nil,
		"ReceiveIter":                   nil,
		"ReceiveIter-MessageBufferSize": {MessageBufferSize: bufferSize},
	} {
		b.Run(name, func(b *testing.B) {
			conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, config)
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			b.ReportAllocs()
			var s Socket
			for b.Loop() {
				n := 0
				if name == "Execute" {
					messages, err := conn.Execute(r.tcpDiag())
					if err != nil {
						b.Fatal(err)
					}
					for _, m := range messages {
						if _, err := decode(m.Data, &s); err != nil {
							b.Fatal(err)
						}
						n++
					}
				} else {
					if _, err := conn.Send(r.tcpDiag()); err != nil {
						b.Fatal(err)
					}
					for m, err := range conn.ReceiveIter() {
						if err != nil {
							b.Fatal(err)
						}
						if _, err := decode(m.Data, &s); err != nil {
							b.Fatal(err)
						}
						n++
					}
				}
				if n < 2000 {
					b.Fatalf("%d listeners", n)
				}
			}
		})
	}
}
