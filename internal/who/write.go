package who

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// A Limit is the state of the limit that the question is about.
type Limit struct {
	// Reading is nil if the limit could not be read, or is not enforced on this machine.
	Reading *collector.LimitReading
	// Err is why it could not be read.
	Err error
}

// WriteText writes an answer for people: the state of the limit, the table, and the
// notes.
func (a *Answer) WriteText(out io.Writer, limit Limit) error {
	fmt.Fprintf(out, "%s: %s\n", a.Resource, limit)
	if l := limit.Reading; l != nil && l.Level() != collector.OK {
		fmt.Fprintf(out, "When the limit is reached: %s\n", l.Effect)
	}
	if a.Nobody != "" {
		_, err := fmt.Fprintln(out, a.Nobody)
		return err
	}
	fmt.Fprintln(out, a.summary(limit.Reading))
	if len(a.Groups) > 0 {
		if err := a.writeTable(out); err != nil {
			return err
		}
	}
	for _, note := range a.Notes {
		fmt.Fprintln(out, note)
	}
	return nil
}

// String reports how near the limit is.
func (l Limit) String() string {
	r := l.Reading
	switch {
	case l.Err != nil:
		return fmt.Sprintf("the limit could not be read: %v", l.Err)
	case r == nil:
		return "this limit is not enforced on this machine, or nothing has it"
	}
	if r.OnlyNetns {
		return fmt.Sprintf("%s, %s%% in the network namespace %s (%s)", r.Level(), r.Netns.Share(), r.Netns.Name, r.NetnsAmount())
	}
	text := fmt.Sprintf("%s, %s%% of its limit (%s)", r.Level(), r.Share(), r.Amount(r.Usage, r.Limit))
	if len(r.Items) > 0 && r.Level() != collector.OK {
		text += " of " + r.Items[0].Name()
	}
	if r.Elsewhere() {
		text += fmt.Sprintf(", and %s%% in the network namespace %s (%s)", r.Netns.Share(), r.Netns.Name, r.NetnsAmount())
	}
	return text
}

// summary describes what was found, in one line.
func (a *Answer) summary(limit *collector.LimitReading) string {
	var b strings.Builder
	if a.Stopped {
		b.WriteString("Stopped early. ")
	}
	if a.Count == 0 && a.Memory == 0 {
		fmt.Fprintf(&b, "No %s were found.", a.Things)
		return b.String()
	}
	switch {
	case a.Count == 0:
		b.WriteString(collector.Bytes.Format(a.Memory))
	case a.showsMemory():
		fmt.Fprintf(&b, "%s with %s", some(a.Count, a.Things), collector.Bytes.Format(a.Memory))
	default:
		b.WriteString(some(a.Count, a.Things))
	}
	if a.Namespaces > 1 {
		fmt.Fprintf(&b, " in %d network namespaces", a.Namespaces)
	}
	fmt.Fprintf(&b, ", by %s", a.By)
	if limit != nil && a.ByMemory && limit.Usage > 0 && limit.Unit == collector.Bytes {
		fmt.Fprintf(&b, "; the limit counts %s", collector.Bytes.Format(limit.Usage))
	}
	b.WriteString(":")
	return b.String()
}

// column is a column of the table.
type column struct {
	title string
	// of returns the text of the column for a group. The column is left out if that is
	// empty for all groups.
	of func(g *Group) string
}

func (a *Answer) writeTable(out io.Writer) error {
	columns := []column{
		{"SHARE", func(g *Group) string { return percent(g.Share) }},
		{"CUMULATIVE", func(g *Group) string { return percent(g.Cumulative) }},
		{"MEMORY", func(g *Group) string {
			if !a.showsMemory() {
				return ""
			}
			return about(g) + collector.Bytes.Format(g.Memory)
		}},
		{strings.ToUpper(a.Things), func(g *Group) string {
			if a.Count == 0 || a.By == ByProcess && a.Things == "processes" {
				return ""
			}
			return about(g) + digits(g.Count)
		}},
		{"LIMIT", func(g *Group) string {
			if g.Limit == 0 {
				return ""
			}
			if g.Limit >= 1<<62 {
				return "none"
			}
			return digits(g.Limit)
		}},
		{"USED", func(g *Group) string {
			if g.Limit == 0 {
				return ""
			}
			return percent(g.Count / g.Limit)
		}},
		{a.title(), func(g *Group) string { return g.Who }},
		{"USER", func(g *Group) string { return g.User }},
		{"UNIT", func(g *Group) string {
			if a.By == ByUnit || a.By == ByPod || g.Unit == "/" {
				return ""
			}
			return g.Unit
		}},
		{"PROCESS", func(g *Group) string {
			text := strings.Join(g.Processes, ", ")
			if g.MoreProcesses > 0 {
				text += fmt.Sprintf(", %d more", g.MoreProcesses)
			}
			return text
		}},
		{"MOSTLY", func(g *Group) string { return g.Mostly }},
		{"NETWORK NAMESPACE", func(g *Group) string { return g.Netns }},
	}
	var shown []column
	for _, c := range columns {
		for i := range a.Groups {
			if c.of(&a.Groups[i]) != "" {
				shown = append(shown, c)
				break
			}
		}
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(cell func(c column) string) {
		cells := make([]string, len(shown))
		for i, c := range shown {
			cells[i] = cmp.Or(cell(c), "-")
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	line(func(c column) string { return c.title })
	for i := range a.Groups {
		line(func(c column) string { return c.of(&a.Groups[i]) })
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if a.Others > 0 {
		last := a.Groups[len(a.Groups)-1].Cumulative
		others := digits(float64(a.Others))
		if a.TooLow > 0 {
			others = "very many"
		}
		fmt.Fprintf(out, "%s is in %s more (see --top).\n", percent(max(1-last, 0)), others)
	}
	if a.estimated() {
		fmt.Fprintln(out, "~ marks estimates, from a sample of the descriptors of processes with more than "+digits(wholeProcess)+".")
	}
	if a.TooLow > 0 {
		low := some(a.TooLow, a.Things)
		if a.ByMemory {
			low = collector.Bytes.Format(a.TooLow)
		}
		fmt.Fprintf(out, "The numbers of a group may be too low by up to %s because there are very many groups.\n", low)
	}
	return nil
}

// showsMemory reports whether memory is worth a column. Things that are not counted by
// memory mostly have none.
func (a *Answer) showsMemory() bool { return a.ByMemory || a.HasMemory && a.Memory > 0 }

func (a *Answer) estimated() bool {
	for _, g := range a.Groups {
		if g.Estimated {
			return true
		}
	}
	return false
}

// about returns the mark of an estimate.
func about(g *Group) string {
	if g.Estimated {
		return "~"
	}
	return ""
}

func percent(share float64) string { return strconv.FormatFloat(100*share, 'f', 1, 64) + "%" }

// The JSON document of an answer. Names and types are an interface that README.md
// describes.
type (
	jsonAnswer struct {
		Resource   string      `json:"resource"`
		State      *string     `json:"state"`
		Saturation *float64    `json:"saturation"`
		Usage      *float64    `json:"usage"`
		Limit      *float64    `json:"limit"`
		Unit       *string     `json:"unit"`
		By         string      `json:"by"`
		Counted    string      `json:"counted"`
		Count      float64     `json:"count"`
		Memory     *float64    `json:"memory_bytes"`
		Groups     []jsonGroup `json:"groups"`
		Others     int         `json:"more_groups"`
		TooLow     float64     `json:"too_low_by"`
		Notes      []string    `json:"notes"`
		Stopped    bool        `json:"stopped"`
	}
	jsonGroup struct {
		Who        string   `json:"who"`
		PID        *int     `json:"pid"`
		User       string   `json:"user"`
		Unit       string   `json:"unit"`
		Namespace  string   `json:"namespace"`
		Pod        string   `json:"pod"`
		Netns      string   `json:"netns"`
		Count      float64  `json:"count"`
		Memory     *float64 `json:"memory_bytes"`
		Share      float64  `json:"share"`
		Cumulative float64  `json:"cumulative_share"`
		Limit      *float64 `json:"limit"`
		Estimated  bool     `json:"estimated"`
		Processes  []string `json:"processes"`
		More       int      `json:"more_processes"`
		Mostly     string   `json:"mostly"`
	}
)

// WriteJSON writes an answer for programs.
func (a *Answer) WriteJSON(out io.Writer, limit Limit) error {
	doc := jsonAnswer{
		Resource: a.Resource, By: string(a.By), Counted: a.Things, Count: a.Count,
		// Empty lists are [], not null.
		Groups: []jsonGroup{}, Others: a.Others, TooLow: a.TooLow,
		Notes: append([]string{}, a.Notes...), Stopped: a.Stopped,
	}
	if a.Nobody != "" {
		doc.Notes = []string{a.Nobody}
	}
	if l := limit.Reading; l != nil {
		state, unit, saturation := l.Level().String(), string(l.Unit), l.Saturation()
		doc.State, doc.Unit, doc.Saturation, doc.Usage, doc.Limit = &state, &unit, &saturation, &l.Usage, &l.Limit
	}
	memory := func(of float64) *float64 {
		if !a.HasMemory && !a.ByMemory {
			return nil
		}
		return &of
	}
	doc.Memory = memory(a.Memory)
	for _, g := range a.Groups {
		j := jsonGroup{
			Who: g.Who, User: g.User, Unit: g.Unit, Namespace: g.Namespace, Pod: g.Pod, Netns: g.Netns,
			Count: g.Count, Memory: memory(g.Memory), Share: g.Share, Cumulative: g.Cumulative,
			Estimated: g.Estimated, Processes: append([]string{}, g.Processes...), More: g.MoreProcesses, Mostly: g.Mostly,
		}
		if g.PID != 0 {
			j.PID = &g.PID
		}
		if g.Limit != 0 {
			j.Limit = &g.Limit
		}
		doc.Groups = append(doc.Groups, j)
	}
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(doc)
}
