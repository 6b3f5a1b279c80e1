package rendered_test

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

type object = map[string]any

// plain converts the maps in a value to the type that encoding/json uses.
func plain(value any) any {
	switch v := value.(type) {
	case map[any]any:
		m := object{}
		for key, item := range v {
			m[fmt.Sprint(key)] = plain(item)
		}
		return m
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	}
	return value
}

// only returns the one object of a kind.
func only(t *testing.T, name, kind string) object {
	t.Helper()
	var found []object
	for _, o := range rendered(t, name) {
		if o["kind"] == kind {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s: %d objects of kind %s, want one", name, len(found), kind)
	}
	return found[0]
}

// at returns the element of value at a path of names and indexes.
func at(t *testing.T, value any, path ...any) any {
	t.Helper()
	for i, step := range path {
		switch s := step.(type) {
		case string:
			m, _ := value.(object)
			value = m[s]
		case int:
			list, _ := value.([]any)
			if s >= len(list) {
				t.Fatalf("nothing at %v", path[:i+1])
			}
			value = list[s]
		}
	}
	return value
}

func strs(value any) []string {
	var list []string
	items, _ := value.([]any)
	for _, item := range items {
		list = append(list, fmt.Sprint(item))
	}
	return list
}

func show(value any) string {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// TestChartIsThePlainManifest checks that the chart and the plain manifest have the same
// DaemonSet. Only the chart's labels differ, because one namespace can have several releases.
func TestChartIsThePlainManifest(t *testing.T) {
	needs.Check(t, "kustomize", "helm")
	for plainly, charted := range map[string]string{"plain": "chart-default", "all-metrics": "chart-all-metrics", "host-ip": "chart-host-ip"} {
		var specs []any
		for _, name := range []string{plainly, charted} {
			spec := at(t, only(t, name, "DaemonSet"), "spec").(object)
			selector := at(t, spec, "selector", "matchLabels").(object)
			labels := at(t, spec, "template", "metadata", "labels").(object)
			if len(selector) == 0 || selector["app.kubernetes.io/name"] != "sockpressure-exporter" || !reflect.DeepEqual(selector, labels) {
				t.Errorf("%s selects %v of pods with %v", name, selector, labels)
			}
			delete(spec, "selector")
			delete(at(t, spec, "template", "metadata").(object), "labels")
			specs = append(specs, spec)
		}
		if !reflect.DeepEqual(specs[0], specs[1]) {
			t.Errorf("%s is\n%s\nand %s is\n%s", plainly, show(specs[0]), charted, show(specs[1]))
		}
	}
}

// TestSelectors checks that the DaemonSet and the PodMonitor select the pods, whatever the values
// or the namespace.
func TestSelectors(t *testing.T) {
	needs.Check(t, "kustomize", "helm")
	for _, name := range []string{"chart-everything", "chart-tls", "chart-auth", "elsewhere"} {
		daemonSet, monitor := only(t, name, "DaemonSet"), only(t, name, "PodMonitor")
		labels := at(t, daemonSet, "spec", "template", "metadata", "labels").(object)
		for _, selector := range []any{at(t, daemonSet, "spec", "selector", "matchLabels"), at(t, monitor, "spec", "selector", "matchLabels")} {
			if len(selector.(object)) == 0 {
				t.Errorf("%s: no selector", name)
			}
			for key, value := range selector.(object) {
				if labels[key] != value {
					t.Errorf("%s: selects %s=%v, pods have %v", name, key, value, labels)
				}
			}
		}
		// Without a namespaceSelector, the PodMonitor selects pods of its own namespace.
		got := at(t, monitor, "metadata", "namespace")
		if selector := at(t, monitor, "spec", "namespaceSelector"); selector != nil {
			got = at(t, selector, "matchNames", 0)
		}
		if want := at(t, daemonSet, "metadata", "namespace"); got != want {
			t.Errorf("%s: the monitor looks in %v, pods are in %v", name, got, want)
		}
	}
}

// TestOwnImage checks that the documented kustomization uses the user's image everywhere, and the
// Secret of its registry.
func TestOwnImage(t *testing.T) {
	needs.Check(t, "kustomize")
	text := string(render(t, "own-image"))
	if strings.Contains(text, "ghcr.io") || !strings.Contains(text, "image: registry.example.com/sockpressure_exporter:v0.1.0\n") {
		t.Errorf("not the user's image:\n%s", text)
	}
	account := only(t, "own-image", "ServiceAccount")
	if got := at(t, account, "imagePullSecrets", 0, "name"); got != "registry" {
		t.Errorf("the registry's secret is %v", got)
	}
}

// TestCluster checks that the documented ways to add a label cluster add it, after the
// relabelings that set the other labels.
func TestCluster(t *testing.T) {
	needs.Check(t, "kustomize", "helm")
	for _, name := range []string{"cluster", "chart-everything"} {
		relabelings := at(t, only(t, name, "PodMonitor"), "spec", "podMetricsEndpoints", 0, "relabelings").([]any)
		last := relabelings[len(relabelings)-1].(object)
		if len(relabelings) < 4 || last["targetLabel"] != "cluster" || last["replacement"] == "" {
			t.Errorf("%s: %s", name, show(relabelings))
		}
	}
}

// TestRole checks that a Prometheus without the operator has the permissions that its job needs,
// in the namespace of the pods.
func TestRole(t *testing.T) {
	needs.Check(t, "kustomize")
	role, binding := only(t, "rbac", "Role"), only(t, "rbac", "RoleBinding")
	namespace := at(t, only(t, "plain", "DaemonSet"), "metadata", "namespace")
	for _, o := range []object{role, binding} {
		if got := at(t, o, "metadata", "namespace"); got != namespace {
			t.Errorf("the %v is in %v, the pods are in %v", o["kind"], got, namespace)
		}
	}
	want := []any{object{"apiGroups": []any{""}, "resources": []any{"pods"}, "verbs": []any{"get", "list", "watch"}}}
	if !reflect.DeepEqual(role["rules"], any(want)) {
		t.Errorf("the role allows %s", show(role["rules"]))
	}
	if got, want := at(t, binding, "roleRef", "name"), at(t, role, "metadata", "name"); got != want {
		t.Errorf("the binding is of %v, the role is %v", got, want)
	}
}

// TestNodes checks that pods run on Linux nodes that are hosts, and on no others.
func TestNodes(t *testing.T) {
	needs.Check(t, "kustomize", "helm")
	for _, name := range []string{"plain", "chart-default"} {
		spec := at(t, only(t, name, "DaemonSet"), "spec", "template", "spec")
		terms := at(t, spec, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")
		if len(terms.([]any)) != 1 {
			t.Fatalf("%s: want one term, because a node needs to match only one: %s", name, show(terms))
		}
		for _, node := range []struct {
			labels object
			want   bool
		}{
			{object{"kubernetes.io/os": "linux"}, true},
			{object{"kubernetes.io/os": "linux", "eks.amazonaws.com/compute-type": "ec2", "type": "large"}, true},
			{object{"kubernetes.io/os": "windows"}, false},
			{object{"kubernetes.io/os": "linux", "eks.amazonaws.com/compute-type": "fargate"}, false},
			{object{"kubernetes.io/os": "linux", "type": "virtual-kubelet"}, false},
		} {
			fits := true
			for label, value := range at(t, spec, "nodeSelector").(object) {
				fits = fits && node.labels[label] == value
			}
			for _, expression := range at(t, terms, 0, "matchExpressions").([]any) {
				e := expression.(object)
				if e["operator"] != "NotIn" {
					t.Fatalf("%s: the test does not support the expression %v", name, e)
				}
				fits = fits && !slices.Contains(e["values"].([]any), node.labels[e["key"].(string)])
			}
			if fits != node.want {
				t.Errorf("%s: a node with %v: %v, want %v", name, node.labels, fits, node.want)
			}
		}
	}
}

// TestQuota checks that a ResourceQuota is for the priority class of the pods, and that there is
// none where it is not needed or is switched off.
func TestQuota(t *testing.T) {
	needs.Check(t, "kustomize", "helm")
	for name, class := range map[string]any{"plain": "system-node-critical", "chart-default": "system-node-critical", "chart-everything": "important"} {
		quota, daemonSet := only(t, name, "ResourceQuota"), only(t, name, "DaemonSet")
		if got := at(t, daemonSet, "spec", "template", "spec", "priorityClassName"); got != class {
			t.Errorf("%s: pods are of class %v, want %v", name, got, class)
		}
		if got, want := at(t, quota, "metadata", "namespace"), at(t, daemonSet, "metadata", "namespace"); got != want {
			t.Errorf("%s: the quota is of namespace %v, pods are in %v", name, got, want)
		}
		want := object{
			"hard":          object{"pods": "1M"},
			"scopeSelector": object{"matchExpressions": []any{object{"scopeName": "PriorityClass", "operator": "In", "values": []any{class}}}},
		}
		if spec := quota["spec"]; !reflect.DeepEqual(spec, any(want)) {
			t.Errorf("%s: the quota is %s", name, show(spec))
		}
	}
	for _, name := range []string{"chart-bare", "chart-no-quota"} {
		for _, o := range rendered(t, name) {
			if o["kind"] == "ResourceQuota" {
				t.Errorf("%s has a quota", name)
			}
		}
	}
}

// TestRules checks that each PrometheusRule has the groups of the rule files, and that promtool
// accepts them.
func TestRules(t *testing.T) {
	needs.Check(t, "kustomize", "helm", "promtool")
	var want []any
	for _, file := range glob(t, "../../alerts/*.rules.yml") {
		var rules map[any]any
		if err := yaml.Unmarshal(read(t, file), &rules); err != nil {
			t.Fatal(err)
		}
		want = append(want, plain(rules["groups"]).([]any)...)
	}
	if len(want) == 0 {
		t.Fatal("no rules")
	}
	for _, name := range []string{"operator", "chart-everything"} {
		spec := at(t, only(t, name, "PrometheusRule"), "spec")
		if !reflect.DeepEqual(groups(t, at(t, spec, "groups")), groups(t, any(want))) {
			t.Errorf("%s: the groups are not those of alerts/", name)
		}
		file := write(t, "rules.yml", show(spec))
		if out, err := exec.Command("promtool", "check", "rules", "--lint=all", "--lint-fatal", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// TestDashboards checks that the ConfigMaps contain the dashboards, byte for byte.
func TestDashboards(t *testing.T) {
	needs.Check(t, "kustomize", "helm")
	want := map[string]string{}
	for _, file := range glob(t, "../../dashboards/*.json") {
		want[filepath.Base(file)] = string(read(t, file))
	}
	for name, label := range map[string]any{"dashboards": "1", "chart-everything": "yes", "chart-bare": nil} {
		got := map[string]string{}
		for _, o := range rendered(t, name) {
			if o["kind"] != "ConfigMap" {
				continue
			}
			if at(t, o, "metadata", "labels", "grafana_dashboard") != label {
				t.Errorf("%s: %v", name, o["metadata"])
			}
			for key, text := range o["data"].(object) {
				got[key] = text.(string)
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s has %v, want %v, byte for byte", name, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
		}
	}
}

// TestPod checks that the exporter, started with the arguments, the user and the capabilities of
// the pod, in its own PID namespace and with the host's /proc mounted read-only, answers the
// probes of the kubelet and serves its metrics.
func TestPod(t *testing.T) {
	needs.Check(t, needs.Root, "kustomize", "helm", "unshare", "setpriv", "mount")
	binary := filepath.Join(t.TempDir(), "exporter")
	build := exec.Command("go", "build", "-o", binary, "../..")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	output(t, build)
	for _, test := range []struct {
		name  string
		slabs bool // metrics for root only
		web   bool // the page can be read without TLS and a password
	}{
		{"plain", false, true},
		{"all-metrics", true, true},
		{"host-ip", false, true},
		{"chart-everything", true, true},
		{"chart-tls", false, false},
		{"chart-auth", false, false},
		{"chart-bare", false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := at(t, only(t, test.name, "DaemonSet"), "spec", "template", "spec")
			address := start(t, binary, pod, test.name == "chart-tls")
			for _, probe := range []string{"livenessProbe", "readinessProbe"} {
				if err := ask(at(t, pod, "containers", 0, probe).(object), address); err != nil {
					t.Errorf("%s: %v", probe, err)
				}
			}
			if !test.web {
				return
			}
			response, err := http.Get("http://" + address + "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			page, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(page, []byte("\nsockpressure_host_network_namespace 1\n")) {
				t.Error("not in the host's network namespace")
			}
			for _, failed := range regexp.MustCompile(`(?m)^sockpressure_scrape_collector_success.* 0$`).FindAll(page, -1) {
				t.Errorf("%s", failed)
			}
			if slabs := bytes.Contains(page, []byte("\nsockpressure_memory_slab_bytes{")); slabs != test.slabs {
				t.Errorf("memory_slab_bytes: %v, want %v", slabs, test.slabs)
			}
		})
	}
}

// start runs an exporter as specified by the pod, and returns its address.
func start(t *testing.T, binary string, pod any, secure bool) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.MkdirAll(dir+"/host/proc", 0o755), os.Mkdir(dir+"/host/cgroup", 0o755), os.Mkdir(dir+"/etc", 0o755)); err != nil {
		t.Fatal(err)
	}
	webConfig(t, dir+"/etc", secure)

	// Replace what a test does not have: the pod's paths, the node's address, the port.
	var args []string
	for _, arg := range strs(at(t, pod, "containers", 0, "args")) {
		arg = strings.NewReplacer("=/host/", "="+dir+"/host/", "=/etc/sockpressure_exporter/", "="+dir+"/etc/", "$(HOST_IP)", "127.0.0.1").Replace(arg)
		args = append(args, regexp.MustCompile(`^(--web.listen-address=.*):[0-9]+$`).ReplaceAllString(arg, "$1:0"))
	}
	container := at(t, pod, "containers", 0, "securityContext")
	if !slices.Equal(strs(at(t, container, "capabilities", "drop")), []string{"ALL"}) || at(t, container, "allowPrivilegeEscalation") != false || at(t, pod, "hostNetwork") != true {
		t.Fatalf("not the pod that this test starts: %s", show(pod))
	}
	kept := []string{"-all"}
	for _, capability := range strs(at(t, container, "capabilities", "add")) {
		kept = append(kept, "+"+strings.ToLower(capability))
	}
	keep := strings.Join(kept, ",")
	user := at(t, pod, "securityContext")
	command := exec.Command("unshare", append([]string{
		"--mount", "--pid", "--fork", "--kill-child", "sh", "-ec",
		`mount --bind /proc "$1/proc"; mount -o remount,bind,ro "$1/proc"; mount --rbind /sys/fs/cgroup "$1/cgroup"; shift; mount -t proc proc /proc; exec "$@"`, "sh", dir + "/host",
		"setpriv", "--reuid", fmt.Sprint(at(t, user, "runAsUser")), "--regid", fmt.Sprint(at(t, user, "runAsGroup")), "--clear-groups",
		"--bounding-set", keep, "--inh-caps", "-all", "--no-new-privs",
		"--pdeathsig", "KILL", binary, // The signal that --kill-child set is lost when the user changes.
	}, args...)...)
	stderr, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	listening := regexp.MustCompile(`Listening on"?,? ?"?address"?[=:]"?([^ ",]+)`)
	var log strings.Builder
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		log.WriteString(lines.Text() + "\n")
		if match := listening.FindStringSubmatch(lines.Text()); match != nil {
			_, port, err := net.SplitHostPort(match[1])
			if err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			return net.JoinHostPort("127.0.0.1", port)
		}
	}
	t.Fatalf("it does not listen:\n%s", log.String())
	return ""
}

// webConfig writes the files of the Secret webConfig.secretName.
func webConfig(t *testing.T, dir string, secure bool) {
	t.Helper()
	// The password is not used: a probe has none.
	files := map[string]string{"web.yml": "basic_auth_users:\n  scrape: $2y$04$6O4ZPKnyCh.HUaUyG4DvUO2D2GzRmyuXMYErOQKOYyCrWzCYVQ9Zu\n"}
	if secure {
		server := httptest.NewUnstartedServer(http.NotFoundHandler())
		server.StartTLS()
		defer server.Close()
		certificate := server.TLS.Certificates[0]
		key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		files = map[string]string{
			"web.yml": "tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\n",
			"tls.crt": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})),
			"tls.key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// ask runs a probe, as the kubelet does.
func ask(probe object, address string) error {
	if _, ok := probe["tcpSocket"]; ok {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	get, ok := probe["httpGet"].(object)
	if !ok {
		return fmt.Errorf("unknown: %v", probe)
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	response, err := client.Get(fmt.Sprintf("%s://%s%s", strings.ToLower(fmt.Sprint(get["scheme"])), address, get["path"]))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// TestDiscovery checks that Prometheus discovers the pods of a fake API server, with the job for
// a Prometheus without the operator, and with what the operator makes of the PodMonitor.
func TestDiscovery(t *testing.T) {
	needs.Check(t, needs.CI, "kustomize", "helm") // CI because it builds promtool
	promtool := buildPromtool(t)
	template := at(t, only(t, "plain", "DaemonSet"), "spec", "template")
	pod := func(name, node, phase string) object {
		return object{
			"metadata": object{"name": name, "namespace": "sockpressure", "uid": name, "labels": at(t, template, "metadata", "labels")},
			"spec":     object{"nodeName": node, "hostNetwork": true, "containers": at(t, template, "spec", "containers")},
			"status":   object{"phase": phase, "podIP": "10.1.2.3", "hostIP": "10.1.2.3"},
		}
	}
	var selector string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path != "/api/v1/namespaces/sockpressure/pods":
			http.NotFound(w, r)
		case r.URL.Query().Get("sendInitialEvents") != "":
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"BadRequest","code":400}`))
		case r.URL.Query().Get("watch") != "":
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			selector = r.URL.Query().Get("labelSelector")
			_ = json.NewEncoder(w).Encode(object{
				"kind": "PodList", "apiVersion": "v1", "metadata": object{"resourceVersion": "1"},
				"items": []any{pod("exporter-abcde", "node-a", "Running"), pod("exporter-fghij", "node-a", "Failed")},
			})
		}
	}))
	defer api.Close()

	const scrape = manifests + "/prometheus-scrape.yml"
	output(t, exec.Command(promtool, "check", "config", scrape))
	var config map[any]any
	if err := yaml.Unmarshal(read(t, scrape), &config); err != nil {
		t.Fatal(err)
	}
	job := at(t, plain(config), "scrape_configs", 0).(object)
	discovery := at(t, job, "kubernetes_sd_configs", 0).(object)
	discovery["api_server"] = api.URL
	discover(t, promtool, job)
	if selector != "app.kubernetes.io/name=sockpressure-exporter" {
		t.Errorf("asked for pods with %q", selector)
	}

	// The operator adds these relabelings before those of the PodMonitor.
	delete(discovery, "selectors")
	before := []any{
		object{"source_labels": []any{"__meta_kubernetes_pod_phase"}, "regex": "(Failed|Succeeded)", "action": "drop"},
		object{"source_labels": []any{"__meta_kubernetes_namespace"}, "target_label": "namespace"},
		object{"source_labels": []any{"__meta_kubernetes_pod_container_name"}, "target_label": "container"},
		object{"source_labels": []any{"__meta_kubernetes_pod_name"}, "target_label": "pod"},
		object{"target_label": "job", "replacement": "sockpressure/x"},
		object{"target_label": "endpoint", "replacement": "metrics"},
	}
	for _, name := range []string{"operator", "chart-monitor"} {
		var after []any
		relabelings, _ := at(t, only(t, name, "PodMonitor"), "spec", "podMetricsEndpoints", 0, "relabelings").([]any)
		for _, relabeling := range relabelings {
			renamed := object{}
			for key, value := range relabeling.(object) {
				renamed[cmp.Or(map[string]string{"sourceLabels": "source_labels", "targetLabel": "target_label"}[key], key)] = value
			}
			after = append(after, renamed)
		}
		discover(t, promtool, object{"job_name": "podMonitor", "kubernetes_sd_configs": []any{discovery}, "relabel_configs": append(slices.Clone(before), after...)})
	}
}

// buildPromtool returns a promtool that supports Kubernetes, which Debian's does not.
func buildPromtool(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "promtool")
	// A separate module, because the program does not depend on it.
	for _, args := range [][]string{
		{"mod", "init", "promtool"},
		{"mod", "edit", "-require=github.com/prometheus/prometheus@v0.315.0"},
		{"build", "-mod=mod", "-tags=remove_all_sd,enable_kubernetes_sd", "-o", binary, "github.com/prometheus/prometheus/cmd/promtool"},
	} {
		command := exec.Command("go", args...)
		command.Dir = dir
		output(t, command)
	}
	return binary
}

// discover checks that Prometheus finds the targets of a job as alerts and dashboards need them:
// one for each node, with the node's name as instance.
func discover(t *testing.T, promtool string, job object) {
	t.Helper()
	text, err := yaml.Marshal(object{"scrape_configs": []any{job}})
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, "prometheus.yml", string(text))
	var stderr strings.Builder
	command := exec.Command(promtool, "check", "service-discovery", "--timeout=5s", file, fmt.Sprint(job["job_name"]))
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, stderr.String())
	}
	var results []struct{ Labels map[string]string }
	if err := json.Unmarshal(out, &results); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var got []string
	for _, result := range results {
		if len(result.Labels) == 0 {
			continue // dropped by relabeling
		}
		address := fmt.Sprintf("%s://%s%s", result.Labels["__scheme__"], result.Labels["__address__"], result.Labels["__metrics_path__"])
		maps.DeleteFunc(result.Labels, func(name, _ string) bool { return strings.HasPrefix(name, "__") })
		got = append(got, fmt.Sprintf("%s %v", address, result.Labels))
	}
	want := []string{"http://10.1.2.3:10058/metrics map[instance:node-a job:sockpressure namespace:sockpressure]"}
	if !slices.Equal(got, want) {
		t.Errorf("%v: found %q of %d, want %q\n%s", job["job_name"], got, len(results), want, stderr.String())
	}
}
