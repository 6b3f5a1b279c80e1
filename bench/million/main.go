// Command million holds 1,024,000 TCP connections in a separate network namespace, and
// prints in Markdown the numbers of docs/million.md: the memory that they take and that
// plan predicted, what the kernel counts, and how long programs that read them take:
//
//	go run ./bench/million
//
// With --settings it instead tries settings of tuning lists that each network namespace
// has separately.
//
// It needs root and some 10 GB of memory that nothing else uses in the meantime. No
// sysctl of the machine is changed, and nothing is left behind.
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/exporter"
	"github.com/sockpressure/sockpressure_exporter/bench/internal/namespaces"
)

// perProcess is how many connections bench/sockets has in each of its processes, each
// with its own source address and destination.
const perProcess = 9900

// entry is the size of a directory entry (struct dentry).
const entry = 192

// spare is how much memory must be available in addition to what plan says, in bytes.
const spare = 4 << 30

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "million:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	connections, runs int
	predicted         float64 // kernel memory by plan, in bytes
	dir               string  // of the programs
}

func run(ctx context.Context, args []string) (err error) {
	var o options
	flags := flag.NewFlagSet("million", flag.ExitOnError)
	flags.IntVar(&o.connections, "connections", 1_024_000, "connections to hold")
	flags.IntVar(&o.runs, "runs", 3, "runs of each program, of which the median counts")
	settings := flags.Bool("settings", false, "try settings instead")
	nodeExporter := flags.String("node-exporter", "", "path of node_exporter, to be installed if empty")
	flags.StringVar(&o.dir, "programs", "", "folder of the built programs (used by the program itself)")
	flags.Float64Var(&o.predicted, "predicted", 0, "what plan said (used by the program itself)")
	_ = flags.Parse(args) // exits by itself
	if o.connections < 1 || o.runs < 1 || flags.NArg() > 0 {
		return errors.New("--connections or --runs is below 1, or there are arguments")
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make namespaces")
	}
	if namespaces.Inside() {
		if err := namespaces.Prepare(); err != nil {
			return err
		}
		if *settings {
			return trySettings(ctx, os.Stdout)
		}
		return o.measure(ctx, os.Stdout)
	}
	if *settings {
		return namespaces.Run(ctx, unix.CLONE_NEWPID, args...)
	}

	o.dir, err = os.MkdirTemp("", "million-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	for name, pkg := range map[string]string{"sockpressure_exporter": "", "sockets": "/bench/sockets"} {
		if err := exporter.GoTool(ctx, o.dir, "build", "-o", filepath.Join(o.dir, name), exporter.Ours+pkg); err != nil {
			return err
		}
	}
	if *nodeExporter == "" {
		err = exporter.GoTool(ctx, o.dir, "install", exporter.Theirs+"@latest")
	} else {
		err = os.Symlink(*nodeExporter, filepath.Join(o.dir, "node_exporter"))
	}
	if err != nil {
		return err
	}
	if err := o.plan(ctx, os.Stdout); err != nil {
		return err
	}
	return namespaces.Run(ctx, unix.CLONE_NEWPID, append(args, "--programs="+o.dir, fmt.Sprintf("--predicted=%.0f", o.predicted))...)
}

// plan asks the exporter what the machine needs, and checks whether that much memory is
// available.
func (o *options) plan(ctx context.Context, out io.Writer) error {
	processes := (o.connections + perProcess - 1) / perProcess
	args := []string{"plan", fmt.Sprintf("--connections=%d", o.connections), "--loopback", fmt.Sprintf("--destinations=%d", processes), fmt.Sprintf("--processes=%d", processes)}
	program := filepath.Join(o.dir, "sockpressure_exporter")
	table, err := planned(ctx, program, args...)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "`%s`:\n\n```\n%s```\n\n", strings.Join(args, " "), table)
	text, err := planned(ctx, program, append(args, "--format=json")...)
	if err != nil {
		return err
	}
	var doc struct {
		MemoryBytes struct{ Kernel float64 } `json:"memory_bytes"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return err
	}
	o.predicted = doc.MemoryBytes.Kernel
	info, err := meminfo()
	if err != nil {
		return err
	}
	if info["MemAvailable"] < o.predicted+spare {
		return fmt.Errorf("only %s of memory are available, and plan says %s", gib(info["MemAvailable"]), gib(o.predicted))
	}
	return nil
}

// planned returns what plan prints. Its exit status is its verdict.
func planned(ctx context.Context, program string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, program, args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() <= 2 {
		err = nil
	}
	return out, err
}

// state is what the kernel counts.
type state struct {
	meminfo          map[string]float64
	sockstat, fileNr string
	slabs            map[string]slab
}

// slab is what a slab cache of the kernel holds.
type slab struct{ objects, bytes float64 }

func readState() (s state, err error) {
	if s.meminfo, err = meminfo(); err != nil {
		return s, err
	}
	for _, f := range []struct {
		path string
		into *string
	}{{"/proc/net/sockstat", &s.sockstat}, {"/proc/sys/fs/file-nr", &s.fileNr}} {
		b, err := os.ReadFile(f.path)
		if err != nil {
			return s, err
		}
		*f.into = strings.TrimSpace(string(b))
	}
	b, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return s, err
	}
	s.slabs = map[string]slab{}
	for line := range strings.Lines(string(b)) {
		var name string
		var active, objects, size, perSlab, pages, limit, batch, shared, activeSlabs, slabs float64
		// As its second line names them.
		if n, _ := fmt.Sscanf(line, "%s %g %g %g %g %g : tunables %g %g %g : slabdata %g %g", &name, &active, &objects, &size, &perSlab, &pages, &limit, &batch, &shared, &activeSlabs, &slabs); n == 11 {
			s.slabs[name] = slab{objects, slabs * pages * float64(os.Getpagesize())}
		}
	}
	return s, nil
}

// meminfo returns /proc/meminfo in bytes.
func meminfo() (map[string]float64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	info := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		if f := strings.Fields(rest); len(f) == 2 {
			n, err := strconv.ParseFloat(f[0], 64)
			if err != nil {
				return nil, fmt.Errorf("/proc/meminfo: %w", err)
			}
			info[name] = n * 1024
		}
	}
	return info, nil
}

// taken returns the memory that is neither free nor page cache nor a program's.
func (s state) taken() float64 {
	return s.meminfo["MemTotal"] - s.meminfo["MemFree"] - s.meminfo["Buffers"] - s.meminfo["Cached"] - s.meminfo["AnonPages"]
}

func gib(v float64) string { return fmt.Sprintf("%.2f GiB", v/(1<<30)) }

// measure holds the connections and measures.
func (o *options) measure(ctx context.Context, out io.Writer) (err error) {
	machine, err := exporter.Machine()
	if err != nil {
		return err
	}
	before, err := readState()
	if err != nil {
		return err
	}
	began := time.Now()
	cmd := exec.CommandContext(ctx, filepath.Join(o.dir, "sockets"), fmt.Sprintf("--connections=%d", o.connections), "--epoll")
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() { _ = stdin.Close(); err = errors.Join(err, cmd.Wait()) }()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || !strings.HasPrefix(line, "holding") {
		return fmt.Errorf("sockets: it said %q (%w)", line, err)
	}
	took := time.Since(began)
	programs, err := resident("sockets")
	if err != nil {
		return err
	}
	after, err := readState()
	if err != nil {
		return err
	}

	n := float64(o.connections)
	fmt.Fprintf(out, "`go run ./bench/million`: %s. %d connections were opened in %.0f s.\n\n", machine, o.connections, took.Seconds())
	fmt.Fprintln(out, "| memory | before | after | difference | a connection |\n|---|---:|---:|---:|---:|")
	row := func(what string, a, b float64) {
		fmt.Fprintf(out, "| %s | %s | %s | %s | %.0f bytes |\n", what, gib(a), gib(b), gib(b-a), (b-a)/n)
	}
	for _, name := range []string{"MemFree", "MemAvailable", "SReclaimable", "SUnreclaim", "Percpu", "PageTables"} {
		row(name, before.meminfo[name], after.meminfo[name])
	}
	caches := slices.SortedFunc(maps.Keys(after.slabs), func(a, b string) int {
		return cmp.Compare(after.slabs[b].bytes-before.slabs[b].bytes, after.slabs[a].bytes-before.slabs[a].bytes)
	})
	for _, cache := range caches[:12] {
		row("cache "+cache, before.slabs[cache].bytes, after.slabs[cache].bytes)
	}
	row("neither free nor page cache nor a program's", before.taken(), after.taken())
	row("the programs, resident", 0, programs)
	// Reading /proc/PID/fd leaves an inode and a directory entry for each descriptor,
	// until memory is needed.
	looked := (after.slabs["proc_inode_cache"].bytes - before.slabs["proc_inode_cache"].bytes) +
		(after.slabs["proc_inode_cache"].objects-before.slabs["proc_inode_cache"].objects)*entry
	kernel := after.taken() - before.taken() - looked
	fmt.Fprintf(out, "\nWithout %s that were left by programs that looked through /proc, that is %s, %.0f bytes for each connection of two sockets; plan said %s (%+.1f %%).\n",
		gib(looked), gib(kernel), kernel/n, gib(o.predicted), 100*(o.predicted/kernel-1))
	fmt.Fprintf(out, "\nBefore and after:\n\n```\n%s\nfile-nr %s\n\n%s\nfile-nr %s\n```\n\n", before.sockstat, before.fileNr, after.sockstat, after.fileNr)
	return o.look(ctx, out)
}

// resident returns the memory of the processes with the given name, in bytes.
func resident(name string) (float64, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for _, dir := range dirs {
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil || strings.TrimSpace(string(comm)) != name {
			continue
		}
		b, err := os.ReadFile(dir + "/smaps_rollup")
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(b)) {
			// Only private memory: the rest is page cache.
			if f := strings.Fields(line); len(f) == 3 && strings.HasPrefix(f[0], "Private_") {
				n, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					return 0, err
				}
				sum += n * 1024
			}
		}
	}
	return sum, nil
}

// look measures programs that read the connections.
func (o *options) look(ctx context.Context, out io.Writer) error {
	fmt.Fprintln(out, "| what looks | wall, s | CPU, s | peak memory, MB |\n|---|---:|---:|---:|")
	for _, command := range [][]string{
		{"ss", "-s"}, {"ss", "-Htan"}, {"netstat", "-tan"}, {"cat", "/proc/net/tcp"}, {"cat", "/proc/net/sockstat"},
	} {
		var walls, cpus []float64
		peak := int64(0)
		for range o.runs {
			cmd := exec.CommandContext(ctx, command[0], command[1:]...)
			began := time.Now()
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%v: %w", command, err)
			}
			walls = append(walls, time.Since(began).Seconds())
			cpus = append(cpus, (cmd.ProcessState.SystemTime() + cmd.ProcessState.UserTime()).Seconds())
			peak = max(peak, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) //nolint:forcetypeassert // it is, on Linux
		}
		fmt.Fprintf(out, "| `%s` | %.2f | %.2f | %.1f |\n", strings.Join(command, " "), median(walls), median(cpus), float64(peak)*1024/1e6)
	}
	for _, e := range []struct {
		what, program string
		args          []string
	}{
		{"node_exporter, with its defaults", "node_exporter", nil},
		{"node_exporter, tcpstat alone", "node_exporter", []string{"--collector.disable-defaults", "--collector.tcpstat"}},
		{"this exporter, every walk fresh", "sockpressure_exporter", []string{"--collector.max-cpu=0", "--collector.sample-interval=0s"}},
		{"this exporter, with its defaults", "sockpressure_exporter", nil},
	} {
		if err := o.scrape(ctx, out, e.what, e.program, e.args); err != nil {
			return err
		}
	}
	return nil
}

// scrape measures scrapes of an exporter.
func (o *options) scrape(ctx context.Context, out io.Writer, what, program string, args []string) (err error) {
	e, err := exporter.Start(ctx, filepath.Join(o.dir, program), args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Stop()) }()
	var walls, cpus []float64
	for range o.runs {
		before, err := e.CPU()
		if err != nil {
			return err
		}
		_, took, err := e.Scrape(ctx, "")
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		after, err := e.CPU()
		if err != nil {
			return err
		}
		walls, cpus = append(walls, took.Seconds()), append(cpus, after.Since(before).Sum().Seconds())
	}
	memory, err := e.PeakMemory()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "| %s | %.2f | %.2f | %.1f |\n", what, median(walls), median(cpus), float64(memory)/1e6)
	return nil
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}
