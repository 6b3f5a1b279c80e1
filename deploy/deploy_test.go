// Package deploy_test checks the deployment files against the program: versions, flags, rules and
// the documentation of values. The output of Helm and kustomize is tested in rendered.
package deploy_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

const chart = "helm/sockpressure-exporter"

func TestMain(m *testing.M) { os.Exit(needs.Run(m)) }

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func unmarshal(t *testing.T, path string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, path)), into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// TestVersion checks that every file that names the version names the same one.
func TestVersion(t *testing.T) {
	version := strings.TrimSpace(read(t, "../VERSION"))
	var about struct {
		Version    string
		AppVersion string `yaml:"appVersion"`
	}
	unmarshal(t, chart+"/Chart.yaml", &about)
	if about.Version != version || about.AppVersion != version {
		t.Errorf("Chart.yaml is of version %s and appVersion %s, want %s", about.Version, about.AppVersion, version)
	}
	// Versions of sources, images, releases and charts, and of packages, which have a revision.
	named := regexp.MustCompile(`(?:\?ref=v|sockpressure_exporter:v|/releases/download/v|--version )([0-9][0-9A-Za-z.-]*)` +
		`|sockpressure-exporter[_-]([0-9][0-9A-Za-z.]*)-1[._]`)
	for path, atLeast := range map[string]int{
		"kubernetes/daemonset.yaml":     1,
		"kubernetes/kustomization.yaml": 1,
		"kubernetes/README.md":          6,
		chart + "/README.md":            1,
		"../dashboards/README.md":       1,
		"../README.md":                  6,
		"../docs/packages.md":           2,
		"../docs/alerts.md":             1,
	} {
		found := named.FindAllStringSubmatch(read(t, path), -1)
		if len(found) < atLeast {
			t.Errorf("%s names a version %d times, want %d", path, len(found), atLeast)
		}
		for _, match := range found {
			if match[1]+match[2] != version {
				t.Errorf("%s: %s, want %s", path, match[0], version)
			}
		}
	}
}

// TestNotes checks deploy/notes, which rejects a release that is missing from the changelog or
// has no date there.
func TestNotes(t *testing.T) {
	const changelog = `# Changelog

Words about it.

## 0.3.0 - unreleased

Not yet.

## 0.2.0 - 2026-02-03

### Added

- A thing, see [metrics](docs/metrics.md) and [elsewhere](https://example.com/).

## 0.1.1 - 2026-01-02

## 0.1.0 - 2026-01-01

The first.
`
	const files = "https://github.com/sockpressure/sockpressure_exporter/blob/v0.2.0/"
	for version, want := range map[string]string{
		"0.3.0": "",
		"0.2.0": "### Added\n\n- A thing, see [metrics](" + files + "docs/metrics.md) and [elsewhere](https://example.com/).\n",
		"0.1.1": "",
		"0.1.0": "The first.\n",
		"0.1":   "",
		"0.0.9": "",
	} {
		cmd := exec.Command("./notes", version)
		cmd.Stdin = strings.NewReader(changelog)
		out, err := cmd.Output()
		if string(out) != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q (%v), want %q", version, out, err, want)
		}
	}
	// CHANGELOG.md has the current version, dated or not.
	version := strings.TrimSpace(read(t, "../VERSION"))
	if !strings.Contains(read(t, "../CHANGELOG.md"), "\n## "+version+" - ") {
		t.Errorf("CHANGELOG.md does not have %s", version)
	}
}

// TestRule checks that the committed PrometheusRule is the generated one.
func TestRule(t *testing.T) {
	out, err := exec.Command("go", "run", "../alerts/generate", "-format=prometheusrule").Output()
	if err != nil {
		t.Fatal(err)
	}
	if file := "kubernetes/prometheus-operator/prometheusrule.yaml"; read(t, file) != string(out) {
		t.Errorf("%s is out of date: go generate ./alerts", file)
	}
}

// TestFiles checks that the chart links to every dashboard and to the rules, and that every
// dashboard has a ConfigMap.
func TestFiles(t *testing.T) {
	dashboards, err := filepath.Glob("../dashboards/*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(dashboards) == 0 {
		t.Fatal("no dashboards")
	}
	links := map[string]string{"rules.json": "../alerts/rules.json"}
	var kustomization struct {
		ConfigMapGenerator []struct {
			Name  string
			Files []string
		} `yaml:"configMapGenerator"`
	}
	unmarshal(t, "../dashboards/kustomization.yaml", &kustomization)
	generated := map[string]bool{}
	for _, object := range kustomization.ConfigMapGenerator {
		for _, file := range object.Files {
			generated[file] = object.Name+".json" == file
		}
	}
	for _, path := range dashboards {
		file := filepath.Base(path)
		links["dashboards/"+file] = path
		if !generated[file] {
			t.Errorf("dashboards/kustomization.yaml does not make a ConfigMap of %s", file)
		}
	}
	for name, target := range links {
		link, err := filepath.EvalSymlinks(filepath.Join(chart, "files", name))
		if err != nil || link != target {
			t.Errorf("%s is a link to %q (%v), want %s", name, link, err, target)
		}
	}
}

// TestValues checks that the chart's values agree with the table of its README, and that the
// schema has each of them.
func TestValues(t *testing.T) {
	var values yaml.MapSlice
	unmarshal(t, chart+"/values.yaml", &values)
	var schema map[string]any
	if err := json.Unmarshal([]byte(read(t, chart+"/values.schema.json")), &schema); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	flatten(t, "", values, schema, want)

	got := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Za-z.]+)` \\| `(.*?)` \\|").FindAllStringSubmatch(read(t, chart+"/README.md"), -1) {
		got[row[1]] = row[2]
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("README.md: %s is %s, want %s", name, got[name], value)
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("README.md: there is no %s", name)
	}
}

// flatten adds the values that the schema describes by name to flat, as JSON. An object whose
// properties the schema does not list is one value.
func flatten(t *testing.T, prefix string, values yaml.MapSlice, schema map[string]any, flat map[string]string) {
	t.Helper()
	properties, _ := schema["properties"].(map[string]any)
	if schema["additionalProperties"] != false {
		t.Errorf("values.schema.json: %s allows other names", prefix)
	}
	for _, item := range values {
		name := prefix + fmt.Sprint(item.Key)
		property, ok := properties[fmt.Sprint(item.Key)].(map[string]any)
		if !ok {
			t.Errorf("values.schema.json lacks %s", name)
			continue
		}
		if object, ok := item.Value.(yaml.MapSlice); ok && len(object) > 0 && property["properties"] != nil {
			flatten(t, name+".", object, property, flat)
			continue
		}
		text, err := json.Marshal(plain(item.Value))
		if err != nil {
			t.Fatal(err)
		}
		flat[name] = string(text)
	}
}

// plain converts a YAML value to one that encoding/json can encode.
func plain(value any) any {
	switch v := value.(type) {
	case yaml.MapSlice:
		object := map[string]any{}
		for _, item := range v {
			object[fmt.Sprint(item.Key)] = plain(item.Value)
		}
		return object
	case []any:
		list := []any{}
		for _, item := range v {
			list = append(list, plain(item))
		}
		return list
	}
	return value
}

// TestCompose checks that the compose file mounts existing files and passes existing flags to the
// exporter, and that Prometheus accepts its configuration and the rules.
func TestCompose(t *testing.T) {
	var file struct {
		Services map[string]struct {
			Command []string
			Volumes []string
		}
		Volumes map[string]any
	}
	unmarshal(t, "compose/compose.yaml", &file)
	if len(file.Services) != 4 {
		t.Errorf("%d services", len(file.Services))
	}
	mounted := map[string]string{}
	for name, s := range file.Services {
		for _, v := range s.Volumes {
			from, rest, _ := strings.Cut(v, ":")
			to, _, _ := strings.Cut(rest, ":")
			if _, ok := file.Volumes[from]; ok {
				continue
			}
			if !strings.HasPrefix(from, "/") {
				from = filepath.Join("compose", from)
			}
			if _, err := os.Stat(from); err != nil {
				t.Errorf("%s mounts %v", name, err)
			}
			mounted[to] = from
		}
	}
	// The provider's directory has the dashboards, each mounted by itself, and no other file.
	var provisioning struct {
		Providers []struct{ Options struct{ Path string } }
	}
	unmarshal(t, filepath.Join(mounted["/etc/grafana/provisioning"], "dashboards/sockpressure.yml"), &provisioning)
	dashboards, err := filepath.Glob("../dashboards/*.json")
	if err != nil || len(dashboards) == 0 {
		t.Fatal(dashboards, err)
	}
	provided := provisioning.Providers[0].Options.Path
	for _, dashboard := range dashboards {
		if to := provided + "/" + filepath.Base(dashboard); mounted[to] != dashboard {
			t.Errorf("%s is %q, want %s", to, mounted[to], dashboard)
		}
	}
	if mounted[provided] != "" {
		t.Errorf("%s is a mount of all of %s", provided, mounted[provided])
	}
	readme := read(t, "../README.md") + read(t, "../docs/commands.md")
	for _, flag := range file.Services["exporter"].Command {
		flag, _, _ = strings.Cut(flag, "=")
		if !strings.Contains(readme, "`"+flag+"`") {
			t.Errorf("README.md does not have %s", flag)
		}
	}
	needs.Check(t, "promtool")
	config := strings.ReplaceAll(read(t, "compose/prometheus.yml"), "/etc/prometheus/sockpressure", absolute(t, mounted["/etc/prometheus/sockpressure"]))
	path := filepath.Join(t.TempDir(), "prometheus.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("promtool", "check", "config", path).CombinedOutput()
	if err != nil || strings.Count(string(out), "SUCCESS") < 10 {
		t.Errorf("%v: %s", err, out)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
