package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
)

// TestCheckJSON checks that the JSON output has the same limits, states and exit status as the
// table, under the names that README.md documents.
func TestCheckJSON(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../testdata/linux-6.12/proc")); err != nil {
		t.Fatal(err)
	}
	all := []string{"check", "--path.procfs=" + dir}
	args := append(slices.Clone(all), "--no-collector.tcp", "--no-collector.ports", "--no-collector.unix", "--no-collector.udp")
	for _, c := range []struct {
		entries string
		args    []string
		status  int
		state   string
		failed  []string
	}{
		{"12", args, 0, "ok", nil},
		{"49152", args, 1, "warning", nil},
		{"65536", args, 2, "critical", nil},
		// The recording has no sockets.
		{"12", all, unknown, "unknown", []string{"tcp", "ports", "unix", "udp"}},
		{"65536", all, 2, "critical", []string{"tcp", "ports", "unix", "udp"}},
	} {
		if err := os.WriteFile(filepath.Join(dir, "sys/net/netfilter/nf_conntrack_count"), []byte(c.entries+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var table, stdout, stderr bytes.Buffer
		Run(t.Context(), c.args, nil, &table, io.Discard)
		status := Run(t.Context(), append([]string{"--log.level=error"}, append(slices.Clone(c.args), "--format=json")...), nil, &stdout, &stderr)
		if status != c.status || stderr.Len() != 0 {
			t.Errorf("%s entries: status %d, %s", c.entries, status, stderr.String())
		}
		var doc map[string]any
		if err := json.Unmarshal(stdout.Bytes(), &doc); err != nil {
			t.Fatalf("%v in %s", err, stdout.String())
		}
		names := func(v map[string]any) string { return strings.Join(slices.Sorted(maps.Keys(v)), " ") }
		if got := names(doc); got != "exit_status failed_collectors host_view kernel_messages limits state" {
			t.Errorf("the document has %s", got)
		}
		if doc["exit_status"] != float64(c.status) || doc["state"] != c.state || fmt.Sprint(doc["host_view"]) != "map[memory:true network:true processes:true]" {
			t.Errorf("%s entries: %v, %v", c.entries, doc["exit_status"], doc["state"])
		}

		rows := strings.Split(table.String(), "\n")[1:]
		limits := doc["limits"].([]any)
		if len(limits) < 8 || !slices.ContainsFunc(limits, func(l any) bool { return l.(map[string]any)["resource"] == "conntrack_entries" }) {
			t.Fatalf("%d limits: %v", len(limits), limits)
		}
		for i, v := range limits {
			l := v.(map[string]any)
			if got := names(l); got != "effect full_in_seconds holder items limit peak resource saturation set state sysctl thresholds unit usage worst_netns" {
				t.Fatalf("a limit has %s", got)
			}
			if row := strings.Fields(rows[i]); row[0] != l["resource"] || row[1] != l["state"] || !strings.HasSuffix(rows[i], l["sysctl"].(string)) {
				t.Errorf("%v where the table has %s", l, rows[i])
			}
			if got := l["usage"].(float64) / l["limit"].(float64); got != l["saturation"] {
				t.Errorf("%s: %v, want %v", l["resource"], l["saturation"], got)
			}
			thresholds := l["thresholds"].(map[string]any)
			if got := names(thresholds); got != "critical warning" || thresholds["warning"].(float64) > thresholds["critical"].(float64) {
				t.Errorf("thresholds %v", thresholds)
			}
			if l["resource"] == "conntrack_entries" && (l["unit"] != "entries" || l["limit"] != 65536.0 ||
				!strings.HasPrefix(l["effect"].(string), "Packets of new connections are dropped") || thresholds["warning"] != 0.75) {
				t.Errorf("conntrack_entries: %v", l)
			}
		}

		var failed []string
		for _, v := range doc["failed_collectors"].([]any) {
			f := v.(map[string]any)
			if names(f) != "collector error" || f["error"] == "" {
				t.Errorf("a failed collector has %v", f)
			}
			failed = append(failed, f["collector"].(string))
		}
		if !slices.Equal(failed, c.failed) {
			t.Errorf("%q failed, want %q", failed, c.failed)
		}
	}
}

// TestCheckJSONEmpty checks that lists are empty and numbers are absent if nothing was read.
func TestCheckJSONEmpty(t *testing.T) {
	var out bytes.Buffer
	container := kernel.View{Network: errors.New("a container's"), Processes: errors.New("a container's")}
	if err := (report{view: container}).writeJSON(&out); err != nil {
		t.Fatal(err)
	}
	const want = `{"state":"unknown","exit_status":3,"host_view":{"memory":true,"network":false,"processes":false},"limits":[],"failed_collectors":[],"kernel_messages":[]}`
	var compact bytes.Buffer
	if err := json.Compact(&compact, out.Bytes()); err != nil || compact.String() != want+"\n" && compact.String() != want {
		t.Errorf("%s, %v", compact.String(), err)
	}
}

// TestCheckItems checks that the items closest to a limit are shown below it if the limit is
// not ok, and that the JSON output has all of them.
func TestCheckItems(t *testing.T) {
	var items []collector.Item
	for _, name := range []string{"a", "b", "c", "d"} {
		items = append(items, collector.Item{Key: []string{name, "to"}, Usage: 9, Limit: 10})
	}
	info := &collector.LimitInfo{
		Resource: "ports", Unit: collector.Ports, Effect: "It ends.", SetWith: "a sysctl", WarningRatio: 0.5, CriticalRatio: 0.95,
		List: &collector.ListInfo{Labels: []string{"source", "destination"}},
	}
	r := report{limits: []collector.LimitReading{{LimitInfo: info, Usage: 9, Limit: 10, Items: items}}}
	var text, doc bytes.Buffer
	if err := errors.Join(r.writeText(&text, painter(io.Discard)), r.writeJSON(&doc)); err != nil {
		t.Fatal(err)
	}
	const want = "When ports reaches its limit: It ends.\n  a → to: 9 of 10 ports\n  b → to: 9 of 10 ports\n  c → to: 9 of 10 ports\n  more: sockpressure_exporter who ports\n"
	if !strings.HasSuffix(text.String(), want) {
		t.Errorf("%s, want %s", text.String(), want)
	}
	var got jsonReport
	if err := json.Unmarshal(doc.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if all := got.Limits[0].Items; len(all) != 4 || all[1].Usage != 9 || all[1].Limit != 10 || !maps.Equal(all[1].Labels, map[string]string{"source": "b", "destination": "to"}) {
		t.Errorf("%+v", all)
	}
	info.WarningRatio, info.CriticalRatio = 0.95, 0.99
	text.Reset()
	if err := r.writeText(&text, painter(io.Discard)); err != nil || strings.Contains(text.String(), "→") {
		t.Errorf("%s, %v", text.String(), err)
	}
}

// TestCheckStatus checks that the status is unknown only if no limit that was read is at its
// warning level.
func TestCheckStatus(t *testing.T) {
	limit := func(usage float64) collector.LimitReading {
		return collector.LimitReading{LimitInfo: &collector.LimitInfo{WarningRatio: 0.5, CriticalRatio: 0.9}, Usage: usage, Limit: 1}
	}
	failed := []collector.Result{{Collector: "tcp", Err: errors.New("no")}}
	container := kernel.View{Processes: errors.New("a container's")}
	for _, c := range []struct {
		report
		want int
	}{
		{report{}, unknown},
		{report{limits: []collector.LimitReading{limit(0.1)}}, 0},
		{report{view: container, limits: []collector.LimitReading{limit(0.1)}}, unknown},
		{report{view: container, limits: []collector.LimitReading{limit(0.1), limit(0.6)}}, 1},
		{report{failed: failed, limits: []collector.LimitReading{limit(0.1)}}, unknown},
		{report{failed: failed, limits: []collector.LimitReading{limit(0.95), limit(0.1)}}, 2},
	} {
		if got := c.status(); got != c.want {
			t.Errorf("%+v: status %d, want %d", c.report, got, c.want)
		}
	}
}

// TestCheckUnwritten checks that the status is unknown if the result cannot be written.
func TestCheckUnwritten(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, format := range []string{formatText, formatJSON} {
		var stderr bytes.Buffer
		args := []string{"check", "--format=" + format, "--log.level=error", "--path.procfs=../../testdata/linux-6.12/proc", "--no-collector.tcp", "--no-collector.ports", "--no-collector.unix", "--no-collector.udp"}
		if got := Run(t.Context(), args, nil, full, &stderr); got != unknown || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%s: status %d, %q", format, got, stderr.String())
		}
	}
}

// TestCheckFor checks that the highest saturation while check watched is shown next to the
// current one.
func TestCheckFor(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../testdata/linux-6.12/proc")); err != nil {
		t.Fatal(err)
	}
	entries := func(n string) {
		if err := os.WriteFile(filepath.Join(dir, "sys/net/netfilter/nf_conntrack_count"), []byte(n+"\n"), 0o600); err != nil {
			t.Error(err)
		}
	}
	args := []string{"check", "--path.procfs=" + dir, "--collector.disable-defaults", "--collector.conntrack", "--collector.sample-interval=100ms", "--for"}
	var stdout, stderr bytes.Buffer
	ended := make(chan int)
	entries("65536")
	go func() { ended <- Run(t.Context(), append(args, "3s"), nil, &stdout, &stderr) }()
	time.Sleep(1500 * time.Millisecond)
	entries("6553") // 10 % of the limit
	if status := <-ended; status != 0 || stderr.Len() > 0 {
		t.Errorf("status %d: %s", status, stderr.String())
	}
	rows := strings.Split(stdout.String(), "\n")
	if got := strings.Fields(rows[0])[3]; got != "PEAK" {
		t.Errorf("the header has %s", got)
	}
	if got := strings.Fields(rows[1]); got[2] != "10.0%" || got[3] != "100.0%" {
		t.Errorf("%q", got)
	}
	stderr.Reset()
	if status := Run(t.Context(), append(args, "2m"), nil, io.Discard, &stderr); status != unknown || !strings.Contains(stderr.String(), "--for=2m0s must be between") {
		t.Errorf("status %d: %s", status, stderr.String())
	}
}

// TestCheckPlugin checks that the first line is that of a monitoring plugin, with a number for
// each limit, and that thresholds from the command line replace those of the limits.
func TestCheckPlugin(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../testdata/linux-6.12/proc")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sys/net/netfilter/nf_conntrack_count"), []byte("49152\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"check", "--format=plugin", "--path.procfs=" + dir,
		"--no-collector.ports", "--no-collector.unix", "--no-collector.udp",
	}
	for _, c := range []struct {
		args   []string
		status int
		line   string
		data   string
	}{
		{[]string{"--no-collector.tcp"}, 1, "SOCKPRESSURE WARNING: conntrack_entries 75.0% (49152 of 65536 entries) | ", "conntrack_entries=75.0%;75.0;90.0;0"},
		{[]string{"--no-collector.tcp", "-w", "0.8"}, 0, " limits, the nearest is conntrack_entries with 75.0% | ", "conntrack_entries=75.0%;80.0;90.0;0"},
		{[]string{"--no-collector.tcp", "-w", "50%", "-c", "70%"}, 2, "SOCKPRESSURE CRITICAL: conntrack_entries 75.0%", "conntrack_entries=75.0%;50.0;70.0;0"},
		{[]string{"-w", "0.8"}, unknown, "SOCKPRESSURE UNKNOWN: collector tcp failed | ", "conntrack_entries=75.0%;80.0;90.0;0"},
	} {
		var stdout bytes.Buffer
		status := Run(t.Context(), append(slices.Clone(args), c.args...), nil, &stdout, io.Discard)
		line, details, _ := strings.Cut(stdout.String(), "\n")
		_, data, _ := strings.Cut(line, " | ")
		if status != c.status || !strings.Contains(line, c.line) || !slices.Contains(strings.Fields(data), c.data) {
			t.Errorf("%v: status %d, %s", c.args, status, line)
		}
		if len(strings.Fields(data)) < 8 || strings.Count(stdout.String(), "|") != 1 {
			t.Errorf("%v: %s", c.args, stdout.String())
		}
		if (status == 1 || status == 2) != strings.Contains(details, "to raise it: sysctl -w net.netfilter.nf_conntrack_max=") {
			t.Errorf("%v: %s", c.args, details)
		}
	}
	for args, want := range map[string]string{
		"--warning=0":                "not a saturation such as 0.8 or 80%",
		"--critical=300%":            "not a saturation such as 0.8 or 80%",
		"--warning=.9 --critical=.8": "--warning=0.9 is not below --critical=0.8",
		"--warning=NaN":              "not a saturation such as 0.8 or 80%",
	} {
		var stderr bytes.Buffer
		if status := Run(t.Context(), append([]string{"check"}, strings.Fields(args)...), nil, io.Discard, &stderr); status != unknown || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: status %d, %s", args, status, stderr.String())
		}
	}
}
