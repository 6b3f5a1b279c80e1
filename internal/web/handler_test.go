package web

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// leaving is a client that disconnects after a number of writes.
type leaving struct {
	*httptest.ResponseRecorder
	takes int
}

func (l *leaving) Write(b []byte) (int, error) {
	l.takes--
	if l.takes < 0 {
		return 0, errors.New("client disconnected")
	}
	return l.ResponseRecorder.Write(b)
}

// broken is a collector whose metric fails.
type broken struct{}

func (broken) Describe(chan<- *prometheus.Desc) {}

func (broken) Collect(ch chan<- prometheus.Metric) {
	err := errors.New("broken")
	ch <- prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(err), err)
}

// TestErrors checks that a metric that fails is logged once as a warning and all others are
// served, and that a client that disconnects causes no warning and no further writes.
func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		takes         int
		broken        bool
		warned, noted int
	}{
		"all is well":              {1, false, 0, 0},
		"no client":                {0, false, 0, 1},
		"broken metric":            {1, true, 1, 0},
		"broken metric, no client": {0, true, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			exporter := prometheus.NewRegistry()
			if c.broken {
				exporter.MustRegister(broken{})
			}
			var log bytes.Buffer
			h := handler(recordedSet(t, nil), Config{
				TelemetryPath: "/metrics", MaxRequests: 1, Exporter: exporter,
				Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
			})
			client := &leaving{httptest.NewRecorder(), c.takes}
			h.ServeHTTP(client, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody))
			if got := strings.Count(log.String(), "level=WARN"); got != c.warned {
				t.Errorf("%d warnings, want %d", got, c.warned)
			}
			if got := strings.Count(log.String(), "\n") - c.warned; got != c.noted {
				t.Errorf("%d other lines, want %d", got, c.noted)
			}
			// The metrics of the exporter itself come last.
			complete := strings.Contains(client.Body.String(), "\nsockpressure_tcp_memory_bytes ") &&
				strings.Contains(client.Body.String(), "\npromhttp_metric_handler_requests_in_flight 1\n")
			if complete != (c.noted == 0) {
				t.Errorf("the page is complete: %t", complete)
			}
			if client.takes < -1 {
				t.Errorf("%d writes after one that failed", -1-client.takes)
			}
			if t.Failed() {
				t.Logf("log, shortened: %.500s\n%s", log.String(), client.Body.String())
			}
		})
	}
}

// TestUnread checks that a client that does not read its page does not block the next one.
func TestUnread(t *testing.T) {
	h := handler(recordedSet(t, nil), Config{TelemetryPath: "/metrics", MaxRequests: 1, Logger: slog.New(slog.DiscardHandler)})
	client := &unread{httptest.NewRecorder(), make(chan bool), make(chan bool)}
	done := make(chan bool)
	go func() {
		h.ServeHTTP(client, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody))
		close(done)
	}()
	<-client.asked
	if _, page := get(t, h, "/metrics"); !strings.Contains(page, "\nsockpressure_tcp_memory_bytes ") {
		t.Errorf("the next one gets: %s", page)
	}
	close(client.reads)
	<-done
	if !strings.Contains(client.Body.String(), "\nsockpressure_tcp_memory_bytes ") {
		t.Errorf("the page it reads in the end: %s", client.Body)
	}
}

// unread is a client that does not read until its channel is closed.
type unread struct {
	*httptest.ResponseRecorder
	asked, reads chan bool
}

func (u *unread) Write(b []byte) (int, error) {
	close(u.asked)
	<-u.reads
	return u.ResponseRecorder.Write(b)
}

func TestScrapeTimeout(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"":          10 * time.Second,
		"nonsense":  defaultTimeout,
		"-1":        defaultTimeout,
		"0":         defaultTimeout,
		"NaN":       defaultTimeout,
		"1":         900 * time.Millisecond,
		"10":        9500 * time.Millisecond,
		"1e300":     maxTimeout - 500*time.Millisecond,
		"+Inf":      maxTimeout - 500*time.Millisecond,
		"0.000001":  minTimeout,
		"10 apples": defaultTimeout,
	} {
		h := http.Header{}
		h.Set("X-Prometheus-Scrape-Timeout-Seconds", header)
		read, all := scrapeTimeout(h)
		if read != want {
			t.Errorf("%q: %v, want %v", header, read, want)
		}
		if left := all - read; left < minTimeout || left > maxMargin {
			t.Errorf("%q: %v are left to make the page", header, left)
		}
	}
}
