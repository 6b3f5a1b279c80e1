package main

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udpMemory holds datagrams that are not read.
func udpMemory(*guest) (*load, error) {
	// About half of a receive buffer: the limit is for all sockets together.
	const each = 9
	low := pages(64 << 20)
	if err := setAll("net/ipv4/udp_mem", fmt.Sprintf("%d %d %d", low, low*4/3, low*2)); err != nil {
		return nil, err
	}
	sender, err := socket(unix.SOCK_DGRAM, loopback(0))
	if err != nil {
		return nil, err
	}
	var open sockets
	receiver := func() (int, unix.Sockaddr, error) {
		fd, err := bound(loopback(0))
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
			// Whatever the limit, an empty socket gets one page.
			few := 3 + os.Getpagesize()/len(datagram)
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

// udpReceiveQueue sends datagrams to a socket that does not read.
func udpReceiveQueue(*guest) (*load, error) {
	receiver, err := bound(loopback(portUnread))
	if err != nil {
		return nil, err
	}
	sender, err := socket(unix.SOCK_DGRAM, loopback(0))
	if err != nil {
		return nil, err
	}
	at, err := unix.Getsockname(receiver)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(receiver, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 128<<10); err != nil {
		return nil, err
	}
	datagram := make([]byte, 100)
	return &load{
		step: func(n int) (string, error) {
			for {
				m, err := socketMemory(receiver)
				if err != nil {
					return "", err
				}
				if m.drops > 0 {
					return fmt.Sprintf("%d datagrams were dropped", m.drops), nil
				}
				if int(m.used) >= share(n, int(m.limit)) {
					return "", nil
				}
				if err := unix.Sendto(sender, datagram, 0, at); err != nil {
					return "", fmt.Errorf("sendto: %w", err)
				}
				// On a busy machine it arrives some time after it was sent.
				for end := time.Now().Add(answer); time.Now().Before(end); runtime.Gosched() {
					now, err := socketMemory(receiver)
					if err != nil || now != m {
						break
					}
				}
			}
		},
		release: func() error { return unix.Close(receiver) },
	}, nil
}

// memoryOfSocket is a part of SO_MEMINFO.
type memoryOfSocket struct{ used, limit, drops uint32 }

func socketMemory(fd int) (memoryOfSocket, error) {
	var m [9]uint32 // SK_MEMINFO_VARS
	size := uint32(unsafe.Sizeof(m))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&m)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return memoryOfSocket{}, fmt.Errorf("SO_MEMINFO: %w", errno)
	}
	return memoryOfSocket{m[0], m[1], m[8]}, nil
}

// fragmentsIPv4 sends the first fragments of packets that are never completed.
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
	packet[9] = unix.IPPROTO_UDP // the kernel fills in the rest
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

// fragments sends fragments until they take the wanted memory. Then a fragmented
// datagram, for which the interface gets an MTU of 1500, does not arrive.
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
	receiver, err := bound(at)
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
