// Package dashboards contains the Grafana dashboards (*.json) and makes them: from the
// tables of panels in fleet.go and node.go, the rows of limits of the collectors, and the
// runbooks that the alerts name. Regenerate the files with
//
//	go test ./dashboards -update
//
// The panel of a new limit is made from its row alone; a line in measures shows its usage
// in its own unit rather than as a share of the limit.
package dashboards

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/alerts"
	"github.com/sockpressure/sockpressure_exporter/collector"
)

// dashboard is the part of a Grafana dashboard in which ours differ.
type dashboard struct {
	uid, title, about string
	from              string // start of the default time range
	variables         []variable
	annotations       []object
	links             []object
	rows              []row
}

// row is a heading and the panels below it, from left to right, each as high up as there
// is room. The panels of a folded row run no queries until it is opened.
type row struct {
	title  string
	folded bool
	panels []panel
}

// variable is a choice at the top of a dashboard: the values of a label of a metric, or
// the named values.
type variable struct {
	name, label string
	metric      string
	of          string   // the label, if its name differs from the variable's
	all         bool     // begin with all values, not with the first
	named       []string // these values
	typed       string   // the default of a text field
	found       string   // the result of this query: not shown, for other queries
}

// object is a JSON object.
type object map[string]any

// Files returns the dashboards, by file name.
func Files() (map[string][]byte, error) {
	var limits []collector.LimitInfo
	for _, s := range collector.Specs() {
		limits = append(limits, s.Limits...)
	}
	books := runbooks{}
	for _, l := range limits {
		books[l.Resource] = alerts.DefaultRunbookURL + strings.ToLower(alerts.Runbook(l.Resource))
	}
	files, ids := map[string][]byte{}, map[string]int{}
	for _, d := range []dashboard{fleet(limits, books), node(limits, books)} {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(d.json(ids)); err != nil {
			return nil, fmt.Errorf("%s: %w", d.uid, err)
		}
		files[d.uid+".json"] = b.Bytes()
	}
	for name, text := range files {
		var missing error
		files[name] = placeholder.ReplaceAllFunc(text, func(to []byte) []byte {
			id := ids[string(to[2:len(to)-2])]
			if id == 0 {
				missing = fmt.Errorf("%s: a link to %s, which there is not", name, to)
			}
			return strconv.AppendInt(nil, int64(id), 10)
		})
		if missing != nil {
			return nil, missing
		}
	}
	return files, nil
}

// placeholder represents the number of a panel in links until all panels are numbered.
var placeholder = regexp.MustCompile(`<<[^>]+>>`)

// view returns the part of a URL that shows one panel, even one in a folded row.
func view(uid, title string) string { return "viewPanel=<<" + uid + "/" + title + ">>" }

// json returns the dashboard in Grafana's classic format, which file provisioning of
// every version reads. It adds the numbers of the panels to ids.
func (d dashboard) json(ids map[string]int) object {
	variables := []object{{
		"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "regex": "",
		"hide": 0, "includeAll": false, "multi": false, "options": []object{}, "refresh": 1,
	}}
	for _, v := range d.variables {
		variables = append(variables, v.json())
	}

	const columns, headingHeight = 24, 1
	panels := []object{}
	last, y := 0, 0
	add := func(o object, title string, x, y, w, h int) object {
		last++
		ids[d.uid+"/"+title] = last
		o["id"], o["gridPos"] = last, object{"x": x, "y": y, "w": w, "h": h}
		return o
	}
	for _, r := range d.rows {
		var heading object
		if r.title != "" {
			heading = add(object{"type": "row", "title": r.title, "collapsed": r.folded, "panels": []object{}}, r.title, 0, y, columns, headingHeight)
			panels = append(panels, heading)
			y += headingHeight
		}
		var taken [columns]int
		inside := []object{}
		for _, p := range r.panels {
			x, top := 0, slices.Max(taken[:p.width])
			for at := range columns - p.width + 1 {
				if free := slices.Max(taken[at : at+p.width]); free < top {
					x, top = at, free
				}
			}
			for i := range p.width {
				taken[x+i] = top + p.height
			}
			inside = append(inside, add(p.json(), p.title, x, y+top, p.width, p.height))
		}
		if r.folded {
			heading["panels"] = inside
			continue
		}
		panels = append(panels, inside...)
		y += slices.Max(taken[:])
	}

	return object{
		"uid": d.uid, "title": d.title, "description": d.about, "tags": []string{"sockpressure"},
		"schemaVersion": 42, "version": 1, "editable": false, "timezone": "utc", "weekStart": "", "fiscalYearStartMonth": 0,
		"graphTooltip": 1, // the crosshair is shared
		"refresh":      "30s",
		"time":         object{"from": d.from, "to": "now"},
		"timepicker":   object{},
		"links": append([]object{{
			"type": "dashboards", "title": "Sockpressure", "tags": []string{"sockpressure"}, "asDropdown": false,
			// One dashboard has all nodes selected, the other one node: neither selection
			// fits the other.
			"icon": "external link", "includeVars": false, "keepTime": true, "targetBlank": false, "tooltip": "", "url": "",
		}}, d.links...),
		"templating":  object{"list": variables},
		"annotations": object{"list": append([]object{}, d.annotations...)},
		"panels":      panels,
	}
}

func (v variable) json() object {
	o := object{
		"name": v.name, "label": v.label, "multi": true, "includeAll": v.all, "hide": 0, "skipUrlSync": false, "options": []object{},
	}
	if v.all {
		o["current"] = object{"text": []string{"All"}, "value": []string{"$__all"}}
	}
	if v.typed != "" {
		delete(o, "multi")
		delete(o, "includeAll")
		o["type"], o["query"], o["current"] = "textbox", v.typed, object{"text": v.typed, "value": v.typed}
		return o
	}
	if v.named != nil {
		o["type"], o["query"] = "custom", strings.Join(v.named, ",")
		if !v.all {
			o["multi"] = false
			o["current"] = object{"text": v.named[0], "value": v.named[0]}
		}
		return o
	}

	const labelValues, queryResult, hidden = 1, 3, 2
	query, kind := fmt.Sprintf("query_result(%s)", v.found), queryResult
	o["regex"] = `/instance="([^"]*)"/`
	switch {
	case v.found != "":
		o["hide"], o["skipUrlSync"] = hidden, true
	default:
		// Each variable is restricted by those before it.
		chosen := map[string][]string{"cluster": nil, "job": {"cluster"}, "instance": {"cluster", "job"}, "resource": {"cluster", "job"}, "limit": {"cluster", "job"}}
		labels, known := chosen[v.name]
		if !known {
			labels = everyNode()
		}
		query, kind = fmt.Sprintf("label_values(%s, %s)", selecting(v.metric, labels...), cmp.Or(v.of, v.name)), labelValues
		o["regex"], o["allValue"] = "", ".+"
		// Without a label cluster, all must be selected. Alerts that are not on a limit
		// must be shown for every selection of limits.
		if v.name == "cluster" || v.name == "resource" {
			o["allValue"] = ".*"
		}
	}
	o["type"], o["datasource"], o["definition"] = "query", datasource(), query
	o["query"] = object{"qryType": kind, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"}
	o["refresh"] = 2 // when the time range changes
	o["sort"] = 1
	if v.found != "" {
		o["sort"] = 0
	}
	return o
}

func datasource() object { return object{"type": "prometheus", "uid": "${datasource}"} }

// everyNode returns the variables that select nodes.
func everyNode() []string { return []string{"cluster", "job", "instance"} }

// selecting restricts every metric of an expression to the selection, by those of the
// labels that the metric has.
func selecting(expr string, labels ...string) string {
	metric := regexp.MustCompile(`\b(ALERTS|up|process_start_time_seconds|(?:[a-z_]+:)?sockpressure_[a-z0-9_]+(?::[a-z0-9]+)?)\b(?:\{([^}]*)\})?`)
	return metric.ReplaceAllStringFunc(expr, func(s string) string {
		parts := metric.FindStringSubmatch(s)
		var matchers []string
		if parts[2] != "" {
			matchers = append(matchers, parts[2])
		}
		for _, l := range labels {
			// Series recorded over all nodes have no label for one.
			if (l != "instance" || !strings.HasPrefix(parts[1], "job_")) && !strings.Contains(parts[2], l+"=~") {
				matchers = append(matchers, fmt.Sprintf(`%s=~"$%s"`, l, l))
			}
		}
		if len(matchers) == 0 {
			return parts[1]
		}
		return parts[1] + "{" + strings.Join(matchers, ",") + "}"
	})
}
