// Command who measures how long it takes to find the holders of very many TCP sockets,
// with the command who of this exporter, `ss -tnmp`, and the floor, a program in C that
// asks the kernel for the same and discards the answer. It prints a table in Markdown:
//
//	go run ./bench/who
//
// It needs root, cc, ss, and, for a million connections, some 10 GB of memory. It runs in
// its own namespaces and cgroup, and nothing is left behind.
package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/exporter"
	"github.com/sockpressure/sockpressure_exporter/bench/internal/namespaces"
)

//go:embed floor/floor.c
var floorSource []byte

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "who:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	connections, runs int
	ssTime            time.Duration
	dir               string // of the programs
}

func run(ctx context.Context, args []string) (err error) {
	var o options
	flags := flag.NewFlagSet("who", flag.ExitOnError)
	flags.IntVar(&o.connections, "connections", 1_029_600, "connections to open, of two sockets each")
	flags.IntVar(&o.runs, "runs", 5, "runs of each program, of which the median counts")
	flags.DurationVar(&o.ssTime, "ss-time", 10*time.Minute, "how long ss may take, 0 to leave it out")
	flags.StringVar(&o.dir, "programs", "", "folder of the built programs (used by the program itself)")
	_ = flags.Parse(args) // exits by itself
	if namespaces.Inside() {
		return o.measure(ctx, os.Stdout)
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make namespaces")
	}
	o.dir, err = os.MkdirTemp("", "who-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	for name, pkg := range map[string]string{"sockpressure_exporter": "", "sockets": "/bench/sockets"} {
		if err := exporter.GoTool(ctx, o.dir, "build", "-o", filepath.Join(o.dir, name), exporter.Ours+pkg); err != nil {
			return err
		}
	}
	cc := exec.CommandContext(ctx, "cc", "-O2", "-Wall", "-o", filepath.Join(o.dir, "floor"), "-x", "c", "-")
	cc.Stdin, cc.Stderr = bytes.NewReader(floorSource), os.Stderr
	if err := cc.Run(); err != nil {
		return fmt.Errorf("cc: %w", err)
	}
	return namespaces.Run(ctx, unix.CLONE_NEWPID, append(args, "--programs="+o.dir)...)
}

// cost is the medians of several runs of one program.
type cost struct {
	what      string
	wall, cpu []time.Duration
	memory    int64 // peak resident, bytes
}

func (o *options) measure(ctx context.Context, out io.Writer) (err error) {
	if err := namespaces.Prepare(); err != nil {
		return err
	}
	machine, err := exporter.Machine()
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "Opening %d connections\n", o.connections)
	release, err := o.hold(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()

	fmt.Fprintln(os.Stderr, "Measuring")
	who := filepath.Join(o.dir, "sockpressure_exporter")
	commands := []struct {
		what string
		args []string
	}{
		{"the floor", []string{filepath.Join(o.dir, "floor")}},
		{"`who tcp_memory`", []string{who, "who", "tcp_memory"}},
		{"`who tcp_memory --by=process`", []string{who, "who", "tcp_memory", "--by=process"}},
		{"`who tcp_memory --by=listener`", []string{who, "who", "tcp_memory", "--by=listener"}},
		{"`who tcp_memory --by=peer`", []string{who, "who", "tcp_memory", "--by=peer"}},
	}
	rows := make([]cost, len(commands))
	before := kernelMemory()
	for range o.runs { // in turns
		for i, c := range commands {
			rows[i].what = c.what
			if err := rows[i].measure(ctx, c.args); err != nil {
				return err
			}
		}
	}
	var sums [2]struct {
		Count  float64 `json:"count"`
		Memory float64 `json:"memory_bytes"`
	}
	for i, by := range []string{"unit", "process"} {
		b, err := exec.CommandContext(ctx, who, "who", "tcp_memory", "--format=json", "--by="+by).Output()
		if err == nil {
			err = json.Unmarshal(b, &sums[i])
		}
		if err != nil {
			return fmt.Errorf("who --by=%s: %w", by, err)
		}
	}
	after := kernelMemory()
	text, err := exec.CommandContext(ctx, who, "who", "tcp_memory").Output()
	if err != nil {
		return err
	}
	byProcess, err := exec.CommandContext(ctx, who, "who", "tcp_memory", "--by=process", "--top=5").Output()
	if err != nil {
		return err
	}
	if o.ssTime > 0 {
		ss := cost{what: "`ss -tnmp`"}
		limited, cancel := context.WithTimeout(ctx, o.ssTime)
		defer cancel()
		if err := ss.measure(limited, []string{"ss", "-tnmpH"}); err != nil && limited.Err() == nil {
			return err
		}
		if limited.Err() != nil {
			ss.what += " (killed)"
		}
		rows = append(rows, ss)
	}

	fmt.Fprintf(out, "`go run ./bench/who`: medians of %d runs in turns, one of ss; %s.\n\n", o.runs, machine)
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprintf(w, "| %s sockets\twall, s\tCPU, s\tagainst the floor\tpeak memory, MB\t\n", strconv.FormatFloat(sums[0].Count, 'f', 0, 64))
	fmt.Fprintln(w, "|---\t---:\t---:\t---:\t---:\t")
	floor := median(rows[0].wall)
	for _, r := range rows {
		wall := median(r.wall)
		fmt.Fprintf(w, "| %s\t%.2f\t%.2f\t%.2f\t%.1f\t\n", r.what, wall.Seconds(), median(r.cpu).Seconds(),
			wall.Seconds()/floor.Seconds(), float64(r.memory)/1e6)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nMemory of all sockets: %.0f bytes by unit and %.0f by process; the kernel counted %d before and %d after.\n",
		sums[0].Memory, sums[1].Memory, before, after)
	fmt.Fprintf(out, "\n```console\n$ sockpressure_exporter who tcp_memory\n%s$ sockpressure_exporter who tcp_memory --by=process --top=5\n%s```\n", text, byProcess)
	return nil
}

// measure runs a command and discards its output. A command that is killed counts too.
func (c *cost) measure(ctx context.Context, args []string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	began := time.Now()
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%v: %w", args, err)
	}
	if cmd.ProcessState == nil {
		return err
	}
	c.wall = append(c.wall, time.Since(began))
	c.cpu = append(c.cpu, cmd.ProcessState.SystemTime()+cmd.ProcessState.UserTime())
	c.memory = max(c.memory, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss<<10) //nolint:forcetypeassert // it is, on Linux
	return err
}

// kernelMemory returns what the kernel counts as TCP memory, in bytes.
func kernelMemory() int {
	b, err := os.ReadFile("/proc/net/sockstat")
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == "TCP:" {
			if i := slices.Index(fields, "mem"); i > 0 && i+1 < len(fields) {
				pages, err := strconv.Atoi(fields[i+1])
				if err == nil {
					return pages * os.Getpagesize()
				}
			}
		}
	}
	return -1
}

// units returns the units that hold the connections, with their shares.
func units() []unit { return []unit{{"api", 0.6}, {"proxy", 0.3}, {"worker", 0.1}} }

type unit struct {
	name  string
	share float64
}

// perProcess is how many connections a process of bench/sockets holds.
const perProcess = 9900

// hold opens the connections and returns a function that closes them. The connections of
// each unit are in a cgroup with the unit's name, if there is a hierarchy of version 2.
func (o *options) hold(ctx context.Context) (release func() error, err error) {
	var releases []func() error
	release = func() (err error) {
		for _, r := range releases {
			err = errors.Join(err, r())
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, release())
		}
	}()
	first := 0
	for _, u := range units() {
		count := int(u.share * float64(o.connections))
		done, err := o.holdUnit(ctx, "bench-"+u.name+".service",
			fmt.Sprintf("--connections=%d", count), fmt.Sprintf("--first=%d", first), "--unread=4096")
		if err != nil {
			return nil, err
		}
		releases = append(releases, done)
		first += (count + perProcess - 1) / perProcess
	}
	return release, nil
}

func (o *options) holdUnit(ctx context.Context, name string, args ...string) (release func() error, err error) {
	cmd := exec.CommandContext(ctx, filepath.Join(o.dir, "sockets"), args...)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cgroup := unitCgroup(name)
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "holding") {
		return nil, errors.Join(fmt.Errorf("sockets: it said %q", line), cmd.Wait())
	}
	return func() error {
		_ = stdin.Close()
		err := cmd.Wait()
		if cgroup != "" {
			err = errors.Join(err, os.Remove(cgroup))
		}
		return err
	}, nil
}

// unitCgroup creates a cgroup and returns its folder, or "" if that fails.
func unitCgroup(name string) string {
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(root, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			cgroup := filepath.Join(root, name)
			if err := os.Mkdir(cgroup, 0o755); err == nil || errors.Is(err, os.ErrExist) {
				return cgroup
			}
		}
	}
	return ""
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
