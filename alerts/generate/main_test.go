package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFresh checks that the committed rule files and rules.json are those that are generated.
func TestFresh(t *testing.T) {
	dir := t.TempDir()
	if err := run([]string{"-dir=" + dir}, nil); err != nil {
		t.Fatal(err)
	}
	made, err := filepath.Glob(filepath.Join(dir, "*.rules.yml"))
	if err != nil || len(made) == 0 {
		t.Fatal(made, err)
	}
	for _, file := range made {
		same(t, filepath.Join("..", filepath.Base(file)), read(t, file))
	}
	kept, err := filepath.Glob("../*.rules.yml")
	if err != nil || len(kept) != len(made) {
		t.Errorf("%d rule files are committed, %d are generated", len(kept), len(made))
	}
	var json bytes.Buffer
	if err := run([]string{"-format=json"}, &json); err != nil {
		t.Fatal(err)
	}
	same(t, "../rules.json", json.String())
}

func same(t *testing.T, kept, made string) {
	t.Helper()
	if read(t, kept) != made {
		t.Errorf("%s is stale: go generate ./alerts", kept)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestConfig checks that a configuration changes what it names.
func TestConfig(t *testing.T) {
	made := func(document string) string {
		t.Helper()
		file := filepath.Join(t.TempDir(), "alerts.yml")
		if err := os.WriteFile(file, []byte(document), 0o600); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := run([]string{"-config=" + file, "-format=prometheusrule", "-namespace=monitoring", "-label=release=a"}, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	plain := made("{}")
	for _, want := range []string{"  namespace: monitoring\n", "    release: \"a\"\n", "# /spec/groups/0/rules/0\n"} {
		if !strings.Contains(plain, want) {
			t.Errorf("lacks %q", want)
		}
	}
	for document, want := range map[string][2]string{ // removed and added text
		"resources: {conntrack_entries: {params: {critical: 0.95}}}":        {`max1m{resource="conntrack_entries"} >= 0.9` + "\n", `max1m{resource="conntrack_entries"} >= 0.95` + "\n"},
		"resources: {tcp_time_wait: {enabled: false}}":                      {"alert: SockPressureTimeWaitNearlyFull", "alert:"},
		"resources: {memory: {enabled: false}}":                             {`:rising{resource!~"tcp_time_wait|request_queue|udp_receive_queue|cgroup_memory"}`, `:rising{resource!~"tcp_time_wait|request_queue|udp_receive_queue|cgroup_memory|memory"}`},
		"alerts: {SockPressureFillingFast/critical: {params: {from: 0.8}}}": {`>= 0.75 < 1`, `>= 0.8 < 1`},
		"alerts: {SockPressureExporterGone: {enabled: false}}":              {"SockPressureExporterGone\n", "alert:"},

		"resources: {memory: {params: {warning: 0.97}, enabled: false}}": {"alert: SockPressureMemoryNearlyFull", "alert:"},
		"select: 'a!=\"b\", c =~ \"d}|e\"'":                              {"(sockpressure_oom_kills_total[5m])", `(sockpressure_oom_kills_total{a!="b", c =~ "d}|e"}[5m])`},
		"select: 'env=\"a\"'":                                            {"(sockpressure_oom_kills_total[5m])", `(sockpressure_oom_kills_total{env="a"}[5m])`},
		"severities: {critical: page}":                                   {`severity="critical"`, "severity: page"},
		"runbookURL: https://example.com/":                               {"docs/runbooks.md#", "https://example.com/sockpressureoomkill"},
		"labels: {team: net}":                                            {"", "team: net"},
		"interval: 30s":                                                  {"interval: 15s", "interval: 30s"},
		"jobs: {edge: {resources: {memory: {params: {warning: 0.95}}}}}": {"name: nothing", `{job!~"edge",resource="memory"}`},
	} {
		got := made(document)
		if want[0] != "" && want[0] != "name: nothing" && !strings.Contains(plain, want[0]) {
			t.Errorf("%s: the default rules lack %q", document, want[0])
		}
		if want[0] != "" && strings.Contains(got, want[0]) || !strings.Contains(got, want[1]) {
			t.Errorf("%s: has %q, or lacks %q", document, want[0], want[1])
		}
	}
}

// TestMistakes checks that each mistake in a configuration or in the flags gives an error that
// names it.
func TestMistakes(t *testing.T) {
	for document, want := range map[string]string{
		"alerts: {SockPressureNonsense: {enabled: false}}": `alerts: there is no "SockPressureNonsense"`,
		"resources: {memory: {params: {count: 1}}}":        `resources: memory has no parameter "count", but critical, warning`,
		"severities: {fatal: page}":                        `severities: there is no "fatal"`,
		"thresholds: {}":                                   "field thresholds not found",
		"jobs: {a: {resources: {nonsense: {}}}}":           `jobs: a: resources: there is no "nonsense"`,

		"resources: {memory: {params: {warning: 80%}}}":                   `resources: memory: warning is "80%", want a ratio`,
		"resources: {memory: {params: {warning: 80}}}":                    "resources: memory: warning is 80, want a ratio",
		"resources: {memory: {params: {warning: high}}}":                  `resources: memory: warning is "high", want a ratio`,
		"alerts: {SockPressureConntrackDropping: {params: {count: NaN}}}": `count is "NaN", want a number`,
		"resources: {memory: {params: {warning: 0}}}":                     "resources: memory: warning is 0, want a ratio",
		"alerts: {SockPressureFillingFast: {params: {from: 0.2}}}":        "alerts: SockPressureFillingFast: from is 0.2, want a ratio such as 0.8, between 0.5 and 1.5",
		"resources: {memory: {params: {warning: 0.97}}}":                  "SockPressureMemoryNearlyFull, memory: warning, 0.97, is not below critical, 0.97",
		"jobs: {a: {resources: {memory: {params: {critical: 0.9}}}}}":     "jobs: a: SockPressureMemoryNearlyFull, memory: warning, 0.9, is not below critical, 0.9",
		"alerts: {SockPressureNetnsNearLimit: {params: {warning: 1}}}":    "SockPressureNetnsNearLimit: warning, 1, is not below critical, 0.95",
		"alerts: {SockPressureConntrackDropping: {params: {count: -1}}}":  "SockPressureConntrackDropping: count is -1, want a number",
		`select: "env=prod"`:                                `select: "env=prod" is not a list of matchers such as env="prod"`,
		`select: 'env="a",'`:                                "is not a list of matchers",
		`select: 'env=~"("'`:                                "error parsing regexp",
		"interval: 30":                                      `interval is "30", want a duration`,
		"interval: fast":                                    `interval is "fast", want a duration`,
		"labels: {a-b: c}":                                  `labels: "a-b" is not a name`,
		"annotations: {a-b: c}":                             `annotations: "a-b" is not a name`,
		"alerts: {SockPressureOOMKill: {for: 5}}":           `alerts: SockPressureOOMKill: for is "5", want a duration`,
		"alerts: {SockPressureOOMKill: {keepFiringFor: 5}}": `alerts: SockPressureOOMKill: keepFiringFor is "5"`,
		"alerts: {SockPressureOOMKill: {labels: {a-b: c}}}": `alerts: SockPressureOOMKill: labels: "a-b" is not a name`,
	} {
		file := filepath.Join(t.TempDir(), "alerts.yml")
		if err := os.WriteFile(file, []byte(document), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := run([]string{"-config=" + file, "-format=prometheusrule"}, nil); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(want, ": ") && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %s", document, err, want)
		}
	}
	for _, args := range [][]string{{"-format=files"}, {"-format=xml"}, {"-config=/nonexistent"}, {"extra"}, {"-label=a", "-format=json"}} {
		if err := run(args, nil); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
}
