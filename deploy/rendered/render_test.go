// Package rendered_test checks what kustomize and Helm render from deploy/ and dashboards/: it
// validates the objects against the schemas of the API server and of the Prometheus operator,
// compares them with each other, runs the exporter as the pod does, and has Prometheus discover
// it.
package rendered_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

func TestMain(m *testing.M) { os.Exit(needs.Run(m)) }

const (
	manifests = "../kubernetes"
	chart     = "../helm/sockpressure-exporter"
)

// renderings returns everything to render, by name: the manifests as they are and with the
// kustomizations of their README, and the chart with several sets of values.
func renderings(t *testing.T) map[string]func(t *testing.T) []byte {
	t.Helper()
	all := map[string]func(t *testing.T) []byte{}
	for name, dir := range map[string]string{"plain": manifests, "operator": manifests + "/prometheus-operator", "dashboards": "../../dashboards"} {
		all[name] = func(t *testing.T) []byte { return kustomize(t, dir) }
	}
	for name, overlay := range map[string]struct{ kustomization, of string }{
		"all-metrics":   {documented(t, "\ncomponents:"), manifests},
		"host-ip":       {documented(t, "$(HOST_IP)"), manifests},
		"labelled":      {documented(t, "\nlabels:"), manifests},
		"patched-rules": {documented(t, "- op: test"), manifests + "/prometheus-operator"},
		"own-rules":     {documented(t, "$patch: delete"), manifests},
		"own-image":     {documented(t, "\nimages:"), manifests},
		"cluster":       {documented(t, "targetLabel: cluster"), manifests},
		"elsewhere":     {"namespace: elsewhere\nresources: [" + repository + "/deploy/kubernetes, " + repository + "/deploy/kubernetes/prometheus-operator]", ""},
	} {
		all[name] = func(t *testing.T) []byte { return overlaid(t, overlay.kustomization, overlay.of) }
	}

	all["rbac"] = func(t *testing.T) []byte { return read(t, manifests+"/prometheus-rbac.yaml") }
	for name, flags := range map[string][]string{
		"default":     nil,
		"all-metrics": {"--set", "allMetrics=true"},
		"host-ip":     {"--set", "hostIPOnly=true"},
		"monitor":     {"--set", "podMonitor.enabled=true"},
		"no-quota":    {"--set", "resourceQuota=false"},
	} {
		all["chart-"+name] = func(t *testing.T) []byte { return template(t, chart, flags...) }
	}
	for _, file := range glob(t, "values/*.yaml") {
		name := strings.TrimSuffix(filepath.Base(file), ".yaml")
		all["chart-"+name] = func(t *testing.T) []byte { return template(t, chart, "--values", file) }
	}
	// The chart with the documents that change the alerts.
	for _, file := range glob(t, "alerts/*.yml") {
		name := strings.TrimSuffix(filepath.Base(file), ".yml")
		all["chart-alerts-"+name] = func(t *testing.T) []byte {
			document := strings.ReplaceAll(strings.TrimSpace(string(read(t, file))), "\n", "\n    ")
			values := write(t, "values.yaml", "prometheusRule:\n  enabled: true\n  config:\n    "+document+"\n")
			return template(t, chart, "--values", values)
		}
	}
	return all
}

// kustomize returns the output of kustomize for a directory.
func kustomize(t *testing.T, dir string) []byte {
	t.Helper()
	return output(t, exec.Command("kustomize", "build", dir))
}

// repository is the address by which the documentation refers to files of this repository.
const repository = "https://github.com/sockpressure/sockpressure_exporter/"

// overlaid returns the output of kustomize for a kustomization. Addresses in it are replaced by
// paths of this repository. Without resources of its own, it applies to the directory of.
func overlaid(t *testing.T, kustomization, of string) []byte {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	// kustomize accepts only relative paths outside the directory.
	relative := func(path string) string {
		absolute, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		if path, err = filepath.Rel(dir, absolute); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if !strings.Contains(kustomization, "resources:") {
		kustomization += "\nresources: [" + relative(of) + "]\n"
	}
	address := regexp.MustCompile(`(?:` + regexp.QuoteMeta(repository) + `|\.\./sockpressure_exporter)/([\w/-]+)(\?ref=v[\w.-]+)?`)
	kustomization = address.ReplaceAllStringFunc(kustomization, func(s string) string {
		return relative(filepath.Join("../..", address.FindStringSubmatch(s)[1]))
	})
	files := map[string]string{"kustomization.yaml": kustomization}
	if strings.Contains(kustomization, "- prometheusrule.yaml") {
		command := regexp.MustCompile(`(?m)^go run \./alerts/generate -config=alerts\.yml -format=prometheusrule (.*) >prometheusrule\.yaml$`)
		found := command.FindSubmatch(read(t, manifests+"/README.md"))
		if found == nil {
			t.Fatalf("%s/README.md does not say how to generate prometheusrule.yaml", manifests)
		}
		files["prometheusrule.yaml"] = string(generate(t, "alerts/few.yml", strings.Fields(string(found[1]))...))
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return kustomize(t, dir)
}

// documented returns the one kustomization in the manifests' README that contains words.
func documented(t *testing.T, words string) string {
	t.Helper()
	var found []string
	for _, block := range regexp.MustCompile("(?ms)^```yaml\n(# kustomization.yaml.*?)^```$").FindAllSubmatch(read(t, manifests+"/README.md"), -1) {
		if bytes.Contains(block[1], []byte(words)) {
			found = append(found, string(block[1]))
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s/README.md has %d kustomizations with %q, want one", manifests, len(found), words)
	}
	return found[0]
}

// generate returns the PrometheusRule that the generator of alerts makes from a document.
func generate(t *testing.T, document string, flags ...string) []byte {
	t.Helper()
	return output(t, exec.Command("go", append([]string{"run", "../../alerts/generate", "-config=" + document, "-format=prometheusrule"}, flags...)...))
}

// template returns the output of helm template for a chart.
func template(t *testing.T, chart string, flags ...string) []byte {
	t.Helper()
	return output(t, exec.Command("helm", append([]string{"template", "sockpressure-exporter", chart, "--namespace", "sockpressure"}, flags...)...))
}

// output returns the standard output of a command, which must not fail.
func output(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out, &stderr)
	}
	return out
}

// render returns the text of a rendering.
func render(t *testing.T, name string) []byte {
	t.Helper()
	how := renderings(t)[name]
	if how == nil {
		t.Fatalf("there is no rendering %s", name)
	}
	return how(t)
}

// rendered returns the objects of a rendering.
func rendered(t *testing.T, name string) []object {
	t.Helper()
	var objects []object
	decoder := yaml.NewDecoder(bytes.NewReader(render(t, name)))
	for {
		var document any
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if document != nil {
			objects = append(objects, plain(document).(object))
		}
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v, %v", pattern, files, err)
	}
	return files
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// write returns the path of a new file.
func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
