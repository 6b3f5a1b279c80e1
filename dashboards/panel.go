package dashboards

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// panel is the part of a Grafana panel in which ours differ.
type panel struct {
	kind          string // Grafana's type
	title, about  string
	empty         string // why it may have no data, or only some
	unit          string
	width, height int
	queries       []query
	base          string   // the colour below the first step, green by default
	steps         []step   // colours by value
	drawn         bool     // steps are also drawn as lines
	top           float64  // the minimum for the end of the scale
	cut           float64  // the maximum for the end of the scale: lines leave it
	stacked       bool     // areas are stacked
	aside         bool     // the legend is beside the lines, with space for more entries
	limited       bool     // the first line is usage, the others are limits: they are not sorted by value
	overrides     []object // of single fields
	links         []object // what a click on a value offers
	columns       []column // of a table
	sorted        []string // the names of the columns that it is sorted by, the first ones first
	rising        bool     // values are sorted in ascending order
}

// query is one query: its PromQL without the selection of jobs and nodes, and the name of
// its lines.
type query struct{ legend, expr string }

// step is a colour and the value from which it applies.
type step struct {
	from  float64
	color string
}

// column is a label or a value, and its name in the table. Columns without a name are not
// shown.
type column struct{ field, name string }

// value reports whether the column has values rather than a label. They are usually
// sorted in descending order.
func (c column) value() bool { return strings.HasPrefix(c.field, "Value") }

// Kinds of panels.
const (
	lines = "timeseries"
	bars  = "bargauge"
	one   = "stat"
	table = "table"
)

// Grafana's units.
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
			// A soft end: values beyond it are not cut off.
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
			legend["sortBy"], legend["sortDesc"] = "Last *", true // Grafana's name for lastNotNull
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

// transformations returns what selects the columns of a table, joins its queries by the
// remaining labels, and orders and names the columns.
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

// docs is the URL of the project's documents.
const docs = "https://github.com/sockpressure/sockpressure_exporter/blob/main/docs/"

// named returns overrides of properties of one field.
func named(field string, properties ...object) object {
	return object{"matcher": object{"id": "byName", "options": field}, "properties": properties}
}

// dashed returns overrides that draw the lines whose names begin with a word dashed, in a
// colour.
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

// link returns a link that is offered on a click.
func link(title, url string) object { return object{"title": title, "url": url} }

// offers returns the links of one field.
func offers(links ...object) object { return property("links", links) }

// outOfLegend returns overrides that hide lines from the legend, because their colour
// identifies them.
func outOfLegend(word string) object {
	return object{
		"matcher":    object{"id": "byRegexp", "options": "/^" + word + "/"},
		"properties": []object{property("custom.hideFrom", object{"legend": true, "tooltip": false, "viz": false})},
	}
}

// levels returns properties that show the numbers of severities as words, in the colours
// of the alerts.
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

// alert returns overrides that show the names of alerts without their common prefix, with
// links.
func alert(links ...object) object {
	return named("Alert", offers(links...), property("mappings", []object{{
		"type": "regex", "options": object{"pattern": "SockPressure(.*)", "result": object{"text": "$1", "index": 0}},
	}}))
}

// wide returns overrides that set the widths of columns, by name.
func wide(widths map[string]int) []object {
	var all []object
	for _, name := range slices.Sorted(maps.Keys(widths)) {
		all = append(all, named(name, property("custom.width", widths[name])))
	}
	return all
}

// unseen returns overrides that hide columns that only links need.
func unseen(names ...string) []object {
	all := make([]object, len(names))
	for i, name := range names {
		all[i] = named(name, property("custom.hideFrom", object{"viz": true, "legend": false, "tooltip": false}))
	}
	return all
}

// counted returns overrides that colour a column of numbers, from 1.
func counted(name, color string) object {
	return named(name,
		property("thresholds", thresholds("transparent", []step{{1, color}})),
		property("custom.cellOptions", object{"type": "color-background", "mode": "basic"}))
}

// bar returns properties that show a column of a table as bars.
func bar(unit string) []object {
	return []object{
		property("unit", unit),
		property("custom.cellOptions", object{"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}),
	}
}

// percent formats a share for people.
func percent(v float64) string {
	return strings.TrimSuffix(strconv.FormatFloat(100*v, 'f', 1, 64), ".0") + "%"
}

// annotation returns an annotation of the periods in which a query finds something.
func annotation(name, color, title, text, expr string) object {
	return object{
		"name": name, "enable": true, "hide": false, "iconColor": color, "useValueForTime": false, "datasource": datasource(),
		"target":      object{"refId": "Anno", "interval": "60s", "expr": selecting(expr, everyNode()...)},
		"titleFormat": title, "textFormat": text, "tagKeys": "severity,stage",
	}
}

// annotationAt returns an annotation of the times that a query finds, in milliseconds.
func annotationAt(name, color, title, text, expr string) object {
	o := annotation(name, color, title, text, expr)
	o["useValueForTime"] = true
	return o
}
