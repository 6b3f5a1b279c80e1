package web

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// TestShared checks that a page is rendered once for all requests that ask for the same
// reading in the same form before it is ready.
func TestShared(t *testing.T) {
	set := recordedSet(t, nil)
	p := newPages(Config{MaxRequests: 1, Logger: slog.New(slog.DiscardHandler)})
	first, second := set.Read(t.Context(), collector.Query{}), set.Read(t.Context(), collector.Query{})
	part := set.Read(t.Context(), collector.Query{Choose: func(name string) bool { return name == "netstat" }})
	var mu sync.Mutex
	made := map[string]int{}
	asked := time.Now()
	ask := func(name string, reading *collector.Reading, asked time.Time) {
		w := httptest.NewRecorder()
		p.serve(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody), pageRequest{
			ctx: t.Context(), asked: asked, name: name, reading: reading,
			render: func(w http.ResponseWriter, _ *http.Request) {
				mu.Lock()
				made[name]++
				mu.Unlock()
				w.Header().Set("Content-Type", "text/x-"+name)
				w.WriteHeader(http.StatusAccepted)
				_, _ = io.WriteString(w, "page "+name)
			},
		})
		if w.Code != http.StatusAccepted || w.Body.String() != "page "+name || w.Header().Get("Content-Type") != "text/x-"+name ||
			w.Header().Get("Content-Length") != "6" {
			t.Errorf("%s: %d %v %q", name, w.Code, w.Header(), w.Body)
		}
	}
	// While a request is in progress, rendered pages are kept.
	p.asked++
	var all sync.WaitGroup
	for range maxConnections / 3 { // fewer than may wait
		all.Go(func() { ask("a", first, asked) })
		all.Go(func() { ask("b", first, asked) })
	}
	all.Wait()
	if made["a"] != 1 || made["b"] != 1 {
		t.Errorf("pages were rendered %v times", made)
	}
	ask("a", second, asked)
	ask("a", part, asked)
	ask("a", first, time.Now())
	if made["a"] != 4 {
		t.Errorf("rendered %d more times, want once each for two other readings and a later request", made["a"]-1)
	}
	for _, name := range []string{"c", "d", "e", "f", "g"} {
		ask(name, first, asked)
	}
	if len(p.kept) != keptPages {
		t.Errorf("%d pages are kept", len(p.kept))
	}
	p.asked--
	ask("h", first, asked)
	if len(p.kept) != 0 {
		t.Errorf("%d pages are kept without a request", len(p.kept))
	}
}

// TestPatience checks that a request waits for its turn until its context ends.
func TestPatience(t *testing.T) {
	var log logged
	set := recordedSet(t, nil)
	p := newPages(Config{MaxRequests: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	reading := set.Read(t.Context(), collector.Query{})
	begun, end := make(chan bool), make(chan bool)
	slow := func(w http.ResponseWriter, _ *http.Request) {
		begun <- true
		<-end
		_, _ = io.WriteString(w, "slow")
	}
	ask := func(name string, patience time.Duration, render http.HandlerFunc) *httptest.ResponseRecorder {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		w := httptest.NewRecorder()
		p.serve(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody),
			pageRequest{ctx: ctx, asked: time.Now(), name: name, reading: reading, render: render})
		return w
	}
	answers := make(chan *httptest.ResponseRecorder)
	go func() { answers <- ask("slow", time.Minute, slow) }()
	<-begun
	for range 20 {
		if w := ask("impatient", time.Millisecond, nil); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "try again") ||
			w.Header().Get("Retry-After") == "" {
			t.Errorf("the response after the timeout is %d %q", w.Code, w.Body)
		}
	}
	if got := strings.Count(log.String(), "\n"); got != 1 {
		t.Errorf("%d lines of log:\n%s", got, log.String())
	}
	go func() { answers <- ask("slow", time.Minute, nil) }()
	for asked := 0; asked < 2; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		asked = p.asked
		p.mu.Unlock()
	}
	close(end)
	for range 2 {
		if w := <-answers; w.Code != http.StatusOK || w.Body.String() != "slow" {
			t.Errorf("the response after waiting is %d %q", w.Code, w.Body)
		}
	}
}

// TestPanic checks that a panic fails only its own page, and that repeated panics are logged
// once.
func TestPanic(t *testing.T) {
	var log logged
	p := newPages(Config{MaxRequests: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	for range 10 {
		w := httptest.NewRecorder()
		p.serve(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody), pageRequest{
			ctx: t.Context(), asked: time.Now(),
			render: func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "half a page")
				panic("broken")
			},
		})
		if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "half") {
			t.Errorf("%d %q", w.Code, w.Body)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "broken") {
		t.Errorf("the log is %s", got)
	}
	if p.turns.free != 1 {
		t.Errorf("%d turns are free", p.turns.free)
	}
}

func TestAcceptsGzip(t *testing.T) {
	for header, want := range map[string]bool{
		"":                              false,
		"gzip":                          true,
		"GZip":                          true,
		"deflate, gzip;q=1.0, *;q=0.5":  true,
		"gzip;q=0":                      false,
		"gzip;q=0.5, identity":          false,
		"gzip; q=0.5 , identity;q=0.5":  true,
		"identity;q=0":                  false,
		"identity;q=0, *":               true,
		"*":                             false,
		"*;q=0":                         false,
		"gzip;q=2":                      false,
		"gzip;q=NaN":                    false,
		"gzip;q=":                       false,
		"zstd, br":                      false,
		",;,=;q=,":                      false,
		strings.Repeat("gzip, ", 1<<12): true,
	} {
		if got := acceptsGzip(http.Header{"Accept-Encoding": {header}}); got != want {
			t.Errorf("%.40q: %t", header, got)
		}
	}
	if !acceptsGzip(http.Header{"Accept-Encoding": {"identity", "gzip"}}) {
		t.Error("a second header is ignored")
	}
}

// FuzzRequest checks that every request is answered, whatever its parameters and headers, and
// that nothing is logged.
func FuzzRequest(f *testing.F) {
	f.Add("collect[]=netstat&name[]=x", "10", "gzip;q=0.1", "application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1")
	f.Add("exclude[]=tcp", "NaN", "identity;q=0", "")
	f.Add("collect[]=%zz&;", "1e-300", "*", "a/b;q=x")
	var log logged
	h := handler(recordedSet(f, nil), Config{TelemetryPath: "/metrics", MaxRequests: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	f.Fuzz(func(t *testing.T, query, timeout, encoding, accept string) {
		header := http.Header{"X-Prometheus-Scrape-Timeout-Seconds": {timeout}, "Accept-Encoding": {encoding}, "Accept": {accept}}
		read, all := scrapeTimeout(header)
		if read < minTimeout || all < read+minTimeout || all > maxTimeout+maxMargin {
			t.Errorf("%q: %v of %v to read", timeout, read, all)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody)
		r.URL.RawQuery, r.Header = query, header
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch w.Code {
		case http.StatusOK, http.StatusBadRequest:
		default:
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if log := log.take(); log != "" {
			t.Errorf("it logs %s", log)
		}
	})
}
