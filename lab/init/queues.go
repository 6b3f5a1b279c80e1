package main

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/byhand"
)

// queues adds the limits of accept queues, which no file has, to what was read by hand.
// The guest has one listener for each address and port.
func queues(r byhand.Readings) error {
	fullest, listeners := 0.0, 0
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return fmt.Errorf("sock_diag: %w", err)
		}
		for _, s := range sockets {
			if s.State != uint8(byhand.Listening) {
				continue
			}
			listeners++
			address, _ := netip.AddrFromSlice(s.ID.Source)
			at := netip.AddrPortFrom(address.Unmap(), s.ID.SourcePort).String()
			r.Set(float64(s.WQueue), "accept_queue_limit", "listener", at)
			share := float64(s.RQueue) / float64(max(s.WQueue, 1))
			r.Set(share, "accept_queue_saturation_ratio", "listener", at)
			fullest = max(fullest, share)
		}
	}
	if listeners > 0 {
		r.Set(fullest, "saturation_ratio", "resource", "accept_queue")
	}
	return nil
}
