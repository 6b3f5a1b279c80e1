// Package web serves the metrics, the status page and the probes over HTTP.
package web

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// Config says what is served where.
type Config struct {
	TelemetryPath string
	// MaxRequests is how many scrapes, and how many status pages, may be under way
	// at once; more are told to come again (503).
	MaxRequests int
	// Exporter holds metrics of the exporter itself, or is nil.
	Exporter *prometheus.Registry
	// Host is the name of the machine, for the status page.
	Host    string
	Version string
	Logger  *slog.Logger
}

const (
	// defaultTimeout is the deadline of a scrape whose header names none, maxTimeout
	// the longest that is believed, minTimeout what every scrape gets, so that a client
	// that leaves no time cannot fill the log with missed deadlines.
	defaultTimeout = 10 * time.Second
	maxTimeout     = 2 * time.Minute
	minTimeout     = 100 * time.Millisecond
	// readTimeout is what a client has to send its request, a body that nobody reads
	// included, and writeTimeout what it has to read the page.
	readTimeout  = 5 * time.Second
	writeTimeout = 30 * time.Second
)

// Server returns an HTTP server for the set. Its time-outs bound what a slow or
// hostile client can hold, and so does a bound on connections. One may stay idle for minutes: on a host
// that has no file descriptors left, the one that Prometheus already has is the
// only way in.
func Server(set *collector.Set, c Config) *http.Server {
	all := connections{limit: max(maxConnections, 4*c.MaxRequests), open: map[net.Conn]*connection{}}
	server := &http.Server{
		ConnState:      all.changed,
		Handler:        handler(set, c),
		ReadTimeout:    readTimeout,
		WriteTimeout:   writeTimeout,
		IdleTimeout:    5 * time.Minute,
		MaxHeaderBytes: 64 << 10,
		HTTP2:          &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ErrorLog:       slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
	}
	server.RegisterOnShutdown(all.cutUnused)
	return server
}

func handler(set *collector.Set, c Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+c.TelemetryPath, metrics(set, c))
	mux.Handle("GET /{$}", status(set, c))
	mux.HandleFunc("GET /-/healthy", say("healthy\n"))
	mux.HandleFunc("GET /-/ready", say("ready\n"))
	return mux
}

// say answers a probe. The server listens only after a first reading, so it is
// ready as soon as it answers.
func say(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(text))
	}
}

// metrics serves one reading of the set, or of the part of it that the query
// parameters collect[] and exclude[] choose.
func metrics(set *collector.Set, c Config) http.Handler {
	h := bounded(c, func(w http.ResponseWriter, r *http.Request) {
		choose, err := selection(set.Names(), r.URL.Query())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		timeout := scrapeTimeout(r.Header)
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(timeout + writeTimeout))
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()

		registry := prometheus.NewRegistry()
		registry.MustRegister(set.Collector(set.Read(ctx, choose)))
		gatherers := prometheus.Gatherers{registry}
		if c.Exporter != nil {
			gatherers = append(gatherers, c.Exporter)
		}
		promhttp.HandlerFor(gatherers, promhttp.HandlerOpts{
			EnableOpenMetrics: true,
			ErrorHandling:     promhttp.ContinueOnError,
			ErrorLog:          slog.NewLogLogger(c.Logger.Handler(), slog.LevelWarn),
		}).ServeHTTP(w, r)
	})
	if c.Exporter != nil {
		h = promhttp.InstrumentMetricHandler(c.Exporter, h)
	}
	return h
}

// bounded makes at most c.MaxRequests answers at once. They are sent whole, and do not
// count meanwhile: who does not read his takes nobody's turn, and who gives up is no
// error of what made it.
func bounded(c Config, serve http.HandlerFunc) http.Handler {
	slots := make(chan struct{}, c.MaxRequests)
	bodies := sync.Pool{New: func() any { return new(bytes.Buffer) }}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := bodies.Get().(*bytes.Buffer)
		defer bodies.Put(body)
		body.Reset()
		select {
		case slots <- struct{}{}:
			func() {
				defer func() { <-slots }()
				serve(answer{w, body}, r)
			}()
		default:
			// A page that renews itself goes on doing so.
			w.Header().Set("Refresh", strconv.Itoa(refresh))
			w.Header().Set("Retry-After", strconv.Itoa(refresh))
			http.Error(w, fmt.Sprintf("%d requests are being served already, try again later", c.MaxRequests), http.StatusServiceUnavailable)
			return
		}
		if _, err := w.Write(body.Bytes()); err != nil {
			c.Logger.Debug("A client did not take its page", "client", r.RemoteAddr, "err", err)
		}
	})
}

// answer keeps what is written to be sent later.
type answer struct {
	http.ResponseWriter
	body *bytes.Buffer
}

func (a answer) Write(b []byte) (int, error) { return a.body.Write(b) }

// Unwrap is for http.ResponseController.
func (a answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// selection says which collectors a query asks for: all by default, those named
// by collect[], or all but those named by exclude[].
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

// scrapeTimeout reads how long Prometheus waits, less what the way back takes.
func scrapeTimeout(h http.Header) time.Duration {
	seconds, err := strconv.ParseFloat(h.Get("X-Prometheus-Scrape-Timeout-Seconds"), 64)
	if err != nil || math.IsNaN(seconds) || seconds <= 0 {
		return defaultTimeout
	}
	timeout := time.Duration(min(seconds, maxTimeout.Seconds()) * float64(time.Second))
	return max(timeout-min(timeout/10, 500*time.Millisecond), minTimeout)
}
