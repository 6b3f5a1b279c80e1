package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/namespaces"
)

// trySettings tries settings of tuning lists, each compared with the kernel's default.
func trySettings(ctx context.Context, out io.Writer) error {
	fmt.Fprintln(out, "| setting | what was tried | result |\n|---|---|---|")
	for _, try := range []struct {
		what     string
		settings []string // a name and values, tried one after the other
		run      func(context.Context) (string, error)
	}{
		// First, while no other socket is in TIME_WAIT.
		{"TIME_WAIT sockets 20 s after 50 connections were closed", []string{"net/ipv4/tcp_fin_timeout", "60", "5"}, remain},
		{"64 connections send through loopback for 4 s", []string{"net/ipv4/tcp_rmem", "4096 131072 6291456", "4096 4096 4096", "16384 16384 16384", "8388608 8388608 8388608"}, throughput},
		{"a connection whose program does not read is written to until it takes no more", []string{"net/ipv4/tcp_rmem", "4096 131072 6291456", "4096 4096 4096", "8388608 8388608 8388608"}, stuff},
		{"for 5 s connections to one destination are opened and closed by the client, which has 100 ports", []string{"net/ipv4/tcp_tw_reuse", "0", "1", "2"}, reuse},
		{"the same, closed by the server", []string{"net/ipv4/tcp_tw_reuse", "0", "1"}, reuseServer},
		{"the same by the client, without timestamps", []string{"net/ipv4/tcp_timestamps", "1", "0"}, reuse},
		{"20,000 connections are opened while the server pauses for 0.2 s now and then, with a backlog of 65,535", []string{"net/core/somaxconn", "128", "4096", "65535"}, burst},
		{"the same", []string{"net/ipv4/tcp_max_syn_backlog", "128", "65536"}, burst},
		{"is it there?", []string{"net/ipv4/tcp_tw_recycle", "1"}, nil},
		{"may a network namespace set it?", []string{"net/ipv4/tcp_mem", "30000000 30000000 30000000"}, nil},
		{"may a network namespace set it?", []string{"net/ipv4/tcp_max_orphans", "3276800"}, nil},
	} {
		for _, value := range try.settings[1:] {
			if err := ctx.Err(); err != nil {
				return err
			}
			name := try.settings[0]
			before, _ := os.ReadFile("/proc/sys/" + name)
			result := "set"
			err := namespaces.SetSysctl(name, value)
			switch {
			case err != nil:
				result = "cannot be set: " + errors.Unwrap(err).Error()
			case try.run != nil:
				if result, err = try.run(ctx); err != nil {
					return fmt.Errorf("%s = %s: %w", name, value, err)
				}
			}
			fmt.Fprintf(out, "| `%s = %s` | %s | %s |\n", strings.ReplaceAll(name, "/", "."), value, try.what, result)
			if len(before) > 0 {
				if err := namespaces.SetSysctl(name, strings.TrimSpace(string(before))); err != nil && result != "" && !strings.HasPrefix(result, "cannot") {
					return err
				}
			}
		}
	}
	return nil
}

// serve accepts connections and passes each to serve, until the listener is closed.
func serve(ctx context.Context, serve func(net.Conn)) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return l, nil
}

func dial(ctx context.Context, to net.Addr) (net.Conn, error) {
	d := net.Dialer{Timeout: 2 * time.Second}
	return d.DialContext(ctx, "tcp", to.String())
}

// throughput makes connections send as fast as they can.
func throughput(ctx context.Context) (string, error) {
	l, err := serve(ctx, func(c net.Conn) {
		defer c.Close()
		b := make([]byte, 256<<10)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	})
	if err != nil {
		return "", err
	}
	defer l.Close()
	const senders, during = 64, 4 * time.Second
	sent := make(chan int64, senders)
	for range senders {
		c, err := dial(ctx, l.Addr())
		if err != nil {
			return "", err
		}
		go func() {
			defer c.Close()
			b, sum := make([]byte, 64<<10), int64(0)
			_ = c.SetDeadline(time.Now().Add(during))
			for {
				n, err := c.Write(b)
				sum += int64(n)
				if err != nil {
					sent <- sum
					return
				}
			}
		}()
	}
	sum := int64(0)
	for range senders {
		sum += <-sent
	}
	return fmt.Sprintf("%.0f MB/s", float64(sum)/1e6/during.Seconds()), nil
}

// stuff writes to a connection that is not read.
func stuff(ctx context.Context) (string, error) {
	held := make(chan net.Conn, 1)
	l, err := serve(ctx, func(c net.Conn) { held <- c })
	if err != nil {
		return "", err
	}
	defer l.Close()
	c, err := dial(ctx, l.Addr())
	if err != nil {
		return "", err
	}
	defer c.Close()
	server := <-held
	defer server.Close()
	_ = c.SetWriteDeadline(time.Now().Add(2 * time.Second))
	b := make([]byte, 64<<10)
	for {
		if _, err := c.Write(b); err != nil {
			break
		}
	}
	raw, err := server.(*net.TCPConn).SyscallConn() //nolint:forcetypeassert // it is of a TCP listener
	if err != nil {
		return "", err
	}
	waits, buffer := 0, 0
	err = errors.Join(raw.Control(func(fd uintptr) {
		waits, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		buffer, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
	}))
	return fmt.Sprintf("the receiver holds %d KiB of data, its buffer is %d KiB", waits>>10, buffer>>10), err
}

// reuse opens and closes connections from few ports, the client first.
func reuse(ctx context.Context) (string, error) { return reopen(ctx, true) }

// reuseServer does the same, with the server closing first.
func reuseServer(ctx context.Context) (string, error) { return reopen(ctx, false) }

func reopen(ctx context.Context, clientFirst bool) (string, error) {
	const name = "net/ipv4/ip_local_port_range"
	l, err := serve(ctx, func(c net.Conn) {
		defer c.Close()
		if clientFirst {
			_, _ = c.Read(make([]byte, 1))
		}
	})
	if err != nil {
		return "", err
	}
	defer l.Close()
	before, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return "", err
	}
	if err := namespaces.SetSysctl(name, "20000 20099"); err != nil {
		return "", err
	}
	defer func() { _ = namespaces.SetSysctl(name, strings.TrimSpace(string(before))) }()
	made, refused := 0, 0
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		c, err := dial(ctx, l.Addr())
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			refused++
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			return "", err
		}
		made++
		if !clientFirst {
			_, _ = c.Read(make([]byte, 1))
		}
		c.Close()
		time.Sleep(5 * time.Millisecond)
	}
	return fmt.Sprintf("%d connections, %d times \"cannot assign requested address\", %s in TIME_WAIT", made, refused, timeWait()), nil
}

// timeWait returns how many sockets are in TIME_WAIT.
func timeWait() string {
	b, _ := os.ReadFile("/proc/net/sockstat")
	_, rest, _ := strings.Cut(string(b), " tw ")
	n, _, _ := strings.Cut(rest, " ")
	return n
}

// remain closes connections and waits.
func remain(ctx context.Context) (string, error) {
	l, err := serve(ctx, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); c.Close() })
	if err != nil {
		return "", err
	}
	defer l.Close()
	before := timeWait()
	for range 50 {
		c, err := dial(ctx, l.Addr())
		if err != nil {
			return "", err
		}
		c.Close()
	}
	at := timeWait()
	time.Sleep(20 * time.Second)
	return fmt.Sprintf("%s before, %s then, %s after 20 s", before, at, timeWait()), nil
}

// burst opens many connections to a server that pauses.
func burst(ctx context.Context) (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 65535)); err != nil {
		return "", err
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return "", err
	}
	const connections = 20000
	before := overflows()
	go func() {
		for n := 0; ; n++ {
			if n%2000 == 0 {
				time.Sleep(200 * time.Millisecond)
			}
			c, _, err := unix.Accept(fd)
			if err != nil {
				return
			}
			unix.Close(c)
		}
	}()
	to := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: at.(*unix.SockaddrInet4).Port} //nolint:forcetypeassert // it is bound to one
	began, slowest := time.Now(), time.Duration(0)
	for range connections {
		one := time.Now()
		c, err := dial(ctx, to)
		if err != nil {
			continue // it took more than two seconds
		}
		slowest = max(slowest, time.Since(one))
		_ = c.(*net.TCPConn).SetLinger(0) //nolint:forcetypeassert // it is of TCP
		c.Close()
	}
	took := time.Since(began)
	_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	return fmt.Sprintf("%.1f s, slowest %.2f s, %d overflows", took.Seconds(), slowest.Seconds(), overflows()-before), nil
}

// overflows returns TcpExt ListenOverflows.
func overflows() int {
	b, _ := os.ReadFile("/proc/net/netstat")
	var names []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if f[0] != "TcpExt:" {
			continue
		}
		for i, name := range names {
			if name == "ListenOverflows" {
				n := 0
				_, _ = fmt.Sscan(f[i], &n)
				return n
			}
		}
		names = f
	}
	return 0
}
