package alerts

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

// counters maps each limit to the counter that the kernel increases when it is reached.
func counters() map[string]string {
	return map[string]string{
		"conntrack_entries": "sockpressure_conntrack_drops_total",
		"tcp_memory":        "sockpressure_tcp_receive_queue_drops_total",
		"tcp_orphans":       "sockpressure_tcp_aborts_on_memory_total",
		"tcp_time_wait":     "sockpressure_tcp_time_wait_overflows_total",
		"accept_queue":      "sockpressure_tcp_listen_overflows_total",
		"udp_memory":        "sockpressure_udp_memory_errors_total",
		"udp_receive_queue": "sockpressure_udp_receive_buffer_errors_total",
		"request_queue":     "sockpressure_tcp_request_queue_full_drops_total",
		"ip_fragments_ipv4": "sockpressure_ip_reassembly_failures_total",
		"ip_fragments_ipv6": "sockpressure_ip6_reassembly_failures_total",
		"neighbours_ipv4":   `sockpressure_neighbour_table_full_total{family="ipv4"}`,
		"neighbours_ipv6":   `sockpressure_neighbour_table_full_total{family="ipv6"}`,
		"netdev_backlog":    "sockpressure_netdev_backlog_drops_total",
		"memory":            "sockpressure_oom_kills_total",
		"low_memory":        "sockpressure_oom_kills_total",
		"cgroup_memory":     "sockpressure_cgroup_oom_kills_all_total",
	}
}

// ramp is a limit that fills evenly from 20 %, and refuses ten times a second once it is full,
// for the duration hold or, if that is 0, until the end. Before and after that it is at 20 %.
type ramp struct {
	resource   string
	fill, hold time.Duration
	// scrape is the time between scrapes, phase the time of the first, and begin the start of the
	// ramp.
	scrape, phase, begin time.Duration
}

func (r ramp) refusal() time.Duration { return r.begin + r.fill }

func (r ramp) node(tick time.Duration) node {
	n := node{instance: fmt.Sprintf("%s/%s/%s/%s/%s", r.resource, r.fill, r.scrape, r.phase, r.begin)}
	ticks := int((r.refusal() + r.hold + 2*time.Minute) / tick)
	saturation, peak, count := make([]float64, ticks), make([]float64, ticks), make([]float64, ticks)
	for i := range ticks {
		at := time.Duration(i) * tick
		saturation[i], peak[i], count[i] = math.NaN(), math.NaN(), math.NaN()
		if at >= r.phase && (at-r.phase)%r.scrape == 0 {
			saturation[i] = r.saturation(at)
			for sample := max(at-time.Minute, 0); sample <= at; sample += time.Second {
				if s := r.saturation(sample); !(peak[i] >= s) {
					peak[i] = s
				}
			}
			count[i] = r.refusals(at)
		}
	}
	n.series = []recording.Series{{Name: fmt.Sprintf("sockpressure_saturation_ratio{resource=%q}", r.resource), Values: saturation}}
	if sampled(r.resource) {
		n.series = append(n.series, recording.Series{Name: fmt.Sprintf("sockpressure_saturation_peak_ratio{resource=%q}", r.resource), Values: peak})
	}
	if c := counters()[r.resource]; c != "" {
		n.series = append(n.series, recording.Series{Name: c, Values: count})
	}
	return n
}

func (r ramp) saturation(at time.Duration) float64 {
	if r.hold > 0 && at >= r.refusal()+r.hold {
		return 0.2
	}
	return 0.2 + 0.8*min(max((at-r.begin).Seconds()/r.fill.Seconds(), 0), 1)
}

// refusals returns how often the kernel has refused by a time.
func (r ramp) refusals(at time.Duration) float64 {
	refusing := max(at-r.refusal(), 0)
	if r.hold > 0 {
		refusing = min(refusing, r.hold)
	}
	return math.Floor(10 * refusing.Seconds())
}

// sampled reports whether the exporter reads the limit between scrapes.
func sampled(resource string) bool {
	for _, spec := range collector.Specs() {
		for _, l := range spec.Limits {
			if l.Resource == resource {
				return spec.Sampled()
			}
		}
	}
	return false
}

// leads are how long before the refusal the first page, the first ticket and the first report of
// the refusal itself fired, at the worst phase of scrapes, evaluations and ramp.
type leads struct{ Page, Ticket, Told time.Duration }

// never is the lead of an alert that did not fire.
const never = time.Duration(math.MinInt64)

func show(lead time.Duration) string {
	if lead == never {
		return "never"
	}
	return short(lead)
}

// fills returns the durations of ramps, and scrapes the scrape intervals, that docs/alerts.md
// lists.
func fills() []time.Duration {
	return []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour}
}

func scrapes() []time.Duration {
	return []time.Duration{15 * time.Second, 30 * time.Second, time.Minute}
}

// simulateRamps evaluates the rules on ramps of every limit, of one duration and scrape interval.
func simulateRamps(t *testing.T, fill, scrape time.Duration) map[string]leads {
	t.Helper()
	const grain = 5 * time.Second
	r := run{tick: grain, interval: 15 * time.Second}
	phases, begins := []time.Duration{0, grain}, []time.Duration{0, grain, 2 * grain}
	if scrape > 15*time.Second {
		begins = []time.Duration{0, 2 * grain, 4 * grain, 6 * grain, 9 * grain}
	}
	if fill > time.Hour { // a tick of a minute is precise enough
		r, scrape, phases, begins = run{tick: time.Minute, interval: time.Minute}, time.Minute, phases[:1], begins[:1]
	}
	ramps, first := map[string]ramp{}, map[string]leads{}
	for _, l := range limits() {
		for _, phase := range phases {
			for _, begin := range begins {
				ramp := ramp{resource: l.Resource, fill: fill, scrape: scrape, phase: phase, begin: 4*time.Minute + begin}
				n := ramp.node(r.tick)
				ramps[n.instance], first[n.instance] = ramp, leads{never, never, never}
				r.nodes = append(r.nodes, n)
			}
		}
	}
	for _, f := range r.evaluate(t) {
		ramp, l := ramps[f.instance], first[f.instance]
		if f.resource != ramp.resource && f.name != "SockPressureOOMKill" {
			t.Errorf("%s: %s fires for %q", f.instance, f.name, f.resource)
		}
		lead := ramp.refusal() - f.first
		switch f.severity {
		case Critical:
			l.Page = max(l.Page, lead)
		case Warning:
			l.Ticket = max(l.Ticket, lead)
		}
		if f.stage == met {
			l.Told = max(l.Told, lead)
		}
		first[f.instance] = l
	}
	worst := map[string]leads{}
	for instance, l := range first {
		resource := ramps[instance].resource
		if w, ok := worst[resource]; ok {
			l = leads{min(w.Page, l.Page), min(w.Ticket, l.Ticket), min(w.Told, l.Told)}
		}
		worst[resource] = l
	}
	return worst
}

// spike is how long a limit is full that scrapes may miss.
const spike = 10 * time.Second

// simulateSpikes fills every limit within 5 seconds, for the time of a spike, and returns
// how long after the refusal the first alert came, at the worst phase.
func simulateSpikes(t *testing.T, scrape time.Duration) map[string]time.Duration {
	t.Helper()
	const grain = 5 * time.Second
	r := run{tick: grain, interval: 15 * time.Second}
	ramps, first := map[string]ramp{}, map[string]time.Duration{}
	for _, l := range limits() {
		for phase := time.Duration(0); phase < scrape; phase += grain {
			ramp := ramp{resource: l.Resource, fill: grain, hold: spike, scrape: scrape, phase: phase, begin: 4 * time.Minute}
			n := ramp.node(r.tick)
			ramps[n.instance], first[n.instance] = ramp, never
			r.nodes = append(r.nodes, n)
		}
	}
	for _, f := range r.evaluate(t) {
		first[f.instance] = max(first[f.instance], ramps[f.instance].refusal()-f.first)
	}
	worst := map[string]time.Duration{}
	for instance, lead := range first {
		resource := ramps[instance].resource
		if w, ok := worst[resource]; ok {
			lead = min(lead, w)
		}
		worst[resource] = lead
	}
	return worst
}

// untold returns the reason why no alert reports a limit that was full between two scrapes, if
// there is one.
func untold(resource string) string {
	switch resource {
	case "ephemeral_ports", "process_file_descriptors", "unix_accept_queue":
		return "no counter, and not sampled between scrapes"
	case "udp_receive_queue":
		return "bursts drop some datagrams on healthy hosts, and the counter covers all sockets, so ten per second write a ticket"
	case "ip_fragments_ipv4", "ip_fragments_ipv6":
		return "the counter has other causes, and any sender of fragments can fill the memory for a moment"
	case "committed_memory":
		return "no counter, and harmless unless a program requests memory at that time"
	}
	return ""
}

// TestSpikes checks that a limit that was full between two scrapes is reported by the next scrape
// and the next evaluation.
func TestSpikes(t *testing.T) {
	t.Parallel()
	for _, scrape := range []time.Duration{15 * time.Second, time.Minute} {
		for resource, lead := range simulateSpikes(t, scrape) {
			if untold(resource) == "" && lead < -(scrape+15*time.Second) {
				t.Errorf("%s, full for %s and scraped every %s: reported %s before the refusal", resource, short(spike), short(scrape), show(lead))
			}
		}
	}
}

// TestRamps checks the guarantees for every limit that fills evenly: a page a minute before the
// refusal if it fills within 5 minutes or more, a page or a ticket before it from 2 minutes on,
// and at any pace a report of the refusal after the next scrape and the next evaluation.
func TestRamps(t *testing.T) {
	t.Parallel()
	some := []time.Duration{2 * time.Minute, 5 * time.Minute}
	if needs.InCI() {
		some = fills()[:6]
	}
	for _, fill := range some {
		for resource, l := range simulateRamps(t, fill, 15*time.Second) {
			if !unpaged(resource) {
				if fill >= 5*time.Minute && l.Page < leadTime {
					t.Errorf("%s within %s: the page comes %s before the refusal", resource, short(fill), show(l.Page))
				}
				if fill >= 2*time.Minute && max(l.Page, l.Ticket) <= 0 {
					t.Errorf("%s within %s: page %s, ticket %s before the refusal", resource, short(fill), show(l.Page), show(l.Ticket))
				}
			}
			// At most one scrape and one evaluation later, 15 s each.
			if l.Told < -30*time.Second {
				t.Errorf("%s within %s: reported %s before the refusal", resource, short(fill), show(l.Told))
			}
		}
	}
	if !needs.InCI() {
		return
	}
	// With a minute between scrapes, the page still comes in time for a ramp of 10 minutes.
	for resource, l := range simulateRamps(t, 10*time.Minute, time.Minute) {
		if !unpaged(resource) && l.Page < leadTime {
			t.Errorf("%s within 10m, scraped once a minute: the page comes %s before the refusal", resource, show(l.Page))
		}
	}
}
