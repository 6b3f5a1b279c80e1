package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// watch is a Prometheus that scrapes a guest every minute, and what it saw of a limit
// that was reached between scrapes.
type watch struct {
	exporter, control, prometheus string // addresses
	server                        *exec.Cmd
	cancel                        context.CancelFunc
	done                          chan struct{}

	notes []string
	err   error
}

// newWatch starts the Prometheus, with its data below dir.
func newWatch(ctx context.Context, dir string) (*watch, error) {
	w := &watch{done: make(chan struct{})}
	var free []net.Listener // all are open at once, so that they differ
	for _, address := range []*string{&w.exporter, &w.control, &w.prometheus} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		*address = l.Addr().String()
		free = append(free, l)
	}
	for _, l := range free {
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	rules, err := filepath.Abs("alerts")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "prometheus.yml")
	err = os.WriteFile(config, fmt.Appendf(nil, `global: {scrape_interval: 1m, evaluation_interval: 15s}
rule_files: [%q]
scrape_configs:
  - job_name: lab
    static_configs: [{targets: [%q]}]
`, filepath.Join(rules, "*.rules.yml"), w.exporter), 0o644)
	if err != nil {
		return nil, err
	}
	ctx, w.cancel = context.WithCancel(ctx)
	w.server = exec.CommandContext(ctx, "prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+w.prometheus, "--log.level=error")
	w.server.Cancel = func() error { return w.server.Process.Signal(syscall.SIGTERM) }
	w.server.WaitDelay = 10 * time.Second
	w.server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := w.server.Start(); err != nil {
		w.cancel()
		return nil, fmt.Errorf("a Prometheus: %w", err)
	}
	go func() {
		defer close(w.done)
		w.notes, w.err = w.observe(ctx)
		// The guest ends, whatever the result.
		if conn, err := new(net.Dialer).DialContext(ctx, "tcp", w.control); err == nil {
			_, _ = bufio.NewReader(conn).ReadString('\n')
			_ = conn.Close()
		}
	}()
	return w, nil
}

// card returns the QEMU options for a network card through which only this process
// reaches the guest.
func (w *watch) card() []string {
	return []string{
		"-netdev", fmt.Sprintf("user,id=net,restrict=on,hostfwd=tcp:%s-:%d,hostfwd=tcp:%s-:%d", w.exporter, scenario.ExporterPort, w.control, scenario.ControlPort),
		"-device", "virtio-net-pci,netdev=net,romfile=",
	}
}

// end stops the Prometheus and returns what it saw.
func (w *watch) end() ([]string, error) {
	select {
	case <-w.done:
	case <-time.After(time.Second): // the guest ended too early
	}
	w.cancel()
	<-w.done
	_ = w.server.Wait() // ended by the signal
	return w.notes, w.err
}

const limit = `{resource="conntrack_entries"}`

// observe makes the guest fill its table after a scrape, and returns what the Prometheus
// saw of it.
func (w *watch) observe(ctx context.Context) (notes []string, err error) {
	scrapes, err := w.wait(ctx, 2)
	if err != nil {
		return nil, err
	}
	pause(ctx, 15*time.Second)
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", w.control)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var at [2]time.Time // full, and empty
	said := bufio.NewScanner(conn)
	for i := range at {
		if !said.Scan() {
			return nil, fmt.Errorf("the guest did not fill its table: %w", said.Err())
		}
		at[i] = time.Now()
	}
	full, empty := at[0], at[1]
	if scrapes, err = w.wait(ctx, len(scrapes)+1); err != nil {
		return nil, err
	}
	pause(ctx, 50*time.Second) // for some evaluations of the rules
	since := func(t time.Time) string { return fmt.Sprintf("%+.0f s", t.Sub(full).Seconds()) }
	notes = append(notes, fmt.Sprintf("full from 0 s to %s", since(empty)))

	highest, peaked := 0.0, false
	saturation, err := w.series(ctx, "sockpressure_saturation_ratio"+limit+"[10m]")
	if err != nil {
		return notes, err
	}
	peaks, err := w.series(ctx, "sockpressure_saturation_peak_ratio"+limit+"[10m]")
	if err != nil {
		return notes, err
	}
	for i, s := range saturation[""] {
		peak := peaks[""][i]
		notes = append(notes, fmt.Sprintf("scrape at %s: saturation %.3f, peak %.3f", since(s.at), s.value, peak.value))
		highest = max(highest, s.value)
		peaked = peaked || s.at.After(empty) && peak.value >= 1
	}
	fired, err := w.series(ctx, `ALERTS{alertstate="firing"}[10m]`)
	if err != nil {
		return notes, err
	}
	for alert, samples := range fired {
		notes = append(notes, fmt.Sprintf("fires from %s on: %s", since(samples[0].at), alert))
	}
	slices.Sort(notes[1+len(saturation[""]):])
	switch {
	case highest >= 0.9 || slices.ContainsFunc(scrapes, func(t time.Time) bool { return t.After(full) && t.Before(empty) }):
		return notes, errors.New("a scrape saw the table full")
	case !peaked:
		return notes, errors.New("the peak does not tell that the table was full")
	case !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "SockPressureReachedBetweenScrapes") }):
		return notes, errors.New("no alert tells that the table was full")
	}
	return notes, nil
}

// wait waits until the guest has been scraped the given number of times, and returns the
// times.
func (w *watch) wait(ctx context.Context, scrapes int) ([]time.Time, error) {
	for ctx.Err() == nil {
		pause(ctx, time.Second)
		found, err := w.series(ctx, "sockpressure_saturation_ratio"+limit+"[10m]")
		if err != nil {
			continue // it is starting
		}
		var times []time.Time
		for _, s := range found[""] {
			times = append(times, s.at)
		}
		if len(times) >= scrapes {
			return times, nil
		}
	}
	return nil, fmt.Errorf("waiting for scrape %d of the guest: %w", scrapes, ctx.Err())
}

// sample is a value of a series.
type sample struct {
	at    time.Time
	value float64
}

// series queries the Prometheus for samples. For an alert, the key is its name and
// severity.
func (w *watch) series(ctx context.Context, query string) (map[string][]sample, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.prometheus+"/api/v1/query?query="+url.QueryEscape(query), http.NoBody)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	var body struct {
		Error string
		Data  struct {
			Result []struct {
				Metric map[string]string
				Values [][2]any // the time, and a number as a string
			}
		}
	}
	if err := json.NewDecoder(answer.Body).Decode(&body); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", query, answer.Status, err)
	}
	if body.Error != "" {
		return nil, fmt.Errorf("%s: %s", query, body.Error)
	}
	all := map[string][]sample{}
	for _, r := range body.Data.Result {
		key := ""
		if name := r.Metric["alertname"]; name != "" {
			key = name + " (" + r.Metric["severity"] + ")"
		}
		for _, v := range r.Values {
			seconds, _ := v[0].(float64)
			text, _ := v[1].(string)
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", query, err)
			}
			all[key] = append(all[key], sample{time.UnixMilli(int64(seconds * 1000)), value})
		}
	}
	return all, nil
}

// pause waits for the given time, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
