package ctnetlink_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/ctnetlink"
)

// nested returns an attribute that contains attributes.
func nested(typ uint16, of ...netlink.Attribute) netlink.Attribute {
	return netlink.Attribute{Type: typ | unix.NLA_F_NESTED, Data: nltest.MustMarshalAttributes(of)}
}

// tracked returns a message about a connection, in reply to a request.
func tracked(request netlink.Message, source, destination string, protocol uint8, info ...netlink.Attribute) netlink.Message {
	from, to := netip.MustParseAddrPort(source), netip.MustParseAddrPort(destination)
	first := uint16(1) // of IPv4
	if from.Addr().Is6() {
		first = 3
	}
	port := func(p uint16) []byte { return []byte{byte(p >> 8), byte(p)} }
	m := stats(request, 0, append([]netlink.Attribute{
		nested(1,
			nested(1, netlink.Attribute{Type: first, Data: from.Addr().AsSlice()}, netlink.Attribute{Type: first + 1, Data: to.Addr().AsSlice()}),
			nested(2, netlink.Attribute{Type: 1, Data: []byte{protocol}}, netlink.Attribute{Type: 2, Data: port(from.Port())}, netlink.Attribute{Type: 3, Data: port(to.Port())}),
		),
		nested(2, nested(1, netlink.Attribute{Type: 1, Data: []byte{9, 9, 9, 9}})), // the reply direction is ignored
		counter(7, 120), // the remaining time
	}, info...)...)
	m.Header.Type = 1 << 8
	return m
}

// TestWalk checks that connections are returned with the addresses of their original
// direction, and that the request is for all connections.
func TestWalk(t *testing.T) {
	k := &kernel{}
	k.answer = func(request netlink.Message) ([]netlink.Message, error) {
		return []netlink.Message{
			tracked(request, "192.0.2.1:40000", "198.51.100.2:443", 6, nested(4, nested(1, netlink.Attribute{Type: 1, Data: []byte{3}}))),
			tracked(request, "[2001:db8::1]:5353", "[2001:db8::2]:53", 17),
			end(request, 0),
		}, nil
	}
	var got []ctnetlink.Entry
	c := ctnetlink.NewOnce(k.dial)
	if err := c.Walk(t.Context(), func(e *ctnetlink.Entry) { got = append(got, *e) }); err != nil {
		t.Fatal(err)
	}
	want := []ctnetlink.Entry{
		{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.2"), 40000, 443, 6, 3},
		{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), 5353, 53, 17, 0},
	}
	if !slices.Equal(got, want) || got[0].State.String() != "established" {
		t.Errorf("%+v, want %+v", got, want)
	}
	r := k.requests[0]
	if r.Header.Type != 0x101 || r.Header.Flags != netlink.Request|netlink.Dump || !slices.Equal(r.Data, make([]byte, 4)) {
		t.Errorf("the request is %+v", r)
	}
	if !k.conns[0].closed {
		t.Error("the socket is still open")
	}
}

// TestWalkErrors checks that a refusal by the kernel, a truncated message and a canceled
// context are errors, and that the next walk is complete.
func TestWalkErrors(t *testing.T) {
	k := &kernel{}
	c := ctnetlink.New(k.dial)
	defer c.Close()
	walk := func(ctx context.Context) (n int, err error) {
		err = c.Walk(ctx, func(*ctnetlink.Entry) { n++ })
		return n, err
	}
	refuse := func(errno unix.Errno) func(netlink.Message) ([]netlink.Message, error) {
		return func(request netlink.Message) ([]netlink.Message, error) {
			return nltest.Error(int(errno), []netlink.Message{{Header: netlink.Header{Sequence: request.Header.Sequence}}})
		}
	}
	k.answer = refuse(unix.EPERM)
	if _, err := walk(t.Context()); !errors.Is(err, ctnetlink.ErrNotPermitted) {
		t.Error(err)
	}
	k.answer = refuse(unix.EOPNOTSUPP)
	if _, err := walk(t.Context()); !errors.Is(err, ctnetlink.ErrNotSupported) {
		t.Error(err)
	}
	k.answer = func(request netlink.Message) ([]netlink.Message, error) {
		m := tracked(request, "192.0.2.1:40000", "198.51.100.2:443", 6)
		m.Data[4] = 200 // an attribute that is longer than the message
		return []netlink.Message{m, end(request, 0)}, nil
	}
	if n, err := walk(t.Context()); err == nil || n != 0 {
		t.Errorf("%v after %d", err, n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	k.answer = func(request netlink.Message) ([]netlink.Message, error) {
		cancel()
		return []netlink.Message{tracked(request, "192.0.2.1:40000", "198.51.100.2:443", 6)}, nil
	}
	if n, err := walk(ctx); !errors.Is(err, context.Canceled) || n != 0 {
		t.Errorf("%v after %d", err, n)
	}
	k.answer = func(request netlink.Message) ([]netlink.Message, error) {
		return []netlink.Message{tracked(request, "192.0.2.1:40000", "198.51.100.2:443", 6), end(request, 0)}, nil
	}
	if n, err := walk(t.Context()); err != nil || n != 1 {
		t.Errorf("%v after %d", err, n)
	}
}
