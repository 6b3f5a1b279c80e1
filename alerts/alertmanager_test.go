package alerts

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
)

// manager is an Alertmanager that runs with the shipped alertmanager.yml, whose receivers are in
// this process.
type manager struct {
	url string

	mu sync.Mutex
	// told is when each alert was first delivered, by receiver and labels.
	told map[string]time.Time
}

func startManager(t *testing.T) *manager {
	t.Helper()
	if testing.Short() {
		t.Skip("Alertmanager waits for half a minute before a ticket")
	}
	needs.Check(t, "prometheus-alertmanager")
	m := &manager{told: map[string]time.Time{}}
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var message struct {
			Alerts []struct {
				Status string
				Labels map[string]string
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&message); err != nil {
			t.Error(err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, a := range message.Alerts {
			key := strings.TrimPrefix(r.URL.Path, "/") + " " + a.Labels["cluster"] + " " + a.Labels["instance"] + " " + a.Labels["alertname"]
			if _, again := m.told[key]; !again && a.Status == "firing" {
				m.told[key] = time.Now()
			}
		}
	}))
	t.Cleanup(receiver.Close)

	dir := t.TempDir()
	config := strings.ReplaceAll(read(t, "alertmanager.yml"), "http://localhost:9", receiver.URL)
	if err := os.WriteFile(filepath.Join(dir, "alertmanager.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "prometheus-alertmanager", "--config.file="+filepath.Join(dir, "alertmanager.yml"), "--storage.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+address, "--cluster.listen-address=")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait()
	})
	m.url = "http://" + address
	for range 100 {
		if response, err := http.Get(m.url + "/-/ready"); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return m
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("Alertmanager is not ready")
	return nil
}

// send sends firing alerts, as Prometheus does.
func (m *manager) send(t *testing.T, labels ...map[string]string) {
	t.Helper()
	var all []map[string]any
	for _, l := range labels {
		all = append(all, map[string]any{"labels": l, "startsAt": time.Now(), "endsAt": time.Now().Add(time.Hour)})
	}
	body, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.Post(m.url+"/api/v2/alerts", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatal(response.Status)
	}
}

func (m *manager) delivered() map[string]time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.told)
}

// TestDelivery checks that the pages of 50 nodes that fail within 5 seconds, or a minute in CI,
// are each delivered within 10 seconds.
func TestDelivery(t *testing.T) {
	t.Parallel()
	m := startManager(t)
	nodes, within := 50, 5*time.Second
	if needs.InCI() {
		within = time.Minute
	}
	sent := map[string]time.Time{}
	for i := range nodes {
		name := fmt.Sprintf("node-%02d", i)
		sent["page eu "+name+" SockPressureFillingFast"] = time.Now()
		m.send(t, map[string]string{
			"alertname": "SockPressureFillingFast", "severity": Critical, "stage": forecast, "resource": "conntrack_entries",
			"cluster": "eu", "job": "sockpressure", "instance": name,
		})
		time.Sleep(within / time.Duration(nodes))
	}
	for end := time.Now().Add(20 * time.Second); len(m.delivered()) < nodes && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}
	var delays []time.Duration
	told := m.delivered()
	for key, at := range sent {
		then, ok := told[key]
		if !ok {
			t.Errorf("%s: never delivered", key)
			continue
		}
		delays = append(delays, then.Sub(at))
	}
	if len(delays) == 0 {
		t.Fatal("nothing was delivered")
	}
	slices.Sort(delays)
	t.Logf("%d nodes within %s: delivered after %s, %s at the median, %s at the latest", nodes, within,
		delays[0].Round(time.Millisecond), delays[len(delays)/2].Round(time.Millisecond), delays[len(delays)-1].Round(time.Millisecond))
	if latest := delays[len(delays)-1]; latest > 10*time.Second {
		t.Errorf("the last page is delivered after %s", latest)
	}
}

// TestInhibition checks that a page inhibits tickets of its own node in its own cluster only,
// with and without a cluster label.
func TestInhibition(t *testing.T) {
	t.Parallel()
	m := startManager(t)
	alert := func(name, severity, stage, cluster, instance, resource string) map[string]string {
		labels := map[string]string{"alertname": "SockPressure" + name, "severity": severity, "stage": stage, "job": "sockpressure", "instance": instance, "resource": resource}
		if cluster != "" {
			labels["cluster"] = cluster
		}
		return labels
	}
	ofPod := func(name, severity, instance, pod string) map[string]string {
		labels := alert(name, severity, near, "", instance, "ephemeral_ports")
		labels["netns"] = "pod/" + pod
		return labels
	}
	m.send(t,
		alert("ConntrackNearlyFull", Critical, near, "eu", "node-a", "conntrack_entries"),
		alert("ConntrackNearlyFull", Warning, near, "eu", "node-a", "conntrack_entries"),
		alert("FillingUp", Warning, forecast, "eu", "node-a", "conntrack_entries"),
		alert("FillingUp", Warning, forecast, "eu", "node-a", "tcp_memory"),
		alert("ConntrackNearlyFull", Warning, near, "us", "node-a", "conntrack_entries"),
		alert("ConntrackNearlyFull", Warning, near, "eu", "node-b", "conntrack_entries"),
		alert("TCPMemoryNearlyFull", Critical, near, "", "node-c", "tcp_memory"),
		alert("TCPMemoryNearlyFull", Warning, near, "", "node-c", "tcp_memory"),
		alert("TCPMemoryNearlyFull", Warning, near, "", "node-d", "tcp_memory"),
		// A page of a pod inhibits the ticket of the same pod only.
		ofPod("NetnsNearLimit", Critical, "node-e", "shop/a"),
		ofPod("NetnsNearLimit", Warning, "node-e", "shop/a"),
		ofPod("NetnsNearLimit", Warning, "node-e", "shop/b"),
		alert("PortsNearlyExhausted", Warning, near, "", "node-e", "ephemeral_ports"),
		// A page of a node inhibits the tickets of its pods for the same limit.
		alert("PortsNearlyExhausted", Critical, near, "", "node-f", "ephemeral_ports"),
		ofPod("NetnsNearLimit", Warning, "node-f", "shop/c"))
	want := []string{
		"page  node-c SockPressureTCPMemoryNearlyFull",
		"page  node-e SockPressureNetnsNearLimit",
		"page  node-f SockPressurePortsNearlyExhausted",
		"page eu node-a SockPressureConntrackNearlyFull",
		"ticket  node-d SockPressureTCPMemoryNearlyFull",
		"ticket  node-e SockPressureNetnsNearLimit",
		"ticket  node-e SockPressurePortsNearlyExhausted",
		"ticket eu node-a SockPressureFillingUp",
		"ticket eu node-b SockPressureConntrackNearlyFull",
		"ticket us node-a SockPressureConntrackNearlyFull",
	}
	for end := time.Now().Add(60 * time.Second); len(m.delivered()) < len(want) && time.Now().Before(end); {
		time.Sleep(200 * time.Millisecond)
	}
	if got := slices.Sorted(maps.Keys(m.delivered())); !slices.Equal(got, want) {
		t.Errorf("delivered %q\nwant %q", got, want)
	}
}
