package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/kmsg"
	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// forged returns what a program writes to imitate the kernel: a line for each message,
// word for word, and what the kernel turns into records in other ways.
func forged() []string {
	lines := []string{
		"nf_conntrack: nf_conntrack: table full, dropping packet",
		"nf_conntrack: nf_conntrack: table full in netns 4026532265, dropping packet",
		"nf_conntrack: nf_conntrack: expectation table full",
		"TCP: out of memory -- consider tuning tcp_mem",
		"TCP: too many orphaned sockets",
		"TCP: time wait bucket table overflow",
		"TCP: request_sock_TCP: Possible SYN flooding on port 127.0.0.1:443. Sending cookies.",
		"VFS: file-max limit 1240 reached",
		"neighbour: arp_cache: neighbor table overflow!",
		"neighbour: ndisc_cache: neighbor table overflow!",
		"Out of memory: Killed process 77 (init) total-vm:4096kB, anon-rss:4kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:44kB oom_score_adj:0",
		"Memory cgroup out of memory: Killed process 77 (init) total-vm:4096kB, anon-rss:4kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:44kB oom_score_adj:0",
		"init: page allocation failure: order:4, mode:0x40cc0(GFP_KERNEL|__GFP_COMP), nodemask=(null)",
		"SLUB: Unable to allocate memory on CPU 0 (of node 0) on node -1, gfp=0x820(GFP_ATOMIC)",
		"init: vmalloc error: size 8192, page order 0, failed to allocate pages, mode:0xcc2",
		"INFO: task init:1 blocked for more than 120 seconds.",
	}
	var all []string
	for _, line := range lines {
		// With levels of the kernel, and with a facility that has none of its bits.
		for _, level := range []string{"", "<0>", "<4>", "<2052>"} {
			all = append(all, level+line)
		}
		all = append(all, "more than a line\n<4>[    1.000000] "+line)
	}
	return all
}

// forgeEvery is the number of steps from one in which lines are forged to the next.
const forgeEvery = 8

// logForged writes lines of the kernel into its log while connections fill a table, so
// that the kernel also writes such a line itself.
func logForged(*guest) (*load, error) {
	if err := setAll("net/netfilter/nf_conntrack_max", strconv.Itoa(entries), "kernel/printk_devkmsg", "on\n"); err != nil {
		return nil, err
	}
	l, err := tracked()
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(kmsg.Path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: kmsg.Path, Err: err}
	}
	// The kernel logs what is written to it, prefixed with "[U] ".
	tty, err := os.OpenFile("/dev/ttyprintk", os.O_WRONLY, 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	step := l.step
	l.step = func(n int) (string, error) {
		for _, line := range forged() {
			if n%forgeEvery != 0 {
				break
			}
			if err := forge(fd, line); err != nil {
				return "", err
			}
			if tty == nil || strings.HasPrefix(line, "<") {
				continue
			}
			if _, err := fmt.Fprintln(tty, line); err != nil {
				return "", err
			}
		}
		return step(n)
	}
	return l, nil
}

// forge writes a line into the log, and requires that it is there as a program's.
func forge(fd int, line string) error {
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		return os.NewSyscallError("seek", err)
	}
	if _, err := unix.Write(fd, []byte(line+"\n")); err != nil {
		return &os.PathError{Op: "write", Path: kmsg.Path, Err: err}
	}
	text := line
	if level, rest, ok := strings.Cut(line, ">"); ok && strings.HasPrefix(level, "<") {
		text = rest
	}
	text = strings.ReplaceAll(text, "\n", `\x0a`)
	for b := make([]byte, 8192); ; {
		r, err := nextRecord(fd, b)
		if err != nil {
			return fmt.Errorf("%q is not in the log: %w", line, err)
		}
		if string(r.Text) != text {
			continue // the kernel wrote something in the meantime
		}
		if r.Facility == 0 {
			return fmt.Errorf("%q has the facility of the kernel", line)
		}
		return nil
	}
}

// flooder returns a function that writes records into the kernel's log as fast as it can,
// for the given number of milliseconds per step: its own records or, by the magic key
// that shows memory, the kernel's.
func flooder(kind string, each int) (func() (string, error), error) {
	path, text := kmsg.Path, "a program has a lot to say, and says it again and again\n"
	if kind == workSysrq {
		path, text = "/proc/sysrq-trigger", "m"
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return func() (string, error) {
		for end := time.Now().Add(time.Duration(each) * time.Millisecond); time.Now().Before(end); {
			for range 100 {
				if _, err := unix.Write(fd, []byte(text)); err != nil {
					return "", &os.PathError{Op: "write", Path: path, Err: err}
				}
			}
		}
		return "", nil
	}, nil
}

// logFlood floods the kernel's log once a table is full.
func logFlood(g *guest) (*load, error) {
	err := setAll(
		"net/netfilter/nf_conntrack_max", strconv.Itoa(entries), "kernel/printk_devkmsg", "on\n",
		// The kernel then logs each packet that it drops.
		"net/core/message_cost", "0",
	)
	if err != nil {
		return nil, err
	}
	l, err := tracked()
	if err != nil {
		return nil, err
	}
	step := l.step
	l.step = func(n int) (string, error) {
		refused, err := step(n)
		if err != nil || refused == "" || g.floods != nil {
			return refused, err
		}
		const calm, flood = 10 * time.Second, 20 * time.Second
		rest, err := g.exporterShare(func() error { time.Sleep(calm); return nil })
		if err != nil {
			return "", err
		}
		for _, kind := range []string{workLog, workSysrq} {
			f, err := g.flood(kind, flood)
			if err != nil {
				return "", fmt.Errorf("a flood by %s: %w", kind, err)
			}
			f.Rest = rest
			g.floods = append(g.floods, f)
		}
		return refused, nil
	}
	return l, nil
}

// flood makes a worker write into the log, and has packets dropped in the meantime.
func (g *guest) flood(kind string, lasts time.Duration) (f scenario.Flood, err error) {
	w, err := newWorker(kind, int(lasts.Milliseconds()), 0, 0)
	if err != nil {
		return f, err
	}
	before, err := g.counters()
	if err != nil {
		return f, err
	}
	first, err := sequence()
	if err != nil {
		return f, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	sent := make(chan error, 1)
	go func() { sent <- dropPackets(ctx, -1) }()
	began := time.Now()
	f.Share, err = g.exporterShare(func() error { _, err := w.step(); return err })
	f.Seconds = time.Since(began).Seconds()
	cancel()
	if err := errors.Join(err, <-sent, w.stop()); err != nil {
		return f, err
	}
	last, err := sequence()
	if err != nil {
		return f, err
	}
	if err := g.log.skip(); err != nil {
		return f, err
	}
	flooded, err := g.counters()
	if err != nil {
		return f, err
	}
	if err := g.counts(50); err != nil {
		return f, err
	}
	after, err := g.counters()
	f.Writer, f.Records = kind, float64(last-first)
	f.Lost = after.lost - before.lost
	f.Logged = flooded.dropped - before.dropped
	f.Counted = after.counted - before.counted - (after.dropped - flooded.dropped)
	return f, err
}

// counts has packets dropped, and requires that the same number of lines is counted. It
// retries, because earlier records may still be being read when it begins.
func (g *guest) counts(packets int) error {
	for end := time.Now().Add(2 * fresh); ; {
		before, err := g.counters()
		if err != nil {
			return err
		}
		if err := dropPackets(context.Background(), packets); err != nil {
			return err
		}
		time.Sleep(2 * time.Second)
		after, err := g.counters()
		if err != nil {
			return err
		}
		dropped, counted := after.dropped-before.dropped, after.counted-before.counted
		if dropped == counted && after.lost == before.lost {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%v packets were dropped after the flood, and %v lines about it counted", dropped, counted)
		}
	}
}

// counters are the exporter's counters of the log.
type counters struct{ lost, dropped, counted float64 }

func (g *guest) counters() (counters, error) {
	text, err := g.metrics()
	if err != nil {
		return counters{}, err
	}
	page, err := parsePage(text)
	return counters{
		lost:    page["sockpressure_kernel_messages_lost_total"],
		dropped: page["sockpressure_conntrack_drops_total"],
		counted: page[messagesSeries("conntrack_table_full")],
	}, err
}

// exporterShare returns the share of a processor that the exporter uses while do runs.
func (g *guest) exporterShare(do func() error) (float64, error) {
	p, err := procfs.NewProc(g.exporter.Process.Pid)
	if err != nil {
		return 0, err
	}
	before, err := p.Stat()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := do(); err != nil {
		return 0, err
	}
	after, err := p.Stat()
	return (after.CPUTime() - before.CPUTime()) / time.Since(began).Seconds(), err
}

// sequence returns the sequence number of a record that it writes.
func sequence() (uint64, error) {
	fd, err := unix.Open(kmsg.Path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: kmsg.Path, Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		return 0, os.NewSyscallError("seek", err)
	}
	if _, err := unix.Write(fd, []byte("where is the end?\n")); err != nil {
		return 0, &os.PathError{Op: "write", Path: kmsg.Path, Err: err}
	}
	r, err := nextRecord(fd, make([]byte, 8192))
	return r.Sequence, err
}

// dropPackets sends packets of new flows, for which the full table has no room: the given
// number, or a hundred per second until ctx ends.
func dropPackets(ctx context.Context, packets int) error {
	for n := 0; n != packets && ctx.Err() == nil; n++ {
		fd, err := socket(unix.SOCK_DGRAM, loopback(0))
		if err != nil {
			return err
		}
		err = unix.Sendto(fd, []byte("x"), 0, sockaddr(loopback(portDropped)))
		unix.Close(fd)
		if !errors.Is(err, unix.EPERM) {
			return errors.Join(errors.New("a packet of a new flow was not dropped"), err)
		}
		if packets < 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}
