package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/collectors/version"
	"github.com/prometheus/common/promslog"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/web"
)

func serveCommand() command {
	return command{
		name:   "serve",
		help:   "Serve metrics over HTTP (the default).",
		exits:  "exits with 0 after SIGTERM or SIGINT, and with 1 if it cannot start.",
		failed: 1,
		run: func(ctx context.Context, c *config, std streams) (int, error) {
			makeThreads(spareThreads)
			c.log.Writer = std.err
			logger := promslog.New(c.log)
			ctx, stop := outliveHangups(ctx, std.err, logger)
			defer stop()
			machine, set, err := c.open(std.in, logger)
			if err != nil {
				return 0, err
			}
			defer closeSet(set)
			for part, err := range machine.View().All() {
				if err != nil {
					logger.Warn("Not the whole host: cannot see its "+part, "err", err)
				}
			}
			return 0, serve(ctx, set, c, logger)
		},
	}
}

// outliveHangups prevents SIGHUP, which asks other daemons to reload, from ending the
// process: there is nothing to reload. The returned context ends with ctx, or on a SIGHUP
// sent because the terminal that is stderr was closed. The returned function restores the
// handling of SIGHUP.
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
			logger.Info("Nothing to reload on SIGHUP: --web.config.file is reread automatically, and other flags need a restart")
		}
	}()
	return ctx, func() {
		signal.Stop(hangups)
		cancel()
	}
}

const (
	// firstRead bounds the reading before the server listens, lastRequests the requests
	// in progress when it stops.
	firstRead    = 5 * time.Second
	lastRequests = 3 * time.Second
)

// serve answers scrapes until ctx ends.
func serve(ctx context.Context, set *collector.Set, c *config, logger *slog.Logger) error {
	logWithoutReader(c.log.Writer)
	logger.Info("Starting "+name, "version", versionInfo())
	// The first read opens every file while that is still possible.
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
			// A client that does not finish is not a failure of the exporter.
			logger.Warn("Closing connections with unfinished requests")
			err = server.Close()
		}
		stopped <- err
	}()
	if err := web.ListenAndServe(server, c.web, logger); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}
