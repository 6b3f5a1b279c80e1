package cli

import (
	"io"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// The JSON document of check. Names and types are an interface that README.md describes.
type (
	jsonReport struct {
		State            string          `json:"state"`
		ExitStatus       int             `json:"exit_status"`
		HostView         map[string]bool `json:"host_view"`
		Limits           []jsonLimit     `json:"limits"`
		FailedCollectors []jsonFailure   `json:"failed_collectors"`
		KernelMessages   []jsonMessage   `json:"kernel_messages"`
	}
	jsonMessage struct {
		Message   string    `json:"message"`
		Resources []string  `json:"resources"`
		Last      time.Time `json:"last"`
		Text      string    `json:"text"`
	}
	jsonLimit struct {
		Resource   string         `json:"resource"`
		State      string         `json:"state"`
		Saturation float64        `json:"saturation"`
		Peak       float64        `json:"peak"`
		Usage      float64        `json:"usage"`
		Limit      *float64       `json:"limit"`
		Unit       string         `json:"unit"`
		Sysctl     string         `json:"sysctl"`
		Effect     string         `json:"effect"`
		Thresholds jsonThresholds `json:"thresholds"`
		Items      []jsonItem     `json:"items"`
		WorstNetns *jsonNetns     `json:"worst_netns"`
		Holder     *jsonHolder    `json:"holder"`
		// FullIn is null if usage does not grow, or the limit is far from being reached.
		FullIn *float64 `json:"full_in_seconds"`
		// Set is what raises the limit, empty if the limit is ok.
		Set []string `json:"set"`
	}
	jsonHolder struct {
		Process   string  `json:"process"`
		PID       int     `json:"pid"`
		UID       *uint32 `json:"uid"`
		Owner     string  `json:"owner"`
		Namespace string  `json:"namespace"`
		Pod       string  `json:"pod"`
		Share     float64 `json:"share"`
	}
	jsonNetns struct {
		Netns      string  `json:"netns"`
		Namespace  string  `json:"namespace"`
		Pod        string  `json:"pod"`
		Item       string  `json:"item"`
		Usage      float64 `json:"usage"`
		Limit      float64 `json:"limit"`
		Saturation float64 `json:"saturation"`
	}
	jsonItem struct {
		Labels     map[string]string `json:"labels"`
		Saturation float64           `json:"saturation"`
		Usage      float64           `json:"usage"`
		Limit      float64           `json:"limit"`
		Holder     *jsonHolder       `json:"holder"`
	}
	jsonThresholds struct {
		Warning  float64 `json:"warning"`
		Critical float64 `json:"critical"`
	}
	jsonFailure struct {
		Collector string `json:"collector"`
		Error     string `json:"error"`
	}
)

// jsonItems returns the items that have this limit each, nearest first.
func jsonItems(l collector.LimitReading) []jsonItem {
	items := make([]jsonItem, len(l.Items))
	for i, item := range l.Items {
		labels := map[string]string{}
		for at, name := range l.List.Labels {
			labels[name] = item.Key[at]
		}
		items[i] = jsonItem{labels, item.Saturation(), item.Usage, item.Limit, jsonHeld(item.Holder)}
	}
	return items
}

// jsonHeld returns a holder, nil for nil.
func jsonHeld(h *collector.Holder) *jsonHolder {
	if h == nil {
		return nil
	}
	j := &jsonHolder{h.Process, h.PID, nil, h.Owner.Name, h.Owner.Namespace, h.Owner.Pod, h.Share}
	if h.UID.Present {
		uid := uint32(h.UID.Value)
		j.UID = &uid
	}
	return j
}

// writeJSON writes a document for programs.
func (r report) writeJSON(out io.Writer) error {
	status := r.status()
	doc := jsonReport{
		State:      "unknown",
		ExitStatus: status,
		HostView:   map[string]bool{},
		// Empty lists are [], not null.
		Limits:           []jsonLimit{},
		FailedCollectors: []jsonFailure{},
		KernelMessages:   []jsonMessage{},
	}
	if status != unknown {
		doc.State = collector.Level(status).String()
	}
	for part, err := range r.view.All() {
		doc.HostView[part] = err == nil
	}
	for _, l := range r.limits {
		var worst *jsonNetns
		if n := l.Netns; n != nil {
			worst = &jsonNetns{n.Name, n.Namespace, n.Pod, n.Item, n.Usage, n.Limit, n.Saturation}
		}
		limit := &l.Limit
		if l.OnlyNetns {
			limit = nil
		}
		var full *float64
		if l.Full > 0 {
			seconds := l.Full.Seconds()
			full = &seconds
		}
		doc.Limits = append(doc.Limits, jsonLimit{
			Resource:   l.Resource,
			State:      l.Level().String(),
			Saturation: l.Saturation(),
			Peak:       max(l.Saturation(), l.Peak.Value),
			Usage:      l.Usage,
			Limit:      limit,
			Unit:       string(l.Unit),
			Sysctl:     l.SetBy(),
			Effect:     l.Effect,
			Thresholds: jsonThresholds{Warning: l.Warning(), Critical: l.CriticalRatio},
			Items:      jsonItems(l),
			WorstNetns: worst,
			Holder:     jsonHeld(l.Holder),
			FullIn:     full,
			Set:        append([]string{}, r.remedies[l.Resource]...),
		})
	}
	for _, f := range r.failed {
		doc.FailedCollectors = append(doc.FailedCollectors, jsonFailure{f.Collector, f.Err.Error()})
	}
	for _, n := range r.notes {
		doc.KernelMessages = append(doc.KernelMessages, jsonMessage{n.Message, append([]string{}, n.Resources...), n.At.UTC(), n.Text})
	}
	return encode(out, doc)
}
