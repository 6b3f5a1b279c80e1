package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// heldLoad is the part of a load that one process holds.
type heldLoad struct {
	Port               int
	Connections, Pairs int
	// Queue is how many connections are opened before the first is accepted.
	Queue, Backlog int
	Unread         int
	// Orphans and TimeWait are additional connections that are closed.
	Orphans, TimeWait int
}

// The stages of a load. A worker does one per step, after the step in which it listens.
const (
	heldConnected = iota
	heldOrphans
	heldTimeWait
	heldStages
)

// held is a load that is held.
type held struct {
	heldLoad
	listener, narrow, epoll int
	clients, servers        []int
	next                    int
}

// newHeld returns a function that does one step of a load.
func newHeld(words string) (func() (string, error), error) {
	var h held
	if err := json.Unmarshal([]byte(words), &h.heldLoad); err != nil {
		return nil, err
	}
	stages := []func() (string, error){h.listen, h.connect, h.orphan, h.close}
	return func() (string, error) {
		if h.next == len(stages) {
			return "", errors.New("there is no further stage")
		}
		h.next++
		return stages[h.next-1]()
	}, nil
}

func (h *held) listen() (string, error) {
	var err error
	if h.listener, err = listen(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(h.Port)), h.Backlog); err != nil {
		return "", err
	}
	if h.narrow, err = listenNarrow(h.stuckAt()); err != nil {
		return "", err
	}
	h.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return "", err
}

// stuckAt returns the destination of connections whose data is not accepted.
func (h *held) stuckAt() netip.AddrPort { return loopback(uint16(h.Port + planProcesses)) }

// to returns the destination of the n'th connection.
func (h *held) to(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + n%h.Pairs)}), uint16(h.Port))
}

// connect makes the connections, with data that is not read.
func (h *held) connect() (string, error) {
	for n := range h.Connections {
		client, err := connect(h.to(n))
		if client >= 0 {
			h.clients = append(h.clients, client)
			if err := resets(client); err != nil {
				return "", err
			}
		}
		if err != nil {
			return fmt.Sprintf("connection %d: %v", n, err), nil
		}
		if n < h.Queue-1 {
			continue
		}
		for len(h.servers) < len(h.clients) {
			server, err := accept(h.listener)
			if err != nil {
				return fmt.Sprintf("connection %d: %v", n, err), nil
			}
			h.servers = append(h.servers, server)
			if err := resets(server); err != nil {
				return "", err
			}
		}
	}
	for _, fd := range slices.Concat(h.clients, h.servers) {
		if err := unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Fd: int32(fd)}); err != nil {
			return "", err
		}
	}
	// In two parts: the kernel accepts the first data of a connection in any case.
	part := make([]byte, h.Unread/2)
	for parts := range 2 {
		for n, fd := range h.clients {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
				return "", err
			}
			if sent, err := unix.Write(fd, part); err != nil || sent < len(part) {
				return fmt.Sprintf("connection %d takes %d bytes of %d: %v", n, max(sent, 0), len(part), err), nil
			}
			// Before Linux 6.0 a sender keeps TCP memory until its timer has expired.
			if n%400 == 399 {
				time.Sleep(300 * time.Millisecond)
			}
			// Few at once, because the backlog of received packets is another limit.
			if n%32 == 0 {
				if refused, err := h.arrived(n, (parts+1)*len(part)); refused != "" || err != nil {
					return refused, err
				}
			}
		}
	}
	for n := range h.servers {
		if refused, err := h.arrived(n, h.Unread); refused != "" || err != nil {
			return refused, err
		}
	}
	return "", nil
}

// arrived waits until the given number of bytes wait in a connection. What is lost on the
// way is sent again.
func (h *held) arrived(n, bytes int) (string, error) {
	for end := time.Now().Add(5 * answer); ; time.Sleep(time.Millisecond) {
		arrived, err := unix.IoctlGetInt(h.servers[n], unix.TIOCINQ)
		if err != nil || arrived >= bytes {
			return "", err
		}
		if time.Now().After(end) {
			return fmt.Sprintf("of %d bytes in connection %d, %d arrived", bytes, n, arrived), nil
		}
	}
}

// orphan closes connections whose data the peer does not accept.
func (h *held) orphan() (string, error) {
	at := h.stuckAt()
	var servers []int
	for range h.Orphans {
		client, server, err := stuck(h.narrow, at)
		if err != nil {
			return err.Error(), nil
		}
		servers = append(servers, server)
		if err := unix.Close(client); err != nil {
			return "", err
		}
		// The kernel counts orphans ten times per second.
		time.Sleep(120 * time.Millisecond)
	}
	for end := time.Now().Add(2 * answer); h.Orphans > 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, server := range servers {
			if lost, err := reset(server); lost != "" || err != nil {
				return lost, err
			}
		}
	}
	for _, server := range servers {
		if err := unix.Close(server); err != nil {
			return "", err
		}
	}
	return "", nil
}

// close closes connections at the end that keeps TIME_WAIT.
func (h *held) close() (string, error) {
	for n := range h.TimeWait {
		client, server, err := pair(h.listener, h.to(n))
		if err != nil {
			return fmt.Sprintf("connection %d that is closed: %v", n, err), nil
		}
		if err := closePair(client, server); err != nil {
			return "", err
		}
	}
	return "", nil
}
