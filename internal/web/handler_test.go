package web

import (
	"net/http"
	"testing"
	"time"
)

func TestScrapeTimeout(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"":          defaultTimeout,
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
		if got := scrapeTimeout(h); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}
