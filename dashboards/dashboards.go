// Package dashboards holds the Grafana dashboards (*.json) and makes them: from
// the tables of panels in fleet.go and node.go, the rows of limits of the
// collectors, and the runbooks that the alerts name. Renew the files with
//
//	go test ./dashboards -update
//
// A new limit gets its panel from its row alone; a line in measures shows its
// usage in its own unit rather than as a share of the limit.
package dashboards

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/alerts"
	"github.com/sockpressure/sockpressure_exporter/collector"
)

// dashboard is a Grafana dashboard as far as ours differ.
type dashboard struct {
	uid, title, about string
	from              string // how far back it looks at first
	variables         []variable
	annotations       []object
	rows              []row
}

// row is a heading and the panels below it, from left to right.
type row struct {
	title  string
	panels []panel
}

// variable is a choice at the top of a dashboard: the values of a label.
type variable struct {
	name, label, metric string
	all                 bool // begin with all values, not with the first
}

// object is a piece of JSON.
type object map[string]any

// Files returns the dashboards by the names of their files.
func Files() (map[string][]byte, error) {
	var limits []collector.LimitInfo
	for _, s := range collector.Specs() {
		limits = append(limits, s.Limits...)
	}
	books := runbooks{}
	for _, l := range limits {
		books[l.Resource] = alerts.DefaultRunbookURL + strings.ToLower(alerts.Runbook(l.Resource))
	}
	files := map[string][]byte{}
	for _, d := range []dashboard{fleet(limits, books), node(limits, books)} {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(d.json()); err != nil {
			return nil, fmt.Errorf("%s: %w", d.uid, err)
		}
		files[d.uid+".json"] = b.Bytes()
	}
	return files, nil
}

// json writes the dashboard in Grafana's classic form, which file provisioning
// of every version reads.
func (d dashboard) json() object {
	variables := []object{{
		"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "regex": "",
		"hide": 0, "includeAll": false, "multi": false, "options": []object{}, "refresh": 1,
	}}
	for _, v := range d.variables {
		variables = append(variables, v.json())
	}

	const columns, headingHeight = 24, 1
	panels := []object{}
	y := 0
	for _, r := range d.rows {
		if r.title != "" {
			panels = append(panels, object{
				"type": "row", "id": len(panels) + 1, "title": r.title, "collapsed": false, "panels": []object{},
				"gridPos": object{"x": 0, "y": y, "w": columns, "h": headingHeight},
			})
			y += headingHeight
		}
		x, height := 0, 0
		for _, p := range r.panels {
			if x+p.width > columns {
				x, y, height = 0, y+height, 0
			}
			o := p.json()
			o["id"] = len(panels) + 1
			o["gridPos"] = object{"x": x, "y": y, "w": p.width, "h": p.height}
			panels = append(panels, o)
			x, height = x+p.width, max(height, p.height)
		}
		y += height
	}

	return object{
		"uid": d.uid, "title": d.title, "description": d.about, "tags": []string{"sockpressure"},
		"schemaVersion": 42, "version": 1, "editable": false, "timezone": "utc", "weekStart": "", "fiscalYearStartMonth": 0,
		"graphTooltip": 1, // the crosshair is shared
		"refresh":      "30s",
		"time":         object{"from": d.from, "to": "now"},
		"timepicker":   object{},
		"links": []object{{
			"type": "dashboards", "title": "Sockpressure", "tags": []string{"sockpressure"}, "asDropdown": false,
			// The one has all nodes chosen, the other one node: neither choice fits the other.
			"icon": "external link", "includeVars": false, "keepTime": true, "targetBlank": false, "tooltip": "", "url": "",
		}},
		"templating":  object{"list": variables},
		"annotations": object{"list": append([]object{}, d.annotations...)},
		"panels":      panels,
	}
}

func (v variable) json() object {
	// Each by those before it. Where there are no clusters, all of them are chosen.
	chosen := map[string][]string{"cluster": nil, "job": {"cluster"}}
	labels, first := chosen[v.name]
	if !first {
		labels = []string{"cluster", "job"}
	}
	every := ".+"
	if v.name == "cluster" {
		every = ".*"
	}
	query := fmt.Sprintf("label_values(%s, %s)", selecting(v.metric, labels...), v.name)
	const labelValues = 1
	o := object{
		"type": "query", "name": v.name, "label": v.label, "datasource": datasource(), "definition": query,
		"query": object{"qryType": labelValues, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
		"multi": true, "includeAll": v.all, "allValue": every, "options": []object{},
		"refresh": 2, // when the time range changes
		"sort":    1, "hide": 0, "regex": "", "skipUrlSync": false,
	}
	if v.all {
		o["current"] = object{"text": []string{"All"}, "value": []string{"$__all"}}
	}
	return o
}

func datasource() object { return object{"type": "prometheus", "uid": "${datasource}"} }

// selecting narrows every metric of an expression to what is chosen: of labels,
// those that the metric has.
func selecting(expr string, labels ...string) string {
	metric := regexp.MustCompile(`\b(ALERTS|up|(?:[a-z_]+:)?sockpressure_[a-z0-9_]+(?::[a-z0-9]+)?)\b(?:\{([^}]*)\})?`)
	return metric.ReplaceAllStringFunc(expr, func(s string) string {
		parts := metric.FindStringSubmatch(s)
		var matchers []string
		if parts[2] != "" {
			matchers = append(matchers, parts[2])
		}
		for _, l := range labels {
			// What is recorded of all nodes together has no label of one.
			if l != "instance" || !strings.HasPrefix(parts[1], "job_") {
				matchers = append(matchers, fmt.Sprintf(`%s=~"$%s"`, l, l))
			}
		}
		if len(matchers) == 0 {
			return parts[1]
		}
		return parts[1] + "{" + strings.Join(matchers, ",") + "}"
	})
}
