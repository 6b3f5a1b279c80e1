package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// board is a dashboard as far as it is drawn.
type board struct {
	Title       string
	Panels      []panel
	Annotations struct {
		List []struct{ Target struct{ Expr string } }
	}
}

type panel struct {
	Type, Title     string
	GridPos         struct{ X, Y, W, H int }
	Targets         []struct{ RefID, Expr, LegendFormat string }
	FieldConfig     struct{ Defaults, Overrides json.RawMessage }
	Transformations []struct {
		ID      string
		Options struct {
			Include      struct{ Names []string }
			RenameByName map[string]string
		}
	}
	Options struct {
		SortBy []struct {
			DisplayName string
			Desc        bool
		}
		Legend struct{ SortDesc bool }
	}
}

// drawing is what the page shows.
type drawing struct {
	Title, Note string
	From, To    string
	Panels      []drawn
}

type drawn struct {
	Type, Title string
	Grid        template.CSS
	Empty       bool
	Chart       template.HTML
	Legend      []legend
	More        int // lines that the legend has no place for
	Stat        cell
	Bars        []bar
	Head        []string
	Cells       [][]cell
}

type legend struct{ Color, Name, Last, Max string }

type bar struct {
	Name, Value, Color string
	Percent            float64
}

type cell struct {
	Text, Color string
	Gauge       bool
	Percent     float64
}

func (b board) draw(p prometheus, rows int, only string) (drawing, error) {
	d := drawing{Title: b.Title, From: p.from.Format("15:04"), To: p.to.Format("15:04")}
	var alerts []series
	for _, a := range b.Annotations.List {
		s, err := p.history(a.Target.Expr)
		if err != nil {
			return d, err
		}
		alerts = append(alerts, s...)
	}
	row, top := "", 0
	for _, panel := range b.Panels {
		if panel.Type == "row" {
			if rows--; rows == 0 {
				break
			}
			row = panel.Title
			if row == only {
				top = panel.GridPos.Y
			}
		}
		if only != "" && row != only {
			continue
		}
		panel.GridPos.Y -= top
		one, err := panel.draw(p, alerts)
		if err != nil {
			return d, fmt.Errorf("%s: %w", panel.Title, err)
		}
		d.Panels = append(d.Panels, one)
	}
	if len(d.Panels) == 0 {
		return d, fmt.Errorf("no row %q", only)
	}
	return d, nil
}

func (p panel) draw(from prometheus, alerts []series) (drawn, error) {
	g := p.GridPos
	d := drawn{
		Type: p.Type, Title: p.Title,
		Grid: template.CSS(fmt.Sprintf("grid-column: %d / span %d; grid-row: %d / span %d", g.X+1, g.W, g.Y+1, g.H)),
	}
	var err error
	switch p.Type {
	case "row":
	case "timeseries":
		err = p.drawLines(&d, from, alerts)
	case "stat", "bargauge":
		err = p.drawValues(&d, from)
	case "table":
		err = p.drawTable(&d, from)
	default:
		err = fmt.Errorf("%s is a type of panel that is not drawn", p.Type)
	}
	return d, err
}

// drawValues draws one value, or the bars of several.
func (p panel) drawValues(d *drawn, from prometheus) error {
	for _, t := range p.Targets {
		values, err := from.now(t.Expr)
		if err != nil {
			return err
		}
		for _, v := range values {
			name, value := v.name(t.LegendFormat), v.values[0]
			f, err := p.field(name)
			if err != nil {
				return err
			}
			color := f.color(value)
			if p.Type == "stat" {
				d.Stat = cell{Text: f.text(value), Color: color}
				continue
			}
			d.Bars = append(d.Bars, bar{name, f.text(value), color, 100 * min(value/f.Max, 1)})
		}
	}
	d.Empty = d.Stat.Text == "" && len(d.Bars) == 0
	return nil
}

// drawTable draws the answers to the queries of a table, those with the same
// labels in one row.
func (p panel) drawTable(d *drawn, from prometheus) error {
	var columns []string
	names := map[string]string{}
	for _, t := range p.Transformations {
		columns = append(columns, t.Options.Include.Names...)
		maps.Copy(names, t.Options.RenameByName)
	}
	type line struct {
		labels map[string]string
		values map[string]float64
	}
	var lines []*line
	for _, t := range p.Targets {
		answer, err := from.now(t.Expr)
		if err != nil {
			return err
		}
		value := "Value"
		if len(p.Targets) > 1 {
			value += " #" + t.RefID
		}
		for _, a := range answer {
			i := slices.IndexFunc(lines, func(l *line) bool {
				return !slices.ContainsFunc(columns, func(c string) bool { return l.labels[c] != a.labels[c] })
			})
			if i < 0 || len(p.Targets) == 1 {
				i = len(lines)
				lines = append(lines, &line{a.labels, map[string]float64{}})
			}
			lines[i].values[value] = a.values[0]
		}
	}
	slices.SortStableFunc(lines, func(a, b *line) int {
		for _, by := range p.Options.SortBy {
			for field, name := range names {
				if name != by.DisplayName {
					continue
				}
				order := strings.Compare(a.labels[field], b.labels[field])
				if strings.HasPrefix(field, "Value") {
					order = cmp.Compare(a.values[field], b.values[field])
				}
				if by.Desc {
					order = -order
				}
				if order != 0 {
					return order
				}
			}
		}
		return 0
	})
	for _, c := range columns {
		d.Head = append(d.Head, names[c])
	}
	for _, l := range lines {
		var cells []cell
		for _, c := range columns {
			v, ok := l.values[c]
			if !ok {
				cells = append(cells, cell{Text: l.labels[c]})
				continue
			}
			f, err := p.field(names[c])
			if err != nil {
				return err
			}
			one := cell{Text: f.text(v), Gauge: f.gauge, Color: f.color(v)}
			if one.Gauge {
				top := f.Max
				if top == 0 {
					for _, other := range lines {
						top = max(top, other.values[c])
					}
				}
				one.Percent = 100 * min(v/top, 1)
			}
			cells = append(cells, one)
		}
		d.Cells = append(d.Cells, cells)
	}
	d.Empty = len(lines) == 0
	return nil
}

// field is how the values of one name are shown.
type field struct {
	Unit       string
	Max        float64
	Thresholds struct {
		Steps []struct {
			Color string
			Value *float64
		}
	}
	Custom struct {
		FillOpacity               float64
		AxisSoftMin, AxisSoftMax  *float64
		Stacking, ThresholdsStyle struct{ Mode string }
		LineStyle                 struct{ Fill string }
		CellOptions               struct{ Type string }
	}
	fixed string // colour
	gauge bool
}

// field returns how a panel shows what has a name.
func (p panel) field(name string) (field, error) {
	var f field
	if err := json.Unmarshal(p.FieldConfig.Defaults, &f); err != nil {
		return f, err
	}
	var overrides []struct {
		Matcher    struct{ ID, Options string }
		Properties []struct {
			ID    string
			Value json.RawMessage
		}
	}
	if err := json.Unmarshal(p.FieldConfig.Overrides, &overrides); err != nil {
		return f, err
	}
	for _, o := range overrides {
		switch o.Matcher.ID {
		case "byName":
			if o.Matcher.Options != name {
				continue
			}
		case "byRegexp":
			if !regexp.MustCompile(strings.Trim(o.Matcher.Options, "/")).MatchString(name) {
				continue
			}
		default:
			return f, fmt.Errorf("a matcher %s is not known here", o.Matcher.ID)
		}
		for _, property := range o.Properties {
			var into any
			var color struct{ FixedColor string }
			switch property.ID {
			case "unit":
				into = &f.Unit
			case "thresholds":
				f.Thresholds.Steps = nil
				into = &f.Thresholds
			case "color":
				into = &color
			case "custom.lineStyle":
				into = &f.Custom.LineStyle
			case "custom.fillOpacity":
				into = &f.Custom.FillOpacity
			case "custom.cellOptions":
				into = &f.Custom.CellOptions
			case "links":
				continue
			default:
				return f, fmt.Errorf("a property %s is not known here", property.ID)
			}
			if err := json.Unmarshal(property.Value, into); err != nil {
				return f, fmt.Errorf("%s: %w", property.ID, err)
			}
			if color.FixedColor != "" {
				f.fixed = color.FixedColor
			}
		}
	}
	f.gauge = f.Custom.CellOptions.Type == "gauge"
	return f, nil
}

// color is the colour of a value by the thresholds.
func (f field) color(v float64) string {
	name := "text"
	for _, s := range f.Thresholds.Steps {
		if s.Value == nil || v >= *s.Value {
			name = s.Color
		}
	}
	return hue(name)
}
