// Command pods measures the cost of reading very many network namespaces, with this
// exporter and with other ways of reading those of pods: the TCP statistics of cAdvisor,
// read by its own functions, and the method of conntrack-stats-exporter. It prints a
// table in Markdown, and what each of them reports for four that fail:
//
//	go run ./bench/pods
//
// It needs root, and the program conntrack. Nothing of the machine is changed. Other
// namespaces of the machine are read too.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
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

	"github.com/prometheus/procfs"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/exporter"
	"github.com/sockpressure/sockpressure_exporter/internal/hostns"
)

// warmUp is the number of rounds before those that count.
const warmUp = 5

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pods:", err)
		os.Exit(1)
	}
}

// readers are what this program does when it starts itself again: it reads namespaces in
// the ways of others.
func readers() map[string]func(process string, show bool) error {
	return map[string]func(string, bool) error{"floor": readFiles, "conntrack": runConntrack}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	if len(args) > 1 {
		if read := readers()[args[0]]; read != nil {
			return serve(args[1:], read)
		}
	}
	flags := flag.NewFlagSet("pods", flag.ExitOnError)
	count := flags.Int("namespaces", 250, "network namespaces, each with a listener and four connections that wait there")
	rounds := flags.Int("rounds", 40, "rounds of each program")
	ours := flags.String("exporter", "", "path of this exporter, to be built if empty")
	_ = flags.Parse(args) // exits by itself
	if *count < 1 || *rounds < 1 || flags.NArg() > 0 {
		return errors.New("--namespaces or --rounds is below 1, or there are arguments")
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make namespaces")
	}
	dir, err := os.MkdirTemp("", "pods-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.Chmod(dir, 0o755); err != nil { // any user may run what is in it
		return err
	}
	load, cadvisor := filepath.Join(dir, "podload"), filepath.Join(dir, "cadvisor")
	if *ours == "" {
		*ours = filepath.Join(dir, "sockpressure_exporter")
		if err := exporter.GoTool(ctx, dir, "build", "-o", *ours, exporter.Ours); err != nil {
			return err
		}
	}
	if err := exporter.GoTool(ctx, dir, "build", "-o", load, exporter.Ours+"/e2e/podload"); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", cadvisor, ".")
	build.Dir = "bench/pods/cadvisor" // a module of its own
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build of cAdvisor's functions, in the root of the repository: %w\n%s", err, out)
	}
	nobody := filepath.Join(dir, "nobody")
	script := fmt.Sprintf("#!/bin/sh\nexec setpriv --reuid=65534 --regid=65534 --clear-groups %s \"$@\"\n", *ours)
	if err := os.WriteFile(nobody, []byte(script), 0o755); err != nil {
		return err
	}

	pods, end, err := startPods(ctx, load, *count)
	defer end()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var all []program
	defer func() {
		for _, p := range all {
			err = errors.Join(err, p.stop())
		}
	}()
	for _, start := range []func() (program, error){
		func() (program, error) {
			return startReader(ctx, "a program that throws the files away", self, append([]string{"floor"}, pods...))
		},
		func() (program, error) { return startExporter(ctx, "this exporter, unprivileged", nobody) },
		func() (program, error) { return startExporter(ctx, "this exporter, entering", *ours) },
		func() (program, error) { return startReader(ctx, "cAdvisor, tcp and advtcp", cadvisor, pods) },
		func() (program, error) {
			return startReader(ctx, "the way of conntrack-stats-exporter", self, append([]string{"conntrack"}, pods...))
		},
	} {
		p, err := start()
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	cpu, err := measure(ctx, all, *rounds)
	if err != nil {
		return err
	}
	machine, err := exporter.Machine()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "`go run ./bench/pods %s`: means of %d rounds in turns, %d namespaces, %s.\n\n", strings.Join(args, " "), *rounds, len(pods), machine)
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprintln(w, "| a round\tCPU, ms\tagainst the first\t")
	fmt.Fprintln(w, "|---\t---:\t---:\t")
	for i, p := range all {
		fmt.Fprintf(w, "| %s\t%.1f\t%.2f\t\n", p.name, milliseconds(cpu[i], *rounds), float64(cpu[i])/float64(cpu[0]))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return show(out, all, pods[len(pods)-len(failing()):])
}

func milliseconds(d time.Duration, n int) float64 {
	return float64(d) / float64(n) / float64(time.Millisecond)
}

// failing returns the namespaces that run into a limit: the load, and the sysctl that is
// the limit.
func failing() [][3]string {
	return [][3]string{
		{"overflow", "net.core.somaxconn", "4096"},
		{"userns", "net.core.somaxconn", "4096"},
		{"ports", "net.ipv4.ip_local_port_range", "40000 40031"},
		{"timewait", "net.ipv4.tcp_max_tw_buckets", "16"},
	}
}

// startPods starts the processes with their own network namespaces, those that fail last,
// and returns their numbers and a function that ends them.
func startPods(ctx context.Context, load string, count int) (pods []string, end func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var started []*exec.Cmd
	end = func() {
		cancel()
		for _, cmd := range started {
			_ = cmd.Wait()
		}
	}
	loads := slices.Concat(slices.Repeat([][3]string{{"waiting", "net.core.somaxconn", "4096"}}, count), failing())
	for _, l := range loads {
		cmd := exec.CommandContext(ctx, "sh", "-ec", `
			ip link set lo up
			echo "$3" >"/proc/sys/$(echo "$2" | tr . /)"
			exec "$0" "$1"`, load, l[0], l[1], l[2])
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return nil, end, err
		}
		started = append(started, cmd)
		pods = append(pods, strconv.Itoa(cmd.Process.Pid))
	}
	select {
	case <-ctx.Done():
		return nil, end, ctx.Err()
	case <-time.After(5 * time.Second): // until each is under its load
		return pods, end, nil
	}
}

// program is a program that is measured.
type program struct {
	name  string
	pid   int
	round func() error
	// show returns what it sees of the namespaces that fail.
	show func() (string, error)
	stop func() error
}

// cpu returns the CPU time that it has used, including children that have ended.
func (p program) cpu() (time.Duration, error) {
	proc, err := procfs.NewProc(p.pid)
	if err != nil {
		return 0, err
	}
	s, err := proc.Stat()
	const tick = 10 * time.Millisecond
	return time.Duration(int(s.UTime)+int(s.STime)+s.CUTime+s.CSTime) * tick, err
}

func startExporter(ctx context.Context, name, path string) (program, error) {
	e, err := exporter.Start(ctx, path, "--collector.max-cpu=0", "--collector.sample-interval=0s", "--collector.top=100")
	if err != nil {
		return program{}, err
	}
	scrape := func() ([]byte, error) {
		page, _, err := e.Scrape(ctx, "?collect[]=netns")
		return page, err
	}
	return program{
		name: name, pid: e.PID(), stop: e.Stop,
		round: func() error {
			_, err := scrape()
			return err
		},
		show: func() (string, error) {
			page, err := scrape()
			if err != nil {
				return "", err
			}
			text, err := exporter.Unpack(bytes.NewReader(page))
			return string(text), err
		},
	}, nil
}

func startReader(ctx context.Context, name, path string, args []string) (program, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return program{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return program{}, err
	}
	if err := cmd.Start(); err != nil {
		return program{}, err
	}
	lines := bufio.NewReader(out)
	ask := func(show int) (said string, err error) {
		if _, err := fmt.Fprintln(in, show); err != nil {
			return "", err
		}
		for {
			line, err := lines.ReadString('\n')
			if err != nil || line == "\n" {
				return said, err
			}
			said += line
		}
	}
	return program{
		name: name, pid: cmd.Process.Pid,
		round: func() error {
			_, err := ask(0)
			return err
		},
		show: func() (string, error) { return ask(len(failing())) },
		stop: func() error { return errors.Join(in.Close(), cmd.Wait()) },
	}, nil
}

// serve reads all processes for each line of standard input, as cadvisor/main.go does.
func serve(processes []string, read func(process string, show bool) error) error {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		show, _ := strconv.Atoi(lines.Text())
		for i, p := range processes {
			if err := read(p, i >= len(processes)-show); err != nil {
				return err
			}
		}
		fmt.Println()
	}
	return nil
}

// readFiles reads the files that have the numbers of a namespace. It reads no other
// process, because finding the namespaces is cheap (3 ms of 250).
func readFiles(process string, _ bool) error {
	for _, name := range []string{"sockstat", "sockstat6", "netstat", "stat/nf_conntrack"} {
		if _, err := os.ReadFile(filepath.Join("/proc", process, "net", name)); err != nil {
			return err
		}
	}
	return nil
}

// runConntrack does what conntrack-stats-exporter does with a namespace: it enters it
// twice, and runs conntrack there for the counters and for the number of entries.
func runConntrack(process string, show bool) error {
	var said []string
	for _, option := range []string{"--stats", "--count"} {
		var out []byte
		err := hostns.Travel(func(g *hostns.Guest) error {
			if err := g.Enter(filepath.Join("/proc", process, "ns/net")); err != nil {
				return err
			}
			var err error
			out, err = exec.Command("conntrack", option).Output()
			return errors.Join(err, g.Leave())
		})
		if err != nil {
			return err
		}
		said = append(said, strings.Join(strings.Fields(string(out)), " "))
	}
	if show {
		fmt.Println(strings.Join(said, "; entries "))
	}
	return nil
}

// measure runs rounds of the programs in turn and returns the CPU time that each took.
func measure(ctx context.Context, all []program, rounds int) (cpu []time.Duration, err error) {
	cpu = make([]time.Duration, len(all))
	for round := range warmUp + rounds {
		for i, p := range all {
			if round == warmUp {
				before, err := p.cpu()
				if err != nil {
					return nil, err
				}
				cpu[i] = -before
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err := p.round(); err != nil {
				return nil, fmt.Errorf("%s: %w", p.name, err)
			}
		}
	}
	for i, p := range all {
		after, err := p.cpu()
		if err != nil {
			return nil, err
		}
		cpu[i] += after
	}
	return cpu, nil
}

// show prints what each program sees of the namespaces that fail, by their loads.
func show(out io.Writer, all []program, pods []string) error {
	loads := map[string]string{} // by the name of the namespace for programs that may enter it, and for others
	for i, pod := range pods {
		load := failing()[i][0]
		if load == "userns" { // its child is where it fails
			lists, _ := filepath.Glob(filepath.Join("/proc", pod, "task/*/children"))
			for _, list := range lists {
				b, err := os.ReadFile(list)
				if err != nil {
					return err
				}
				pod = cmp.Or(strings.TrimSpace(string(b)), pod)
			}
		}
		mount, err := hostns.MountID(filepath.Join("/proc", pod, "ns/net"))
		if err != nil {
			return err
		}
		file, err := hostns.FileID(filepath.Join("/proc", pod, "net"))
		if err != nil {
			return err
		}
		loads[fmt.Sprintf(`netns="inode/%d"`, mount)], loads[fmt.Sprintf(`netns="inode/%d"`, file)] = load, load
	}
	for _, p := range all[1:] {
		said, err := p.show()
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\n%s:\n\n", p.name)
		for line := range strings.Lines(said) {
			if !strings.HasPrefix(said, "#") { // not a page of ours
				fmt.Fprint(out, "    ", line)
			}
			for name, load := range loads {
				if strings.Contains(line, name) && !strings.HasSuffix(line, " 0.0\n") {
					fmt.Fprint(out, "    ", load, ": ", line)
				}
			}
		}
	}
	return nil
}
