package collector

import (
	"iter"

	"github.com/prometheus/client_golang/prometheus"
)

// health is the metrics of the set itself, the same for every collector.
type health struct {
	duration, success, supported, age, saturation, peak, holder, skipped, hostNetwork, hostView MetricInfo
}

// healthRows describes the metrics that are exported in addition to the collectors' own
// rows.
func healthRows() *health {
	h := &health{
		duration: MetricInfo{
			Name:   "scrape_collector_duration_seconds",
			Help:   "Duration of the collector's last reading.",
			Labels: []string{"collector"},
		},
		success: MetricInfo{
			Name:   "scrape_collector_success",
			Help:   "1 if the collector read everything that this kernel provides, 0 if it failed. After a timeout or a panic none of its metrics are exported, after an error only those that could be read.",
			Labels: []string{"collector"},
		},
		supported: MetricInfo{
			Name:   "scrape_collector_supported",
			Help:   "1 if this kernel provides what the collector reads, 0 if not, for example because a module is not loaded.",
			Labels: []string{"collector"},
		},
		age: MetricInfo{
			Name:   "scrape_collector_age_seconds",
			Help:   "Age of the collector's samples: 0 if they were read for this scrape, more if --collector.max-cpu postponed a new reading.",
			Labels: []string{"collector"},
		},
		saturation: MetricInfo{
			Name:   "saturation_ratio",
			Help:   "Usage of a kernel limit divided by the limit, for each limit that this kernel has and enforces. At 1 the kernel refuses, drops or kills.",
			Labels: []string{"resource"},
		},
		peak: MetricInfo{
			Name:   "saturation_peak_ratio",
			Help:   "Highest saturation_ratio in the last 60 seconds, including samples between scrapes (--collector.sample-interval). It is at least 1 if a counter or a message of the kernel shows that the limit was reached.",
			Labels: []string{"resource"},
		},
		holder: MetricInfo{
			Name:   "saturation_holder_ratio",
			Help:   "Share of a limit's usage that its largest holder has, from 0 to 1, for limits at half of their warning level or above; absent if the holder cannot be determined. For limits that apply per listener, address pair or process, item names which one.",
			Labels: []string{"resource", "item", "process", "owner", "namespace", "pod"},
		},
		skipped: MetricInfo{
			Name: "saturation_samples_skipped_total",
			Help: "Samples for saturation_peak_ratio that were skipped because the previous one took too long, for example because the host is short of CPU.",
		},
		hostNetwork: MetricInfo{
			Name: "host_network_namespace",
			Help: "1 if the exporter reads the host's network namespace. 0 if it may not enter that namespace, so that the host's sockets and network sysctls are not exported, or if --path.procfs is a container's.",
		},
		hostView: MetricInfo{
			Name:   "host_view",
			Help:   "1 if the exporter sees the machine's own network, processes or memory, 0 if that view is hidden or belongs to a container. The log gives the reason.",
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

// scrape is a reading as a prometheus.Collector. It is unchecked: it describes nothing in
// advance, and its names are those of the rows.
type scrape struct{ *Reading }

// Collector returns the reading as a collector, for a registry that serves one request.
func (r *Reading) Collector() prometheus.Collector { return scrape{r} }

func (scrape) Describe(chan<- *prometheus.Desc) {}

func (c scrape) Collect(ch chan<- prometheus.Metric) {
	send := func(m *MetricInfo, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(m.desc, m.Type(), value, labels...)
	}
	h := c.health
	send(&h.hostNetwork, boolFloat(c.View.Network == nil))
	for part, err := range c.View.All() {
		send(&h.hostView, boolFloat(err == nil), part)
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
		send(&h.success, boolFloat(r.Err == nil), r.Collector)
		send(&h.supported, boolFloat(r.Unsupported == nil), r.Collector)
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

// Samples returns the series of one metric, given by its name without the common prefix:
// the values of its labels and the value of the series.
func (r Result) Samples(metric string) iter.Seq2[[]string, float64] {
	return func(yield func([]string, float64) bool) {
		for _, s := range r.samples {
			if s.metric.Name == metric && !yield(s.labels, s.value) {
				return
			}
		}
	}
}

// boolFloat returns 1 for true and 0 for false.
func boolFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
