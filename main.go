// Command sockpressure_exporter tells Prometheus how near a Linux host is to the
// kernel's limits on sockets and memory.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/common/promslog"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/web"
)

const name = "sockpressure_exporter"

func main() {
	// A scrape is a short burst of work, mostly in system calls, which run beside
	// each other all the same. Threads that look for Go code to run would cost
	// more than they give, the more so the more cores there are.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
	// Only by these variables does kingpin take templates for other than --help.
	kingpin.ManPageTemplate = manPage
	kingpin.BashCompletionTemplate = bashCompletion
	kingpin.ZshCompletionTemplate = zshCompletion
	setVersion()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	status := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}

// run does what the arguments say until ctx ends, and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c, exit, err := parseFlags(args, stdout)
	if err != nil {
		return fail(stderr, err, c.command)
	}
	if exit {
		return 0
	}
	c.log.Writer = stderr
	logger := promslog.New(c.log)
	if c.command == commandServe {
		var stop func()
		ctx, stop = outliveHangups(ctx, stderr, logger)
		defer stop()
	}

	machine, err := kernel.Open(kernel.Options{ProcPath: c.procPath, SysPath: c.sysPath})
	if err != nil {
		return fail(stderr, err, c.command)
	}
	if c.command == commandCheck {
		// What fails stands below the table, once.
		quiet := collector.Config{MaxCPU: c.maxCPU, Top: c.top, Logger: slog.New(slog.DiscardHandler)}
		set := collector.NewSet(machine, c.specs, quiet)
		defer closeSet(set)
		return check(ctx, set, c.format, stdout, stderr)
	}
	for part, err := range machine.View().All() {
		if err != nil {
			logger.Warn("This is not the whole host: its "+part+" cannot be seen", "err", err)
		}
	}
	set := collector.NewSet(machine, c.specs, collector.Config{MaxCPU: c.maxCPU, Top: c.top, Logger: logger})
	defer closeSet(set)
	if err := serve(ctx, set, c, logger); err != nil {
		return fail(stderr, err, c.command)
	}
	return 0
}

// lastReadings bounds the readings that are under way at the end.
const lastReadings = 200 * time.Millisecond

// closeSet ends the collectors. One that hangs is left as it is: the process ends.
func closeSet(set *collector.Set) {
	ctx, cancel := context.WithTimeout(context.Background(), lastReadings)
	defer cancel()
	_ = set.Close(ctx)
}

// fail writes err as one line, whatever it says, and returns the exit status of
// the command.
func fail(stderr io.Writer, err error, command string) int {
	var parts []string
	for line := range strings.Lines(err.Error()) {
		parts = append(parts, strings.TrimSpace(line))
	}
	fmt.Fprintf(stderr, "%s: error: %s\n", name, strings.Join(parts, " "))
	if command == commandCheck {
		return unknown
	}
	return 1
}

// outliveHangups keeps SIGHUP, which asks other daemons to reload, from ending the
// process: there is nothing to reload. The context that it returns ends with ctx, or
// with a SIGHUP that came because the terminal that stderr is was closed. The
// returned function restores what SIGHUP did.
func outliveHangups(ctx context.Context, stderr io.Writer, logger *slog.Logger) (context.Context, func()) {
	if signal.Ignored(syscall.SIGHUP) { // started by nohup
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
			}
			if _, err := terminal(stderr); errors.Is(err, unix.EIO) {
				cancel()
				return
			}
			logger.Info("Nothing to reload on SIGHUP: the file of --web.config.file is reread by itself, and other flags need a restart")
		}
	}()
	return ctx, func() {
		signal.Stop(hangups)
		cancel()
	}
}

const (
	// firstRead bounds the reading before the server listens, lastRequests what
	// is under way when it stops.
	firstRead    = 5 * time.Second
	lastRequests = 3 * time.Second
)

// serve answers scrapes until ctx ends.
func serve(ctx context.Context, set *collector.Set, c *config, logger *slog.Logger) error {
	logWithoutReader(c.log.Writer)
	logger.Info("Starting "+name, "version", versionInfo())
	// The first read opens every file, while that is still possible.
	first, cancel := context.WithTimeout(ctx, firstRead)
	set.Read(first, collector.Query{})
	cancel()

	var exporter *prometheus.Registry
	if !c.disableExporterMetrics {
		exporter = prometheus.NewRegistry()
		exporter.MustRegister(
			version.NewCollector(name),
			collectors.NewGoCollector(),
			collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "this host"
	}
	server := web.Server(set, web.Config{
		TelemetryPath: c.telemetryPath,
		MaxRequests:   c.maxRequests,
		Exporter:      exporter,
		Host:          host,
		Version:       versionInfo(),
		Logger:        logger,
	})

	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		logger.Info("Stopping")
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastRequests)
		defer cancel()
		err := server.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			// A client that does not come to an end is no failure of ours.
			logger.Warn("Closing connections whose requests have not ended")
			err = server.Close()
		}
		stopped <- err
	}()
	if err := web.ListenAndServe(server, c.web, logger); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}
