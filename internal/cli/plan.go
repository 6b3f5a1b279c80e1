package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/alecthomas/kingpin/v2"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/plan"
)

// unplanned is the exit status of plan where there is none.
const unplanned = 3

// The formats of plan, besides formatJSON.
const (
	formatTable  = "table"
	formatSysctl = "sysctl"
)

func planCommand() command {
	var (
		d      plan.Demand
		format string
		given  = map[string]*bool{} // the flags of the demand that stand on the command line
	)
	return command{
		name: "plan",
		help: "Print which limits must be raised to hold a number of TCP connections, to which values, how much memory that takes, and which limit is reached first. Without --connections, print how far the present load can grow. " +
			"Exits with 0 if the host can hold them as it is, 1 if settings must be changed, 2 if it cannot hold them, and 3 on errors.",
		exits:  "exits with 0 if the host can hold the connections as it is, with 1 if settings must be changed, with 2 if it cannot hold them, and with 3 on errors.",
		failed: unplanned,
		define: func(cmd *kingpin.CmdClause) {
			ask := func(name, help string) *kingpin.FlagClause {
				given[name] = new(bool)
				return cmd.Flag(name, help).IsSetByUser(given[name])
			}
			ask("connections", "TCP connections open at the same time.").Int64Var(&d.Connections)
			ask("outbound", "How many of the connections the host opens itself.").Int64Var(&d.Outbound)
			ask("destinations", "Number of pairs of a local address and a destination (address and port) over which outbound connections are spread evenly.").Int64Var(&d.Destinations)
			ask("opens-per-second", "Connections opened per second.").Int64Var(&d.Opens)
			ask("closes-per-second", "Connections per second that the host closes first.").Int64Var(&d.Closes)
			ask("unread", "Unread data in each connection, for example 4KiB.").SetValue((*size)(&d.Unread))
			ask("processes", "Number of processes over which the connections are spread evenly.").Default("1").Int64Var(&d.Processes)
			ask("listen-pause", "Longest time during which the program does not accept connections, for example 100ms.").DurationVar(&d.Pause)
			ask("tls", "The programs use TLS: include the memory that it takes.").BoolVar(&d.TLS)
			ask("proxy", "The host opens another connection for each one that it accepts.").BoolVar(&d.Proxy)
			ask("loopback", "Both ends of each connection are on the host.").BoolVar(&d.Loopback)
			ask("memory", "Memory of the host, for example 64GiB, if different from this one's.").SetValue((*size)(&d.Memory))
			ask("application-memory", "Memory of all programs, excluding TLS.").SetValue((*size)(&d.ApplicationMemory))
			flag := cmd.Flag("format", "Output format: table; sysctl, a file for /etc/sysctl.d; or json.").Default(formatTable)
			flag.EnumVar(&format, formatTable, formatSysctl, formatJSON)
			offer(flag, formatTable, formatSysctl, formatJSON)
		},
		run: func(ctx context.Context, c *config, std streams) (int, error) {
			asked, err := checkDemand(d, given, format)
			if err != nil {
				return unplanned, err
			}
			c.sampleInterval = 0
			machine, set, err := c.open(std.in, slog.New(slog.DiscardHandler))
			if err != nil {
				return unplanned, err
			}
			defer closeSet(set)
			ctx, cancel := context.WithTimeout(ctx, planTime)
			defer cancel()
			facts, err := plan.Read(ctx, machine, set)
			if err != nil {
				return unplanned, err
			}
			var out bytes.Buffer
			status := 0
			if asked {
				p := plan.Make(d, facts)
				status, err = int(p.Verdict), writePlan(&out, p, format)
			} else {
				err = writeGrowth(&out, plan.Grow(facts), format)
			}
			if err == nil {
				_, err = std.out.Write(out.Bytes())
			}
			return status, err
		},
	}
}

// planTime is how long the readings may take. A walk over millions of sockets takes
// seconds, and unlike check this is not run by monitoring.
const planTime = 30 * time.Second

// checkDemand reports whether something is asked for, and returns an error for what
// cannot be.
func checkDemand(d plan.Demand, given map[string]*bool, format string) (asked bool, err error) {
	if !*given["connections"] {
		for _, name := range slices.Sorted(maps.Keys(given)) {
			if *given[name] {
				return false, fmt.Errorf("--%s needs --connections", name)
			}
		}
		if format == formatSysctl {
			return false, errors.New("--format=sysctl needs --connections")
		}
		return false, nil
	}
	counts := map[string]int64{
		"outbound": d.Outbound, "destinations": d.Destinations, "opens-per-second": d.Opens, "closes-per-second": d.Closes, "unread": d.Unread,
		"listen-pause": int64(d.Pause), "memory": d.Memory, "application-memory": d.ApplicationMemory,
	}
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if *given[name] && counts[name] == 0 {
			return false, fmt.Errorf("--%s=0 has no effect, omit it", name)
		}
	}
	return true, d.Validate()
}

// size is a number of bytes on the command line.
type size int64

// Set reads a whole number with a unit or none.
func (s *size) Set(text string) error {
	digits := strings.TrimRight(text, "KMGTiB")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return errors.New("not a size such as 4096, 4KiB or 64GiB")
	}
	shift, ok := map[string]int{"": 0, "B": 0, "K": 10, "KiB": 10, "M": 20, "MiB": 20, "G": 30, "GiB": 30, "T": 40, "TiB": 40}[text[len(digits):]]
	if !ok {
		return fmt.Errorf("unknown unit %q, want a size such as 4096, 4KiB or 64GiB", text[len(digits):])
	}
	if n > math.MaxInt64>>shift || n < 0 {
		return errors.New("out of range")
	}
	*s = size(n << shift)
	return nil
}

func (s *size) String() string { return strconv.FormatInt(int64(*s), 10) }

// writePlan writes a plan in a format.
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

// asks returns what is requested, as flags.
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

// headline returns the result of a plan in a sentence.
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

// cannotBe is the most that a limit can be.
func cannotBe(r plan.Row) float64 {
	if r.Fixed {
		return r.Now
	}
	return r.Most
}

// bytesOr writes a number in a row's unit.
func bytesOr(r plan.Row, v float64) string {
	if r.Unit == collector.Bytes {
		return collector.LimitReading{LimitInfo: r.LimitInfo}.Format(v)
	}
	if v >= 1<<62 {
		return "none"
	}
	return plan.Group(v)
}

// memoryLine returns how much memory the plan takes, in a sentence.
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

// plainWords leaves the marks of code out of a text.
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
