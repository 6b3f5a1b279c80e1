package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// tcpMemory holds data that is not read, a little in each of many connections: under
// pressure the kernel allows each only its share.
func tcpMemory(*guest) (*load, error) {
	const each = 48 << 10
	high := pages(64 << 20)
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
	// opened now: when memory is short, a new one gets too little to matter.
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

// listenNarrow returns a listener whose connections accept little unread data.
func listenNarrow(at netip.AddrPort) (int, error) {
	fd, err := listen(at, everybody)
	if err != nil {
		return -1, err
	}
	return fd, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096)
}

// stuck makes a connection with data that the peer does not accept.
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

// abandon closes a stuck connection, and returns what the peer gets if the kernel does
// not keep the data for it.
func abandon(client, server int) (lost string, err error) {
	if err := unix.Close(client); err != nil {
		return "", err
	}
	return reset(server)
}

// reset returns the error of a connection whose other end was closed, if the kernel did
// not keep the data for it.
func reset(server int) (lost string, err error) {
	events, err := poll(server, 0, 0)
	if err != nil || events&unix.POLLERR == 0 {
		return "", err
	}
	n, err := unix.GetsockoptInt(server, unix.SOL_SOCKET, unix.SO_ERROR)
	return fmt.Sprintf("a connection is closed and its data is lost, the other side gets: %v", unix.Errno(n)), err
}

// tcpOrphans closes connections whose data the peer does not accept.
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
				open.keep(server)
				if err := unix.Close(client); err != nil {
					return "", err
				}
			}
			// The kernel may kill any orphan: the new one, or an old one whose timer has
			// just expired.
			for _, server := range open {
				lost, err := reset(server)
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

// tcpTimeWait closes connections at the end that keeps TIME_WAIT.
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
			if err := closePair(client, server); err != nil {
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

// unixAcceptQueue connects to a unix socket that does not accept.
func unixAcceptQueue(*guest) (*load, error) {
	at := &unix.SockaddrUnix{Name: "/web.sock"}
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(unix.Bind(listener, at), unix.Listen(listener, scenario.Ramp)); err != nil {
		return nil, err
	}
	var open sockets
	made := 0
	return &load{
		step: func(n int) (string, error) {
			for ; made < share(n, scenario.Ramp); made++ {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					return "", err
				}
				open.keep(fd)
				if err := unix.Connect(fd, at); err != nil {
					made++
					return fmt.Sprintf("connect: %v", err), nil
				}
			}
			return "", nil
		},
		release: func() error {
			return errors.Join(open.close(), unix.Close(listener), unix.Unlink(at.Name))
		},
	}, nil
}

// synFlood keeps connection requests waiting: the listener waits for data, which never
// comes. After requests were dropped, SYN cookies are sent.
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

// closePair closes both ends of a connection, first that of the client, which therefore
// keeps the TIME_WAIT.
func closePair(client, server int) error {
	if err := unix.Close(client); err != nil {
		return err
	}
	if _, err := poll(server, unix.POLLRDHUP, answer); err != nil {
		return err
	}
	return unix.Close(server)
}
