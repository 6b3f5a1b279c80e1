package dashboards

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestDrawn checks what every panel of both dashboards draws, with a Prometheus that scrapes
// recordings of real kernels under pressure, with and without a cluster label: no query returns
// more series than the panel has room for, no two lines of a panel have the same name, and a stat
// has one number, even without nodes.
func TestDrawn(t *testing.T) {
	needs.Check(t, "prometheus")
	dir := t.TempDir()
	replay := filepath.Join(dir, "replay")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", replay, "../lab/replay").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	nodes := serveAs(t, regexp.MustCompile(`(\d+) nodes: http://(\S+)/targets`), replay, "-recordings=../lab/recordings", "-listen=127.0.0.1:0", "-step=1s")
	rules, err := filepath.Abs("../alerts/*.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "prometheus.yml")
	const scrape = `
  - job_name: %s
    http_sd_configs: [{url: "http://%s/targets"}]
    relabel_configs: [{target_label: cluster, replacement: %q}]`
	err = os.WriteFile(config, fmt.Appendf(nil, "global: {scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 2s}\nrule_files: [%q]\nscrape_configs:"+strings.Repeat(scrape, 2),
		rules, "east", nodes, "east", "sockpressure", nodes, ""), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	prometheus := serve(t, "prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0")

	// Wait until alerts fire.
	const busy = `count(ALERTS{alertstate="firing",severity="critical"}) > 20`
	end := time.Now().Add(8 * time.Minute)
	for ; ask(t, prometheus, busy) == 0; time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatalf("no answer to %s after eight minutes", busy)
		}
	}

	at := time.Now()
	for _, instance := range []string{".+", "tcp-memory[.]6[.]12", "nobody"} {
		for _, b := range boards(t) {
			if b.UID == nodeUID && instance == ".+" {
				continue // The dashboard is for one node, or those of its name in several clusters.
			}
			choose := func(expr, worst string) string {
				return strings.NewReplacer("$cluster", ".*", "$__range", "60s", "$job", ".+", "$instance", instance, "$resource", ".*", "$__rate_interval", "8s",
					"$severity", ".+", "$top", "20", "$limit", "tcp_memory", "$worst", worst, "$netns", ".+").Replace(expr)
			}
			worst := "none"
			for _, v := range b.Templating.List {
				if expr, ok := strings.CutPrefix(variableQuery(v), "query_result("); ok {
					found := find(t, prometheus, choose(strings.TrimSuffix(expr, ")"), ""), at, 0)
					var names []string
					for _, s := range found {
						names = append(names, regexp.QuoteMeta(s["instance"]))
					}
					if len(found) > 20 || instance == ".+" && len(found) != 20 {
						t.Errorf("%s: variable %s finds %d nodes", b.UID, v.Name, len(found))
					}
					worst = strings.ReplaceAll(strings.Join(append(names, worst), "|"), `\`, `\\`)
				}
			}
			for _, a := range b.Annotations.List {
				// Each series draws a mark: one for an alert, a message or a node.
				if found := find(t, prometheus, choose(a.Target.Expr, worst), at, time.Minute); len(found) > 70 {
					t.Errorf("%s: annotation %s finds %d", b.UID, a.Name, len(found))
				}
			}
			for _, p := range b.all() {
				where := fmt.Sprintf("%s: %s, of %s", b.UID, p.Title, instance)
				drawn := 0
				names := map[string]bool{}
				for _, target := range p.Targets {
					past := time.Minute
					if target.Instant {
						past = 0
					}
					found := find(t, prometheus, choose(target.Expr, worst), at, past)
					if target.Instant != (p.Type != "timeseries") {
						t.Errorf("%s: a range query drawn at one time, or an instant query over time", where)
					}
					if p.Type == "table" {
						drawn = max(drawn, len(found)) // its queries are columns
						continue
					}
					drawn += len(found)
					for _, s := range found {
						name := legend.ReplaceAllStringFunc(target.LegendFormat, func(l string) string { return s[strings.Trim(l, "{}")] })
						if names[name] && (b.UID == fleetUID || worst != "none") {
							t.Errorf("%s: two series are named %q", where, name)
						}
						names[name] = true
					}
				}
				// A node of each name is both in the cluster and in none.
				most := map[string]int{"stat": 1, "bargauge": len(limits()), "table": 100, "timeseries": 20}[p.Type]
				if b.UID == nodeUID && p.Type == "timeseries" {
					most = 2 * 17
				}
				if drawn > most {
					t.Errorf("%s: finds %d series, draws at most %d", where, drawn, most)
				}
				if p.Type == "stat" && drawn != 1 {
					t.Errorf("%s: has %d numbers", where, drawn)
				}
			}
		}
	}
}

var legend = regexp.MustCompile(`\{\{(\w+)\}\}`)

// find returns the labels of the series that a query returns: at one time or, if past is not 0,
// over that duration before it.
func find(t *testing.T, address, promQL string, at time.Time, past time.Duration) []map[string]string {
	t.Helper()
	values := url.Values{"query": {promQL}, "time": {at.Format(time.RFC3339Nano)}}
	path := "query"
	if past > 0 {
		path = "query_range"
		values = url.Values{"query": {promQL}, "start": {at.Add(-past).Format(time.RFC3339Nano)}, "end": {at.Format(time.RFC3339Nano)}, "step": {"2"}}
	}
	resp, err := http.Get("http://" + address + "/api/v1/" + path + "?" + values.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Error string
		Data  struct {
			Result []struct{ Metric map[string]string }
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || answer.Error != "" {
		t.Errorf("%s: %s (%v)", promQL, answer.Error, err)
		return nil
	}
	labels := make([]map[string]string, len(answer.Data.Result))
	for i, r := range answer.Data.Result {
		labels[i] = r.Metric
	}
	return labels
}
