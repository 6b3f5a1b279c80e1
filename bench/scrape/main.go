// Command scrape measures the cost of a scrape of this exporter and, side by side, of the
// collectors of node_exporter that read the same from the kernel. It prints the result as
// a Markdown table:
//
//	go run ./bench/scrape
package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/prometheus/procfs"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/exporter"
)

// warmUp is the number of scrapes before those that count: files are opened, buffers
// grow, and the garbage collector adapts.
const warmUp = 20

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "scrape:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("scrape", flag.ExitOnError)
	scrapes := flags.Int("scrapes", 1000, "scrapes of each exporter")
	interval := flags.Duration("interval", 0, "pause before each round of scrapes")
	processes := flags.Int("processes", 0, "idle processes to start, for a host that runs more than this one")
	without := flags.String("without", "", "collectors of node_exporter to leave out, with commas between them")
	oursPath := flags.String("exporter", "", "path of this exporter, to be built if empty")
	theirsPath := flags.String("node-exporter", "", "path of node_exporter, to be installed if empty")
	_ = flags.Parse(args) // exits by itself
	if *scrapes < 1 || flags.NArg() > 0 {
		return errors.New("--scrapes is below 1, or there are arguments")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	dir, err := os.MkdirTemp("", "scrape-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if *oursPath == "" {
		*oursPath = filepath.Join(dir, "sockpressure_exporter")
		if err := exporter.GoTool(ctx, dir, "build", "-o", *oursPath, exporter.Ours); err != nil {
			return err
		}
	}
	if *theirsPath == "" {
		*theirsPath = filepath.Join(dir, "node_exporter")
		if err := exporter.GoTool(ctx, dir, "install", exporter.Theirs+"@latest"); err != nil {
			return err
		}
	}

	idle, err := startIdle(ctx, *processes)
	defer func() {
		stop() // ends the idle processes
		for _, p := range idle {
			_ = p.Wait()
		}
	}()
	if err != nil {
		return err
	}
	var all []*measured
	defer func() {
		for _, m := range all {
			err = errors.Join(err, m.Stop())
		}
	}()
	for _, c := range []struct {
		path string
		args []string
	}{
		{*oursPath, []string{"--collector.max-cpu=0"}},
		{*theirsPath, equivalents(strings.Split(*without, ","))},
		{*oursPath, nil},
	} {
		e, err := exporter.Start(ctx, c.path, c.args...)
		if err != nil {
			return err
		}
		all = append(all, &measured{Exporter: e})
	}
	if err := scrapeInTurn(ctx, all, *scrapes, *interval); err != nil {
		return err
	}
	command := strings.Join(append([]string{"go run ./bench/scrape"}, args...), " ")
	return report(out, command, all[0], all[1], all[2])
}

// equivalents returns flags that enable the collectors of node_exporter that read the
// files and sockets that ours read, and no others. It has none for ephemeral ports, for
// accept queues and their limits, and for the descriptors of each process; "processes" walks all processes for their states and threads.
func equivalents(without []string) []string {
	args := []string{"--collector.disable-defaults"}
	for _, name := range []string{
		"arp", "conntrack", "filefd", "meminfo", "netstat", "pressure", "processes",
		"slabinfo", "sockstat", "softnet", "tcpstat", "vmstat", "zoneinfo",
	} {
		if !slices.Contains(without, name) {
			args = append(args, "--collector."+name)
		}
	}
	return args
}

// startIdle starts n processes that do nothing until ctx ends.
func startIdle(ctx context.Context, n int) (started []*exec.Cmd, err error) {
	for range n {
		cmd := exec.CommandContext(ctx, "sleep", "infinity")
		if err := cmd.Start(); err != nil {
			return started, err
		}
		started = append(started, cmd)
	}
	return started, nil
}

// measured is a running exporter and the cost of its scrapes.
type measured struct {
	*exporter.Exporter

	wall []time.Duration
	cpu  exporter.CPU // of all scrapes
	page []byte       // the last one, in gzip
}

// scrapeInTurn scrapes each exporter n times, in turn, so that other activity of the
// machine affects all of them alike.
func scrapeInTurn(ctx context.Context, all []*measured, n int, interval time.Duration) (err error) {
	for i := range warmUp + n {
		if i == warmUp {
			fmt.Fprintln(os.Stderr, "Scraping")
			for _, m := range all {
				m.wall = nil
				if m.cpu, err = m.CPU(); err != nil {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(interval):
		}
		for _, m := range all {
			page, took, err := m.Scrape(ctx, "")
			if err != nil {
				return err
			}
			m.page, m.wall = page, append(m.wall, took)
		}
	}
	for _, m := range all {
		now, err := m.CPU()
		if err != nil {
			return err
		}
		m.cpu = now.Since(m.cpu)
	}
	return nil
}

// result is one column of the table, in the order of its rows.
type result []float64

func (m *measured) result() (result, error) {
	text, err := exporter.Unpack(bytes.NewReader(m.page))
	if err != nil {
		return nil, err
	}
	series := 0
	for line := range bytes.Lines(text) {
		if line[0] != '#' {
			series++
		}
	}
	memory, err := m.PeakMemory()
	if err != nil {
		return nil, err
	}
	binary, err := os.Stat(m.Path)
	if err != nil {
		return nil, err
	}
	n := len(m.wall)
	slices.Sort(m.wall)
	perScrape := func(d time.Duration) float64 { return milliseconds(d) / float64(n) }
	return result{
		perScrape(m.cpu.Sum()),
		perScrape(m.cpu.User),
		perScrape(m.cpu.System),
		milliseconds(m.wall[n/2]),
		float64(series),
		float64(len(text)) / 1e3,
		float64(len(m.page)) / 1e3,
		float64(memory) / 1e6,
		float64(binary.Size()) / 1e6,
	}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// report prints the table and the machine that it was measured on.
func report(out io.Writer, command string, fresh, theirs, budgeted *measured) error {
	var columns [3]result
	for i, m := range []*measured{fresh, theirs, budgeted} {
		var err error
		if columns[i], err = m.result(); err != nil {
			return err
		}
	}
	build, err := buildinfo.ReadFile(theirs.Path)
	if err != nil {
		return err
	}
	machine, err := exporter.Machine()
	if err != nil {
		return err
	}
	processes, err := procfs.AllProcs()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "`%s`: %d scrapes of each in turn, node_exporter %s, %d processes, %s.\n\n",
		command, len(fresh.wall), build.Main.Version, len(processes), machine)

	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprintln(w, "| a scrape\tevery walk fresh\tnode_exporter\tratio\tdefault budget of walks\t")
	fmt.Fprintln(w, "|---\t---:\t---:\t---:\t---:\t")
	for i, row := range []struct {
		name   string
		digits int
	}{
		{"CPU time, ms", 2},
		{"of it user", 2},
		{"of it system", 2},
		{"wall time, median, ms", 2},
		{"series", 0},
		{"page, kB", 1},
		{"page in gzip, kB", 1},
		{"peak memory (VmHWM), MB", 1},
		{"binary, stripped, MB", 1},
	} {
		a, b, c := columns[0][i], columns[1][i], columns[2][i]
		fmt.Fprintf(w, "| %s\t%.*f\t%.*f\t%.2f\t%.*f\t\n", row.name, row.digits, a, row.digits, b, a/b, row.digits, c)
	}
	return w.Flush()
}
