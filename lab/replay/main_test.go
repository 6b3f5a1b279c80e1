package main

import (
	"context"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

// TestReplay checks the list of targets and the pages of nodes, as Prometheus reads them.
func TestReplay(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, []string{"-recordings=../recordings", "-listen=127.0.0.1:0", "-step=1h", "6.12/tcp_memory", "6.1-686-pae/idle"}, pw)
		_ = pw.CloseWithError(io.EOF)
		ended <- err
	}()
	line := make([]byte, 100)
	n, err := pr.Read(line)
	if err != nil {
		t.Fatal(err, <-ended)
	}
	_, base, _ := strings.Cut(strings.TrimSpace(string(line[:n])), ": ")

	var targets []target
	if err := json.Unmarshal([]byte(get(t, base)), &targets); err != nil {
		t.Fatal(err)
	}
	if len(targets) != 2 || targets[0].Labels["instance"] != "tcp-memory.6.12" || targets[1].Labels["instance"] != "idle.6.1-686-pae" {
		t.Fatalf("targets: %+v", targets)
	}
	r, err := recording.Read("../recordings/6.12/tcp_memory.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for _, s := range r.Series {
		if !math.IsNaN(s.Values[0]) {
			want++
		}
	}
	page := get(t, "http://"+targets[0].Targets[0]+targets[0].Labels["__metrics_path__"])
	if got := strings.Count(page, "\n"); got != want || !strings.Contains(page, "\nsockpressure_conntrack_entries_limit 4096\n") {
		t.Errorf("%d series, want %d:\n%s", got, want, page)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v", url, resp.Status, err)
	}
	return string(body)
}

func TestStep(t *testing.T) {
	for _, test := range []struct {
		since time.Duration
		want  int
	}{{-time.Minute, 0}, {0, 0}, {14 * time.Second, 0}, {15 * time.Second, 1}, {59 * time.Second, 3}, {time.Minute, 0}} {
		if got := step(test.since, 15*time.Second, 4); got != test.want {
			t.Errorf("step(%s) = %d, want %d", test.since, got, test.want)
		}
	}
}

func TestBadArguments(t *testing.T) {
	for _, args := range [][]string{{"-step=0s"}, {"-recordings=none"}, {"-recordings=../recordings", "6.12/none"}} {
		if err := run(t.Context(), args, io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
