package main

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Sizes in pixels; page.html has the same.
const (
	pageWidth  = 1400
	gap        = 8
	unitHeight = 30
	padding    = 10 // left and right in a panel
	titleSpace = 34
	lineSpace  = 17 // of a legend
	axisLeft   = 62
	axisBelow  = 18
)

// hue is a colour of Grafana's by its name.
func hue(name string) string {
	switch name {
	case "blue":
		return "#4a86c8"
	case "green":
		return "#3b9b56"
	case "yellow":
		return "#dfb000"
	case "orange":
		return "#f07a1d"
	case "red":
		return "#d6303f"
	case "dark-red":
		return "#8c1d28"
	}
	return "#6b7280"
}

// palette is for lines without a colour of their own.
func palette(i int) string {
	colors := []string{"#4f9d69", "#d9a514", "#3b82c4", "#e07b39", "#c0392b", "#8e5bb5", "#1f9aa8", "#a0522d", "#7a8b2f", "#d36ba6", "#5c6bc0", "#888888"}
	return colors[i%len(colors)]
}

// drawLines draws the lines of a panel over time, and its legend.
func (p panel) drawLines(d *drawn, from prometheus, alerts []series) error {
	type line struct {
		series
		name, color string
		field       field
	}
	var all []line
	defaults, err := p.field("")
	if err != nil {
		return err
	}
	for _, t := range p.Targets {
		answer, err := from.history(t.Expr)
		if err != nil {
			return err
		}
		for _, s := range answer {
			l := line{series: s, name: s.name(t.LegendFormat)}
			if l.field, err = p.field(l.name); err != nil {
				return err
			}
			l.color = palette(len(all))
			if l.field.fixed != "" {
				l.color = hue(l.field.fixed)
			}
			all = append(all, l)
		}
	}
	if d.Empty = len(all) == 0; d.Empty {
		return nil
	}

	stacked := defaults.Custom.Stacking.Mode == "normal"
	top := 0.0
	if soft := defaults.Custom.AxisSoftMax; soft != nil {
		top = *soft
	}
	sum := make([]float64, len(all[0].values))
	for _, l := range all {
		for i, v := range l.values {
			if math.IsNaN(v) {
				continue
			}
			sum[i] += v
			top = max(top, v)
		}
	}
	if stacked {
		top = max(top, slices.Max(sum))
	}

	if defaults.Max > 0 {
		top = defaults.Max
	}

	g := p.GridPos
	width := float64(pageWidth-23*gap)/24*float64(g.W) + float64((g.W-1)*gap) - 2*padding
	shown := min(len(all), max(2, (g.H-5)))
	if len(all) > shown {
		shown--
	}
	height := float64(g.H*(unitHeight+gap)-gap-titleSpace) - float64((shown+2)*lineSpace)
	ticks := scale(top, defaults.Unit)
	top = max(top*1.02, ticks[len(ticks)-1])
	last := float64(len(sum) - 1)
	x := func(i float64) float64 { return axisLeft + i/last*(width-axisLeft-padding) }
	y := func(v float64) float64 { return 6 + (1-v/top)*(height-axisBelow-6) }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg width="%.0f" height="%.0f">`, width, height)
	for _, t := range ticks {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%.0f" y1="%.1f" y2="%.1f"/><text class="end" x="%d" y="%.1f">%s</text>`,
			axisLeft, width-padding, y(t), y(t), axisLeft-6, y(t)+4, template.HTMLEscapeString(defaults.text(t)))
	}
	const times = 4
	for i := range times + 1 {
		at := from.from.Add(from.to.Sub(from.from) / times * time.Duration(i))
		fmt.Fprintf(&b, `<text class="middle" x="%.0f" y="%.0f">%s</text>`, min(x(last*float64(i)/times), width-padding-14), height-3, at.Format("15:04"))
	}
	if defaults.Custom.ThresholdsStyle.Mode == "dashed" {
		for _, s := range defaults.Thresholds.Steps {
			if s.Value != nil {
				fmt.Fprintf(&b, `<line stroke="%s" stroke-dasharray="6 5" x1="%d" x2="%.0f" y1="%.1f" y2="%.1f"/>`, hue(s.Color), axisLeft, width-padding, y(*s.Value), y(*s.Value))
			}
		}
	}
	floor := make([]float64, len(sum))
	for _, l := range all {
		values := slices.Clone(l.values)
		under := slices.Clone(floor)
		if stacked {
			for i, v := range values {
				if !math.IsNaN(v) {
					floor[i] += v
					values[i] = floor[i]
				}
			}
		}
		dash := ""
		if l.field.Custom.LineStyle.Fill == "dash" {
			dash = ` stroke-dasharray="6 5"`
		}
		for _, piece := range pieces(values) {
			var path, back strings.Builder
			for i := piece[0]; i < piece[1]; i++ {
				fmt.Fprintf(&path, "%.1f,%.1f ", x(float64(i)), y(values[i]))
				j := piece[0] + piece[1] - 1 - i
				fmt.Fprintf(&back, "%.1f,%.1f ", x(float64(j)), y(under[j]))
			}
			if o := l.field.Custom.FillOpacity; o > 0 {
				fmt.Fprintf(&b, `<polygon fill="%s" opacity="%.2f" points="%s%s"/>`, l.color, o/100, path.String(), back.String())
			}
			if piece[1]-piece[0] == 1 {
				fmt.Fprintf(&b, `<circle fill="%s" r="2" cx="%.1f" cy="%.1f"/>`, l.color, x(float64(piece[0])), y(values[piece[0]]))
				continue
			}
			fmt.Fprintf(&b, `<polyline stroke="%s"%s points="%s"/>`, l.color, dash, path.String())
		}
	}
	for _, a := range alerts {
		for _, piece := range pieces(a.values) {
			at := x(float64(piece[0]))
			fmt.Fprintf(&b, `<line class="alert" x1="%.1f" x2="%.1f" y1="6" y2="%.1f"/><path class="alert" d="M%.1f %.1fl-4 6h8z"/>`, at, at, y(0), at, y(0))
		}
	}
	b.WriteString("</svg>")
	d.Chart = template.HTML(b.String()) // numbers, times and colours of ours
	if p.Options.Legend.SortDesc {
		slices.SortStableFunc(all, func(a, b line) int { return cmp.Compare(lastOf(b.values), lastOf(a.values)) })
	}
	for _, l := range all[:shown] {
		highest := math.Inf(-1)
		for _, v := range l.values {
			if v > highest { // NaN is not
				highest = v
			}
		}
		d.Legend = append(d.Legend, legend{l.color, l.name, l.field.text(lastOf(l.values)), l.field.text(highest)})
	}
	d.More = len(all) - shown
	return nil
}

// lastOf returns the last value there is.
func lastOf(values []float64) float64 {
	for _, v := range slices.Backward(values) {
		if !math.IsNaN(v) {
			return v
		}
	}
	return math.NaN()
}

// pieces are the stretches that have values: their first step, and the one behind
// their last.
func pieces(values []float64) [][2]int {
	var all [][2]int
	for i, v := range values {
		switch {
		case math.IsNaN(v):
		case i > 0 && !math.IsNaN(values[i-1]):
			all[len(all)-1][1] = i + 1
		default:
			all = append(all, [2]int{i, i + 1})
		}
	}
	return all
}

// scale returns the marks of an axis from 0 on: four or so round numbers.
func scale(top float64, unit string) []float64 {
	if top <= 0 {
		top = 1
	}
	base := 10.0
	steps := []float64{1, 2, 5, 10}
	if unit == "bytes" && top > 4*1024 {
		base, steps = 2, []float64{1, 2}
	}
	width := math.Pow(base, math.Floor(math.Log(top/4)/math.Log(base)))
	for _, s := range steps {
		if top/(width*s) <= 5 {
			width *= s
			break
		}
	}
	marks := []float64{0}
	for v := width; v <= top*1.001; v += width {
		marks = append(marks, v)
	}
	return marks
}

// text writes a value in the unit of its field.
func (f field) text(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return ""
	}
	in := func(v, step float64, units ...string) string {
		i := 0
		for ; math.Abs(v) >= step && i < len(units)-1; i++ {
			v /= step
		}
		return round(v) + units[i]
	}
	switch f.Unit {
	case "percentunit":
		return round(100*v) + "%"
	case "bytes":
		return in(v, 1024, " B", " KiB", " MiB", " GiB", " TiB")
	case "cps":
		return in(v, 1000, " c/s", "K c/s", "M c/s")
	case "s":
		if v != 0 && v < 1 {
			return round(1000*v) + " ms"
		}
		return round(v) + " s"
	}
	return in(v, 1000, "", " K", " Mil", " Bil")
}

// round leaves three digits.
func round(v float64) string {
	if a := math.Abs(v); a >= 100 || v == math.Trunc(v) {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}
