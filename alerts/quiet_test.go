package alerts

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

// host is a healthy host, as a function of time.
type host struct {
	name, about string
	// gauges and rates are by series: a value, and how much a counter grows a second. Counters
	// are rounded down to whole numbers.
	gauges, rates map[string]func(time.Duration) float64
	// ticket is the reason why a ticket is justified, empty if it is not.
	ticket string
}

// at returns a constant function.
func at(v float64) func(time.Duration) float64 { return func(time.Duration) float64 { return v } }

// noise returns a function with a value within width of middle at each scrape, the same in every
// run.
func noise(middle, width float64) func(time.Duration) float64 {
	return func(t time.Duration) float64 {
		h := fnv.New64a()
		fmt.Fprint(h, t, middle)
		return middle + width*(2*float64(h.Sum64()%10007)/10006-1)
	}
}

// every repeats f with a period.
func every(period time.Duration, f func(time.Duration) float64) func(time.Duration) float64 {
	return func(t time.Duration) float64 { return f(t % period) }
}

// through interpolates linearly between points of minutes and values, and stays at the last.
func through(points ...[2]float64) func(time.Duration) float64 {
	return func(t time.Duration) float64 {
		minutes := t.Minutes()
		for i, p := range points {
			if minutes > p[0] {
				continue
			}
			if i == 0 {
				return p[1]
			}
			before := points[i-1]
			return before[1] + (p[1]-before[1])*(minutes-before[0])/(p[0]-before[0])
		}
		return points[len(points)-1][1]
	}
}

func plus(a, b func(time.Duration) float64) func(time.Duration) float64 {
	return func(t time.Duration) float64 { return a(t) + b(t) }
}

// once returns the rate of a counter that grows by one in a period.
func once(period time.Duration) func(time.Duration) float64 { return at(1 / period.Seconds()) }

type series = map[string]func(time.Duration) float64

// of returns the saturation of limits.
func of(f func(time.Duration) float64, resources ...string) series {
	all := series{}
	for _, r := range resources {
		all[fmt.Sprintf("sockpressure_saturation_ratio{resource=%q}", r)] = f
	}
	return all
}

func everyLimit() []string {
	var resources []string
	for _, l := range limits() {
		resources = append(resources, l.Resource)
	}
	return resources
}

// lives lists limits of each kind that are normally well above 0.
func lives() []string {
	return []string{"conntrack_entries", "ephemeral_ports", "process_file_descriptors", "memory"}
}

// quietHosts returns healthy hosts on which no page may fire, and no other alert more than once
// an hour.
func quietHosts() []host {
	hour := func(h float64) float64 { return 60 * h }
	const gib = 1 << 30
	return []host{
		{
			name: "jvm", about: "A JVM starts within a minute and fills its heap, every 6 hours",
			gauges: of(every(6*time.Hour, through([2]float64{30, 0.3}, [2]float64{31, 0.7}, [2]float64{358, 0.72}, [2]float64{359, 0.3})), "memory", "committed_memory"),
		},
		{
			name: "warm-up", about: "A cache warms up to 68 % within half an hour, and stays there",
			gauges: of(plus(func(t time.Duration) float64 { return 0.68 * (1 - math.Exp(-t.Minutes()/8)) }, noise(0, 0.01)), lives()...),
		},
		{
			name: "step", about: "One step from 0.5 to 0.76", ticket: "above the warning level of some limits",
			gauges: of(func(t time.Duration) float64 {
				if t < 3*time.Hour {
					return 0.5
				}
				return 0.76
			}, lives()...),
		},
		{
			name: "sinus", about: "A sine wave from 0.15 to 0.85 every day", ticket: "above the warning levels for hours a day",
			gauges: of(plus(func(t time.Duration) float64 { return 0.5 - 0.35*math.Cos(2*math.Pi*t.Hours()/24) }, noise(0, 0.01)), lives()...),
		},
		{
			name: "batch", about: "A nightly batch raises usage from 0.2 to 0.7 within 10 minutes, for an hour", ticket: "at the warning level of some limits for an hour a day",
			gauges: of(every(24*time.Hour, through([2]float64{hour(2), 0.2}, [2]float64{hour(2) + 10, 0.7}, [2]float64{hour(3), 0.7}, [2]float64{hour(3) + 5, 0.2})), lives()...),
		},
		{
			name: "morning", about: "From 0.25 to 0.65 every morning and back every evening", ticket: "on the first morning only, without data on earlier days",
			gauges: of(plus(every(24*time.Hour, through([2]float64{hour(7), 0.25}, [2]float64{hour(9), 0.65}, [2]float64{hour(18), 0.65}, [2]float64{hour(20), 0.25})), noise(0, 0.01)), lives()...),
		},
		{
			name: "large", about: "512 GiB at 91 %, a container exceeds its limit every 3 hours", ticket: "the container's OOM kills",
			gauges: merged(of(noise(0.91, 0.005), "memory"), series{"sockpressure_memory_available_bytes": noise(46*gib, gib)}),
			rates:  series{"sockpressure_oom_kills_total": once(3 * time.Hour)},
		},
		{
			name: "at-91", about: "A host that permanently uses 91 % of its memory", ticket: "memory is above its warning level",
			gauges: of(noise(0.91, 0.01), "memory"),
			rates:  series{"sockpressure_oom_kills_total": once(5 * time.Hour)},
		},
		{
			name: "sawtooth", about: "A garbage collector: from 0.3 to 0.7 every 8 minutes",
			gauges: of(every(8*time.Minute, through([2]float64{0, 0.3}, [2]float64{7.5, 0.69}, [2]float64{8, 0.3})), lives()...),
		},
		{
			name: "noise", about: "Noise around 0.65",
			gauges: of(noise(0.63, 0.06), lives()...),
		},
		{
			name: "around", about: "0.76 and 0.74 alternating, around a warning level", ticket: "at the warning level of some limits",
			gauges: of(func(t time.Duration) float64 { return 0.74 + 0.02*float64(int(t/step)%2) }, lives()...),
		},
		{
			name: "time-wait", about: "TIME_WAIT at its limit for hours, by design", ticket: "TIME_WAIT is above its warning level",
			gauges: of(every(8*time.Hour, through([2]float64{hour(1), 0.2}, [2]float64{hour(1) + 5, 1}, [2]float64{hour(7), 1}, [2]float64{hour(7) + 5, 0.2})), "tcp_time_wait"),
			rates: series{"sockpressure_tcp_time_wait_overflows_total": every(8*time.Hour, func(t time.Duration) float64 {
				if t > 66*time.Minute && t < 7*time.Hour {
					return 50
				}
				return 0
			})},
		},
		{
			name: "crash-loop", about: "Pods that exceed their memory limit and restart, every 5 to 6 minutes", ticket: "the OOM kills",
			gauges: of(every(340*time.Second, through([2]float64{1, 0.5}, [2]float64{2, 0.62}, [2]float64{5, 0.64}, [2]float64{5.2, 0.5})), "memory", "process_file_descriptors", "conntrack_entries"),
			rates:  series{"sockpressure_oom_kills_total": once(340 * time.Second)},
		},
		{
			name: "now-and-then", about: "Every counter rises by one every 7 minutes", ticket: "the OOM kills",
			gauges: of(noise(0.19, 0.05), everyLimit()...),
			rates:  counting(once(7 * time.Minute)),
		},
		{
			name: "rarely", about: "Every counter rises by one every 50 minutes", ticket: "the OOM kills",
			gauges: of(noise(0.19, 0.05), everyLimit()...),
			rates:  counting(once(50 * time.Minute)),
		},
		{
			name: "scanned", about: "Scans from the internet with tcp_syncookies=2, and normal connections",
			rates: series{
				"sockpressure_tcp_request_queue_full_cookies_total": at(0.55),
				"sockpressure_tcp_syncookies_sent_total":            at(0.55),
				"sockpressure_tcp_syncookies_received_total":        at(0.5),
			},
		},
		{
			name: "cdn", about: "A CDN: bursts at listeners, orphans, TIME_WAIT close to its limit, some losses everywhere", ticket: "TIME_WAIT is above its warning level, and an accept queue overflows",
			gauges: merged(
				of(noise(0.9, 0.05), "tcp_time_wait"), of(noise(0.12, 0.1), "tcp_orphans"), of(noise(0.6, 0.05), "conntrack_entries", "tcp_memory"),
				of(every(3*time.Minute, through([2]float64{1, 0.05}, [2]float64{1.25, 1}, [2]float64{1.5, 0.05})), "accept_queue"),
				of(noise(0.2, 0.2), "netdev_backlog"),
			),
			rates: series{
				"sockpressure_tcp_listen_overflows_total":                   once(4 * time.Minute),
				"sockpressure_tcp_listen_drops_total":                       once(4 * time.Minute),
				"sockpressure_tcp_time_wait_overflows_total":                once(11 * time.Minute),
				"sockpressure_tcp_receive_pruned_total":                     at(2),
				"sockpressure_tcp_backlog_drops_total":                      at(2),
				"sockpressure_udp_receive_buffer_errors_total":              at(2),
				"sockpressure_netdev_time_squeezes_total":                   at(30),
				"sockpressure_netdev_backlog_drops_total":                   once(2 * time.Minute),
				"sockpressure_ip_reassembly_failures_total":                 at(1),
				"sockpressure_conntrack_drops_total":                        at(0.02),
				"sockpressure_conntrack_insert_failures_total":              at(0.02),
				"sockpressure_tcp_receive_queue_drops_total":                once(6 * time.Minute),
				"sockpressure_memory_pressure_seconds_total{kind=\"full\"}": at(0.01),
			},
		},
		{
			name: "pods", about: "Pods that scale up and down or restart, each with a few accept queue overflows at its start",
			gauges: series{
				pod("accept_queue", "a"):      every(6*time.Minute, through([2]float64{1, 0}, [2]float64{1.25, 1.2}, [2]float64{2.5, 1.1}, [2]float64{2.75, 0})),
				pod("accept_queue", "b"):      every(11*time.Minute, through([2]float64{3, 0.1}, [2]float64{3.25, 0.9}, [2]float64{6, 0.9}, [2]float64{6.25, 0.1})),
				pod("ephemeral_ports", "a"):   noise(0.5, 0.2),
				pod("conntrack_entries", "c"): noise(0.6, 0.1),
				pod("tcp_time_wait", "c"):     at(1),
			},
			rates: series{
				`sockpressure_netns_refusals_total{resource="accept_queue"}`:      every(6*time.Minute, through([2]float64{1, 0}, [2]float64{1.25, 0.1}, [2]float64{2.25, 0.1}, [2]float64{2.5, 0})),
				`sockpressure_netns_refusals_total{resource="tcp_time_wait"}`:     at(20),
				`sockpressure_netns_refusals_total{resource="udp_receive_queue"}`: at(1),
			},
		},
		{
			name: "datagrams", about: "Bursts at statsd, php-fpm and a web server, scans from the internet, and a UDP socket in a pod that nobody reads",
			gauges: merged(
				of(every(7*time.Minute, through([2]float64{1, 0.01}, [2]float64{1.25, 1.02}, [2]float64{3, 0.9}, [2]float64{3.25, 0.01})), "udp_receive_queue"),
				of(every(11*time.Minute, through([2]float64{2, 0}, [2]float64{2.25, 1.01}, [2]float64{3.25, 1.01}, [2]float64{3.5, 0})), "unix_accept_queue"),
				of(every(13*time.Minute, through([2]float64{3, 0.05}, [2]float64{3.25, 1}, [2]float64{5, 1}, [2]float64{5.25, 0.05})), "request_queue"),
				of(noise(0.4, 0.2), "threads"),
				series{
					pod("udp_receive_queue", "a"): at(1.02), pod("request_queue", "b"): at(1),
					pod("unix_accept_queue", "c"): every(9*time.Minute, through([2]float64{1, 0}, [2]float64{1.25, 1.1}, [2]float64{4, 1.1}, [2]float64{4.25, 0})),
				},
			),
			rates: series{
				"sockpressure_udp_receive_buffer_errors_total":      at(2),
				"sockpressure_tcp_request_queue_full_cookies_total": at(0.05),
			},
		},
		{
			name: "spikes", about: "Accept queues and backlogs that are briefly full between scrapes, and messages about failed large allocations",
			gauges: merged(of(noise(0.19, 0.05), everyLimit()...), series{
				`sockpressure_saturation_peak_ratio{resource="accept_queue"}`:      every(9*time.Minute, through([2]float64{1, 0.3}, [2]float64{1.25, 1}, [2]float64{2.25, 1}, [2]float64{2.5, 0.3})),
				`sockpressure_saturation_peak_ratio{resource="netdev_backlog"}`:    noise(0.8, 0.25),
				`sockpressure_saturation_peak_ratio{resource="tcp_time_wait"}`:     at(1),
				`sockpressure_saturation_peak_ratio{resource="conntrack_entries"}`: noise(0.8, 0.15),
			}),
			rates: series{
				`sockpressure_kernel_messages_total{message="page_allocation_failure"}`: once(time.Hour),
				`sockpressure_kernel_messages_total{message="tcp_syn_flooding"}`:        once(7 * time.Hour),
			},
		},
		{
			name: "steady", about: "Fragments at 0.82 and conntrack at 0.91, with occasional timeouts and clashes", ticket: "both are above their warning levels",
			gauges: merged(of(at(0.82), "ip_fragments_ipv4"), of(noise(0.88, 0.01), "conntrack_entries")),
			rates: series{
				"sockpressure_ip_reassembly_failures_total":    once(4 * time.Minute),
				"sockpressure_conntrack_drops_total":           once(time.Minute),
				"sockpressure_conntrack_insert_failures_total": once(time.Minute),
			},
		},
	}
}

// pod returns the series of the saturation of a limit of a pod.
func pod(resource, name string) string {
	return fmt.Sprintf("sockpressure_netns_saturation_ratio{resource=%q,netns=%q,namespace=\"shop\",pod=%[3]q}", resource, "pod/shop/"+name, name)
}

func merged(all ...series) series {
	m := series{}
	for _, s := range all {
		maps.Copy(m, s)
	}
	return m
}

// counting returns all counters of refusals, with the same rate.
func counting(f func(time.Duration) float64) series {
	all := series{}
	for _, name := range counters() {
		all[name] = f
	}
	for _, name := range []string{
		"sockpressure_tcp_aborts_on_memory_total", "sockpressure_tcp_memory_pressures_total", "sockpressure_udp6_memory_errors_total",
		"sockpressure_conntrack_early_drops_total", "sockpressure_tcp_request_queue_full_drops_total", "sockpressure_tcp_request_queue_full_cookies_total",
		"sockpressure_tcp_listen_drops_total", "sockpressure_tcp_memalloc_drops_total", "sockpressure_tcp_backlog_drops_total",
	} {
		all[name] = f
	}
	return all
}

func (h host) node(duration, tick time.Duration) node {
	n := node{instance: h.name}
	ticks := int(duration / tick)
	for _, name := range slices.Sorted(maps.Keys(h.gauges)) {
		values := make([]float64, ticks)
		for i := range values {
			values[i] = math.Round(h.gauges[name](time.Duration(i)*tick)*1e4) / 1e4
		}
		n.series = append(n.series, recording.Series{Name: name, Values: values})
	}
	for _, name := range slices.Sorted(maps.Keys(h.rates)) {
		values := make([]float64, ticks)
		sum := 0.0
		for i := range values {
			sum += h.rates[name](time.Duration(i)*tick) * tick.Seconds()
			values[i] = math.Floor(sum)
		}
		n.series = append(n.series, recording.Series{Name: name, Values: values})
	}
	return n
}

// simulateHosts evaluates the rules on the quiet hosts, and returns all alerts that fired.
func simulateHosts(t *testing.T, duration, interval time.Duration) []firing {
	t.Helper()
	r := run{tick: step, interval: interval}
	if duration > 48*time.Hour {
		r.tick = time.Minute
	}
	for _, h := range quietHosts() {
		r.nodes = append(r.nodes, h.node(duration, r.tick))
	}
	return r.evaluate(t)
}

// TestQuiet checks that on healthy hosts no page fires, no other alert fires more than once an
// hour, and a ticket fires only where there is a reason for one. It simulates 26 hours in CI, 100
// minutes elsewhere.
func TestQuiet(t *testing.T) {
	t.Parallel()
	duration, interval := 100*time.Minute, 30*time.Second
	if needs.InCI() {
		duration, interval = 26*time.Hour, time.Minute
	}
	reasons := map[string]string{}
	for _, h := range quietHosts() {
		reasons[h.name] = h.ticket
	}
	for _, f := range simulateHosts(t, duration, interval) {
		switch {
		case f.severity == Critical:
			t.Errorf("%s: %s pages (%s) at %s", f.instance, f.name, f.resource, f.first)
		case f.severity == Warning && reasons[f.instance] == "":
			t.Errorf("%s: %s writes a ticket (%s) at %s", f.instance, f.name, f.resource, f.first)
		case float64(f.times) > max(duration.Hours(), 1):
			t.Errorf("%s: %s (%s) fires %d times", f.instance, f.name, f.severity, f.times)
		}
	}
}
