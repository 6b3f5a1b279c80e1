package e2e

import (
	"bytes"
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCheckAnswers reaches three limits at once, and checks that check names each, the process
// that holds it, and the sysctl to set. It then sets these, and checks that they are enough.
func TestCheckAnswers(t *testing.T) {
	n := enterNetns(t)
	n.sysctl("net.core.somaxconn", "64")
	n.sysctl("net.ipv4.tcp_max_tw_buckets", "40")
	limit := n.limitPorts()
	a := netip.MustParseAddr("127.0.0.1")
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

	// The accept queue of a program that asks for more than somaxconn allows.
	n.listen(at(1001), 4096)
	for range 65 {
		n.dial(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), 0), at(1001))
	}
	// Every port to one destination, with some left in TIME_WAIT.
	pairs := n.pairs(n.listen(at(1002), 64), netip.AddrPortFrom(a, 0), at(1002), limit)
	for _, p := range pairs[:40] {
		n.close(p.client)
		n.poll(p.server, unix.POLLRDHUP)
		n.close(p.server)
	}

	said := n.check(t)
	me := comm(t)
	for _, want := range []string{
		"When accept_queue reaches its limit",
		"  127.0.0.1:1001: 65 of 64 connections, held by " + me,
		"  to raise it: sysctl -w net.core.somaxconn=117 # now 64",
		"When ephemeral_ports reaches its limit",
		"→ 127.0.0.1:1002: 169 of 169 ports, held by " + me,
		"  to raise it: sysctl -w net.ipv4.ip_local_port_range=",
		"When tcp_time_wait reaches its limit",
		"  to raise it: sysctl -w net.ipv4.tcp_max_tw_buckets=63 # now 40",
		"  more: sockpressure_exporter who tcp_time_wait",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("check does not say %q:\n%s", want, said)
		}
	}

	done := 0
	for line := range strings.Lines(said) {
		rest, found := strings.CutPrefix(line, "  to raise it: sysctl -w net.")
		if !found {
			continue
		}
		name, value, _ := strings.Cut(rest, "=")
		value, _, _ = strings.Cut(value, " # now")
		n.sysctl("net."+name, strings.Trim(value, `"`))
		done++
	}
	if done != 3 {
		t.Errorf("%d sysctls to set", done)
	}
	n.dial(netip.AddrPortFrom(a, 0), at(1002))
	// Connections still wait in the queue, and other namespaces may be near their limits.
	for line := range strings.Lines(n.check(t)) {
		if strings.HasPrefix(line, "  to raise it: sysctl -w net.") {
			t.Errorf("after it was set: %s", line)
		}
	}
}

// check runs the check command in the namespace, as if that were the host's.
func (n *netns) check(t *testing.T) string {
	t.Helper()
	cmd := exec.Command(binary, "check")
	cmd.SysProcAttr = new(syscall.SysProcAttr)
	asHost(cmd, "")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String()
}
