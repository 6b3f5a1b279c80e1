// Command replay serves the lab's recordings as nodes for a Prometheus to scrape, one
// step every 15 seconds, to show dashboards and alerts at work without overloading a
// host:
//
//	go run ./lab/replay 6.12/tcp_memory 6.12/idle
//
// Without arguments it serves every recording. Prometheus finds the nodes itself, with
// http_sd_configs: [{url: "http://localhost:10059/targets"}].
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "replay:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, log io.Writer) error {
	flags := flag.NewFlagSet("replay", flag.ContinueOnError)
	flags.SetOutput(log)
	dir := flags.String("recordings", "lab/recordings", "folder of the recordings")
	address := flags.String("listen", "127.0.0.1:10059", "where to listen")
	interval := flags.Duration("step", 15*time.Second, "time of a step")
	stagger := flags.Duration("stagger", 0, "each node begins this much after the one before it, and is idle until then")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *interval <= 0 {
		return fmt.Errorf("-step=%s is not above 0", *interval)
	}
	names := flags.Args()
	if len(names) == 0 {
		files, err := filepath.Glob(filepath.Join(*dir, "*", "*.txt"))
		if err != nil {
			return err
		}
		for _, f := range files {
			name, err := filepath.Rel(*dir, f)
			if err != nil {
				return err
			}
			names = append(names, strings.TrimSuffix(name, ".txt"))
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("no recordings in %s", *dir)
	}

	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", *address)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	began := time.Now()
	var targets []target
	for i, name := range names {
		r, err := recording.Read(filepath.Join(*dir, name+".txt"))
		if err != nil {
			return err
		}
		path := "/" + name + "/metrics"
		targets = append(targets, target{
			[]string{listener.Addr().String()},
			map[string]string{"__metrics_path__": path, "instance": strings.ReplaceAll(r.Scenario, "_", "-") + "." + r.Kernel},
		})
		start := began.Add(time.Duration(i) * *stagger)
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4")
			_ = writePage(w, r, step(time.Since(start), *interval, r.Steps))
		})
	}
	mux.HandleFunc("GET /targets", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(targets)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	fmt.Fprintf(log, "%d nodes: http://%s/targets\n", len(targets), listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// target is a node as Prometheus discovers it over HTTP.
type target struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// step returns the step of a recording after the given time: the first one before the
// start, and the first one again after the end.
func step(since, interval time.Duration, steps int) int {
	return int(max(since, 0)/interval) % steps
}

// writePage writes a step of a recording as the exporter wrote it, without HELP and TYPE.
func writePage(w io.Writer, r *recording.Recording, step int) error {
	var b strings.Builder
	for _, s := range r.Series {
		if v := s.Values[step]; !math.IsNaN(v) {
			fmt.Fprintf(&b, "%s %s\n", s.Name, strconv.FormatFloat(v, 'g', -1, 64))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
