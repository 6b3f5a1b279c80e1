package dashboards

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// measure is what LimitInfo does not have for a limit's panel.
type measure struct {
	// used and limit are expressions, if the limit has no metrics with exactly these
	// values. Without them the panel shows the saturation, which every limit has.
	used, limit string
	// where restricts usage and limit to times when the limit is enforced, limitWhere the
	// limit to times when there is one.
	where, limitWhere string
	// called is the kernel's name for the limit.
	called string
	// each is the name of one line of used, if there are several.
	each string
	// marks are thresholds of the kernel, in addition to ours.
	marks []mark
	// empty describes when there are no data.
	empty string
	note  string
}

// mark is a line below the limit.
type mark struct{ name, color, expr string }

// The colours of levels, the same as those of the alerts everywhere. What is not one of
// our levels has none.
const (
	colorWarning  = "orange"
	colorCritical = "red"
	colorLimit    = "dark-red"
	colorNeutral  = "text"
)

func measures() map[string]measure {
	return map[string]measure{
		"tcp_memory": {
			called: ", high",
			marks: []mark{
				{"low", colorNeutral, `sockpressure_tcp_memory_threshold_bytes{threshold="low"}`},
				{"pressure", colorNeutral, `sockpressure_tcp_memory_threshold_bytes{threshold="pressure"}`},
			},
			note: "The limit is the high threshold; above pressure, the kernel shrinks buffers until usage is below low.",
		},
		"udp_memory": {
			called: ", low",
			marks: []mark{
				{"pressure", colorNeutral, `sockpressure_udp_memory_threshold_bytes{threshold="pressure"}`},
				{"high", colorNeutral, `sockpressure_udp_memory_threshold_bytes{threshold="high"}`},
			},
			note: "The limit is low, the first number; pressure and high have little effect.",
		},
		"ip_fragments_ipv6": {empty: "if IPv6 is off"},
		"ephemeral_ports": {
			each:  "{{source}} to {{destination}}",
			note:  "A line for each pair of source and destination, of those with the most; the limit is that of each pair.",
			empty: "in part if there are no outgoing connections",
		},
		"conntrack_entries": {
			limitWhere: " > 0",
			empty:      "if the module nf_conntrack is not loaded; a limit of 0 has no line",
		},
		"file_descriptors": {
			limitWhere: " < 2^62",
			empty:      "in part if fs.file-max is the largest number there is, which is no limit",
		},
		"memory": {used: "sockpressure_memory_total_bytes - sockpressure_memory_available_bytes", limit: "sockpressure_memory_total_bytes"},
		"committed_memory": {
			where: ` and ignoring (resource) sockpressure_saturation_ratio{resource="committed_memory"}`,
			empty: "unless vm.overcommit_memory is 2",
		},
		"netdev_backlog": {empty: "in part before Linux 5.10"},
		"request_queue": {
			each: "{{listener}}", note: "The listeners closest to their limit. With SYN cookies, the default, a full queue does little harm.", empty: "if nothing listens",
		},
		"unix_accept_queue": {each: "{{path}}", note: "The unix sockets closest to their limit.", empty: "if the module unix_diag is not loaded"},
		"udp_receive_queue": {each: "{{socket}}", note: "The UDP sockets closest to their limit.", empty: "if there are none, or the module udp_diag is not loaded"},
		"threads":           {empty: "in part in a PID namespace other than the host's, since Linux 6.14"},
		"cgroup_memory": {
			each: "{{cgroup}}",
			note: "The cgroups closest to their limit.", empty: "if no cgroup has a memory limit, or cgroups are not mounted",
		},
		"neighbours_ipv4": {empty: "in a network namespace other than the host's"},
		"neighbours_ipv6": {empty: "if IPv6 is off, or in a network namespace other than the host's"},
		"accept_queue": {
			each: "{{listener}}",
			note: "The listeners closest to their limit; of a SO_REUSEPORT group, the fullest socket. With a limit of 0, one connection may still wait.", empty: "if nothing listens",
		},
		"process_file_descriptors": {each: "{{process}}", note: "The processes nearest to their limit."},
		"low_memory":               {empty: "except on 32-bit kernels with high memory"},
	}
}

// relate sets usage and limit from the limit itself.
func (m *measure) relate(l collector.LimitInfo) {
	switch {
	case m.used != "":
	case l.Share.Metric != "":
		m.used, m.limit = l.Share.String(), "1"
	case l.Usage.Metric == "" || l.Max.Metric == "":
		m.used, m.limit = fmt.Sprintf("sockpressure_saturation_ratio{resource=%q}", l.Resource), "1"
	case l.List != nil && l.List.OwnMax:
		// The share is the same scale for all.
		m.used, m.limit = l.Usage.String()+" / "+l.Max.String(), "1"
	default:
		m.used, m.limit = l.Usage.String()+m.where, l.Max.String()+m.where+m.limitWhere
	}
}

// limitPanel returns the panel of a limit: usage and limit on one scale, with our
// thresholds or the kernel's in between.
func limitPanel(l collector.LimitInfo, m measure, books runbooks) panel {
	unit := number
	if l.Unit == collector.Bytes {
		unit = size
	}
	m.relate(l)
	if l.List != nil {
		m.used = highest(10, m.used)
	}
	if m.each == "" {
		m.each = "used"
	}
	p := panel{
		kind: lines, title: words(l.Resource), width: 8, height: 8, unit: unit, empty: m.empty,
		about: fmt.Sprintf("%s. At the limit: %s Set by %s. Warning from %s, critical from %s. %s",
			l.Resource, l.Effect, l.SetBy(), l.WarnsFrom(percent), percent(l.CriticalRatio), books.link(l.Resource)),
		queries: []query{{m.each + " {{instance}}", m.used}},
		limited: m.limit != "1",
	}
	if m.note != "" {
		p.about += " " + m.note
	}
	if m.limit == "1" {
		p.unit, p.top, p.drawn = share, 1, true
		p.steps = []step{{l.WarningRatio, colorWarning}, {l.CriticalRatio, colorCritical}, {1, colorLimit}}
		if l.CriticalRatio == 1 {
			p.steps = slices.Delete(p.steps, 1, 2)
		}
		return p
	}
	p.queries = append(p.queries, query{"limit" + m.called + " {{instance}}", m.limit})
	p.overrides = []object{dashed("limit", colorLimit)}
	for _, mark := range append([]mark{
		{"critical", colorCritical, fmt.Sprintf("%v * (%s)", l.CriticalRatio, m.limit)},
		{"warning", colorWarning, fmt.Sprintf("%v * (%s)", l.WarningRatio, m.limit)},
	}, m.marks...) {
		p.queries = append(p.queries, query{mark.name + " {{instance}}", mark.expr})
		p.overrides = append(p.overrides, dashed(mark.name, mark.color), outOfLegend(mark.name))
	}
	return p
}

// nearest returns a panel of saturations, each bar in the colours of its limit's own
// levels, with links.
func nearest(expr string, limits []collector.LimitInfo, offer func(resource string) []object) panel {
	p := panel{
		kind: bars, unit: share, top: 1, queries: []query{{"{{resource}}", expr}},
		steps: []step{{0.7, colorWarning}, {0.9, colorCritical}},
	}
	for _, l := range limits {
		p.overrides = append(p.overrides, named(l.Resource, ownLevels(l), offers(offer(l.Resource)...)))
	}
	return p
}

// ownLevels returns the colours of a limit by its levels.
func ownLevels(l collector.LimitInfo) object {
	return property("thresholds", thresholds("", []step{{l.WarningRatio, colorWarning}, {l.CriticalRatio, colorCritical}}))
}

// colours returns properties that show shares of one limit in its colours.
func colours(limits []collector.LimitInfo, resource string) []object {
	for _, l := range limits {
		if l.Resource == resource {
			return []object{ownLevels(l), property("unit", share), property("custom.cellOptions", object{"type": "color-text"})}
		}
	}
	return []object{property("unit", share)}
}

// words returns a limit's name for a title.
func words(resource string) string {
	special := map[string]string{"tcp": "TCP", "udp": "UDP", "ip": "IP", "ipv4": "IPv4", "ipv6": "IPv6", "conntrack": "connection tracking", "netdev": "receive"}
	list := strings.Split(strings.ReplaceAll(resource, "time_wait", "TIME-WAIT"), "_")
	for i, w := range list {
		list[i] = cmp.Or(special[w], w)
	}
	text := strings.ReplaceAll(strings.Join(list, " "), "-", "_")
	return strings.ToUpper(text[:1]) + text[1:]
}

// runbooks are the URLs of the runbooks by resource.
type runbooks map[string]string

// link returns a link to a runbook in Markdown.
func (r runbooks) link(resource string) string {
	if r[resource] == "" {
		return ""
	}
	return "[Runbook](" + r[resource] + ")."
}
