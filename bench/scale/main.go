// Command scale measures the cost of reading very many TCP sockets: with this exporter,
// node_exporter's tcpstat, ss, /proc/net/tcp, and the floor, a program that sends the
// request of a walk and discards the answer. It prints tables in Markdown:
//
//	go run ./bench/scale
//
// It needs root and, for a million connections, some 10 GB of memory. It runs in a
// separate network namespace, so that there are no other sockets, no sysctl of the
// machine is changed, and nothing is left behind.
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
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/exporter"
	"github.com/sockpressure/sockpressure_exporter/bench/internal/namespaces"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	sizes    []int
	runs     int
	timeWait int
	outbound int
	dir      string // of the programs
}

func run(ctx context.Context, args []string) (err error) {
	var o options
	flags := flag.NewFlagSet("scale", flag.ExitOnError)
	sizes := flags.String("connections", "10000,100000,1029600", "numbers of connections, with commas between them")
	flags.IntVar(&o.runs, "runs", 5, "runs of each program, of which the median counts")
	flags.IntVar(&o.timeWait, "time-wait", 500_000, "TIME_WAIT sockets of a run of their own, 0 for none")
	flags.IntVar(&o.outbound, "outbound", 60_000, "connections to one destination of a run of their own, 0 for none")
	nodeExporter := flags.String("node-exporter", "", "path of node_exporter, to be installed if empty")
	flags.StringVar(&o.dir, "programs", "", "folder of the built programs (used by the program itself)")
	_ = flags.Parse(args) // exits by itself
	for s := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("--connections: %q is not a number above 0", s)
		}
		o.sizes = append(o.sizes, n)
	}
	if namespaces.Inside() {
		return o.measure(ctx, "go run ./bench/scale", os.Stdout)
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, to make namespaces")
	}

	o.dir, err = os.MkdirTemp("", "scale-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	for name, pkg := range map[string]string{
		"sockpressure_exporter": "", "sockets": "/bench/sockets", "floor": "/bench/floor",
	} {
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

	return namespaces.Run(ctx, unix.CLONE_NEWPID, append(args, "--programs="+o.dir)...)
}

// held is the load generator while it holds its sockets.
type held struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// hold opens the sockets and returns when all are open.
func (o *options) hold(ctx context.Context, args ...string) (*held, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(o.dir, "sockets"), args...)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
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
		return nil, errors.Join(fmt.Errorf("sockets %v: it said %q", args, line), cmd.Wait())
	}
	return &held{cmd, stdin}, nil
}

func (h *held) release() error {
	_ = h.stdin.Close()
	return h.cmd.Wait()
}
