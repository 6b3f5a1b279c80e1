// Package web serves the metrics, the status page and the probes over HTTP.
package web

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// Config configures what is served, and where.
type Config struct {
	TelemetryPath string
	// MaxRequests is how many pages of metrics, and how many status pages, may be made at
	// once. Further requests wait, at most 128 and as long as their clients wait; beyond
	// that they get status 503.
	MaxRequests int
	// Exporter holds metrics of the exporter itself, or is nil.
	Exporter *prometheus.Registry
	// Host is the name of the machine, for the status page.
	Host    string
	Version string
	Logger  *slog.Logger
}

const (
	// defaultTimeout is the deadline of a scrape whose header has none, maxTimeout the
	// longest that is accepted, and minTimeout the shortest that a scrape gets.
	defaultTimeout = 10 * time.Second
	maxTimeout     = 2 * time.Minute
	minTimeout     = 100 * time.Millisecond
	// maxMargin is the maximum part of a scrape's time that is reserved for making and
	// sending the page.
	maxMargin = 500 * time.Millisecond
	// patience is the minimum timeout of a scrape for which a missed deadline is logged.
	patience = time.Second
	// readTimeout is the time a client has to send its request, including a body that is
	// not read, and writeTimeout the time it has to read the page.
	readTimeout  = 5 * time.Second
	writeTimeout = 30 * time.Second
)

// Server returns an HTTP server for the set. Its timeouts and its bound on connections
// limit what a slow or hostile client can hold. A connection may stay idle for minutes:
// on a host that has no file descriptors left, Prometheus's existing connection is the
// only way in.
//
// The server supports only HTTP/1: an HTTP/2 connection keeps the answers to pings until
// they are read, which could take all memory before a password is asked for.
func Server(set *collector.Set, c Config) *http.Server {
	surplus := &repeated{logger: c.Logger, level: slog.LevelWarn, msg: "Closing connections because too many are open"}
	all := connections{
		limit:  max(maxConnections, 2*c.MaxRequests),
		closed: func(client netip.Prefix) { surplus.report("client", client.String()) },
		open:   map[net.Conn]*connection{},
	}
	server := &http.Server{
		ConnState:      all.changed,
		Handler:        handler(set, c),
		ReadTimeout:    readTimeout,
		WriteTimeout:   writeTimeout,
		IdleTimeout:    5 * time.Minute,
		MaxHeaderBytes: maxHeader,
		Protocols:      new(http.Protocols),
		ErrorLog:       newServerLog(c.Logger),
	}
	server.Protocols.SetHTTP1(true)
	server.RegisterOnShutdown(all.cutUnused)
	return server
}

func handler(set *collector.Set, c Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+c.TelemetryPath, metrics(set, c))
	mux.Handle("GET /{$}", status(set, c))
	mux.Handle("GET "+runbooksPath, runbooks(c))
	mux.HandleFunc("GET /-/healthy", say("healthy\n"))
	mux.HandleFunc("GET /-/ready", say("ready\n"))
	return mux
}

// say answers a probe. The server listens only after a first reading, so it is ready as
// soon as it answers.
func say(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(text))
	}
}

// metrics serves one reading of the set, or of the part of it that the query parameters
// collect[] and exclude[] select.
func metrics(set *collector.Set, c Config) http.Handler {
	pages := newPages(c)
	zip := newZip()
	failed := &repeated{logger: c.Logger, level: slog.LevelWarn, msg: "Some metrics cannot be exported"}
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked := time.Now()
		query := r.URL.Query()
		choose, err := selection(set.Names(), query)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		timeout, wait := scrapeTimeout(r.Header)
		ctx, cancel := context.WithTimeout(r.Context(), wait)
		defer cancel()
		reading := read(r.Context(), set, collector.Query{Choose: choose}, timeout)

		// Formats that mean the same share a page.
		encoding := "identity"
		if acceptsGzip(r.Header) {
			encoding = "gzip"
		}
		format := expfmt.NegotiateAccept(r.Header, expfmt.DefaultOpenMetricsAcceptedFormats()...)
		names := slices.Sorted(slices.Values(query["name[]"]))
		pages.serve(w, r, pageRequest{
			ctx:     ctx,
			asked:   asked,
			name:    fmt.Sprintf("%s %s %q", format, encoding, slices.Compact(names)),
			reading: reading,
			render: func(w http.ResponseWriter, r *http.Request) {
				registry := prometheus.NewRegistry()
				registry.MustRegister(reading.Collector())
				gatherers := prometheus.Gatherers{registry}
				if c.Exporter != nil {
					gatherers = append(gatherers, c.Exporter)
				}
				h := promhttp.HandlerFor(gatherers, promhttp.HandlerOpts{
					DisableCompression: true,
					EnableOpenMetrics:  true,
					ErrorHandling:      promhttp.ContinueOnError,
					ErrorLog:           failed,
				})
				if encoding == "gzip" {
					zip.serve(h, w, r)
				} else {
					h.ServeHTTP(w, r)
				}
			},
		})
	})
	if c.Exporter != nil {
		h = promhttp.InstrumentMetricHandler(c.Exporter, h)
	}
	return h
}

// acceptsGzip reports whether a client prefers gzip to plain text.
func acceptsGzip(h http.Header) bool {
	q := map[string]float64{}
	for accepted := range strings.SplitSeq(strings.Join(h.Values("Accept-Encoding"), ","), ",") {
		coding, parameter, _ := strings.Cut(accepted, ";")
		coding = strings.ToLower(strings.TrimSpace(coding))
		q[coding] = 1
		if name, value, ok := strings.Cut(parameter, "="); ok && strings.EqualFold(strings.TrimSpace(name), "q") {
			weight, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil || !(weight >= 0 && weight <= 1) {
				weight = 0
			}
			q[coding] = weight
		}
	}
	plain, listed := q["identity"]
	if !listed {
		plain = q["*"]
	}
	if zipped, listed := q["gzip"]; listed {
		return zipped > 0 && zipped >= plain
	}
	return q["*"] > plain
}

// selection returns the collectors that a query selects: all by default, those named by
// collect[], or all except those named by exclude[].
func selection(names []string, query map[string][]string) (func(string) bool, error) {
	collect, exclude := query["collect[]"], query["exclude[]"]
	if len(collect) > 0 && len(exclude) > 0 {
		return nil, fmt.Errorf("collect[] and exclude[] cannot be combined")
	}
	for _, name := range slices.Concat(collect, exclude) {
		if !slices.Contains(names, name) {
			return nil, fmt.Errorf("unknown or disabled collector %q, there are: %s", name, strings.Join(names, ", "))
		}
	}
	switch {
	case len(collect) > 0:
		return func(name string) bool { return slices.Contains(collect, name) }, nil
	default:
		return func(name string) bool { return !slices.Contains(exclude, name) }, nil
	}
}

// scrapeTimeout returns how long a scrape may read, and how long it may take in total,
// which is how long Prometheus waits for it. The difference is for making and sending the
// page.
func scrapeTimeout(h http.Header) (read, all time.Duration) {
	seconds, err := strconv.ParseFloat(h.Get("X-Prometheus-Scrape-Timeout-Seconds"), 64)
	if err != nil || math.IsNaN(seconds) || seconds <= 0 {
		return defaultTimeout, defaultTimeout + maxMargin
	}
	timeout := time.Duration(min(seconds, maxTimeout.Seconds()) * float64(time.Second))
	margin := min(timeout/10, maxMargin)
	read = max(timeout-margin, minTimeout)
	return read, read + max(margin, minTimeout)
}

// read reads the set for a client with the given timeout.
func read(ctx context.Context, set *collector.Set, q collector.Query, timeout time.Duration) *collector.Reading {
	ctx, stop := readContext(ctx, timeout)
	defer stop()
	return set.Read(ctx, q)
}

// readContext returns a context that ends a reading after the given time. For a client
// with a short timeout it ends as if the client had disconnected: a deadline that was too
// short is not the collector's failure, and is not logged as one.
func readContext(ctx context.Context, read time.Duration) (context.Context, context.CancelFunc) {
	if read >= patience {
		return context.WithTimeout(ctx, read)
	}
	ctx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(read, cancel)
	return ctx, func() {
		timer.Stop()
		cancel()
	}
}
