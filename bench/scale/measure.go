package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/exporter"
	"github.com/sockpressure/sockpressure_exporter/bench/internal/namespaces"
)

// budgetRun is how long the exporter is scraped every second with its default budget of
// walks.
const budgetRun = 30 * time.Second

// cost is the medians of several runs of one program.
type cost struct {
	what      string
	wall, cpu time.Duration
	memory    uint64 // peak resident, bytes
}

// measure runs every comparison and prints the tables.
func (o *options) measure(ctx context.Context, command string, out io.Writer) error {
	if err := namespaces.Prepare(); err != nil {
		return err
	}
	if err := namespaces.SetSysctl("net/ipv4/tcp_max_tw_buckets", "2000000"); err != nil {
		return err
	}
	machine, err := exporter.Machine()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "`%s`: medians of %d runs; %s. A connection over loopback is two sockets.\n", command, o.runs, machine)
	var walks []walk
	for _, n := range o.sizes {
		w, err := o.scenario(ctx, out, fmt.Sprintf("%d connections, %d established sockets", n, 2*n), 2*n, fmt.Sprintf("--connections=%d", n))
		if err != nil {
			return fmt.Errorf("%d connections: %w", n, err)
		}
		walks = append(walks, w)
	}
	printGrowth(out, walks)
	if o.timeWait > 0 {
		if _, err := o.scenario(ctx, out, fmt.Sprintf("%d sockets in TIME_WAIT", o.timeWait), o.timeWait, "--time-wait", fmt.Sprintf("--connections=%d", o.timeWait)); err != nil {
			return fmt.Errorf("TIME_WAIT: %w", err)
		}
	}
	if o.outbound > 0 {
		// More than the default range has.
		if err := namespaces.SetSysctl("net/ipv4/ip_local_port_range", "1024 65535"); err != nil {
			return err
		}
		if _, err := o.scenario(ctx, out, fmt.Sprintf("%d outbound connections to one destination", o.outbound), 2*o.outbound, "--outbound", fmt.Sprintf("--connections=%d", o.outbound)); err != nil {
			return fmt.Errorf("outbound: %w", err)
		}
	}
	return nil
}

// walk is how long the walk itself took for a number of sockets.
type walk struct {
	sockets                int
	ours, floor, budgetCPU time.Duration
}

// scenario opens sockets and measures every program on them.
func (o *options) scenario(ctx context.Context, out io.Writer, title string, sockets int, args ...string) (w walk, err error) {
	fmt.Fprintf(os.Stderr, "Opening: %s\n", title)
	held, err := o.hold(ctx, args...)
	if err != nil {
		return w, err
	}
	defer func() { err = errors.Join(err, held.release()) }()

	fmt.Fprintln(os.Stderr, "Measuring")
	before, err := countStates(ctx)
	if err != nil {
		return w, err
	}
	e, err := exporter.Start(ctx, filepath.Join(o.dir, "sockpressure_exporter"), "--collector.max-cpu=0")
	if err != nil {
		return w, err
	}
	defer func() { err = errors.Join(err, e.Stop()) }()
	tcp, err := o.scrapes(ctx, e, "this exporter, TCP states", "?collect[]=tcp")
	if err != nil {
		return w, err
	}
	whole, err := o.scrapes(ctx, e, "this exporter, whole scrape, every walk fresh", "")
	if err != nil {
		return w, err
	}
	if w, err = o.walk(ctx, e, sockets); err != nil {
		return w, err
	}
	states, err := o.compareStates(ctx, e)
	if err != nil {
		return w, err
	}
	ports, err := series(ctx, e, "?collect[]=ports", "sockpressure_ephemeral_ports_used{")
	if err != nil {
		return w, err
	}

	rows := []cost{tcp, whole}
	node, err := exporter.Start(ctx, filepath.Join(o.dir, "node_exporter"), "--collector.disable-defaults", "--collector.tcpstat")
	if err != nil {
		return w, err
	}
	row, err := o.scrapes(ctx, node, "node_exporter tcpstat", "")
	if err := errors.Join(err, node.Stop()); err != nil {
		return w, err
	}
	rows = append(rows, row)
	for _, command := range [][]string{
		{"ss", "-tan"}, {"ss", "-s"}, {"cat", "/proc/net/tcp", "/proc/net/tcp6"}, {filepath.Join(o.dir, "floor"), "--runs=1"},
	} {
		row, err := o.program(ctx, command)
		if err != nil {
			return w, err
		}
		rows = append(rows, row)
	}

	after, err := countStates(ctx)
	if err != nil {
		return w, err
	}
	// Last, because it takes longer than a socket stays in TIME_WAIT.
	if w.budgetCPU, err = o.budget(ctx); err != nil {
		return w, err
	}

	fmt.Fprintf(out, "\n### %s\n\n", title)
	fmt.Fprintf(out, "Before the first measurement %d sockets were established and %d in TIME_WAIT, after the last %d and %d.\n\n",
		before["established"], before["time_wait"], after["established"], after["time_wait"])
	printCosts(out, rows)
	fmt.Fprintf(out, "\nThe walk alone: %.4f s; the floor: %.4f s; ratio %.2f. All eleven states equal to `ss -tan`: %s.\n",
		w.ours.Seconds(), w.floor.Seconds(), w.ours.Seconds()/w.floor.Seconds(), states)
	fmt.Fprintf(out, "With the default budget and a scrape every second for %v: %.2f %% of one core.\n",
		budgetRun, 100*w.budgetCPU.Seconds()/budgetRun.Seconds())
	most, line := -1.0, ""
	for _, p := range ports {
		n, err := strconv.ParseFloat(p[strings.LastIndexByte(p, ' ')+1:], 64)
		if err != nil {
			return w, err
		}
		if n > most {
			most, line = n, p
		}
	}
	fmt.Fprintf(out, "Most ephemeral ports: `%s`.\n", line)
	return w, nil
}

// scrapes measures consecutive scrapes of an exporter.
func (o *options) scrapes(ctx context.Context, e *exporter.Exporter, what, query string) (cost, error) {
	var walls, cpus []time.Duration
	for range o.runs {
		before, err := e.CPU()
		if err != nil {
			return cost{}, err
		}
		_, took, err := e.Scrape(ctx, query)
		if err != nil {
			return cost{}, fmt.Errorf("%s: %w", what, err)
		}
		after, err := e.CPU()
		if err != nil {
			return cost{}, err
		}
		walls, cpus = append(walls, took), append(cpus, after.Since(before).Sum())
	}
	memory, err := e.PeakMemory()
	return cost{what, median(walls), median(cpus), memory}, err
}

// program measures runs of a command.
func (o *options) program(ctx context.Context, command []string) (cost, error) {
	var walls, cpus []time.Duration
	var memory int64
	for range o.runs {
		cmd := exec.CommandContext(ctx, command[0], command[1:]...)
		began := time.Now()
		if err := cmd.Run(); err != nil {
			return cost{}, fmt.Errorf("%v: %w", command, err)
		}
		walls = append(walls, time.Since(began))
		cpus = append(cpus, cmd.ProcessState.SystemTime()+cmd.ProcessState.UserTime())
		memory = max(memory, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) //nolint:forcetypeassert // it is, on Linux
	}
	command[0] = filepath.Base(command[0])
	// The memory charged to a child includes this program's own memory before exec.
	var own syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &own); err != nil {
		return cost{}, err
	}
	if memory <= own.Maxrss {
		memory = 0
	}
	return cost{"`" + strings.Join(command, " ") + "`", median(walls), median(cpus), uint64(memory) << 10}, nil
}

// walk measures the walk itself, without HTTP, and the floor, in turns.
func (o *options) walk(ctx context.Context, e *exporter.Exporter, sockets int) (walk, error) {
	var ours, floor []time.Duration
	for range 2 * o.runs {
		lines, err := series(ctx, e, "?collect[]=tcp", `sockpressure_scrape_collector_duration_seconds{collector="tcp"} `)
		if err != nil {
			return walk{}, err
		}
		took, err := seconds(lines[0])
		if err != nil {
			return walk{}, err
		}
		ours = append(ours, took)
		b, err := exec.CommandContext(ctx, filepath.Join(o.dir, "floor"), "--runs=1").Output()
		if err != nil {
			return walk{}, err
		}
		line, _, _ := strings.Cut(string(b), " s,")
		if took, err = seconds("floor " + line); err != nil {
			return walk{}, err
		}
		floor = append(floor, took)
	}
	return walk{sockets: sockets, ours: median(ours), floor: median(floor)}, nil
}

// series returns the lines of a page that begin with prefix.
func series(ctx context.Context, e *exporter.Exporter, query, prefix string) ([]string, error) {
	page, _, err := e.Scrape(ctx, query)
	if err != nil {
		return nil, err
	}
	text, err := exporter.Unpack(bytes.NewReader(page))
	if err != nil {
		return nil, err
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, prefix) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines, nil
}

// seconds reads the number at the end of a line.
func seconds(line string) (time.Duration, error) {
	s, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
	return time.Duration(s * float64(time.Second)), err
}

// compareStates compares the states that the exporter reports with those that ss lists,
// and tries again if something changed between the two.
func (o *options) compareStates(ctx context.Context, e *exporter.Exporter) (string, error) {
	var differences []string
	for range 3 {
		lines, err := series(ctx, e, "?collect[]=tcp", "sockpressure_tcp_sockets{")
		if err != nil {
			return "", err
		}
		want, err := countStates(ctx)
		if err != nil {
			return "", err
		}
		differences = nil
		for _, line := range lines {
			state, _, _ := strings.Cut(strings.TrimPrefix(line, `sockpressure_tcp_sockets{state="`), `"`)
			got, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			if err != nil {
				return "", err
			}
			if int(got) != want[state] {
				differences = append(differences, fmt.Sprintf("%s is %.0f, not %d", state, got, want[state]))
			}
		}
		if len(lines) != 11 {
			differences = append(differences, fmt.Sprintf("%d states", len(lines)))
		}
		if len(differences) == 0 {
			return "yes", nil
		}
	}
	return "no: " + strings.Join(differences, "; "), nil
}

// countStates counts the sockets that `ss -tan` lists, by the exporter's names of states.
func countStates(ctx context.Context) (map[string]int, error) {
	names := map[string]string{
		"ESTAB": "established", "SYN-SENT": "syn_sent", "SYN-RECV": "syn_recv", "FIN-WAIT-1": "fin_wait1",
		"FIN-WAIT-2": "fin_wait2", "TIME-WAIT": "time_wait", "UNCONN": "close", "CLOSE-WAIT": "close_wait",
		"LAST-ACK": "last_ack", "LISTEN": "listen", "CLOSING": "closing",
	}
	b, err := exec.CommandContext(ctx, "ss", "-tanH").Output()
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for line := range bytes.Lines(b) {
		state, _, _ := bytes.Cut(line, []byte(" "))
		counts[names[string(state)]]++
	}
	return counts, nil
}

// budget scrapes an exporter with default flags every second, and returns the CPU time
// that it used.
func (o *options) budget(ctx context.Context) (used time.Duration, err error) {
	e, err := exporter.Start(ctx, filepath.Join(o.dir, "sockpressure_exporter"))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, e.Stop()) }()
	before, err := e.CPU()
	if err != nil {
		return 0, err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range int(budgetRun / time.Second) {
		<-tick.C
		if _, _, err := e.Scrape(ctx, ""); err != nil {
			return 0, err
		}
	}
	after, err := e.CPU()
	return after.Since(before).Sum(), err
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

func printCosts(out io.Writer, rows []cost) {
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprintln(w, "| \twall, s\tCPU, s\tpeak memory, MB\twall against our TCP states\twall against our whole scrape\t")
	fmt.Fprintln(w, "|---\t---:\t---:\t---:\t---:\t---:\t")
	for _, r := range rows {
		memory := "little"
		if r.memory > 0 {
			memory = fmt.Sprintf("%.1f", float64(r.memory)/1e6)
		}
		fmt.Fprintf(w, "| %s\t%.4f\t%.2f\t%s\t%.1f\t%.1f\t\n", r.what, r.wall.Seconds(), r.cpu.Seconds(), memory,
			r.wall.Seconds()/rows[0].wall.Seconds(), r.wall.Seconds()/rows[1].wall.Seconds())
	}
	_ = w.Flush()
}

// printGrowth prints what each further socket costs, from size to size.
func printGrowth(out io.Writer, walks []walk) {
	fmt.Fprint(out, "\n### Growth\n\n")
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprintln(w, "| sockets\tthe walk, s\tns for each further socket\tCPU with the default budget, s a minute\t")
	fmt.Fprintln(w, "|---:\t---:\t---:\t---:\t")
	for i, k := range walks {
		slope := "-"
		if i > 0 {
			slope = fmt.Sprintf("%.0f", float64(k.ours-walks[i-1].ours)/float64(k.sockets-walks[i-1].sockets))
		}
		fmt.Fprintf(w, "| %d\t%.4f\t%s\t%.2f\t\n", k.sockets, k.ours.Seconds(), slope, k.budgetCPU.Seconds()*60/budgetRun.Seconds())
	}
	_ = w.Flush()
}
