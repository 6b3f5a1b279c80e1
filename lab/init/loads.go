package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// load is what a scenario does to the kernel.
type load struct {
	// step brings the load to n parts of scenario.Ramp of the limit, and returns what
	// it saw if the kernel refused something.
	step func(n int) (refused string, err error)
	// release gives everything back, if there is anything.
	release func() error
	// in and proc are the network namespace and the procfs that the exporter is to
	// look at, if they are not the machine's.
	in   func(func() error) error
	proc string
}

// loads is how the load of each scenario is prepared, by its name.
func loads() map[string]func(*guest) (*load, error) {
	return map[string]func(*guest) (*load, error){
		"conntrack_entries":        conntrackEntries,
		"conntrack_entries_netns":  conntrackEntriesNetns,
		"tcp_memory":               tcpMemory,
		"udp_memory":               udpMemory,
		"tcp_orphans":              tcpOrphans,
		"tcp_time_wait":            tcpTimeWait,
		"accept_queue":             acceptQueue,
		"syn_flood":                synFlood,
		"ephemeral_ports":          ephemeralPorts,
		"file_descriptors":         fileDescriptors,
		"process_file_descriptors": processFileDescriptors,
		"neighbours_ipv4":          neighboursIPv4,
		"neighbours_ipv6":          neighboursIPv6,
		"ip_fragments_ipv4":        fragmentsIPv4,
		"ip_fragments_ipv6":        fragmentsIPv6,
		"netdev_backlog":           netdevBacklog,
		"committed_memory":         committedMemory,
		"memory":                   memory,
		"low_memory":               lowMemory,
		"idle":                     idle,
		"busy":                     busy,
		"burst":                    burst,
		"page_cache":               pageCache,
	}
}

// share is n parts of the ramp of a limit.
func share(n, limit int) int { return n * limit / scenario.Ramp }

// Ports of the loads. They lie below those that the kernel hands out.
const (
	portTrack = 9000 + iota
	portMemory
	portNarrow
	portDatagrams
	portOrphans
	portTimeWait
	portQueue
	portFlood
	portEphemeral
	portFragments
	portBacklog
	portChurn
)

// everybody is a backlog that no load fills by accident.
const everybody = 4096

func setAll(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if err := sysctl(pairs[i], pairs[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// tcpMemory holds data that nobody reads, in many connections of a little each:
// under pressure the kernel allows each its share only.
func tcpMemory(*guest) (*load, error) {
	const high, each = 16384, 48 << 10
	if err := setAll("net/ipv4/tcp_mem", fmt.Sprintf("%d %d %d", high/2, high*2/3, high), "net/core/somaxconn", "4096"); err != nil {
		return nil, err
	}
	at := loopback(portMemory)
	listener, err := listen(at, everybody)
	if err != nil {
		return nil, err
	}
	narrow := loopback(portNarrow)
	narrowListener, err := listenNarrow(narrow)
	if err != nil {
		return nil, err
	}
	// Connections that are closed one by one while they have data to send. They are
	// made now: when memory is short, a new one is given too little to matter.
	var open, closing sockets
	for range 2*scenario.Ramp + 1 {
		client, server, err := stuck(narrowListener, narrow)
		if err != nil {
			return nil, err
		}
		closing = append(closing, client, server)
	}
	return &load{
		step: func(n int) (string, error) {
			for range 400 {
				used, err := sockstat("sockstat", "TCP:", "mem")
				if err != nil {
					return "", err
				}
				if used >= share(n, high) {
					break
				}
				client, server, err := pair(listener, at)
				if errors.Is(err, errUnanswered) {
					break
				}
				if err != nil {
					return "", err
				}
				fill(open.keep(client), each)
				open.keep(server)
			}
			client, server := closing[0], open.keep(closing[1])
			closing = closing[2:]
			return abandon(client, server)
		},
		release: func() error { return errors.Join(open.close(), closing.close()) },
	}, nil
}

// listenNarrow is a listener whose connections take little data that nobody reads.
func listenNarrow(at netip.AddrPort) (int, error) {
	fd, err := listen(at, everybody)
	if err != nil {
		return -1, err
	}
	return fd, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
}

// stuck makes a connection with data that the other side does not take.
func stuck(listener int, at netip.AddrPort) (client, server int, err error) {
	if client, server, err = pair(listener, at); err != nil {
		return -1, -1, err
	}
	if err := unix.SetsockoptInt(client, unix.SOL_SOCKET, unix.SO_SNDBUF, 16384); err != nil {
		return -1, -1, err
	}
	fill(client, 1<<20)
	return client, server, nil
}

// abandon closes a connection that is stuck, and returns what the other side gets
// if the kernel does not keep the data for it.
func abandon(client, server int) (lost string, err error) {
	if err := unix.Close(client); err != nil {
		return "", err
	}
	events, err := poll(server, 0, 0)
	if err != nil || events&unix.POLLERR == 0 {
		return "", err
	}
	n, err := unix.GetsockoptInt(server, unix.SOL_SOCKET, unix.SO_ERROR)
	return fmt.Sprintf("a connection is closed and its data is lost, the other side gets: %v", unix.Errno(n)), err
}

// udpMemory holds datagrams that nobody reads.
func udpMemory(*guest) (*load, error) {
	const low, each = 16384, 20
	if err := setAll("net/ipv4/udp_mem", fmt.Sprintf("%d %d %d", low, low*4/3, low*2)); err != nil {
		return nil, err
	}
	sender, err := socket(unix.SOCK_DGRAM, loopback(0))
	if err != nil {
		return nil, err
	}
	var open sockets
	receiver := func() (int, unix.Sockaddr, error) {
		fd, err := bound(unix.SOCK_DGRAM, loopback(0))
		if err != nil {
			return -1, nil, err
		}
		at, err := unix.Getsockname(fd)
		return fd, at, err
	}
	datagram := make([]byte, 8000)
	return &load{
		step: func(n int) (string, error) {
			for range 20 {
				used, err := sockstat("sockstat", "UDP:", "mem")
				if err != nil {
					return "", err
				}
				if used >= share(n, low) {
					break
				}
				fd, at, err := receiver()
				if err != nil {
					return "", err
				}
				open.keep(fd)
				for range each {
					if err := unix.Sendto(sender, datagram, 0, at); err != nil {
						return "", fmt.Errorf("sendto: %w", err)
					}
				}
			}
			fd, at, err := receiver()
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			// A socket without any may have one, whatever the limit.
			const few = 3
			for range few {
				if err := unix.Sendto(sender, datagram, 0, at); err != nil {
					return fmt.Sprintf("sendto: %v", err), nil
				}
			}
			for i := range few {
				events, err := poll(fd, unix.POLLIN, answer)
				if err != nil {
					return "", err
				}
				if events == 0 {
					return fmt.Sprintf("of %d datagrams to a new socket %d arrive", few, i), nil
				}
				if _, err := unix.Read(fd, datagram); err != nil {
					return "", err
				}
			}
			return "", nil
		},
		release: func() error { return open.close() },
	}, nil
}

// tcpOrphans closes connections whose data the other side does not take.
func tcpOrphans(*guest) (*load, error) {
	const limit = 240
	if err := setAll("net/ipv4/tcp_max_orphans", strconv.Itoa(limit), "net/core/somaxconn", "4096"); err != nil {
		return nil, err
	}
	at := loopback(portOrphans)
	listener, err := listenNarrow(at)
	if err != nil {
		return nil, err
	}
	var open sockets
	made := 0
	return &load{
		step: func(n int) (refused string, err error) {
			for ; made < share(n, limit); made++ {
				client, server, err := stuck(listener, at)
				if err != nil {
					return "", err
				}
				lost, err := abandon(client, open.keep(server))
				if err != nil {
					return "", err
				}
				refused = cmp.Or(refused, lost)
			}
			return refused, nil
		},
		release: func() error { return open.close() },
	}, nil
}

// tcpTimeWait closes connections at the side that keeps TIME_WAIT.
func tcpTimeWait(*guest) (*load, error) {
	const limit = 400
	if err := setAll("net/ipv4/tcp_max_tw_buckets", strconv.Itoa(limit)); err != nil {
		return nil, err
	}
	at := loopback(portTimeWait)
	listener, err := listen(at, everybody)
	if err != nil {
		return nil, err
	}
	made := 0
	return &load{step: func(n int) (refused string, err error) {
		for ; made < share(n, limit); made++ {
			client, server, err := pair(listener, at)
			if err != nil {
				return "", err
			}
			local, err := unix.Getsockname(client)
			if err != nil {
				return "", err
			}
			if err := unix.Close(client); err != nil {
				return "", err
			}
			if _, err := poll(server, unix.POLLRDHUP, answer); err != nil {
				return "", err
			}
			if err := unix.Close(server); err != nil {
				return "", err
			}
			// A port in TIME_WAIT cannot be bound.
			again, err := socket(unix.SOCK_STREAM, at)
			if err != nil {
				return "", err
			}
			if err := unix.Bind(again, local); err == nil {
				refused = "a port that was closed can be bound at once: it did not go through TIME_WAIT"
			}
			if err := unix.Close(again); err != nil {
				return "", err
			}
		}
		return refused, nil
	}}, nil
}

// acceptQueue connects to a program that does not accept.
func acceptQueue(*guest) (*load, error) {
	at := loopback(portQueue)
	listener, err := listen(at, scenario.Ramp)
	if err != nil {
		return nil, err
	}
	var open sockets
	made := 0
	return &load{
		step: func(n int) (string, error) {
			for ; made < share(n, scenario.Ramp); made++ {
				fd, err := connect(at)
				if fd >= 0 {
					open.keep(fd)
				}
				if errors.Is(err, errUnanswered) {
					made++
					return err.Error(), nil
				}
				if err != nil {
					return "", err
				}
			}
			return "", nil
		},
		release: func() error {
			return errors.Join(open.close(), unix.Close(listener))
		},
	}, nil
}

// synFlood has requests for connections wait: the listener wants data first, which
// never comes. Once requests were dropped it is SYN cookies that are sent.
func synFlood(*guest) (*load, error) {
	if err := setAll("net/ipv4/tcp_syncookies", "0"); err != nil {
		return nil, err
	}
	at := loopback(portFlood)
	listener, err := listen(at, scenario.Ramp)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(listener, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 60); err != nil {
		return nil, err
	}
	var open sockets
	dropped := 0
	return &load{
		step: func(int) (string, error) {
			if dropped == scenario.Past/2 {
				if err := setAll("net/ipv4/tcp_syncookies", "1"); err != nil {
					return "", err
				}
			}
			fd, err := connect(at)
			if fd >= 0 {
				open.keep(fd)
			}
			if dropped > 0 {
				dropped++
			}
			if errors.Is(err, errUnanswered) {
				dropped = max(dropped, 1)
				return err.Error(), nil
			}
			return "", err
		},
		release: func() error {
			return errors.Join(open.close(), unix.Close(listener))
		},
	}, nil
}

// ephemeralPorts connects to one destination.
func ephemeralPorts(*guest) (*load, error) { return ports(80) }

func ports(limit int) (*load, error) {
	if err := setAll("net/ipv4/ip_local_port_range", fmt.Sprintf("40000 %d", 40000+limit-1)); err != nil {
		return nil, err
	}
	at := loopback(portEphemeral)
	listener, err := listen(at, everybody)
	if err != nil {
		return nil, err
	}
	var open sockets
	made := 0
	return &load{
		step: func(n int) (string, error) {
			for ; made < share(n, limit); made++ {
				fd, err := connect(at)
				if fd >= 0 {
					open.keep(fd)
				}
				if errors.Is(err, unix.EADDRNOTAVAIL) {
					return err.Error(), nil
				}
				if err == nil {
					err = resets(fd)
				}
				if err != nil {
					return "", err
				}
				server, err := accept(listener)
				if err != nil {
					return "", err
				}
				open.keep(server)
			}
			return "", nil
		},
		release: func() error { return open.close() },
	}, nil
}

// fragmentsIPv4 sends the first fragments of packets that never become whole.
func fragmentsIPv4(*guest) (*load, error) {
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, err
	}
	to := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	packet := make([]byte, 20+1000)
	packet[0] = 0x45             // version 4, five words of header
	packet[6] = 0x20             // more fragments
	packet[8] = 64               // hops
	packet[9] = unix.IPPROTO_UDP // the kernel adds the rest
	copy(packet[12:], []byte{127, 0, 0, 1, 127, 0, 0, 1})
	return fragments("ipv4/ipfrag", "sockstat", "FRAG:", loopback(portFragments), func(id int) error {
		packet[4], packet[5] = byte(id>>8), byte(id)
		return unix.Sendto(raw, packet, 0, to)
	})
}

func fragmentsIPv6(*guest) (*load, error) {
	raw, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_FRAGMENT)
	if err != nil {
		return nil, err
	}
	at := netip.AddrPortFrom(netip.IPv6Loopback(), portFragments)
	to := &unix.SockaddrInet6{Addr: at.Addr().As16()}
	packet := make([]byte, 8+1000)
	packet[0] = unix.IPPROTO_UDP
	packet[3] = 1 // more fragments
	return fragments("ipv6/ip6frag", "sockstat6", "FRAG6:", at, func(id int) error {
		packet[6], packet[7] = byte(id>>8), byte(id)
		return unix.Sendto(raw, packet, 0, to)
	})
}

// fragments sends until there is so much memory of them. A datagram that is in
// fragments, because the interface is given an MTU of 1500, then does not arrive.
func fragments(sysctls, file, line string, at netip.AddrPort, send func(id int) error) (*load, error) {
	const limit = 1 << 20
	if err := setAll(
		"net/"+sysctls+"_low_thresh", strconv.Itoa(limit*3/4), "net/"+sysctls+"_high_thresh", strconv.Itoa(limit),
		"net/"+sysctls+"_time", "600",
	); err != nil {
		return nil, err
	}
	if err := linkUp("lo", 1500); err != nil {
		return nil, err
	}
	receiver, err := bound(unix.SOCK_DGRAM, at)
	if err != nil {
		return nil, err
	}
	sender, err := socket(unix.SOCK_DGRAM, at)
	if err != nil {
		return nil, err
	}
	id := 0
	datagram := make([]byte, 3000)
	return &load{step: func(n int) (string, error) {
		for range 200 {
			used, err := sockstat(file, line, "memory")
			if err != nil {
				return "", err
			}
			if used >= share(n, limit) {
				break
			}
			id++
			if err := send(id); err != nil {
				return "", fmt.Errorf("sendto: %w", err)
			}
		}
		if err := unix.Sendto(sender, datagram, 0, sockaddr(at)); err != nil {
			return "", fmt.Errorf("sendto: %w", err)
		}
		if events, err := poll(receiver, unix.POLLIN, answer); err != nil {
			return "", err
		} else if events == 0 {
			return fmt.Sprintf("a datagram in fragments does not arrive in %v", answer), nil
		}
		_, err := unix.Read(receiver, datagram)
		return "", err
	}}, nil
}

// pageCache reads a disk, whose pages a 32-bit kernel keeps in low memory.
func pageCache(*guest) (*load, error) {
	disk, err := os.Open("/dev/vda")
	if err != nil {
		return nil, err
	}
	b := make([]byte, 1<<20)
	return &load{step: func(int) (string, error) {
		for range 10 {
			if n, err := disk.Read(b); n == 0 {
				if _, err := disk.Seek(0, 0); err != nil {
					return "", err
				}
			} else if err != nil {
				return "", err
			}
		}
		return "", nil
	}}, nil
}

func idle(*guest) (*load, error) {
	return &load{step: func(int) (string, error) { return "", nil }}, nil
}
