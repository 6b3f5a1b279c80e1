package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/plan"
)

// writePlan writes a plan in the given format.
func writePlan(out io.Writer, p plan.Plan, format string) error {
	switch format {
	case formatJSON:
		return writePlanJSON(out, p)
	case formatSysctl:
		return writePlanSysctl(out, p)
	default:
		return writePlanTable(out, p)
	}
}

// asks returns the demand as flags.
func asks(d plan.Demand) string {
	words := []string{fmt.Sprintf("--connections=%d", d.Connections)}
	for _, f := range []struct {
		flag  string
		value int64
	}{
		{"outbound", d.Outbound},
		{"destinations", d.Destinations},
		{"opens-per-second", d.Opens},
		{"closes-per-second", d.Closes},
		{"unread", d.Unread},
		{"memory", d.Memory},
		{"application-memory", d.ApplicationMemory},
	} {
		if f.value > 0 {
			words = append(words, fmt.Sprintf("--%s=%d", f.flag, f.value))
		}
	}
	if d.Processes > 1 {
		words = append(words, fmt.Sprintf("--processes=%d", d.Processes))
	}
	if d.Pause > 0 {
		words = append(words, fmt.Sprintf("--listen-pause=%v", d.Pause))
	}
	for _, f := range []struct {
		flag string
		on   bool
	}{{"tls", d.TLS}, {"proxy", d.Proxy}, {"loopback", d.Loopback}} {
		if f.on {
			words = append(words, "--"+f.flag)
		}
	}
	return strings.Join(words, " ")
}

// headline returns the result of a plan in one sentence.
func headline(p plan.Plan) string {
	n := plan.Group(float64(p.Demand.Connections)) + " connections"
	if p.Demand.Connections == 1 {
		n = "1 connection"
	}
	switch p.Verdict {
	case plan.Holds:
		return fmt.Sprintf("This host can hold %s as it is.", n)
	case plan.Set:
		return fmt.Sprintf("This host can hold %s with the settings below. As it is, %s is reached first.", n, p.First().Resource)
	default:
		var why []string
		for _, r := range p.Rows {
			if r.Verdict == plan.Cannot {
				why = append(why, fmt.Sprintf("%s needs %s including headroom, and the maximum is %s", r.Resource, bytesOr(r, r.Needed), bytesOr(r, cannotBe(r))))
			}
		}
		return fmt.Sprintf("%s do not fit on this host: %s.", n, strings.Join(why, "; "))
	}
}

// cannotBe returns the maximum that a limit can be set to.
func cannotBe(r plan.Row) float64 {
	if r.Fixed {
		return r.Now
	}
	return r.Most
}

// bytesOr formats a number in a row's unit.
func bytesOr(r plan.Row, v float64) string {
	if r.Unit == collector.Bytes {
		return collector.LimitReading{LimitInfo: r.LimitInfo}.Format(v)
	}
	if v >= 1<<62 {
		return "none"
	}
	return plan.Group(v)
}

// memoryLine returns how much memory the plan takes, in one sentence.
func memoryLine(p plan.Plan) string {
	for _, r := range p.Rows {
		if r.Fixed && r.Takes > 0 && r.Resource == "memory" {
			return fmt.Sprintf("They take %s of memory (kernel %s, programs %s), in addition to %s in use for other things; the host has %s.",
				bytesOr(r, p.Kernel+p.Programs), bytesOr(r, p.Kernel), bytesOr(r, p.Programs), bytesOr(r, r.Used), bytesOr(r, r.Now))
		}
	}
	return ""
}

func writePlanTable(out io.Writer, p plan.Plan) error {
	fmt.Fprintln(out, headline(p))
	if m := memoryLine(p); m != "" {
		fmt.Fprintln(out, m)
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RESOURCE\tVERDICT\tNOW\tNEEDED\tEACH\tSET BY")
	for _, r := range p.Rows {
		needed := bytesOr(r, r.Needed)
		if r.Takes == 0 {
			needed = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Resource, r.Verdict, bytesOr(r, r.Now), needed, scope(r), r.SetBy())
	}
	fmt.Fprintln(w, "\nMEMORY\tOBJECTS\tBYTES EACH\tSUM")
	for _, i := range p.Bill {
		sum := collector.LimitReading{LimitInfo: &collector.LimitInfo{Unit: collector.Bytes}}.Format(i.Bytes())
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", i.What, plan.Group(i.Count), plan.Group(i.Each), sum)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range p.Rows {
		if r.Verdict != plan.Holds {
			fmt.Fprintf(out, "\n%s: %s\nWhen the limit is reached: %s\n", r.Resource, plainWords(r.Rule), r.Effect)
			for _, write := range r.Writes {
				fmt.Fprintf(out, "  %s = %s\n", write.Name, plan.Numbers(write.Value))
			}
			for _, s := range r.Settings {
				fmt.Fprintf(out, "  %s: %s\n", s.Where, fmt.Sprintf(s.Line, r.Needed))
			}
		}
	}
	if len(p.Other) > 0 {
		fmt.Fprintf(out, "\nNot affected by the number of connections: %s.\n", strings.Join(p.Other, ", "))
	}
	return nil
}

// plainWords removes code marks from a text.
func plainWords(text string) string { return strings.ReplaceAll(text, "`", "") }

// scope returns what the limit applies to.
func scope(r plan.Row) string {
	switch {
	case r.Item != "":
		return r.Item
	case r.List != nil && r.List.Column != "":
		return r.List.Column
	case slices.ContainsFunc(r.Sysctls, func(s collector.Sysctl) bool { return s.PerNetns }):
		return "network namespace"
	}
	return "host"
}

// comment writes lines that sysctl skips.
func comment(out io.Writer, format string, args ...any) {
	for line := range strings.Lines(fmt.Sprintf(format, args...)) {
		fmt.Fprintf(out, "# %s\n", strings.TrimSuffix(line, "\n"))
	}
}

// writePlanSysctl writes a file for /etc/sysctl.d.
func writePlanSysctl(out io.Writer, p plan.Plan) error {
	comment(out, "%s plan %s", name, asks(p.Demand))
	if p.Facts.Release != "" {
		comment(out, "Linux %s", p.Facts.Release)
	}
	comment(out, "%s", headline(p))
	if m := memoryLine(p); m != "" {
		comment(out, "%s", m)
	}
	if p.Verdict != plan.Set {
		return nil
	}
	var pods []plan.Write
	var unsafe []string
	for _, r := range p.Rows {
		if r.Verdict != plan.Set {
			continue
		}
		fmt.Fprintln(out)
		comment(out, "%s: %s now, %s needed: %s.\nWhen the limit is reached: %s", r.Resource, bytesOr(r, r.Now), bytesOr(r, r.Needed), plainWords(r.Rule), r.Effect)
		for _, write := range r.Writes {
			fmt.Fprintf(out, "%s = %s\n", write.Name, plan.Numbers(write.Value))
			if write.PerNetns {
				pods = append(pods, write)
				if !r.Safe {
					unsafe = append(unsafe, write.Name)
				}
			}
		}
		for _, s := range r.Settings {
			comment(out, "In %s:\n  %s", s.Where, fmt.Sprintf(s.Line, r.Needed))
		}
	}
	if len(pods) > 0 {
		fmt.Fprintln(out)
		comment(out, "These are set per network namespace: for a pod that does not use the host's,\nsecurityContext:\n  sysctls:")
		for _, write := range pods {
			comment(out, "  - name: %s\n    value: %q", write.Name, plan.Numbers(write.Value))
		}
	}
	if len(unsafe) > 0 {
		comment(out, "and for the kubelet --allowed-unsafe-sysctls=%s", strings.Join(unsafe, ","))
	}
	return nil
}

// writeGrowth writes how far the present load can grow.
func writeGrowth(out io.Writer, g plan.Growth, format string) error {
	if format == formatJSON {
		doc := jsonGrowth{g.Connections, []jsonStep{}}
		for _, s := range g.Steps {
			doc.Limits = append(doc.Limits, jsonStep{s.Resource, s.Item, s.Connections, s.Now, s.Limit, string(s.Unit), s.SetBy(), s.Effect})
		}
		return encode(out, doc)
	}
	fmt.Fprintln(out, g)
	if len(g.Steps) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CONNECTIONS\tRESOURCE\tOF\tNOW\tLIMIT\tSET BY")
	for _, s := range g.Steps {
		l := collector.LimitReading{LimitInfo: s.LimitInfo}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", plan.Group(s.Connections), s.Resource, cmp.Or(s.Item, "host"), l.Format(s.Now), l.Format(s.Limit), s.SetBy())
	}
	return w.Flush()
}

// The JSON documents of plan. Names and types are an interface that README.md describes.
type (
	jsonPlan struct {
		ExitStatus int          `json:"exit_status"`
		Verdict    string       `json:"verdict"`
		Headline   string       `json:"headline"`
		First      *string      `json:"first"`
		Limits     []jsonRow    `json:"limits"`
		NotMoved   []string     `json:"not_moved"`
		Memory     []jsonCost   `json:"memory"`
		Bytes      jsonMemories `json:"memory_bytes"`
	}
	jsonMemories struct {
		Kernel   float64 `json:"kernel"`
		Programs float64 `json:"programs"`
	}
	jsonRow struct {
		Resource string        `json:"resource"`
		Item     string        `json:"item"`
		Verdict  string        `json:"verdict"`
		Unit     string        `json:"unit"`
		Now      float64       `json:"now"`
		Used     float64       `json:"used"`
		Takes    float64       `json:"takes"`
		Needed   float64       `json:"needed"`
		Sysctls  []jsonWrite   `json:"sysctls"`
		Settings []jsonSetting `json:"settings"`
		SetBy    string        `json:"set_by"`
		Rule     string        `json:"rule"`
		Effect   string        `json:"effect"`
	}
	jsonWrite struct {
		Name     string    `json:"name"`
		PerNetns bool      `json:"per_netns"`
		Now      []float64 `json:"now"`
		Value    []float64 `json:"value"`
	}
	jsonSetting struct {
		Where string `json:"where"`
		Line  string `json:"line"`
	}
	jsonCost struct {
		What  string  `json:"what"`
		Count float64 `json:"count"`
		Each  float64 `json:"bytes_each"`
		Bytes float64 `json:"bytes"`
		Read  bool    `json:"of_this_kernel"`
	}
	jsonGrowth struct {
		Connections float64    `json:"connections"`
		Limits      []jsonStep `json:"limits"`
	}
	jsonStep struct {
		Resource    string  `json:"resource"`
		Item        string  `json:"item"`
		Connections float64 `json:"connections"`
		Now         float64 `json:"now"`
		Limit       float64 `json:"limit"`
		Unit        string  `json:"unit"`
		SetBy       string  `json:"set_by"`
		Effect      string  `json:"effect"`
	}
)

// writePlanJSON writes a document for programs.
func writePlanJSON(out io.Writer, p plan.Plan) error {
	doc := jsonPlan{
		ExitStatus: int(p.Verdict), Verdict: p.Verdict.String(), Headline: headline(p),
		// Empty lists are [], not null.
		Limits: []jsonRow{}, NotMoved: append([]string{}, p.Other...), Memory: []jsonCost{}, Bytes: jsonMemories{p.Kernel, p.Programs},
	}
	if first := p.First(); first != nil {
		doc.First = &first.Resource
	}
	for _, r := range p.Rows {
		row := jsonRow{
			r.Resource, r.Item, r.Verdict.String(), string(r.Unit), r.Now, r.Used, r.Takes, r.Needed,
			[]jsonWrite{},
			[]jsonSetting{},
			r.SetBy(), plainWords(r.Rule), r.Effect,
		}
		for _, w := range r.Writes {
			row.Sysctls = append(row.Sysctls, jsonWrite{w.Name, w.PerNetns, w.Now, w.Value})
		}
		if r.Verdict == plan.Set {
			for _, s := range r.Settings {
				row.Settings = append(row.Settings, jsonSetting{s.Where, fmt.Sprintf(s.Line, r.Needed)})
			}
		}
		doc.Limits = append(doc.Limits, row)
	}
	for _, i := range p.Bill {
		doc.Memory = append(doc.Memory, jsonCost{i.What, i.Count, i.Each, i.Bytes(), i.Read})
	}
	return encode(out, doc)
}

// encode writes a JSON document.
func encode(out io.Writer, doc any) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(doc)
}
