package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// together is several loads at once. Orphans are not among them, because the kernel
// begins to refuse those at a quarter of their limit.
type together []*load

// manyLimits prepares the loads that one host can hold at once.
func manyLimits(g *guest) (together, error) {
	var all together
	for _, prepare := range []func(*guest) (*load, error){
		tcpMemory, udpMemory, tcpTimeWait, acceptQueue, processFileDescriptors, neighboursIPv4, neighboursIPv6,
		fragmentsIPv4, fragmentsIPv6,
		// The connections of the other loads have ephemeral ports too.
		func(*guest) (*load, error) { return ports(1200) },
	} {
		l, err := prepare(g)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, track()
}

// step brings all loads from one part of the ramp to another, and the limits that all of
// them use to the same part.
func (t together) step(from, to int) (string, error) {
	for n := from + 1; n <= to; n++ {
		for _, l := range t {
			if refused, err := l.step(n); refused != "" || err != nil {
				return refused, err
			}
		}
	}
	for usage, limit := range map[string]string{"net/netfilter/nf_conntrack_count": "net/netfilter/nf_conntrack_max", "fs/file-nr": "fs/file-max"} {
		b, err := os.ReadFile("/proc/sys/" + usage)
		if err != nil {
			return "", err
		}
		used, err := strconv.Atoi(strings.Fields(string(b))[0])
		if err != nil {
			return "", err
		}
		if err := sysctl(limit, strconv.Itoa(used*scenario.Ramp/to)); err != nil {
			return "", err
		}
	}
	return "", nil
}

func (t together) release() (err error) {
	for _, l := range t {
		if l.release != nil {
			err = errors.Join(err, l.release())
		}
	}
	return err
}

// busy holds three tenths of what it can, and a fifth of the permitted orphans, while
// connections are opened and closed.
func busy(g *guest) (*load, error) {
	const part = scenario.Ramp * 3 / 10
	all, err := manyLimits(g)
	if err != nil {
		return nil, err
	}
	orphans, err := tcpOrphans(g)
	if err != nil {
		return nil, err
	}
	at := loopback(portChurn)
	listener, err := listen(at, everybody)
	if err != nil {
		return nil, err
	}
	return &load{
		step: func(n int) (string, error) {
			if n <= part {
				if refused, err := all.step(n-1, n); refused != "" || err != nil {
					return refused, err
				}
				// With those of the other loads these are a fifth of the limit.
				if refused, err := orphans.step(n / 2); refused != "" || err != nil {
					return refused, err
				}
			}
			for range 20 {
				client, server, err := pair(listener, at)
				if err != nil {
					return err.Error(), nil
				}
				if !arrives(client, server, 1<<10) {
					return "1 KiB does not come through a new connection", nil
				}
				if err := errors.Join(resets(client), unix.Close(client), unix.Close(server)); err != nil {
					return "", err
				}
			}
			return "", nil
		},
		release: func() error { return errors.Join(orphans.release(), all.release()) },
	}, nil
}

// burst holds some seven tenths of what it can for 75 seconds, at 15 s per step, in
// addition to what is there without it: a few entries of neighbours.
func burst(g *guest) (*load, error) {
	const begin, end, part = 12, 17, scenario.Ramp*7/10 - 1
	all, err := manyLimits(g)
	if err != nil {
		return nil, err
	}
	return &load{step: func(n int) (string, error) {
		switch n {
		case begin:
			return all.step(0, part)
		case end:
			if err := all.release(); err != nil {
				return "", fmt.Errorf("releasing the burst: %w", err)
			}
		}
		return "", nil
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

// idle has what most hosts have: a listening unix socket, and a UDP socket that has lost
// a datagram.
func idle(*guest) (*load, error) {
	listener, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(unix.Bind(listener, &unix.SockaddrUnix{Name: "@idle"}), unix.Listen(listener, 16)); err != nil {
		return nil, err
	}
	fd, err := bound(loopback(8125))
	if err != nil {
		return nil, err
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return nil, err
	}
	buffer, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return nil, err
	}
	datagram := make([]byte, 1000)
	for range buffer/len(datagram) + 1 {
		if err := unix.Sendto(fd, datagram, 0, at); err != nil {
			return nil, fmt.Errorf("sendto: %w", err)
		}
	}
	for {
		if _, err := unix.Read(fd, datagram); errors.Is(err, unix.EAGAIN) {
			break
		} else if err != nil {
			return nil, err
		}
	}
	return &load{step: func(int) (string, error) { return "", nil }}, nil
}
