package rendered_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v2"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// groups returns groups of rules by name.
func groups(t *testing.T, list any) map[string]any {
	t.Helper()
	by := map[string]any{}
	all, ok := list.([]any)
	if !ok {
		t.Fatalf("%v is not a list of groups", list)
	}
	for _, g := range all {
		name := fmt.Sprint(g.(object)["name"])
		if by[name] != nil {
			t.Errorf("group %s is there twice", name)
		}
		by[name] = g
	}
	return by
}

// generated returns the groups that the generator makes from a document, by name.
func generated(t *testing.T, document string) map[string]any {
	t.Helper()
	var made any
	if err := yaml.Unmarshal(generate(t, document), &made); err != nil {
		t.Fatal(err)
	}
	return groups(t, at(t, plain(made), "spec", "groups"))
}

// TestAlertForms checks that the generator, the chart and the mixin make the same rules from the
// same document.
func TestAlertForms(t *testing.T) {
	needs.Check(t, "helm", "jsonnet")
	for _, document := range glob(t, "alerts/*.yml") {
		want := generated(t, document)
		name := strings.TrimSuffix(filepath.Base(document), ".yml")
		ofChart := groups(t, at(t, only(t, "chart-alerts-"+name, "PrometheusRule"), "spec", "groups"))

		program := fmt.Sprintf(`local m = (import '../../alerts/mixin.libsonnet') + { _config+:: std.parseYaml(importstr '%s') };
			m.prometheusAlerts.groups + m.prometheusRules.groups`, document)
		var list any
		if err := json.Unmarshal(output(t, exec.Command("jsonnet", "-e", program)), &list); err != nil {
			t.Fatal(err)
		}
		for form, got := range map[string]map[string]any{"chart": ofChart, "mixin": groups(t, list)} {
			for group := range want {
				if !reflect.DeepEqual(got[group], want[group]) {
					t.Errorf("%s: %s: group %s is\n%s\nwant\n%s", document, form, group, show(got[group]), show(want[group]))
				}
			}
			if len(got) != len(want) {
				t.Errorf("%s: %s: %d groups, want %d", document, form, len(got), len(want))
			}
		}
	}
}

// TestAlertMistakes checks that the generator, the chart and the mixin reject names that no rule
// has and thresholds that make no sense.
func TestAlertMistakes(t *testing.T) {
	needs.Check(t, "helm", "jsonnet")
	for document, words := range map[string]string{
		"alerts: {SockPressureNonsense: {enabled: false}}":              `there is no "SockPressureNonsense"`,
		"resources: {nonsense: {enabled: false}}":                       `there is no "nonsense"`,
		"jobs: {a: {alerts: {SockPressureOOMKill: {params: {x: 1}}}}}":  `has no parameter "x"`,
		"alerts: {SockPressureFillingUp/critical: {severity: warning}}": `there is no "SockPressureFillingUp/critical"`,
		"resources: {memory: {params: {warning: 80%}}}":                 `warning`,
		"resources: {memory: {params: {warning: '95'}}}":                `warning`,
		"resources: {memory: {params: {warning: '0.98'}}}":              `warning, 0.98, is not below critical, 0.97`,
		"resources: {memory: {params: {critical: 95}}}":                 `95`,
		"resources: {memory: {params: {critical: 0}}}":                  `critical`,
		"resources: {memory: {params: {warning: 0.2}}}":                 `warning`,
		"resources: {memory: {params: {warning: '0.2'}}}":               `warning`,
		"alerts: {SockPressureFillingFast: {params: {from: 0.4}}}":      `from`,
		"alerts: {SockPressureMemoryStalls: {params: {share: 0}}}":      `share`,
		"resources: {memory: {params: {warning: 0.98}}}":                `SockPressureMemoryNearlyFull, memory: warning, 0.98, is not below critical, 0.97`,
		"jobs: {a: {resources: {memory: {params: {critical: 0.9}}}}}":   `SockPressureMemoryNearlyFull, memory: warning, 0.9, is not below critical, 0.9`,
		"alerts: {SockPressureNetnsNearLimit: {params: {warning: 1}}}":  `SockPressureNetnsNearLimit: warning, 1, is not below critical, 0.95`,
	} {
		file := write(t, "alerts.yml", document)
		values := write(t, "values.yaml", "prometheusRule: {enabled: true, config: {"+document+"}}")
		for _, command := range [][]string{
			{"go", "run", "../../alerts/generate", "-config=" + file, "-format=prometheusrule"},
			{"helm", "template", "x", chart, "--values", values},
			{"jsonnet", "-e", "((import '../../alerts/mixin.libsonnet') + { _config+:: std.parseYaml(importstr '" + file + "') }).prometheusAlerts"},
		} {
			out, err := exec.CommandContext(t.Context(), command[0], command[1:]...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), words) {
				t.Errorf("%s: %s: %s (%v)", document, command[0], out, err)
			}
		}
	}
}

// TestAlertPatches checks that the documented patch changes the rules, and that the user's own
// PrometheusRule replaces ours.
func TestAlertPatches(t *testing.T) {
	needs.Check(t, "kustomize")
	text := show(only(t, "patched-rules", "PrometheusRule"))
	if strings.Contains(text, "SockPressureConntrackInsertFailing") || !strings.Contains(text, `"for": "2m"`) {
		t.Error("the patch of the rules changes nothing")
	}
	own := only(t, "own-rules", "PrometheusRule")
	if name := at(t, own, "metadata", "name"); name != "mine" {
		t.Errorf("the rules are those of %v", name)
	}
	want := at(t, only(t, "own-rules", "PodMonitor"), "metadata", "namespace")
	if namespace := at(t, own, "metadata", "namespace"); namespace == nil || namespace != want {
		t.Errorf("the rules are in namespace %v, the monitor in %v", namespace, want)
	}
}

// TestAlertsLoad checks that Prometheus loads the rules of the chart with changed thresholds and
// without disabled alerts.
func TestAlertsLoad(t *testing.T) {
	needs.Check(t, "helm", "prometheus")
	spec := at(t, only(t, "chart-alerts-everything", "PrometheusRule"), "spec")
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	for name, content := range map[string]string{"rules.yml": string(text), "prometheus.yml": "rule_files: [rules.yml]"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	prometheus := exec.CommandContext(ctx, "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	var log strings.Builder
	prometheus.Stderr = &log
	if err := prometheus.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stop()
		_ = prometheus.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	}()

	var answer struct {
		Data struct {
			Groups []struct {
				Name  string
				Rules []struct {
					Name, Query, Health string
					Duration            float64
					Labels              map[string]string
				}
			}
		}
	}
	for range 300 {
		response, err := http.Get("http://" + address + "/api/v1/rules")
		if err == nil {
			err = json.NewDecoder(response.Body).Decode(&answer)
			response.Body.Close()
		}
		if err == nil && len(answer.Data.Groups) > 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	found := map[string]string{}
	for _, g := range answer.Data.Groups {
		for _, r := range g.Rules {
			found[g.Name+" "+r.Name+" "+r.Labels["severity"]] = fmt.Sprintf("%s for %vs, team %s", r.Query, r.Duration, r.Labels["team"])
		}
	}
	const want = `instance_resource:sockpressure_conntrack_saturation:max1m{env="prod",job!~"db|edge\\.eu",resource="conntrack_entries"} >= 0.95 for 45s, team nat`
	if got := found["sockpressure-conntrack SockPressureConntrackNearlyFull page"]; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for rule := range found {
		if strings.Contains(rule, "SockPressureConntrackInsertFailing") || strings.Contains(rule, "SockPressureTCPMemoryNearlyFull") {
			t.Errorf("%s is loaded, but was disabled", rule)
		}
	}
	if len(found) < 50 {
		t.Errorf("%d rules are loaded", len(found))
	}
}
