package collector

import (
	"iter"

	"github.com/prometheus/client_golang/prometheus"
)

// health is the metrics of the set itself, the same for every collector.
type health struct {
	duration, success, supported, age, saturation, peak, holder, skipped, hostNetwork, hostView MetricInfo
}

// healthRows describes what is exported beside the collectors' own rows.
func healthRows() *health {
	h := &health{
		duration: MetricInfo{
			Name:   "scrape_collector_duration_seconds",
			Help:   "How long the collector's last reading took.",
			Labels: []string{"collector"},
		},
		success: MetricInfo{
			Name:   "scrape_collector_success",
			Help:   "1 if the collector read all that this kernel has. 0 after a time-out or a panic, when none of its metrics are exported, and after an error, when those are missing that depend on what could not be read.",
			Labels: []string{"collector"},
		},
		supported: MetricInfo{
			Name:   "scrape_collector_supported",
			Help:   "0 where this kernel does not have what the collector reads (a module that is not loaded, for instance), else 1.",
			Labels: []string{"collector"},
		},
		age: MetricInfo{
			Name:   "scrape_collector_age_seconds",
			Help:   "How old the collector's samples are: 0 if they were read for this scrape, more where --collector.max-cpu put a new reading off.",
			Labels: []string{"collector"},
		},
		saturation: MetricInfo{
			Name:   "saturation_ratio",
			Help:   "Usage of a kernel limit divided by the limit, one series for each limit that this kernel has and enforces. At 1 the kernel refuses, drops or kills.",
			Labels: []string{"resource"},
		},
		peak: MetricInfo{
			Name:   "saturation_peak_ratio",
			Help:   "The highest saturation_ratio of the last 60 seconds, of samples between scrapes too (--collector.sample-interval), and at least 1 where a counter or a message of the kernel tells that the limit was reached.",
			Labels: []string{"resource"},
		},
		holder: MetricInfo{
			Name:   "saturation_holder_ratio",
			Help:   "How much of a limit's usage its largest holder has, at 1 all of it; of limits that have come half of the way to a warning. item is the listener, pair or process that has the limit for itself. Absent where the holder cannot be seen.",
			Labels: []string{"resource", "item", "process", "owner", "namespace", "pod"},
		},
		skipped: MetricInfo{
			Name: "saturation_samples_skipped_total",
			Help: "Samples for saturation_peak_ratio that were not taken because the one before took too long, as on a host that is short of CPU.",
		},
		hostNetwork: MetricInfo{
			Name: "host_network_namespace",
			Help: "1 if every number is of the host's network namespace. 0 if the exporter is outside of it and may not enter it, when sysctls and sockets of the host are not exported; or if what it takes for the host is a container.",
		},
		hostView: MetricInfo{
			Name:   "host_view",
			Help:   "1 if what the exporter sees of the network, the processes, the memory is the machine's own. 0 if it is hidden or a container's; the log says why.",
			Labels: []string{"view"},
		},
	}
	for _, m := range h.rows() {
		m.describe()
	}
	return h
}

func (h *health) rows() []*MetricInfo {
	return []*MetricInfo{&h.saturation, &h.peak, &h.holder, &h.skipped, &h.hostNetwork, &h.hostView, &h.success, &h.supported, &h.duration, &h.age}
}

// scrape is a reading as a prometheus.Collector. It is unchecked (it
// describes nothing in advance): its names are those of the rows.
type scrape struct{ *Reading }

// Collector returns the reading as a collector for a registry that serves one
// request.
func (r *Reading) Collector() prometheus.Collector { return scrape{r} }

func (scrape) Describe(chan<- *prometheus.Desc) {}

func (c scrape) Collect(ch chan<- prometheus.Metric) {
	send := func(m *MetricInfo, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(m.desc, m.Type(), value, labels...)
	}
	h := c.health
	send(&h.hostNetwork, ratio(c.View.Network == nil))
	for part, err := range c.View.All() {
		send(&h.hostView, ratio(err == nil), part)
	}
	if c.skipped.Present {
		send(&h.skipped, c.skipped.Value)
	}
	for _, l := range c.Limits() {
		if l.Holder != nil && len(l.Items) == 0 {
			send(&h.holder, l.Holder.Share, l.Holder.labels(l.Resource, "")...)
		}
		for _, item := range l.Items {
			if item.Holder != nil {
				send(&h.holder, item.Holder.Share, item.Holder.labels(l.Resource, item.Name())...)
			}
		}
	}
	for _, r := range c.Results {
		send(&h.success, ratio(r.Err == nil), r.Collector)
		send(&h.supported, ratio(r.Unsupported == nil), r.Collector)
		send(&h.duration, r.Duration.Seconds(), r.Collector)
		send(&h.age, r.Age.Seconds(), r.Collector)
		for _, l := range r.Limits {
			send(&h.saturation, l.Saturation(), l.Resource)
			if l.Peak.Present {
				send(&h.peak, l.Peak.Value, l.Resource)
			}
		}
		for _, s := range r.samples {
			send(s.metric, s.value, s.labels...)
		}
	}
}

// Samples are the series of one metric, named without the common prefix: the
// values of its labels and its own.
func (r Result) Samples(metric string) iter.Seq2[[]string, float64] {
	return func(yield func([]string, float64) bool) {
		for _, s := range r.samples {
			if s.metric.Name == metric && !yield(s.labels, s.value) {
				return
			}
		}
	}
}

// ratio is 1 for true, 0 for false.
func ratio(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
