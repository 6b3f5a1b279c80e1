// Command soak runs the exporter for a long time on a host where everything is created
// and ended all the time, and looks for what grows:
//
//	go run ./bench/soak --time=1h
//
// Every collector is enabled, and every scrape walks again. Connections are opened and
// closed, some held for a while; listeners are opened and closed; processes start and
// end; pages are fetched every second over one connection and some over new ones. What
// the exporter holds is printed at every --every, and at the end the first, the last and
// the largest value of each. It exits with 1 if the median of the last quarter exceeds
// that of the first by more than the bounds that it prints, if a page could not be
// fetched, or if a collector failed every time.
//
// It needs root: all sockets are in a separate network namespace. What the kernel has
// only for its initial network namespace (tcp_mem, neighbours, the backlog of received
// packets) is not read there.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/exporter"
	"github.com/sockpressure/sockpressure_exporter/bench/internal/namespaces"
	"github.com/sockpressure/sockpressure_exporter/collector"
)

// warmUp is how long the load runs before the first sample: buffers grow, and the number
// of connections in TIME_WAIT becomes steady.
const warmUp = 70 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) (err error) {
	flags := flag.NewFlagSet("soak", flag.ExitOnError)
	lasts := flags.Duration("time", time.Hour, "how long, after a warm-up of "+warmUp.String())
	every := flags.Duration("every", time.Minute, "how long from one sample to the next")
	program := flags.String("program", "", "path of the exporter, to be built if empty")
	_ = flags.Parse(args) // exits by itself
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *every <= 0 || *lasts < 8**every {
		return errors.New("--time is less than eight times --every: a quarter would be of one sample")
	}
	if namespaces.Inside() {
		return soak(ctx, *program, *lasts, *every, stdout)
	}
	return exporter.Apart(ctx, *program, args)
}

// sample is what the exporter holds at one time.
type sample struct {
	exporter.Held
	goroutines int
}

// soak loads and samples the exporter, and returns an error for what grew.
func soak(ctx context.Context, program string, lasts, every time.Duration, out io.Writer) (err error) {
	if err := exporter.PrepareApart(); err != nil {
		return err
	}
	machine, err := exporter.Machine()
	if err != nil {
		return err
	}
	flags := []string{"--collector.max-cpu=0"}
	for _, spec := range collector.Specs() {
		flags = append(flags, "--collector."+spec.Name)
	}
	e, err := exporter.Start(ctx, program, flags...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Stop()) }()

	fmt.Fprintf(out, "%v after %v of warm-up, a sample every %v; %s; %s\n\n", lasts, warmUp, every, machine, strings.Join(flags, " "))
	loadCtx, stop := context.WithCancel(ctx)
	defer stop()
	load, err := startLoad(loadCtx)
	if err != nil {
		return err
	}
	scrapes := startScrapes(loadCtx, e)
	samples, err := watch(ctx, e, lasts, every, out)
	stop()
	load.Wait()
	scrapes.Wait()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nMeanwhile: %s.\n", load)
	fmt.Fprintf(out, "Pages: %s.\n\n", scrapes)
	return errors.Join(judge(samples, out), scrapes.err())
}

// watch prints and returns samples.
func watch(ctx context.Context, e *exporter.Exporter, lasts, every time.Duration, out io.Writer) ([]sample, error) {
	if err := wait(ctx, warmUp); err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "%8s %10s %12s %8s %11s\n", "time", "memory kB", "descriptors", "threads", "goroutines")
	var samples []sample
	began := time.Now()
	for next := began; !next.After(began.Add(lasts)); next = next.Add(every) {
		if err := wait(ctx, time.Until(next)); err != nil {
			return nil, err
		}
		s, err := take(ctx, e)
		if err != nil {
			return nil, err
		}
		samples = append(samples, s)
		fmt.Fprintf(out, "%8s %10d %12d %8d %11d\n", next.Sub(began), s.Memory>>10, s.Descriptors, s.Threads, s.goroutines)
	}
	return samples, nil
}

func take(ctx context.Context, e *exporter.Exporter) (sample, error) {
	page, _, err := e.Scrape(ctx, "?collect[]=filefd")
	if err != nil {
		return sample{}, err
	}
	text, err := exporter.Unpack(bytes.NewReader(page))
	if err != nil {
		return sample{}, err
	}
	_, value, found := strings.Cut(string(text), "\ngo_goroutines ")
	if !found {
		return sample{}, errors.New("the page has no go_goroutines")
	}
	value, _, _ = strings.Cut(value, "\n")
	goroutines, err := strconv.ParseFloat(value, 64)
	if err != nil {
		return sample{}, fmt.Errorf("go_goroutines: %w", err)
	}
	held, err := e.Held()
	return sample{held, int(goroutines)}, err
}

// judge prints the first, the last and the largest value of each resource, and returns an
// error for each that grew beyond its bound.
func judge(samples []sample, out io.Writer) error {
	var errs []error
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tfirst\tlast\tmaximum\tfirst quarter\tlast quarter\tmay grow by\t")
	for _, row := range []struct {
		what  string
		of    func(sample) int
		bound int
	}{
		// Garbage makes memory vary by a megabyte or two. The runtime starts a thread if
		// all others are in system calls, and keeps it.
		{"memory kB", func(s sample) int { return s.Memory >> 10 }, 3 << 10},
		{"descriptors", func(s sample) int { return s.Descriptors }, 4},
		{"threads", func(s sample) int { return s.Threads }, 4},
		{"goroutines", func(s sample) int { return s.goroutines }, 8},
	} {
		values := make([]int, len(samples))
		for i, s := range samples {
			values[i] = row.of(s)
		}
		quarter := len(values) / 4
		before, after := median(values[:quarter]), median(values[len(values)-quarter:])
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t\n", row.what, values[0], values[len(values)-1], slices.Max(values), before, after, row.bound)
		if after-before > row.bound {
			errs = append(errs, fmt.Errorf("%s grew from %d to %d, by more than %d", row.what, before, after, row.bound))
		}
	}
	return errors.Join(append(errs, w.Flush())...)
}

func median(values []int) int {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// wait waits for the given time, or until the context ends, and returns the context's
// error then.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
