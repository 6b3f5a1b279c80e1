package alerts

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

// until returns a function that is before up to a time, and after from then on.
func until(minutes float64, before, after float64) func(time.Duration) float64 {
	return func(t time.Duration) float64 {
		if t.Minutes() < minutes {
			return before
		}
		return after
	}
}

// TestLoud checks that the failures of these hosts raise the expected alerts in time, and do not
// raise the excluded ones.
func TestLoud(t *testing.T) {
	t.Parallel()
	const conntrack = `sockpressure_saturation_ratio{resource="conntrack_entries"}`
	for _, unit := range []struct {
		duration, interval time.Duration
		hosts              []loud
	}{
		{30 * time.Minute, step, loudHosts()},
		{3 * time.Hour, step, vanishing(conntrack)},
		// Only a scrape that no evaluation uses saw the table full.
		{30 * time.Minute, 2 * step, []loud{{
			host: host{name: "between evaluations", rates: series{"sockpressure_conntrack_drops_total": until(5, 0, 5)}, gauges: series{conntrack: func(at time.Duration) float64 {
				if at == 5*time.Minute+step {
					return 0.95
				}
				return 0.5
			}}},
			want: []string{"SockPressureConntrackFull/critical"}, within: 7 * time.Minute,
		}}},
	} {
		r := run{tick: step, interval: unit.interval}
		for _, l := range unit.hosts {
			r.nodes = append(r.nodes, l.node(unit.duration, step))
		}
		firings := r.evaluate(t)
		for _, l := range unit.hosts {
			got := map[string]firing{}
			for _, f := range firings {
				if f.instance == l.name {
					got[f.name+"/"+f.severity] = f
				}
			}
			for _, want := range l.want {
				f, ok := got[want]
				if !ok || f.first > l.within {
					t.Errorf("%s: %s fires at %s, want it within %s", l.name, want, f.first, l.within)
				}
				if ok && l.stays && f.last < unit.duration-step {
					t.Errorf("%s: %s resolves at %s", l.name, want, f.last)
				}
			}
			for _, other := range l.not {
				if f, ok := got[other]; ok {
					t.Errorf("%s: %s fires at %s", l.name, other, f.first)
				}
			}
		}
	}
}

// loud is a host with a failure, and the alerts that it has to raise or must not raise.
type loud struct {
	host

	want   []string
	within time.Duration
	stays  bool // the alerts fire until the end
	not    []string
}

func loudHosts() []loud {
	const page, note = "/critical", "/warning"
	rate := func(name, series string, pace float64, within time.Duration, want ...string) loud {
		return loud{host: host{name: name, rates: map[string]func(time.Duration) float64{series: until(5, 0, pace)}}, want: want, within: within}
	}
	met := func(name, resource string, level float64, series string, pace float64, within time.Duration, want ...string) loud {
		l := rate(name, series, pace, within, want...)
		l.gauges = of(at(level), resource)
		return l
	}
	all := []loud{
		met("aborts unseen", "tcp_memory", 0.5, "sockpressure_tcp_aborts_on_memory_total", 500./60, 7*time.Minute, "SockPressureTCPOutOfMemory"+page),
		met("drops unseen", "tcp_memory", 0.5, "sockpressure_tcp_receive_queue_drops_total", 5, 7*time.Minute, "SockPressureTCPOutOfMemory"+note),
		met("fragments unseen", "ip_fragments_ipv4", 0.3, "sockpressure_ip_reassembly_failures_total", 20000./60, 7*time.Minute, "SockPressureFragmentsDropped"+note),
		met("neighbours unseen", "neighbours_ipv4", 0.3, `sockpressure_neighbour_table_full_total{family="ipv4"}`, 1, 7*time.Minute, "SockPressureNeighbourTableFull"+note),
		met("conntrack unseen", "conntrack_entries", 0.4, "sockpressure_conntrack_drops_total", 100, 6*time.Minute, "SockPressureConntrackDropping"+note),
		met("udp unseen", "udp_memory", 0.4, "sockpressure_udp_memory_errors_total", 100, 6*time.Minute, "SockPressureUDPOutOfMemory"+note),
		met("udp old", "udp_memory", 1, "sockpressure_udp_receive_buffer_errors_total", 0, time.Minute, "SockPressureUDPOutOfMemory"+page),
		met("orphans", "tcp_orphans", 0.4, "sockpressure_tcp_aborts_on_memory_total", 1, 6*time.Minute, "SockPressureTCPOrphansReset"+page),
		met("accept queue", "accept_queue", 0.1, "sockpressure_tcp_listen_overflows_total", 5, 12*time.Minute, "SockPressureAcceptQueueOverflow"+page),
		met("oom", "memory", 0.98, "sockpressure_oom_kills_total", 0.1, 6*time.Minute, "SockPressureOOMKill"+page),
		met("low oom", "low_memory", 0.85, "sockpressure_oom_kills_total", 0.1, 6*time.Minute, "SockPressureOOMKill"+page),
		rate("oom logged", `sockpressure_kernel_messages_total{message="oom_kill"}`, 0.1, 6*time.Minute, "SockPressureOOMKill"+page),
		rate("file-max logged", `sockpressure_kernel_messages_total{message="file_max_reached"}`, 0.1, 6*time.Minute, "SockPressureFileMaxReached"+page),
		rate("orphans logged", `sockpressure_kernel_messages_total{message="tcp_too_many_orphans"}`, 0.1, 6*time.Minute, "SockPressureKernelLoggedLimit"+note),
		rate("slab logged", `sockpressure_kernel_messages_total{message="slab_allocation_failure"}`, 0.1, 8*time.Minute, "SockPressureKernelAllocationFailing"+note),
		rate("hung", `sockpressure_kernel_messages_total{message="hung_task"}`, 0.1, 6*time.Minute, "SockPressureHungTask"+note),
		{
			host: host{name: "conntrack peak", gauges: merged(of(at(0.4), "conntrack_entries"), series{`sockpressure_saturation_peak_ratio{resource="conntrack_entries"}`: until(5, 0.4, 1)})},
			want: []string{"SockPressureReachedBetweenScrapes" + note}, within: 6 * time.Minute,
		},
		{
			host: host{name: "conntrack peak seen", gauges: merged(of(at(0.95), "conntrack_entries"), series{`sockpressure_saturation_peak_ratio{resource="conntrack_entries"}`: at(1)})},
			not:  []string{"SockPressureReachedBetweenScrapes" + note},
		},
		rate("pods refused", `sockpressure_netns_refusals_total{resource="accept_queue"}`, 0.5, 7*time.Minute, "SockPressureNetnsRefusing"+note),
		rate("pods dropped", `sockpressure_netns_refusals_total{resource="conntrack_entries"}`, 0.05, 7*time.Minute, "SockPressureNetnsRefusing"+note),
		{
			host: host{
				name:   "a pod starts",
				rates:  map[string]func(time.Duration) float64{`sockpressure_netns_refusals_total{resource="accept_queue"}`: until(5, 0, 0.05)},
				gauges: series{`sockpressure_netns_saturation_ratio{resource="accept_queue",netns="pod/shop/a",namespace="shop",pod="a"}`: until(5, 0, 0.7)},
			},
			not: []string{"SockPressureNetnsRefusing" + note, "SockPressureNetnsNearLimit" + note},
		},
		{
			host: host{name: "ports of a pod", gauges: series{`sockpressure_netns_saturation_ratio{resource="ephemeral_ports",netns="pod/shop/a",namespace="shop",pod="a"}`: until(5, 0, 0.97)}},
			want: []string{"SockPressureNetnsNearLimit" + note, "SockPressureNetnsNearLimit" + page}, within: 11 * time.Minute,
		},
		{
			host: host{name: "a pod reads too slowly", gauges: series{`sockpressure_netns_saturation_ratio{resource="udp_receive_queue",netns="pod/shop/a",namespace="shop",pod="a"}`: noise(0.95, 0.05)}},
			want: []string{"SockPressureNetnsNearLimit" + note}, within: 11 * time.Minute, not: []string{"SockPressureNetnsNearLimit" + page},
		},
		{
			host: host{name: "a pod never reads", gauges: series{`sockpressure_netns_saturation_ratio{resource="udp_receive_queue",netns="pod/shop/a",namespace="shop",pod="a"}`: at(1.02)}},
			not:  []string{"SockPressureNetnsNearLimit" + note},
		},
		{
			host: host{name: "a pod hangs", gauges: series{`sockpressure_netns_saturation_ratio{resource="udp_receive_queue",netns="pod/shop/a",namespace="shop",pod="a"}`: until(5, 0, 1.02)}},
			want: []string{"SockPressureNetnsNearLimit" + note}, within: 11 * time.Minute,
		},
		{
			host: host{name: "a program hangs, with few drops", gauges: of(until(5, 0, 1.01), "udp_receive_queue")},
			want: []string{"SockPressureUDPReceiveQueueNearlyFull" + note}, within: 11 * time.Minute,
		},
		{
			host: host{name: "a pod does not accept", gauges: series{`sockpressure_netns_saturation_ratio{resource="accept_queue",netns="pod/shop/a",namespace="shop",pod="a"}`: until(5, 0, 1.02)}},
			want: []string{"SockPressureNetnsNearLimit" + note}, within: 11 * time.Minute, not: []string{"SockPressureNetnsNearLimit" + page},
		},
		rate("early drop", "sockpressure_conntrack_early_drops_total", 1, 7*time.Minute, "SockPressureConntrackEarlyDrop"+note),
		rate("udp errors", "sockpressure_udp_receive_buffer_errors_total", 1000, 12*time.Minute, "SockPressureUDPReceiveErrors"+note),
		{
			host: host{name: "a socket that nobody reads", gauges: of(at(1.01), "udp_receive_queue"), rates: series{"sockpressure_udp_receive_buffer_errors_total": at(0.2)}},
			not:  []string{"SockPressureUDPReceiveQueueNearlyFull" + note},
		},
		met("a program that hangs", "udp_receive_queue", 1.01, "sockpressure_udp_receive_buffer_errors_total", 5, 16*time.Minute, "SockPressureUDPReceiveQueueNearlyFull"+note),
		rate("pruned", "sockpressure_tcp_receive_pruned_total", 100, 12*time.Minute, "SockPressureTCPReceivePruned"+note),
		rate("backlog", "sockpressure_tcp_backlog_drops_total", 50, 12*time.Minute, "SockPressureTCPBacklogDropping"+note),
		rate("memalloc", "sockpressure_tcp_memalloc_drops_total", 5, 7*time.Minute, "SockPressureTCPMemallocDropping"+note),
		rate("squeezes", "sockpressure_netdev_time_squeezes_total", 500, 24*time.Minute, "SockPressureNetdevTimeSqueezed"+note),
		rate("netdev", "sockpressure_netdev_backlog_drops_total", 100, 13*time.Minute, "SockPressureNetdevBacklogDropping"+note, "SockPressureNetdevBacklogDropping"+page),
		rate("psi", `sockpressure_memory_pressure_seconds_total{kind="full"}`, 0.8, 14*time.Minute, "SockPressureMemoryStalls"+note, "SockPressureMemoryStalls"+page),
		rate("requests", "sockpressure_tcp_request_queue_full_drops_total", 5, 12*time.Minute, "SockPressureRequestQueueFull"+note, "SockPressureRequestQueueFull"+page),
		rate("flood", "sockpressure_tcp_request_queue_full_cookies_total", 5, 7*time.Minute, "SockPressureRequestQueueFull/info"),
		{
			host: host{name: "listen drops", rates: series{"sockpressure_tcp_listen_drops_total": at(10), "sockpressure_tcp_listen_overflows_total": at(0)}},
			want: []string{"SockPressureListenDropping" + note}, within: 12 * time.Minute,
		},
		// The other counter does not grow, so it is absent from the record.
		{
			host: host{name: "IPv6 only", gauges: of(at(1), "udp_receive_queue", "udp_memory"), rates: series{
				"sockpressure_udp_receive_buffer_errors_total": at(0), "sockpressure_udp6_receive_buffer_errors_total": at(50),
				"sockpressure_udp_memory_errors_total": at(0), "sockpressure_udp6_memory_errors_total": at(5),
			}},
			want: []string{"SockPressureUDPReceiveErrors" + note, "SockPressureUDPReceiveQueueFull/info", "SockPressureUDPOutOfMemory" + page}, within: 12 * time.Minute,
		},
		{
			host: host{name: "drops only", gauges: of(at(1), "conntrack_entries"), rates: series{"sockpressure_conntrack_drops_total": at(5), "sockpressure_conntrack_insert_failures_total": at(0)}},
			want: []string{"SockPressureConntrackFull" + page}, within: 2 * time.Minute,
		},
		{
			host: host{name: "tcp_mem 0 0 N", gauges: merged(of(at(0), "tcp_memory"), series{"sockpressure_tcp_memory_bytes": at(4096), `sockpressure_tcp_memory_threshold_bytes{threshold="pressure"}`: at(0)})},
			not:  []string{"SockPressureTCPMemoryNearlyFull" + note},
		},
		{
			host: host{name: "pressure", gauges: merged(of(at(0.5), "tcp_memory"), series{"sockpressure_tcp_memory_bytes": at(6), `sockpressure_tcp_memory_threshold_bytes{threshold="pressure"}`: at(5)})},
			want: []string{"SockPressureTCPMemoryNearlyFull" + note}, within: 2 * time.Minute,
		},
		{
			host: host{name: "orphan then abort", gauges: of(until(5, 0.26, 0.1), "tcp_orphans"), rates: series{"sockpressure_tcp_aborts_on_memory_total": once(15 * time.Minute)}},
			not:  []string{"SockPressureTCPOrphansReset" + page},
		},
		{
			host: host{name: "clashes", gauges: of(at(0.91), "conntrack_entries"), rates: series{"sockpressure_conntrack_drops_total": once(time.Minute), "sockpressure_conntrack_insert_failures_total": once(time.Minute)}},
			not:  []string{"SockPressureConntrackFull" + page},
		},
		{
			host: host{name: "unreadable", gauges: series{"sockpressure_processes_unreadable": at(300)}},
			want: []string{"SockPressureProcessesUnreadable" + note}, within: 16 * time.Minute,
		},
		{
			host: host{name: "a container", gauges: series{"sockpressure_host_network_namespace": at(0), `sockpressure_host_view{view="processes"}`: at(0)}},
			want: []string{"SockPressureWrongNetworkNamespace" + note, "SockPressureWrongView" + note}, within: 16 * time.Minute,
		},
		{
			host: host{name: "failing", gauges: series{`sockpressure_scrape_collector_success{collector="tcp"}`: at(0), `sockpressure_scrape_collector_age_seconds{collector="tcp"}`: at(900)}},
			want: []string{"SockPressureCollectorFailing" + note, "SockPressureCollectorStale/info"}, within: 11 * time.Minute,
		},
		{
			host: host{name: "insert failing", rates: series{"sockpressure_conntrack_insert_failures_total": at(5)}},
			want: []string{"SockPressureConntrackInsertFailing/info"}, within: 17 * time.Minute,
		},
		{
			host: host{name: "restarted", gauges: of(at(0.3), "conntrack_entries"), rates: series{"sockpressure_oom_kills_total": func(t time.Duration) float64 {
				return map[time.Duration]float64{0: 1000, 10 * time.Minute: -1000}[t] // a high first value, then a restart from 0
			}}},
			not: []string{"SockPressureOOMKill" + note, "SockPressureOOMKill" + page},
		},
	}
	for _, l := range limits() {
		level := at(l.CriticalRatio)
		if l.Resource == "udp_receive_queue" { // a constant level is that of a socket that nobody reads
			level = noise(l.CriticalRatio+0.01, 0.01)
		}
		n := loud{host: host{name: "at " + l.Resource, gauges: of(level, l.Resource)}, within: 5*time.Minute + step, stays: true}
		name := Runbook(l.Resource)
		n.want = []string{name + note, name + page}
		if unpaged(l.Resource) {
			n.want, n.not = n.want[:1], n.want[1:]
		}
		below := loud{host: host{name: "below " + l.Resource, gauges: of(at(l.WarningRatio-0.01), l.Resource)}, not: []string{name + note, name + page}}
		all = append(all, n, below)
	}
	return all
}

// vanishing returns hosts that stop answering.
func vanishing(conntrack string) []loud {
	const view = "sockpressure_host_network_namespace" // every exporter has it
	end, gone := 31.0, math.NaN()
	dies := series{
		conntrack: func(t time.Duration) float64 {
			switch i := int((t - 30*time.Minute) / step); {
			case i < 0:
				return 0.6
			case i < 3:
				return []float64{0.7, 0.8, 0.95}[i]
			}
			return gone
		},
		view: until(30.75, 1, gone), "up": until(30.75, 1, 0),
	}
	quietly := series{conntrack: until(end, 0.3, gone), view: until(end, 1, gone), "up": until(end, 1, 0)}
	leaves := series{conntrack: until(end, 0.3, gone), view: until(end, 1, gone), "up": until(end, 1, gone)}
	elsewhere := series{
		strings.Replace(conntrack, "{", `{job="nodes",`, 1): until(end, 0.3, gone),
		view + `{job="nodes"}`:                              until(end, 1, gone),
		`up{job="nodes"}`:                                   until(end, 1, 0),
	}
	const lost, down, left = "SockPressureLostNearLimit/critical", "SockPressureExporterDown/warning", "SockPressureExporterGone/warning"
	return []loud{
		// promtool has no stale markers, so a series is seen for 5 minutes more.
		{host: host{name: "dies", gauges: dies}, want: []string{lost}, within: 41 * time.Minute, stays: true},
		{host: host{name: "falls silent", gauges: quietly}, want: []string{down}, within: 42 * time.Minute, stays: true, not: []string{lost, left}},
		{host: host{name: "leaves", gauges: leaves}, want: []string{left}, within: 50 * time.Minute, not: []string{lost}},
		{host: host{name: "another job", gauges: elsewhere}, want: []string{down}, within: 42 * time.Minute, stays: true, not: []string{lost, left}},
		{host: host{name: "alive", gauges: of(at(0.95), "conntrack_entries")}, want: []string{"SockPressureConntrackNearlyFull/critical"}, within: 2 * time.Minute, stays: true, not: []string{lost, down, left}},
	}
}

// TestAbsent checks that SockPressureExporterAbsent fires, and nothing else, if there is no
// exporter.
func TestAbsent(t *testing.T) {
	t.Parallel()
	r := run{tick: step, interval: step, nodes: []node{{"else", []recording.Series{{Name: `up{job="else"}`, Values: slices.Repeat([]float64{1}, 80)}}}}}
	got := fmt.Sprint(r.evaluate(t))
	if !strings.Contains(got, "SockPressureExporterAbsent") || strings.Count(got, "SockPressure") != 1 {
		t.Error(got)
	}
}
