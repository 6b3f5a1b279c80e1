package alerts

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/remotewrite"
	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

// TestVictoriaMetrics checks that VictoriaMetrics and vmalert give the results of Prometheus on
// the recordings of the lab: the same alerts fire on the same hosts, and every query of a rule or
// a panel has the same answer.
func TestVictoriaMetrics(t *testing.T) {
	t.Parallel()
	needs.Check(t, "prometheus", "promtool", "victoria-metrics", "vmalert")
	var r run
	for _, rec := range recordings(t, "6.12") {
		n := node{instance: instance(rec)}
		for _, s := range rec.Series {
			// promtool returns the last value of an ended series for 5 minutes more, which no
			// server does. So absent values repeat the last one, also for 8 steps after the end,
			// so that nothing first fires at the very end.
			values := append(slices.Clone(s.Values), slices.Repeat([]float64{math.NaN()}, 8)...)
			for i := range values[1:] {
				if math.IsNaN(values[i+1]) {
					values[i+1] = values[i]
				}
			}
			n.series = append(n.series, recording.Series{Name: s.Name, Values: values})
		}
		r.nodes = append(r.nodes, n)
	}
	r.tick, r.interval = step, step
	base := time.Now().Add(-30 * time.Minute).Truncate(time.Minute)
	end := base.Add(time.Duration(r.nodes[0].ticks()-1) * step)

	victoria := startServer(t, "/health", "victoria-metrics", "-storageDataPath="+t.TempDir(), "-httpListenAddr=ADDRESS", "-retentionPeriod=1d")
	writeNodes(t, victoria, r.nodes, base)
	flush := func() { fetch(t, victoria+"/internal/force_flush") } // makes written samples visible to queries
	flush()
	// vmalert replays each rule over the whole time range before the next rule, which sees only
	// part of what the previous one recorded, or nothing. So recording rules are replayed first,
	// in the order of their dependencies.
	replay := func(pattern string) {
		out, err := exec.CommandContext(t.Context(), "vmalert", "-rule="+pattern, "-datasource.url="+victoria, "-remoteWrite.url="+victoria,
			"-replay.timeFrom="+base.UTC().Format(time.RFC3339), "-replay.timeTo="+end.UTC().Format(time.RFC3339),
			"-replay.rulesDelay=0", "-replay.disableProgressBar", "-remoteWrite.flushInterval=50ms", "-notifier.blackhole").CombinedOutput()
		if err != nil || strings.Contains(string(out), "\terror\t") {
			t.Fatalf("vmalert: %v: %s", err, out)
		}
		flush()
	}
	for _, stage := range stagesOfRecords(t) {
		replay(stage)
	}
	replay("*.rules.yml")

	t.Run("alerts", func(t *testing.T) {
		want, got := map[string]bool{}, map[string]bool{}
		for _, f := range r.evaluate(t) {
			want[f.name+"/"+f.severity+" "+f.instance] = true
		}
		for _, a := range ask(t, victoria, `count_over_time(ALERTS{alertstate="firing"}[1h])`, end) {
			got[a.Metric["alertname"]+"/"+a.Metric["severity"]+" "+a.Metric["instance"]] = true
		}
		if len(want) < 50 {
			t.Errorf("only %d alerts fire", len(want))
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if !got[name] {
				t.Errorf("does not fire: %s", name)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(got)) {
			// In VictoriaMetrics an increase lasts longer than the level that it is compared
			// with, so a warning may fire in addition to the page of the same name, which
			// inhibits it.
			page := strings.Replace(name, "/"+Warning, "/"+Critical, 1)
			if !want[name] && (page == name || !want[page]) {
				t.Errorf("fires: %s", name)
			}
		}
	})

	// Prometheus gets all series of VictoriaMetrics, including the recorded ones.
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(config, []byte("global: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	prometheus := startServer(t, "/-/ready", "prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address=ADDRESS", "--web.enable-remote-write-receiver")
	copySeries(t, victoria, prometheus)
	asked := map[string]string{}
	for _, rule := range readRules(t) {
		asked[rule.Expr] = rule.String()
	}
	for _, q := range readPanels(t) {
		asked[q.expr] = q.title
	}
	answers := 0
	for _, expr := range slices.Sorted(maps.Keys(asked)) {
		// Evaluate between samples: at the time of a sample, Prometheus 3 and VictoriaMetrics
		// leave out the first sample of a range, and Prometheus 2 does not.
		for _, at := range []time.Time{base.Add(6*time.Minute + 7*time.Second), end.Add(7 * time.Second)} {
			want := [][]sample{ask(t, prometheus, expr, at)}
			if ofRange(expr) {
				want = append(want, ask(t, prometheus, expr, at.Add(-step)), ask(t, prometheus, expr, at.Add(step)))
			}
			answers += len(want[0])
			difference := compare(expr, want, ask(t, victoria, expr, at))
			if asked[expr] == "memory.rules.yml: SockPressureOOMKill, warning" && strings.HasPrefix(difference, "has ") {
				continue // the increase includes the kill for a scrape longer than memory is full
			}
			if difference != "" {
				t.Errorf("%s, %s after the start: %s\n%s", asked[expr], at.Sub(base), difference, expr)
			}
		}
	}
	if answers < 1000 {
		t.Errorf("%d queries have only %d series: nothing is compared", len(asked), answers)
	}
	t.Logf("%d queries, %d series", len(asked), answers)
}

// stagesOfRecords writes rule files without alerts, a directory for each stage, and returns
// patterns of their names. The rules of a stage read only records of the stages before it.
func stagesOfRecords(t *testing.T) []string {
	t.Helper()
	groups, err := Config{}.Apply(Groups())
	if err != nil {
		t.Fatal(err)
	}
	reads := map[string]map[string]bool{} // record to the records that it reads
	for _, g := range groups {
		for _, o := range g.Rules {
			if o.Record == "" {
				continue
			}
			if reads[o.Record] == nil {
				reads[o.Record] = map[string]bool{}
			}
			for _, s := range parse(o.Expr).selectors {
				if strings.Contains(s.metric, ":") {
					reads[o.Record][s.metric] = true
				}
			}
		}
	}
	var patterns []string
	for done := map[string]bool{}; len(done) < len(reads); {
		now := map[string]bool{}
		for name, others := range reads {
			now[name] = !done[name] && !slices.ContainsFunc(slices.Collect(maps.Keys(others)), func(o string) bool { return !done[o] })
		}
		var stage []OutputGroup
		for _, g := range groups {
			g.Rules = slices.DeleteFunc(slices.Clone(g.Rules), func(o Output) bool { return !now[o.Record] })
			stage = appendGroup(stage, g)
		}
		if len(stage) == 0 {
			t.Fatal("records depend on each other in a cycle")
		}
		maps.DeleteFunc(now, func(_ string, in bool) bool { return !in })
		maps.Copy(done, now)
		dir := t.TempDir()
		for name, text := range Files(stage) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		patterns = append(patterns, filepath.Join(dir, "*.rules.yml"))
	}
	return patterns
}

// startServer runs a server until the test ends, and returns its URL once it is ready.
func startServer(t *testing.T, ready, name string, args ...string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "ADDRESS", address)
	}
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("log of %s: %.3000s", name, log.String())
		}
	})
	for {
		resp, err := http.Get("http://" + address + ready)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return "http://" + address
			}
		}
		select {
		case <-ended:
			t.Fatalf("%s ended: %s", name, log.String())
		case <-t.Context().Done():
			t.Fatalf("%s is not ready", name)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// writeNodes writes the series of nodes to a server, with a tick every step from base on.
func writeNodes(t *testing.T, server string, nodes []node, base time.Time) {
	t.Helper()
	label := regexp.MustCompile(`(\w+)=("(?:[^"\\]|\\.)*")`)
	b := remotewrite.Batch{URL: server + "/api/v1/write"}
	for _, n := range nodes {
		up := recording.Series{Name: "up", Values: slices.Repeat([]float64{1}, n.ticks())}
		for _, s := range append(slices.Clone(n.series), up) {
			name, labels, _ := strings.Cut(strings.TrimSuffix(s.Name, "}"), "{")
			all := []remotewrite.Label{{Name: "__name__", Value: name}, {Name: "job", Value: "sockpressure"}, {Name: "instance", Value: n.instance}}
			for _, m := range label.FindAllStringSubmatch(labels, -1) {
				value, err := strconv.Unquote(m[2])
				if err != nil {
					t.Fatalf("%s: %v", s.Name, err)
				}
				all = append(all, remotewrite.Label{Name: m[1], Value: value})
			}
			b.Begin(all)
			for i, v := range s.Values {
				if !math.IsNaN(v) {
					b.Sample(v, base.Add(time.Duration(i)*step))
				}
			}
			if err := b.End(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// copySeries copies all series of VictoriaMetrics to another server.
func copySeries(t *testing.T, from, to string) {
	t.Helper()
	stale := math.Float64frombits(0x7ff0000000000002) // stale marker: the series has ended
	b := remotewrite.Batch{URL: to + "/api/v1/write"}
	lines := bufio.NewScanner(strings.NewReader(fetch(t, from+"/api/v1/export?match[]="+url.QueryEscape(`{__name__!=""}`))))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var s struct {
			Metric     map[string]string
			Values     []*float64 // null for a stale marker
			Timestamps []int64
		}
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		var all []remotewrite.Label
		for name, value := range s.Metric {
			all = append(all, remotewrite.Label{Name: name, Value: value})
		}
		b.Begin(all)
		for i, v := range s.Values {
			if v == nil {
				v = &stale
			}
			b.Sample(*v, time.UnixMilli(s.Timestamps[i]))
		}
		if err := b.End(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.Series < 4000 {
		t.Fatalf("%s has only %d series", from, b.Series)
	}
}

// sample is one series of an answer.
type sample struct {
	Metric map[string]string
	Value  [2]any // the time, and a number as a string
}

func (s sample) value() float64 {
	v, err := strconv.ParseFloat(fmt.Sprint(s.Value[1]), 64)
	if err != nil {
		return math.NaN()
	}
	return v
}

// labels returns the labels without the metric name, which VictoriaMetrics keeps where Prometheus
// drops it and the other way round.
func (s sample) labels() string {
	m := maps.Clone(s.Metric)
	delete(m, "__name__")
	return fmt.Sprint(m)
}

func ask(t *testing.T, server, promQL string, at time.Time) []sample {
	t.Helper()
	values := url.Values{"query": {promQL}, "time": {strconv.FormatInt(at.Unix(), 10)}, "nocache": {"1"}}
	var answer struct{ Data struct{ Result []sample } }
	if err := json.Unmarshal([]byte(fetch(t, server+"/api/v1/query?"+values.Encode())), &answer); err != nil {
		t.Fatalf("%s: %v", promQL, err)
	}
	return answer.Data.Result
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode/100 != 2 {
		t.Fatalf("%s: %s: %s", url, resp.Status, body)
	}
	return string(body)
}

// ofRange reports whether an expression has a rate or an increase. VictoriaMetrics does not
// extrapolate from the samples of a range to its ends, and counts from the last sample before the
// range, so its increases last for a scrape longer.
func ofRange(expr string) bool {
	return strings.Contains(expr, "rate(") || strings.Contains(expr, "increase(")
}

// compare describes how an answer differs from all of some others, and returns "" if it does not.
// Values may be anywhere between the lowest and the highest of the others, which for a range are
// the answers now and one scrape before and after. topk may choose other series among equal ones.
func compare(expr string, want [][]sample, got []sample) string {
	tolerance := 1e-6
	switch {
	case ofRange(expr):
		tolerance = 0.3
	case strings.Contains(expr, "topk"):
		tolerance = 0.05
	}
	type span struct {
		least, highest float64
		times          int
	}
	spans := map[string]span{}
	for _, answer := range want {
		for labels, v := range byLabels(expr, answer) {
			s, ok := spans[labels]
			if !ok {
				s.least, s.highest = v, v
			}
			spans[labels] = span{min(s.least, v), max(s.highest, v), s.times + 1}
		}
	}
	have := byLabels(expr, got)
	var all []string
	for _, labels := range slices.Sorted(maps.Keys(spans)) {
		v, ok := have[labels]
		s := spans[labels]
		room := tolerance * max(math.Abs(s.least), math.Abs(s.highest))
		switch {
		case !ok && s.times == len(want):
			all = append(all, fmt.Sprintf("lacks %s %v", labels, s.highest))
		case ok && (v < s.least-room || v > s.highest+room):
			all = append(all, fmt.Sprintf("has %v for %v to %v of %s", v, s.least, s.highest, labels))
		}
	}
	for _, labels := range slices.Sorted(maps.Keys(have)) {
		if _, ok := spans[labels]; !ok {
			all = append(all, fmt.Sprintf("has %s %v", labels, have[labels]))
		}
	}
	if len(all) > 4 {
		all = append(all[:4], fmt.Sprintf("and %d more", len(all)-4))
	}
	return strings.Join(all, "; ")
}

// byLabels returns the values of an answer by labels or, of a topk, by rank.
func byLabels(expr string, answer []sample) map[string]float64 {
	all := map[string]float64{}
	if strings.Contains(expr, "topk") {
		answer = slices.SortedFunc(slices.Values(answer), func(a, b sample) int { return cmp.Compare(a.value(), b.value()) })
		for i, s := range answer {
			all[fmt.Sprintf("number %d", i)] = s.value()
		}
		return all
	}
	for _, s := range answer {
		all[s.labels()] = s.value()
	}
	return all
}

// panel is a query of a dashboard, with its variables set to all nodes.
type panel struct{ title, expr string }

func readPanels(t *testing.T) []panel {
	t.Helper()
	files, err := filepath.Glob("../dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	chosen := strings.NewReplacer("$__range", "10m", "$__rate_interval", "2m", "$__interval", "15s", "$cluster", ".*", "$job", ".+",
		"$instance", ".+", "$resource", ".+", "$severity", "critical|warning", "$top", "20", "$worst", ".+", "$netns", ".*")
	var all []panel
	var walk func(title string, v any)
	walk = func(title string, v any) {
		switch v := v.(type) {
		case []any:
			for _, each := range v {
				walk(title, each)
			}
		case map[string]any:
			if own, ok := v["title"].(string); ok {
				title = own
			}
			if expr, ok := v["expr"].(string); ok {
				all = append(all, panel{title, chosen.Replace(expr)})
			}
			for _, key := range slices.Sorted(maps.Keys(v)) {
				walk(title, v[key])
			}
		}
	}
	for _, file := range files {
		var content any
		if err := json.Unmarshal([]byte(read(t, file)), &content); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		walk(filepath.Base(file), content)
	}
	slices.SortFunc(all, func(a, b panel) int {
		return cmp.Or(strings.Compare(a.title, b.title), strings.Compare(a.expr, b.expr))
	})
	return all
}
