package rendered_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// TestConform checks that every object matches the schemas of the API server and the Prometheus
// operator, and that a broken one does not.
func TestConform(t *testing.T) {
	needs.Check(t, needs.CI, "kubeconform", "kustomize", "helm") // CI because it downloads the schemas of Kubernetes
	schemas := t.TempDir()
	output(t, exec.Command("go", "run", "../schemas", "-out", schemas))
	conform := func(t *testing.T, files ...string) ([]byte, error) {
		t.Helper()
		return exec.CommandContext(t.Context(), "kubeconform", append([]string{
			"-strict", "-summary", "-schema-location", schemas + "/{{.ResourceKind}}{{.KindSuffix}}.json",
		}, files...)...).CombinedOutput()
	}
	dir := t.TempDir()
	for name, how := range renderings(t) {
		if err := os.WriteFile(filepath.Join(dir, name+".yaml"), how(t), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := conform(t, dir)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)

	for _, c := range []struct{ name, old, new, words string }{
		{"plain", "hostNetwork:", "hostNet:", "additional properties 'hostNet' not allowed"},
		{"plain", "containerPort: 10058", "containerPort: many", "got string, want integer"},
		{"operator", "targetLabel:", "target_label:", "additional properties 'target_label' not allowed"},
		{"operator", "expr:", "expression:", "additional properties 'expression' not allowed"},
	} {
		text := read(t, filepath.Join(dir, c.name+".yaml"))
		broken := bytes.ReplaceAll(text, []byte(c.old), []byte(c.new))
		if bytes.Equal(broken, text) {
			t.Errorf("%s has no %q", c.name, c.old)
		}
		if out, err := conform(t, write(t, "broken.yaml", string(broken))); err == nil || !bytes.Contains(out, []byte(c.words)) {
			t.Errorf("%s with %q: %s (%v), want to be refused with %q", c.name, c.new, out, err, c.words)
		}
	}
}

// TestChart checks that helm lint finds nothing in the chart, and that its package contains the
// files that the chart links to.
func TestChart(t *testing.T) {
	needs.Check(t, "helm")
	output(t, exec.Command("helm", "lint", "--strict", chart))
	for _, values := range glob(t, "values/*.yaml") {
		output(t, exec.Command("helm", "lint", "--strict", chart, "--values", values))
	}
	dir := t.TempDir()
	output(t, exec.Command("helm", "package", chart, "--destination", dir))
	packed := glob(t, filepath.Join(dir, "sockpressure-exporter-*.tgz"))
	if got := template(t, packed[0], "--values", "values/everything.yaml"); !bytes.Equal(got, render(t, "chart-everything")) {
		t.Error("the chart's package makes other objects than the chart")
	}
}

// TestChartRefuses checks that the chart rejects unknown and invalid values with an error that
// names them.
func TestChartRefuses(t *testing.T) {
	needs.Check(t, "helm")
	for words, flags := range map[string][]string{
		"additional properties 'tolerationz' not allowed":                                      {"--set", "tolerationz=1"},
		"at '/podMonitor': additional properties 'enable' not allowed":                         {"--set", "podMonitor.enable=true"},
		"at '/port': got string, want integer":                                                 {"--set-string", "port=10058"},
		"at '/port': minimum: got 80, want 1,024":                                              {"--set", "port=80"},
		"at '/image/digest': 'latest' does not match pattern":                                  {"--set", "image.digest=latest"},
		"at '/recursiveReadOnly': value must be one of":                                        {"--set", "recursiveReadOnly=true"},
		"at '/fullnameOverride': 'Node_Pressure' does not match pattern":                       {"--set", "fullnameOverride=Node_Pressure"},
		"at '/updateStrategy/rollingUpdate': additional properties 'maxSurge' not allowed":     {"--set", "updateStrategy.rollingUpdate.maxSurge=1"},
		"missing property 'updateStrategy'":                                                    {"--set", "updateStrategy=null"},
		"missing property 'podMonitor'":                                                        {"--set", "podMonitor=null"},
		"extraArgs: --path.procfs=/proc: the chart sets this flag itself":                      {"--set", "extraArgs={--path.procfs=/proc}"},
		"webConfig.tls and webConfig.auth say what is in webConfig.secretName, which is empty": {"--set", "webConfig.tls=true"},
		"at '/resources/limits': additional properties 'memori' not allowed":                   {"--set", "resources.limits.memori=1Gi"},
		"at '/tolerations/0': additional properties 'efect' not allowed":                       {"--set", "tolerations[0].efect=NoSchedule"},
		"at '/podMonitor/tlsConfig': additional properties 'insecure' not allowed":             {"--set", "podMonitor.tlsConfig.insecure=true"},
		"at '/podMonitor/relabelings/0': additional properties 'target' not allowed":           {"--set", "podMonitor.relabelings[0].target=cluster"},
		"at '/affinity': additional properties 'node' not allowed":                             {"--set", "affinity.node.a=b"},
		"at '/seLinuxOptions': additional properties 'tipe' not allowed":                       {"--set", "seLinuxOptions.tipe=spc_t"},
		"at '/podMonitor/interval': '2m' does not match pattern":                               {"--set", "podMonitor.enabled=true,podMonitor.interval=2m"},
		"at '/podMonitor/interval': '90s' does not match pattern":                              {"--set", "podMonitor.enabled=true,podMonitor.interval=90s"},
		"podMonitor.scrapeTimeout, 1m, is longer than podMonitor.interval, 30s":                {"--set", "podMonitor.enabled=true,podMonitor.interval=30s,podMonitor.scrapeTimeout=1m"},
		"at '/prometheusRule/config/interval': 'fast' does not match pattern":                  {"--set", "prometheusRule.config.interval=fast"},
		"at '/prometheusRule/config/select': 'env=prod' does not match pattern":                {"--set", "prometheusRule.config.select=env=prod"},
		"at '/prometheusRule/config/labels': additional properties 'a-b' not allowed":          {"--set", "prometheusRule.config.labels.a-b=c"},
	} {
		out, err := exec.CommandContext(t.Context(), "helm", append([]string{"template", "x", chart}, flags...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), words) {
			t.Errorf("%q: %s (%v), want to be refused with %q", flags, out, err, words)
		}
	}
}
