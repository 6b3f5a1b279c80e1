package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func neighboursIPv4(*guest) (*load, error) {
	return neighbours("ipv4", "10.9.0.1/16", func(n int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, 9, byte(1 + n>>8), byte(n)})
	})
}

func neighboursIPv6(*guest) (*load, error) {
	return neighbours("ipv6", "fd09::1/64", func(n int) netip.Addr {
		a := netip.MustParseAddr("fd09::1:0").As16()
		binary.BigEndian.PutUint16(a[14:], uint16(n))
		return netip.AddrFrom16(a)
	})
}

// neighbours sends to more and more hosts of a network. It confirms each of them in
// advance: a confirmed entry is not evicted for another one, and needs no IPv6 multicast
// group, which would be an entry too.
func neighbours(family, own string, host func(n int) netip.Addr) (*load, error) {
	const limit = 240
	prefix := "net/" + family + "/neigh/default/"
	if err := setAll(
		prefix+"gc_thresh1", strconv.Itoa(limit), prefix+"gc_thresh2", strconv.Itoa(limit), prefix+"gc_thresh3", strconv.Itoa(limit),
		prefix+"base_reachable_time_ms", "3600000",
	); err != nil {
		return nil, err
	}
	name, other := family+"-0", family+"-1"
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: other}
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("a pair of interfaces: %w", err)
	}
	for _, end := range []string{name, other} {
		if err := linkUp(end, 0); err != nil {
			return nil, err
		}
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	address, err := netlink.ParseAddr(own)
	if err != nil {
		return nil, err
	}
	address.Flags = unix.IFA_F_NODAD // usable at once
	if err := netlink.AddrAdd(link, address); err != nil {
		return nil, fmt.Errorf("address %s: %w", own, err)
	}
	sender, err := socket(unix.SOCK_DGRAM, netip.AddrPortFrom(host(0), 0))
	if err != nil {
		return nil, err
	}
	made := 0
	return &load{
		step: func(n int) (string, error) {
			for ; made < share(n, limit); made++ {
				to := host(made)
				mac := net.HardwareAddr{2, 0, 0, 0, byte(made >> 8), byte(made)}
				added := netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: to.AsSlice(), HardwareAddr: mac, State: unix.NUD_REACHABLE})
				if added != nil && !errors.Is(added, unix.ENOBUFS) {
					return "", fmt.Errorf("neighbour %v: %w", to, added)
				}
				if err := unix.Sendto(sender, []byte("?"), 0, sockaddr(netip.AddrPortFrom(to, 9))); err != nil {
					made++
					return fmt.Sprintf("sendto: %v", err), nil
				}
				if added != nil {
					made++
					return fmt.Sprintf("a neighbour is not added: %v", added), nil
				}
			}
			return "", nil
		},
		release: func() error { return netlink.LinkDel(link) },
	}, nil
}

// netdevBacklog sends more and more packets at once. They are one datagram, which the
// kernel has to segment because segmentation is disabled on the interface, so that the
// packets reach the backlog in direct succession.
func netdevBacklog(*guest) (*load, error) {
	const limit, size = 20, 100
	if err := setAll("net/core/netdev_max_backlog", strconv.Itoa(limit)); err != nil {
		return nil, err
	}
	tool, err := ethtool.NewEthtool()
	if err != nil {
		return nil, err
	}
	defer tool.Close()
	if err := tool.Change("lo", map[string]bool{"tx-udp-segmentation": false}); err != nil {
		return nil, fmt.Errorf("taking datagrams apart: %w", err)
	}
	at := loopback(portBacklog)
	receiver, err := bound(at)
	if err != nil {
		return nil, err
	}
	sender, err := socket(unix.SOCK_DGRAM, at)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(sender, unix.IPPROTO_UDP, unix.UDP_SEGMENT, size); err != nil {
		return nil, err
	}
	b := make([]byte, 64*size)
	return &load{step: func(n int) (string, error) {
		packets := min(max(share(n, limit), 1), 64)
		if err := unix.Sendto(sender, b[:packets*size], 0, sockaddr(at)); err != nil {
			return "", fmt.Errorf("sendto: %w", err)
		}
		for i := range packets {
			if events, err := poll(receiver, unix.POLLIN, answer); err != nil {
				return "", err
			} else if events == 0 {
				return fmt.Sprintf("of %d datagrams sent at once %d arrive", packets, i), nil
			}
			if _, err := unix.Read(receiver, b); err != nil {
				return "", err
			}
		}
		return "", nil
	}}, nil
}
