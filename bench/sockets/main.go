// Command sockets opens a great number of TCP connections over loopback, holds them, and
// cleans up:
//
//	go run ./bench/sockets --connections=1000000
//
// Both ends are on this machine, so each connection is two sockets. A process may not
// hold more than 20,000 descriptors, so there are many processes, of 9,900 connections
// each. The command prints "holding N connections" when all are open, and ends at the end
// of its standard input or on SIGINT or SIGTERM. Connections are reset at the end, so
// that they leave no TIME_WAIT behind.
//
// With --time-wait the connections are closed at once instead, and their TIME_WAIT
// sockets are held. With --outbound all go to one address and port, from one address,
// from ports that the kernel chooses. With --unread, one connection in a hundred has that
// many bytes that its server does not read. With --epoll each end is in an epoll set, as
// in servers. Two of these programs can run side by side if they start with different
// addresses (--first).
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	perProcess = 9900
	maxFiles   = 20000
	firstPort  = 10000 // of the clients
	serverPort = 9000
)

// load is what a process opens: connections [0, count) of its part.
type load struct {
	part, count        int
	unread             int
	timeWait, outbound bool
	epoll              bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sockets:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("sockets", flag.ExitOnError)
	connections := flags.Int("connections", 1_000_000, "connections to open")
	timeWait := flags.Bool("time-wait", false, "close them, and hold their TIME_WAIT sockets")
	outbound := flags.Bool("outbound", false, "from one address to one address and port")
	unread := flags.Int("unread", 0, "bytes that one connection of a hundred has unread")
	first := flags.Int("first", 0, "number of the first process, by which their addresses go")
	epoll := flags.Bool("epoll", false, "put each end into an epoll set")
	part := flags.Int("part", -1, "be one process of many (used by the program itself)")
	_ = flags.Parse(args) // exits by itself
	if *connections < 1 || flags.NArg() > 0 {
		return errors.New("--connections is below 1, or there are arguments")
	}
	l := load{*part, *connections, *unread, *timeWait, *outbound, *epoll}
	if *part >= 0 {
		return l.open()
	}
	return l.spread(ctx, *first)
}

// spread runs the necessary number of processes, waits until all hold their share, and
// ends them when there is nothing more to wait for.
func (l load) spread(ctx context.Context, first int) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var parts []*part
	defer func() {
		for _, p := range parts {
			err = errors.Join(err, p.stop())
		}
	}()
	for i, left := first, l.count; left > 0; i++ {
		count := min(left, perProcess)
		left -= count
		p, err := startPart(ctx, self, fmt.Sprintf("--part=%d", i), fmt.Sprintf("--connections=%d", count),
			fmt.Sprintf("--unread=%d", l.unread), fmt.Sprintf("--time-wait=%t", l.timeWait), fmt.Sprintf("--outbound=%t", l.outbound), fmt.Sprintf("--epoll=%t", l.epoll))
		if err != nil {
			return err
		}
		parts = append(parts, p)
	}
	// All listen before the first connects, because outbound connections may go to any.
	for _, state := range []string{"listening", "holding"} {
		for i, p := range parts {
			if err := p.expect(state); err != nil {
				return fmt.Errorf("process %d: %w", i, err)
			}
		}
		for _, p := range parts {
			if _, err := io.WriteString(p.stdin, "go\n"); err != nil {
				return err
			}
		}
	}
	fmt.Printf("holding %d connections\n", l.count)

	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	select {
	case <-over:
	case <-ctx.Done():
	}
	return nil
}

// part is one of the processes.
type part struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Scanner
}

func startPart(ctx context.Context, self string, args ...string) (*part, error) {
	// A part ends at the end of its standard input, after resetting its connections.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), self, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &part{cmd, stdin, bufio.NewScanner(stdout)}, cmd.Start()
}

func (p *part) expect(state string) error {
	if p.stdout.Scan() && p.stdout.Text() == state {
		return nil
	}
	return fmt.Errorf("it said %q, not %q", p.stdout.Text(), state)
}

func (p *part) stop() error {
	_ = p.stdin.Close()
	return p.cmd.Wait()
}

// addresses returns the client's and the server's address of a process: addresses of
// 127.1.0.0/16 and 127.2.0.0/16.
func (l load) addresses() (client, server [4]byte) {
	if l.outbound {
		return [4]byte{127, 1, 0, 1}, [4]byte{127, 2, 0, 1}
	}
	x, y := byte(l.part/250), byte(l.part%250+1)
	return [4]byte{127, 1, x, y}, [4]byte{127, 2, x, y}
}

// open opens the share of one process and holds it until standard input ends.
func (l load) open() error {
	limit := unix.Rlimit{Cur: maxFiles, Max: maxFiles}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	client, server := l.addresses()
	listener, err := l.listen(server)
	if err != nil {
		return fmt.Errorf("listen on %v: %w", server, err)
	}
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll_create: %w", err)
	}
	watch := func(fd int) error {
		if !l.epoll {
			return nil
		}
		return unix.EpollCtl(set, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	}
	orders := bufio.NewScanner(os.Stdin)
	fmt.Println("listening")
	if !orders.Scan() {
		return nil
	}

	// Accepted connections are held until the end, or as long as their client.
	var accepted sync.WaitGroup
	accepted.Go(func() {
		for {
			fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			if err != nil {
				return // the listener was shut down
			}
			if err := watch(fd); err != nil {
				fmt.Fprintln(os.Stderr, "sockets:", err)
			}
			if l.timeWait {
				// The client closes first, and so has the TIME_WAIT.
				_, _ = unix.Read(fd, make([]byte, 1))
				_ = unix.Close(fd)
			}
		}
	})
	for i := range l.count {
		fd, err := l.connect(client, server, firstPort+i)
		if err != nil {
			return fmt.Errorf("connection %d of %d: %w", i, l.count, err)
		}
		if err := watch(fd); err != nil {
			return fmt.Errorf("epoll_ctl: %w", err)
		}
		if l.timeWait {
			_ = unix.Close(fd)
		} else if l.unread > 0 && i%100 == 0 {
			if _, err := unix.Write(fd, make([]byte, l.unread)); err != nil {
				return fmt.Errorf("write to connection %d: %w", i, err)
			}
		}
	}
	fmt.Println("holding")
	for orders.Scan() {
	}
	_ = unix.Shutdown(listener, unix.SHUT_RDWR)
	accepted.Wait()
	return nil // the kernel closes the rest: with resets, because lingering is disabled
}

func (l load) listen(server [4]byte) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// With --outbound, every process listens on the same address.
	option := unix.SO_REUSEADDR
	if l.outbound {
		option = unix.SO_REUSEPORT
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, 1); err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: server, Port: serverPort}); err != nil {
		return -1, err
	}
	return fd, unix.Listen(fd, 4096)
}

func (l load) connect(client, server [4]byte, port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if l.outbound {
		// Only the address, and the port when the destination is known.
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return -1, err
		}
		port = 0
	}
	if !l.timeWait {
		linger := unix.Linger{Onoff: 1, Linger: 0}
		if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &linger); err != nil {
			return -1, err
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: client, Port: port}); err != nil {
		return -1, fmt.Errorf("bind: %w", err)
	}
	for {
		err := unix.Connect(fd, &unix.SockaddrInet4{Addr: server, Port: serverPort})
		if errors.Is(err, unix.EAGAIN) {
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			return -1, fmt.Errorf("connect: %w", err)
		}
		return fd, nil
	}
}
