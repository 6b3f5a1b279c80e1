package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/procfs"
)

// For the pictures in the documentation: see CONTRIBUTING.md.
var (
	podsPage = flag.String("pods.page", "", "file for the status page of the node with the failing pods")
	podsHold = flag.Duration("pods.hold", 0, "how long to hold them, for a Prometheus that scrapes the address in the log")
)

// The pods that reach limits, each another one.
const (
	shop     = "shop"          // their namespace
	fullPod  = "cart-0"        // its accept queue is full
	nestPod  = "build-7f"      // the same, in a network namespace that it created in a user namespace
	portsPod = "checkout-5d9c" // has no ephemeral port left
	waitPod  = "search-1"      // its TIME_WAIT limit is reached
)

// TestRealPods creates pods by CRI as a kubelet does, some of which reach the limits of their
// network namespaces, and deletes and recreates pods, while it scrapes two exporters as fast as
// possible. It checks that the pods at their limits are named, that no pod has another pod's
// values, and that nothing of a deleted pod remains.
func TestRealPods(t *testing.T) {
	n := startNode(t)
	args := []string{"--path.pod-logs=" + n.logs, "--collector.top=100"}
	root, nobody := follow(t, start(t, nil, args...)), follow(t, start(t, asNobody, args...))
	check := func(format string) string {
		out, err := exec.Command(binary, "check", "--format="+format, "--path.pod-logs="+n.logs).Output()
		if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out)
	}

	loads := []podLoad{
		{fullPod, "overflow", nil},
		{nestPod, "userns", nil},
		{portsPod, "ports", map[string]string{"net.ipv4.ip_local_port_range": "40000 40031"}},
		{waitPod, "timewait", map[string]string{"net.ipv4.tcp_max_tw_buckets": "16"}},
	}
	for i := range 28 {
		loads = append(loads, podLoad{fmt.Sprintf("web-%02d", i), "quiet", nil})
	}
	pods := n.createAll(loads)

	t.Run("failing", func(t *testing.T) {
		p := root.expect(t, "all pods are there, and the failing ones with their limits", func(p page) bool {
			return p.nearest("accept_queue", fullPod) == 2 && p.nearest("accept_queue", nestPod) == 1.25 &&
				p.nearest("ephemeral_ports", portsPod) == 1 && p.nearest("tcp_time_wait", waitPod) == 1 &&
				p.refusals("tcp_listen_overflows", fullPod) > 0 && p.refusals("tcp_listen_overflows", nestPod) > 0 &&
				p.refusals("tcp_time_wait_overflows", waitPod) > 0 &&
				!slices.ContainsFunc(pods, func(r realPod) bool { return p.of(r.name)["sockpressure_netns_tcp_sockets_inuse"] == 0 })
		})
		// The totals include this host's other namespaces.
		for resource, refused := range map[string]float64{
			"accept_queue":  p.refusals("tcp_listen_overflows", fullPod) + p.refusals("tcp_listen_overflows", nestPod),
			"tcp_time_wait": p.refusals("tcp_time_wait_overflows", waitPod),
		} {
			if got := p.value(t, fmt.Sprintf("sockpressure_netns_refusals_total{resource=%q}", resource)); got < refused {
				t.Errorf("%v refusals of %s, and the pods have had %v", got, resource, refused)
			}
		}
		n.expectCounted(t, root, pods[0])
	})
	t.Run("unprivileged", func(t *testing.T) {
		privileged := []string{
			"sockpressure_netns_accept_queue_length", "sockpressure_netns_accept_queue_limit",
			"sockpressure_netns_saturation_ratio accept_queue", "sockpressure_netns_saturation_ratio ephemeral_ports", "sockpressure_netns_saturation_ratio tcp_time_wait",
		}
		for _, pod := range pods {
			var got, want []string
			nobody.expect(t, pod.name+" without what needs a privilege", func(p page) bool {
				want = slices.DeleteFunc(slices.Sorted(maps.Keys(root.latest().of(pod.name))), func(s string) bool { return slices.Contains(privileged, s) })
				got = slices.Sorted(maps.Keys(p.of(pod.name)))
				return len(got) > 0 && slices.Equal(got, want)
			})
		}
		if p := nobody.latest(); p.value(t, success("netns")) != 1 || p.value(t, "sockpressure_netns_unreadable") != 0 {
			t.Error("a namespace could not be read")
		}
	})
	t.Run("page and check", func(t *testing.T) {
		n.expectNamed(t, root.exporter, check, "warning", "accept_queue", "pod/shop/"+fullPod, fullPod)
		n.expectNamed(t, root.exporter, check, "critical", "ephemeral_ports", "pod/shop/"+portsPod, portsPod)
		n.expectNamed(t, root.exporter, check, "warning", "tcp_time_wait", "pod/shop/"+waitPod, waitPod)
	})
	if *podsPage != "" {
		_, body := root.get("/?still")
		if err := os.WriteFile(*podsPage, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if *podsHold > 0 {
		t.Logf("keeping the pods for %v at %s", *podsHold, root.url)
		time.Sleep(*podsHold)
	}

	t.Run("deleted and created again", func(t *testing.T) {
		before := root.latest().refusals("tcp_listen_overflows", fullPod)
		var recreated []podLoad
		for _, pod := range append(pods[:1:1], pods[20:]...) {
			n.expectNothingLeft(t, pod)
			recreated = append(recreated, podLoad{pod.name, "quiet", nil})
		}
		root.mayBegin(fullPod)
		nobody.mayBegin(fullPod)
		n.createAll(recreated)
		for _, e := range []*follower{root, nobody} {
			p := e.expect(t, "the new pods are there", func(p page) bool {
				return !slices.ContainsFunc(recreated, func(l podLoad) bool { return p.of(l.name)["sockpressure_netns_tcp_sockets_inuse"] != 1 })
			})
			if got := p.with("sockpressure_netns_tcp_listen_overflows_total"); p.refusals("tcp_listen_overflows", fullPod) != 0 || p.nearest("accept_queue", fullPod) != 0 {
				t.Errorf("the new pod has what the old one had, %v: %v", before, got)
			}
		}
		n.expectNamed(t, root.exporter, check, "warning", "accept_queue", "pod/shop/"+nestPod, nestPod)
	})
	t.Logf("%d scrapes as root, %d as nobody", root.stop(), nobody.stop())
}

// podLoad is a pod to create.
type podLoad struct {
	name, load string
	sysctls    map[string]string
}

// createAll creates pods, four at a time.
func (n *node) createAll(loads []podLoad) []realPod {
	n.t.Helper()
	pods, errs := make([]realPod, len(loads)), make([]error, len(loads))
	var making sync.WaitGroup
	turns := make(chan struct{}, 4)
	for i, l := range loads {
		making.Go(func() {
			turns <- struct{}{}
			pods[i], errs[i] = n.create(shop, l.name, l.load, l.sysctls)
			<-turns
		})
	}
	making.Wait()
	if err := errors.Join(errs...); err != nil {
		n.t.Fatal(err)
	}
	return pods
}

// of returns the series of a pod, by name and resource. If it has several network namespaces, it
// returns the highest value.
func (p page) of(pod string) map[string]float64 {
	series := map[string]float64{}
	for s, v := range p {
		name, labels, _ := strings.Cut(s, "{")
		if strings.Contains(labels, fmt.Sprintf(`namespace=%q`, shop)) && strings.Contains(labels, fmt.Sprintf(`pod=%q`, pod)) {
			if _, resource, ok := strings.Cut(labels, `resource="`); ok {
				name += " " + strings.Trim(resource, `"}`)
			}
			series[name] = max(series[name], v)
		}
	}
	return series
}

// nearest returns the saturation of a limit of a pod, 0 if there is no such series.
func (p page) nearest(resource, pod string) float64 {
	return p.of(pod)["sockpressure_netns_saturation_ratio "+resource]
}

// refusals returns a counter of a pod, 0 if there is no such series.
func (p page) refusals(counter, pod string) float64 {
	return p.of(pod)["sockpressure_netns_"+counter+"_total"]
}

// follower scrapes an exporter as fast as possible, and checks that no counter falls.
type follower struct {
	*exporter
	end  context.CancelFunc
	done chan struct{}

	mu     sync.Mutex
	page   page
	count  int
	begins map[string]bool // pods whose counters may restart
}

func follow(t *testing.T, e *exporter) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{exporter: e, end: cancel, done: make(chan struct{}), page: e.scrape("?collect[]=netns"), begins: map[string]bool{}}
	t.Cleanup(func() { f.stop() })
	go func() {
		defer close(f.done)
		for ctx.Err() == nil {
			f.note(e.scrape("?collect[]=netns"))
			if *podsHold > 0 {
				time.Sleep(time.Second) // once a second is enough while pictures are made
			}
		}
	}()
	return f
}

// stop ends the scrapes, and returns how many there were.
func (f *follower) stop() int {
	f.end()
	<-f.done
	return f.count
}

func (f *follower) note(now page) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for series, v := range now {
		before, ok := f.page[series]
		if !ok || v >= before || !strings.HasSuffix(family(series), "_total") || !strings.HasPrefix(series, "sockpressure_netns_") {
			continue
		}
		mine := strings.Contains(series, fmt.Sprintf(`namespace=%q`, shop))
		_, pod, _ := strings.Cut(series, `pod="`)
		pod, _, _ = strings.Cut(pod, `"`)
		if family(series) == "sockpressure_netns_refusals_total" || mine && !f.begins[pod] {
			f.t.Errorf("%s was %v and is %v", series, before, v)
		}
	}
	f.page = now
	f.count++
}

func (f *follower) latest() page {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.page
}

// mayBegin records that a pod is recreated, so that its counters may restart.
func (f *follower) mayBegin(pod string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begins[pod] = true
}

// expect waits for a page that satisfies is.
func (f *follower) expect(t *testing.T, what string, is func(page) bool) page {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		p := f.latest()
		if is(p) {
			return p
		}
		if time.Now().After(end) {
			t.Fatalf("not reached after %v: %s\n%s", patience, what, strings.Join(p.lines(shop), "\n"))
		}
	}
}

// lines returns the samples of a page that have a word in the name or the labels.
func (p page) lines(word string) (lines []string) {
	for _, s := range p.with("") {
		if strings.Contains(s, word) {
			lines = append(lines, fmt.Sprint(s, " ", p[s]))
		}
	}
	return lines
}

// expectCounted checks that the overflows of a pod on the page equal those that the kernel has
// counted in it.
func (n *node) expectCounted(t *testing.T, f *follower, pod realPod) {
	t.Helper()
	overflows := func() float64 {
		proc, err := procfs.NewProc(n.pid(pod))
		if err != nil {
			t.Fatal(err)
		}
		stat, err := proc.Netstat()
		if err != nil || stat.ListenOverflows == nil {
			t.Fatalf("netstat of %s: %v", pod.name, err)
		}
		return *stat.ListenOverflows
	}
	before, scrapes := overflows(), f.scrapes()
	for end := time.Now().Add(patience); f.scrapes() < scrapes+2 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	got := f.latest().refusals("tcp_listen_overflows", pod.name)
	if after := overflows(); got < before || got > after {
		t.Errorf("%v overflows in %s, the kernel counts %v to %v", got, pod.name, before, after)
	}
}

func (f *follower) scrapes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count
}

// expectNamed checks that the status page and check name the network namespace of a pod as the
// one nearest to a limit. Other tests may have nearer ones for a moment, and a full limit of the
// host is critical whatever the level of the pod's.
func (n *node) expectNamed(t *testing.T, e *exporter, check func(format string) string, level, resource, netns, pod string) {
	t.Helper()
	as := func(state string, own, critical float64) bool {
		return state == level || state == "critical" && own >= critical
	}
	eventually(t, "the page names "+netns, func() error {
		own := e.scrape("").value(t, fmt.Sprintf("sockpressure_saturation_ratio{resource=%q}", resource))
		_, body := e.get("/")
		_, row, _ := strings.Cut(body, "#"+resource+`">`)
		row, _, _ = strings.Cut(row, "</li>")
		if !strings.Contains(row, netns+"</bdi>") || !(strings.Contains(row, "level "+level) || strings.Contains(row, "level critical") && as("critical", own, 1)) || strings.Contains(row, " 0.0 %") {
			return fmt.Errorf("its row of %s: %s", resource, row)
		}
		return nil
	})
	eventually(t, "check names "+netns, func() error {
		text := check("text")
		_, row, _ := strings.Cut(text, "When "+resource+" reaches its limit:")
		row, _, _ = strings.Cut(row, "\nWhen ")
		if !strings.Contains(row, netns+": ") {
			return errors.New(text)
		}
		return nil
	})
	eventually(t, "check names "+netns+" as JSON", func() error {
		text := check("json")
		var report struct {
			Limits []struct {
				Resource   string
				State      string
				Saturation float64
				Thresholds struct{ Critical float64 }
				WorstNetns struct{ Namespace, Pod string } `json:"worst_netns"`
			}
		}
		if err := json.Unmarshal([]byte(text), &report); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		for _, l := range report.Limits {
			if l.Resource == resource && as(l.State, l.Saturation, l.Thresholds.Critical) && l.WorstNetns.Namespace == shop && l.WorstNetns.Pod == pod {
				return nil
			}
		}
		return errors.New(text)
	})
}

// expectNothingLeft deletes a pod and checks that its network namespace ends. CNI removes its own
// devices, so the pod gets another one, whose other end the kernel removes with the namespace. A
// namespace that the exporter does not read, which ends afterwards, has one too: until that is
// removed, the delay is the kernel's.
func (n *node) expectNothingLeft(t *testing.T, pod realPod) {
	t.Helper()
	unread := newNetwork(t)
	ends := map[string]string{
		"of-pod":    strconv.Itoa(n.pid(pod)),
		"of-unread": fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), unread.Fd()),
	}
	n.network.Inside(func() error {
		for name, netns := range ends {
			out, err := exec.Command("ip", "link", "add", name, "type", "veth", "peer", "name", "probe", "netns", netns).CombinedOutput()
			if err != nil {
				return fmt.Errorf("ip: %w: %s", err, out)
			}
		}
		return nil
	})
	if err := n.delete(pod); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	_ = unread.Close()
	eventually(t, "an unread namespace ends", func() error {
		if n.links()["of-unread"] {
			return errors.New("the device still exists")
		}
		return nil
	})
	for end := time.Now().Add(2 * time.Second); n.links()["of-pod"]; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the network namespace of %s is still there, %v after the pod", pod.name, time.Since(at))
		}
	}
	t.Logf("%s: gone after %v", pod.name, time.Since(at).Round(time.Millisecond))
}
