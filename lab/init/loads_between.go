package main

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// betweenScrapes fills the table of connections for a while when it is told to, and ends
// when it is told to.
func betweenScrapes(*guest) (*load, error) {
	// The network card that QEMU provides.
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return nil, fmt.Errorf("the network card: %w", err)
	}
	address, err := netlink.ParseAddr("10.0.2.15/24")
	if err != nil {
		return nil, err
	}
	if err := netlink.AddrAdd(link, address); err != nil {
		return nil, fmt.Errorf("the address of the network card: %w", err)
	}
	if err := linkUp("eth0", 0); err != nil {
		return nil, err
	}
	control, err := net.Listen("tcp", ":"+strconv.Itoa(scenario.ControlPort))
	if err != nil {
		return nil, err
	}
	if err := setAll("net/netfilter/nf_conntrack_max", strconv.Itoa(entries)); err != nil {
		return nil, err
	}
	l, err := tracked()
	if err != nil {
		return nil, err
	}
	full := ""
	fill, empty := l.step, l.release
	l.step = func(int) (string, error) {
		if full != "" {
			return full, nil
		}
		told, err := control.Accept()
		if err != nil {
			return "", err
		}
		defer told.Close()
		for n := scenario.Ramp; full == ""; n++ {
			if full, err = fill(n); err != nil {
				return "", err
			}
		}
		if _, err := fmt.Fprintln(told, "full"); err != nil {
			return "", err
		}
		time.Sleep(scenario.FullFor)
		// Entries of closed connections would remain for a while.
		if err := errors.Join(empty(), netlink.ConntrackTableFlush(netlink.ConntrackTable)); err != nil {
			return "", err
		}
		_, err = fmt.Fprintln(told, "empty")
		return full, err
	}
	l.release = func() error {
		told, err := control.Accept()
		if err != nil {
			return err
		}
		return told.Close()
	}
	return l, nil
}
