package dashboards

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// panel is a panel as far as ours differ.
type panel struct {
	kind          string // of Grafana's
	title, about  string
	empty         string // when it has no data, or not all of it
	unit          string
	width, height int
	queries       []query
	base          string   // the colour below the first step, green by default
	steps         []step   // colours by value
	drawn         bool     // the steps are lines, too
	top           float64  // the end of the scale, at least
	cut           float64  // the end of the scale, at most: lines leave it
	stacked       bool     // areas on top of each other
	aside         bool     // the legend stands beside the lines, and has place for more of them
	limited       bool     // the first line is usage, the others are limits: none is sorted away
	overrides     []object // of single fields
	links         []object // what a click on a value offers
	columns       []column // of a table
	sorted        []string // the names of those it is sorted by, the first ones first
	rising        bool     // values are sorted from the smallest on
}

// query is one query: its PromQL, less the choice of jobs and nodes, and what its
// lines are called.
type query struct{ legend, expr string }

// step is a colour from a value on.
type step struct {
	from  float64
	color string
}

// column is a label or a value, and what the table calls it. Columns that are not
// named are not shown.
type column struct{ field, name string }

// value tells values from labels: they are sorted from the largest on, as a rule.
func (c column) value() bool { return strings.HasPrefix(c.field, "Value") }

// Kinds of panels.
const (
	lines = "timeseries"
	bars  = "bargauge"
	one   = "stat"
	table = "table"
)

// Units of Grafana's.
const (
	share     = "percentunit"
	number    = "short"
	exact     = "locale" // 10,000, not 10 K
	size      = "bytes"  // in steps of 1024
	seconds   = "s"
	perSecond = "cps"
)

func (p panel) json() object {
	about := p.about
	if p.empty != "" {
		about += " Empty " + p.empty + "."
	}
	defaults := object{
		"unit": p.unit, "mappings": []object{}, "color": object{"mode": "thresholds"},
		"thresholds": thresholds(p.base, p.steps),
	}
	if p.links != nil {
		defaults["links"] = p.links
	}
	if p.kind != lines {
		defaults["min"] = 0
		if p.top > 0 {
			defaults["max"] = p.top
		}
	}
	o := object{
		"type": p.kind, "title": p.title, "description": about, "datasource": datasource(), "targets": p.targets(),
	}
	switch p.kind {
	case lines:
		defaults["color"] = object{"mode": "palette-classic"}
		stacking, opacity, style := "none", 0, "off"
		if p.stacked {
			stacking, opacity = "normal", 30
		}
		if p.drawn {
			style = "dashed"
		}
		custom := object{
			"drawStyle": "line", "lineWidth": 1, "fillOpacity": opacity, "showPoints": "auto", "spanNulls": false,
			"stacking":        object{"mode": stacking, "group": "A"},
			"thresholdsStyle": object{"mode": style},
			// A soft end: what lies beyond it is not cut off.
			"axisSoftMin": 0,
		}
		if p.top > 0 {
			custom["axisSoftMax"] = p.top
		}
		if p.cut > 0 {
			defaults["max"] = p.cut
		}
		defaults["custom"] = custom
		legend := object{"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": []string{"lastNotNull", "max"}}
		if p.aside {
			legend["placement"] = "right"
		}
		if !p.limited {
			legend["sortBy"], legend["sortDesc"] = "Last *", true // so Grafana calls lastNotNull
		}
		o["options"] = object{
			"legend":  legend,
			"tooltip": object{"mode": "multi", "sort": "desc"},
		}
	case bars:
		o["options"] = object{
			"displayMode": "basic", "orientation": "horizontal", "showUnfilled": true, "valueMode": "color",
			"namePlacement": "left", "sizing": "manual", "minVizHeight": 16, "maxVizHeight": 24, "reduceOptions": lastValue(),
		}
	case one:
		o["options"] = object{
			"colorMode": "background", "graphMode": "none", "justifyMode": "auto", "orientation": "auto",
			"textMode": "value", "wideLayout": true, "reduceOptions": lastValue(),
		}
	case table:
		defaults["custom"] = object{"align": "auto", "cellOptions": object{"type": "auto"}, "inspect": false}
		sorted := []object{}
		for _, name := range p.sorted {
			descending := p.columns[slices.IndexFunc(p.columns, func(c column) bool { return c.name == name })].value()
			sorted = append(sorted, object{"displayName": name, "desc": descending && !p.rising})
		}
		o["options"] = object{"showHeader": true, "cellHeight": "sm", "sortBy": sorted}
		o["transformations"] = p.transformations()
	}
	o["fieldConfig"] = object{"defaults": defaults, "overrides": append([]object{}, p.overrides...)}
	return o
}

func (p panel) targets() []object {
	targets := make([]object, len(p.queries))
	for i, q := range p.queries {
		t := object{
			"refId": string(rune('A' + i)), "datasource": datasource(), "editorMode": "code",
			"expr": selecting(q.expr, everyNode()...), "legendFormat": q.legend, "format": "time_series", "instant": false, "range": true,
		}
		if p.kind != lines {
			t["instant"], t["range"] = true, false
		}
		if p.kind == table {
			t["format"] = "table"
		}
		targets[i] = t
	}
	return targets
}

// transformations pick the columns of a table, join its queries by the labels that
// are left, and order and name them.
func (p panel) transformations() []object {
	var names []string
	order, renamed := object{}, object{}
	for i, c := range p.columns {
		names = append(names, c.field)
		order[c.field], renamed[c.field] = i, c.name
	}
	return []object{
		{"id": "filterFieldsByName", "options": object{"include": object{"names": names}}},
		{"id": "merge", "options": object{}},
		{"id": "organize", "options": object{"excludeByName": object{}, "indexByName": order, "renameByName": renamed}},
	}
}

func lastValue() object {
	return object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false}
}

func thresholds(base string, steps []step) object {
	list := []object{{"color": cmp.Or(base, "green"), "value": nil}}
	for _, s := range steps {
		list = append(list, object{"color": s.color, "value": s.from})
	}
	return object{"mode": "absolute", "steps": list}
}

// docs is where the project's documents are.
const docs = "https://github.com/sockpressure/sockpressure_exporter/blob/main/docs/"

// named overrides properties of one field.
func named(field string, properties ...object) object {
	return object{"matcher": object{"id": "byName", "options": field}, "properties": properties}
}

// dashed draws the lines whose names begin with a word dashed, in a colour.
func dashed(word, color string) object {
	return object{
		"matcher": object{"id": "byRegexp", "options": "/^" + word + "/"},
		"properties": []object{
			property("color", object{"mode": "fixed", "fixedColor": color}),
			property("custom.lineStyle", object{"fill": "dash", "dash": []int{10, 10}}),
			property("custom.fillOpacity", 0),
		},
	}
}

func property(id string, value any) object { return object{"id": id, "value": value} }

// link is what a click offers.
func link(title, url string) object { return object{"title": title, "url": url} }

// offers are the links of one field.
func offers(links ...object) object { return property("links", links) }

// outOfLegend keeps lines out of the legend that are known by their colour.
func outOfLegend(word string) object {
	return object{
		"matcher":    object{"id": "byRegexp", "options": "/^" + word + "/"},
		"properties": []object{property("custom.hideFrom", object{"legend": true, "tooltip": false, "viz": false})},
	}
}

// levels shows the numbers of severities as words, in the colours of the alerts.
func levels() []object {
	options := object{}
	for i, l := range []struct{ text, color string }{{"ok", "green"}, {"warning", colorWarning}, {"critical", colorCritical}} {
		options[strconv.Itoa(i)] = object{"text": l.text, "color": l.color, "index": i}
	}
	return []object{
		property("mappings", []object{{"type": "value", "options": options}}),
		property("custom.cellOptions", object{"type": "color-background", "mode": "basic"}),
		property("custom.width", 80), property("custom.align", "center"),
	}
}

// alert shows the names of alerts without what all of them begin with, and leads to
// their runbooks.
func alert(links ...object) object {
	return named("Alert", offers(links...), property("mappings", []object{{
		"type": "regex", "options": object{"pattern": "SockPressure(.*)", "result": object{"text": "$1", "index": 0}},
	}}))
}

// wide sets the widths of columns, by their names.
func wide(widths map[string]int) []object {
	var all []object
	for _, name := range slices.Sorted(maps.Keys(widths)) {
		all = append(all, named(name, property("custom.width", widths[name])))
	}
	return all
}

// unseen are columns that links need, and nobody else.
func unseen(names ...string) []object {
	all := make([]object, len(names))
	for i, name := range names {
		all[i] = named(name, property("custom.hideFrom", object{"viz": true, "legend": false, "tooltip": false}))
	}
	return all
}

// counted colours a column of numbers from 1 on.
func counted(name, color string) object {
	return named(name,
		property("thresholds", thresholds("transparent", []step{{1, color}})),
		property("custom.cellOptions", object{"type": "color-background", "mode": "basic"}))
}

// bar shows a column of a table as bars.
func bar(unit string) []object {
	return []object{
		property("unit", unit),
		property("custom.cellOptions", object{"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}),
	}
}

// percent writes a share for people.
func percent(v float64) string {
	return strings.TrimSuffix(strconv.FormatFloat(100*v, 'f', 1, 64), ".0") + "%"
}

// annotation marks the stretches in which a query finds something.
func annotation(name, color, title, text, expr string) object {
	return object{
		"name": name, "enable": true, "hide": false, "iconColor": color, "useValueForTime": false, "datasource": datasource(),
		"target":      object{"refId": "Anno", "interval": "60s", "expr": selecting(expr, everyNode()...)},
		"titleFormat": title, "textFormat": text, "tagKeys": "severity,stage",
	}
}

// annotationAt marks the times that a query finds, in milliseconds.
func annotationAt(name, color, title, text, expr string) object {
	o := annotation(name, color, title, text, expr)
	o["useValueForTime"] = true
	return o
}
