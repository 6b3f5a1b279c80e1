// Command burst measures what the samples between scrapes detect, and what they cost:
//
//	go run ./bench/burst
//
// For each interval of --collector.sample-interval it fills the accept queue of a
// listener --tries times, at a random moment and for --burst, and empties it again before
// the exporter is scraped. Each time it fills the queue a little more than the last time,
// so that saturation_peak_ratio shows whether this burst was seen. Then it stops
// scraping, and prints the CPU time that the exporter used while it remembered a burst,
// when it reads listeners more often, and for --idle after that.
//
// It needs root: all sockets are in a separate network namespace.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/exporter"
	"github.com/sockpressure/sockpressure_exporter/bench/internal/namespaces"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "burst:", err)
		os.Exit(1)
	}
}

// settings are the flags.
type settings struct {
	tries       int
	burst, idle time.Duration
	intervals   []time.Duration
	program     string
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	var s settings
	flags := flag.NewFlagSet("burst", flag.ExitOnError)
	flags.IntVar(&s.tries, "tries", 100, "bursts for each interval, 250 at most")
	flags.DurationVar(&s.burst, "burst", 300*time.Millisecond, "how long the queue stays full")
	flags.DurationVar(&s.idle, "idle", time.Minute, "how long the cost is measured for once bursts are forgotten")
	intervals := flags.String("intervals", "0s,4s,2s,1s,400ms", "values of --collector.sample-interval; after a burst listeners are read four times as often")
	flags.StringVar(&s.program, "program", "", "path of the exporter, to be built if empty")
	_ = flags.Parse(args) // exits by itself
	for text := range strings.SplitSeq(*intervals, ",") {
		d, err := time.ParseDuration(text)
		if err != nil {
			return err
		}
		s.intervals = append(s.intervals, d)
	}
	if flags.NArg() > 0 || s.tries < 1 || s.tries > 250 {
		return errors.New("there are arguments, or --tries is not between 1 and 250")
	}
	if namespaces.Inside() {
		return experiment(ctx, s, out)
	}
	return exporter.Apart(ctx, s.program, args)
}

func experiment(ctx context.Context, s settings, out io.Writer) error {
	if err := exporter.PrepareApart(); err != nil {
		return err
	}
	machine, err := exporter.Machine()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d bursts of %v; %s\n\n", s.tries, s.burst, machine)
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprintln(w, "sample interval\tafter a burst\tbursts seen\tCPU, % of a core, without scrapes\tafter a burst\t")
	fmt.Fprintln(w, "---\t---\t---:\t---:\t---:\t")
	for _, interval := range s.intervals {
		seen, calm, restless, err := try(ctx, s, interval)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%v\t%v\t%d\t%.3f\t%.3f\t\n", interval, interval/4, seen, 100*calm, 100*restless)
	}
	return w.Flush()
}

// remembered is how long a burst stays in the peaks.
const remembered = time.Minute

// try returns how many bursts the exporter saw at an interval, and the share of a core
// that it used while it was not scraped, without bursts and after some.
func try(ctx context.Context, s settings, interval time.Duration) (seen int, calm, restless float64, err error) {
	e, err := exporter.Start(ctx, s.program, "--collector.sample-interval="+interval.String())
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, e.Stop()) }()
	q, err := listen()
	if err != nil {
		return 0, 0, 0, err
	}
	defer q.Close()
	for n := range s.tries {
		time.Sleep(time.Duration(rand.Int64N(int64(time.Second))))
		// This burst is higher than the last one by one part in 250.
		length := (250 - s.tries + n + 1) * backlog / 250
		if err := q.fill(length); err != nil {
			return 0, 0, 0, err
		}
		time.Sleep(s.burst)
		if err := q.empty(); err != nil {
			return 0, 0, 0, err
		}
		peak, err := peak(ctx, e)
		if err != nil {
			return 0, 0, 0, err
		}
		if peak*backlog > float64(length)-0.5 {
			seen++
		}
	}
	if restless, err = ran(e, remembered*9/10); err != nil {
		return 0, 0, 0, err
	}
	time.Sleep(remembered / 5)
	calm, err = ran(e, s.idle)
	return seen, calm, restless, err
}

// ran returns the share of a core that the exporter uses during the given time.
func ran(e *exporter.Exporter, during time.Duration) (float64, error) {
	before, err := e.Ran()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	time.Sleep(during)
	after, err := e.Ran()
	return float64(after-before) / float64(time.Since(began)), err
}

// peak scrapes the peak of the accept queues, 0 if there is none.
func peak(ctx context.Context, e *exporter.Exporter) (float64, error) {
	page, _, err := e.Scrape(ctx, "")
	if err != nil {
		return 0, err
	}
	text, err := exporter.Unpack(bytes.NewReader(page))
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^sockpressure_saturation_peak_ratio\{resource="accept_queue"\} (\S+)$`).FindSubmatch(text)
	if m == nil {
		return 0, nil
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// backlog is the number of waiting connections at which the queue is full.
const backlog = 1000

// queue is a listener that does not accept until it is emptied.
type queue struct {
	fd      int
	address unix.SockaddrInet4
	clients []int
}

func listen() (*queue, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	q := &queue{fd: fd, address: unix.SockaddrInet4{Addr: [4]byte(net.IPv4(127, 0, 0, 1).To4())}}
	if err := errors.Join(unix.Bind(fd, &q.address), unix.Listen(fd, backlog)); err != nil {
		q.Close()
		return nil, err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		q.Close()
		return nil, err
	}
	q.address.Port = name.(*unix.SockaddrInet4).Port
	return q, nil
}

func (q *queue) fill(length int) error {
	for range length {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		q.clients = append(q.clients, fd)
		if err := unix.Connect(fd, &q.address); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
	}
	return nil
}

func (q *queue) empty() error {
	for _, client := range q.clients {
		fd, _, err := unix.Accept4(q.fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		// Closed by reset, so that none stays in TIME_WAIT.
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		_ = unix.Close(fd)
		_ = unix.Close(client)
	}
	q.clients = q.clients[:0]
	return nil
}

// Close closes the listener and its waiting connections.
func (q *queue) Close() {
	_ = unix.Close(q.fd)
	for _, fd := range q.clients {
		_ = unix.Close(fd)
	}
}
