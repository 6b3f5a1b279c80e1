package ctnetlink

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// typeNew and typeGet are NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW and _GET (Linux
// 2.6.14). Entries are sent as messages of type new.
const (
	typeNew netlink.HeaderType = 1 << 8
	typeGet netlink.HeaderType = 1<<8 | 1
)

// Attributes of an entry, and nested ones.
const (
	attrTupleOrig = 1 // CTA_TUPLE_ORIG
	attrProtoInfo = 4 // CTA_PROTOINFO

	attrTupleIP    = 1 // CTA_TUPLE_IP
	attrTupleProto = 2 // CTA_TUPLE_PROTO

	attrIPv4Source      = 1 // CTA_IP_V4_SRC
	attrIPv4Destination = 2 // CTA_IP_V4_DST
	attrIPv6Source      = 3 // CTA_IP_V6_SRC
	attrIPv6Destination = 4 // CTA_IP_V6_DST

	attrProtoNumber     = 1 // CTA_PROTO_NUM
	attrSourcePort      = 2 // CTA_PROTO_SRC_PORT
	attrDestinationPort = 3 // CTA_PROTO_DST_PORT

	attrInfoTCP  = 1 // CTA_PROTOINFO_TCP
	attrTCPState = 1 // CTA_PROTOINFO_TCP_STATE
)

// Entry is a tracked connection in its original direction: the destination is the one
// before address translation.
type Entry struct {
	Source, Destination         netip.Addr
	SourcePort, DestinationPort uint16 // 0 if the protocol has none
	Protocol                    uint8
	// State is the state of a TCP connection, 0 for other protocols.
	State TCPState
}

// TCPState is enum tcp_conntrack (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
type TCPState uint8

// String returns the state's name in lower case, as in /proc/net/nf_conntrack.
func (s TCPState) String() string {
	names := [...]string{
		"none", "syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close", "syn_sent2",
	}
	if int(s) >= len(names) {
		return "unknown"
	}
	return names[s]
}

// Walk calls visit with each tracked connection of the network namespace, in the kernel's
// order. Connections that begin or end during the walk may be missing. visit must not
// keep the entry. Walk returns ErrNotSupported if the kernel does not support it,
// ErrNotPermitted if the kernel refuses it, and the context's error when the context
// ends.
func (c *Client) Walk(ctx context.Context, visit func(*Entry)) (err error) {
	if c.once {
		defer c.Close()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.conn == nil {
		if c.conn, err = c.dial(); err != nil {
			c.conn = nil
			return typed(err)
		}
	}
	// The rest of a reply that was not read to its end would precede the next one.
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	conn := c.conn
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	request, err := c.conn.Send(netlink.Message{
		Header: netlink.Header{Type: typeGet, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, sizeofNfgenmsg), // of any family
	})
	if err != nil {
		return typed(err)
	}
	var entry Entry
	for m, err := range c.conn.ReceiveIter() {
		if ctx.Err() != nil {
			c.Close() // the rest would be read to its end
			return ctx.Err()
		}
		if err == nil {
			err = netlink.Validate(request, []netlink.Message{m})
		}
		if err != nil {
			return typed(err)
		}
		if m.Header.Type != typeNew {
			continue
		}
		if err := entry.parse(m.Data); err != nil {
			c.Close()
			return fmt.Errorf("ctnetlink: %w", err)
		}
		visit(&entry)
	}
	return ctx.Err()
}

// parse reads an entry: a struct nfgenmsg and attributes.
func (e *Entry) parse(b []byte) error {
	*e = Entry{}
	if len(b) < sizeofNfgenmsg {
		return errors.New("message is truncated")
	}
	return attributes(b[sizeofNfgenmsg:], func(typ uint16, b []byte) error {
		switch typ {
		case attrTupleOrig:
			return attributes(b, e.parseTuple)
		case attrProtoInfo:
			return attributes(b, func(typ uint16, b []byte) error {
				if typ != attrInfoTCP {
					return nil
				}
				return attributes(b, func(typ uint16, b []byte) error {
					if typ == attrTCPState && len(b) > 0 {
						e.State = TCPState(b[0])
					}
					return nil
				})
			})
		}
		return nil
	})
}

// parseTuple reads CTA_TUPLE_IP and CTA_TUPLE_PROTO.
func (e *Entry) parseTuple(typ uint16, b []byte) error {
	switch typ {
	case attrTupleIP:
		return attributes(b, func(typ uint16, b []byte) error {
			addr, _ := netip.AddrFromSlice(b)
			switch typ {
			case attrIPv4Source, attrIPv6Source:
				e.Source = addr
			case attrIPv4Destination, attrIPv6Destination:
				e.Destination = addr
			}
			return nil
		})
	case attrTupleProto:
		return attributes(b, func(typ uint16, b []byte) error {
			switch {
			case typ == attrProtoNumber && len(b) > 0:
				e.Protocol = b[0]
			case typ == attrSourcePort && len(b) > 1:
				e.SourcePort = binary.BigEndian.Uint16(b)
			case typ == attrDestinationPort && len(b) > 1:
				e.DestinationPort = binary.BigEndian.Uint16(b)
			}
			return nil
		})
	}
	return nil
}

// attributes calls visit with each attribute. It does not use the decoder of package
// netlink, which allocates: there are ten attributes for each of a million entries.
func attributes(b []byte, visit func(typ uint16, value []byte) error) error {
	const header = unix.SizeofNlAttr
	for len(b) >= header {
		size := int(binary.NativeEndian.Uint16(b))
		if size < header || size > len(b) {
			return errors.New("attribute is truncated")
		}
		const flags = unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER
		if err := visit(binary.NativeEndian.Uint16(b[2:])&^uint16(flags), b[header:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}
