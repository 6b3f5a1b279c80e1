package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestPrometheus checks that a Prometheus that scrapes the exporter has every metric.
func TestPrometheus(t *testing.T) {
	needs.Check(t, "prometheus")
	t.Parallel()
	e := start(t, nil)
	p := startPrometheus(t, e)

	// On a busy machine some scrapes take more than a second and fail.
	scrapes := func() float64 { return slices.Max(append(p.query(t, `sum_over_time(up[1m])`), 0)) }
	for end := time.Now().Add(time.Minute); scrapes() < 5; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%v scrapes after a minute", scrapes())
		}
	}
	for query, ok := range map[string]func(float64) bool{
		`max_over_time(scrape_samples_scraped[1m])`:                     func(v float64) bool { return v > 100 && v < 400 },
		`min(min_over_time(sockpressure_scrape_collector_success[1m]))`: func(v float64) bool { return v == 1 },
		`count(sockpressure_scrape_collector_success)`:                  func(v float64) bool { return v == float64(len(collector.Specs())) },
	} {
		if got := p.query(t, query); len(got) != 1 || !ok(got[0]) {
			t.Errorf("%s: %v", query, got)
		}
	}
	for _, name := range contract(e.scrape("")) {
		if len(p.query(t, name)) == 0 {
			t.Errorf("no data of %s", name)
		}
	}
}

// contract returns the names of the metrics that have a value on this kernel.
func contract(p page) []string {
	names := map[string]bool{"sockpressure_saturation_ratio": true, "sockpressure_saturation_peak_ratio": true, "sockpressure_saturation_samples_skipped_total": true, "sockpressure_host_network_namespace": true, "sockpressure_host_view": true}
	for _, health := range []string{"success", "supported", "duration_seconds", "age_seconds"} {
		names["sockpressure_scrape_collector_"+health] = true
	}
	for _, s := range collector.Specs() {
		if p[fmt.Sprintf("sockpressure_scrape_collector_supported{collector=%q}", s.Name)] == 0 {
			continue
		}
		for _, m := range s.Metrics {
			if os.Geteuid() == 0 || !needsPrivilege(m.FullName()) {
				names[m.FullName()] = true
			}
		}
	}
	// These exist only if another namespace has connections, or if unix or UDP sockets have
	// queues.
	maps.DeleteFunc(names, func(name string, _ bool) bool {
		return (others(name) || strings.HasPrefix(name, "sockpressure_unix_accept") || strings.HasPrefix(name, "sockpressure_udp_receive_queue") || strings.HasPrefix(name, "sockpressure_udp_socket")) && len(p.with(name)) == 0
	})
	// Not every kernel has these.
	for _, name := range []string{
		"sockpressure_kernel_message_last_timestamp_seconds",                        // a log without such messages
		"sockpressure_memory_zfs_arc_bytes",                                         // the module zfs
		"sockpressure_memory_low_total_bytes", "sockpressure_memory_low_free_bytes", // 32 bits, CONFIG_HIGHMEM
		"sockpressure_memory_high_total_bytes", "sockpressure_memory_high_free_bytes", // the same
		"sockpressure_udp_memory_errors_total", "sockpressure_udp6_memory_errors_total", // Linux 5.11
	} {
		if len(p.with(name)) == 0 {
			delete(names, name)
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// prometheus is a running Prometheus server.
type prometheus struct{ *exporter }

// startPrometheus runs a Prometheus that scrapes e every second until the test
// ends.
func startPrometheus(t *testing.T, e *exporter) prometheus {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	err := os.WriteFile(config, fmt.Appendf(nil, `global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
  - job_name: e2e
    static_configs:
      - targets: [%q]
`, strings.TrimPrefix(e.url, "http://")), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	// Prometheus uses the same web server as the exporter, and logs its address in the same
	// format.
	return prometheus{start(t, func(cmd *exec.Cmd) {
		prometheus := exec.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0")
		cmd.Path, cmd.Args = prometheus.Path, prometheus.Args
	})}
}

// query returns the values of an instant query.
func (p prometheus) query(t *testing.T, promQL string) []float64 {
	t.Helper()
	// Prometheus listens before it is ready, and answers 503 until then.
	status, body := p.get("/api/v1/query?query=" + url.QueryEscape(promQL))
	if status == http.StatusServiceUnavailable {
		return nil
	}
	var answer struct {
		Data struct {
			Result []struct {
				Value [2]any // the time, and a number as a string
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != http.StatusOK {
		t.Fatalf("%s: %d %s: %v", promQL, status, body, err)
	}
	values := make([]float64, len(answer.Data.Result))
	for i, r := range answer.Data.Result {
		v, err := strconv.ParseFloat(fmt.Sprint(r.Value[1]), 64)
		if err != nil {
			t.Fatalf("%s: %s: %v", promQL, body, err)
		}
		values[i] = v
	}
	return values
}
