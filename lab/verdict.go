package main

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/lab/recording"
	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// recording converts the pages of the steps to a recording. The durations of collectors
// are left out: they only show how fast the emulator is.
func (o *outcome) recording() (*recording.Recording, error) {
	r := &recording.Recording{
		Kernel: o.image.name(), Release: o.image.release, Scenario: o.scenario.Name, Resource: o.scenario.Resource,
		Steps: len(o.steps), Refusal: -1,
	}
	series := map[string][]float64{}
	logged := map[string]bool{}
	for n, s := range o.steps {
		for line := range strings.Lines(s.Page) {
			at := strings.LastIndexByte(line, ' ')
			name := line[:max(at, 0)]
			if strings.HasPrefix(name, "sockpressure_scrape_collector_duration_seconds") || strings.HasPrefix(name, "sockpressure_exporter_build_info") {
				continue
			}
			v, err := strconv.ParseFloat(strings.TrimSpace(line[at+1:]), 64)
			if err != nil {
				return nil, fmt.Errorf("step %d: %w", n, err)
			}
			if series[name] == nil {
				series[name] = slices.Repeat([]float64{math.NaN()}, len(o.steps))
			}
			series[name][n] = round(v)
		}
		if s.Refused != "" && r.Refusal < 0 {
			r.Refusal, r.Refused = n, s.Refused
		}
		for _, text := range s.Log {
			if !logged[text] && len(r.Log) < 20 {
				logged[text] = true
				r.Log = append(r.Log, recording.Line{Step: n, Text: text})
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(series)) {
		r.Series = append(r.Series, recording.Series{Name: name, Values: series[name]})
	}
	return r, nil
}

// round keeps whole numbers, and rounds others to six digits.
func round(v float64) float64 {
	if v == math.Trunc(v) {
		return v
	}
	v, _ = strconv.ParseFloat(strconv.FormatFloat(v, 'g', 6, 64), 64)
	return v
}

// verdict is a row of the table.
type verdict struct {
	image                   image
	scenario                string
	bigEndian               bool
	seconds                 float64
	answered, missed, steps int
	slowest                 float64 // scrape, in seconds
	refusal                 int
	refused                 string
	saturation              float64 // at the refusal, NaN if there is none
	moved                   []string
	agreed                  int
	failures                []string
	notes                   []string // for people who wait
	hung                    bool     // it had to be stopped
	planned                 *scenario.Planned
	tried                   []scenario.Tried
}

// planTolerance is how much the memory of a plan may differ from what was used.
const planTolerance = 0.1

// judgePlan requires that a guest with the settings of the plan holds the planned load,
// in the memory that the plan says, and that it refuses as each row says once the row's
// value is reduced by a third.
func judgePlan(o *outcome) verdict {
	p := o.planned
	v := verdict{image: o.image, scenario: o.scenario.Name, bigEndian: o.bigEndian, seconds: o.seconds, refusal: -1, planned: p}
	fail := func(format string, args ...any) { v.failures = append(v.failures, fmt.Sprintf(format, args...)) }
	if p == nil {
		fail("the guest reported no plan")
		return v
	}
	if p.Refused != "" || len(p.Moved) > 0 {
		fail("%d connections: %q was refused, and %v moved, with\n%s", p.Connections, p.Refused, p.Moved, p.File)
	}
	if off := p.Predicted/p.Measured - 1; !(math.Abs(off) <= planTolerance) {
		fail("the connections took %.1f MiB, and plan said %.1f MiB (%+.0f %%)", p.Measured/(1<<20), p.Predicted/(1<<20), 100*off)
	}
	if len(p.Cuts) < leastCuts {
		fail("only %d values had to be set", len(p.Cuts))
	}
	for _, c := range p.Cuts {
		if !c.Named {
			fail("%s %s in place of %s: %q, and %v moved, which is not what %s is to refuse", c.Setting, c.To, c.From, c.Refused, c.Moved, c.Resource)
		}
	}
	return v
}

// judgeTuning requires that settings have the effects that docs/million.md describes.
func judgeTuning(o *outcome) verdict {
	v := verdict{image: o.image, scenario: o.scenario.Name, bigEndian: o.bigEndian, seconds: o.seconds, refusal: -1, tried: o.tried}
	if len(o.tried) == 0 {
		v.failures = append(v.failures, "the guest tried nothing")
	}
	for _, t := range o.tried {
		if t.Wrong {
			v.failures = append(v.failures, "not as docs/million.md says: "+t.Setting+": "+t.Result)
		}
	}
	return v
}

// leastCuts is the minimum number of limits that guests must try with a reduced value.
const leastCuts = 8

// judge compares what a guest reported with what its scenario requires.
func judge(o *outcome, r *recording.Recording) verdict {
	s := o.scenario
	v := verdict{
		image: o.image, scenario: s.Name, bigEndian: o.bigEndian, seconds: o.seconds, steps: len(o.steps),
		refusal: r.Refusal, refused: r.Refused, saturation: math.NaN(), agreed: o.done.Agreed, notes: o.notes,
	}
	fail := func(format string, args ...any) { v.failures = append(v.failures, fmt.Sprintf(format, args...)) }

	for n, step := range o.steps {
		v.slowest = max(v.slowest, step.Seconds)
		v.missed += step.Missed
		if step.Silent == "" {
			v.answered++
		} else {
			fail("step %d: no answer: %s", n, step.Silent)
		}
		if step.Missed > 0 && !o.mayMiss(n, r.Refusal) {
			fail("step %d: %d scrapes were not answered in time", n, step.Missed)
		}
		for _, d := range step.Differ {
			fail("step %d: %s", n, d)
		}
	}
	if s.Who != "" && v.refusal >= 0 {
		if err := firstIs(o.steps[v.refusal].Who, s.Who); err != nil {
			fail("who %s: %v%s", s.Resource, err, o.steps[v.refusal].NoWho)
		}
	}
	for _, series := range o.done.Never {
		fail("never equal to what the guest read: %s", series)
	}
	for _, message := range o.done.Miscounted {
		fail("not as often as the kernel logged it: %s", message)
	}
	switch s.Name {
	case "log_forged":
		judgeForged(r, fail)
	case "log_flood":
		judgeFloods(o.done.Floods, fail)
		for _, f := range o.done.Floods {
			v.notes = append(v.notes, fmt.Sprintf("flood by %s: %.0f records/s for %.0f s, %.1f %% lost; %.2f %% of a processor, %.2f %% before; %.0f of %.0f lines counted",
				f.Writer, f.Records/f.Seconds, f.Seconds, 100*f.Lost/f.Records, 100*f.Share, 100*f.Rest, f.Counted, f.Logged))
		}
	}
	if v.refusal < 0 && !s.Healthy {
		fail("the kernel refused nothing")
	}
	if s.Resource != "" && v.refusal >= 0 {
		// What a process held that was killed is already free at the end of that step.
		if ratio := r.Get(saturationOf(s.Resource)); ratio != nil {
			v.saturation = ratio[v.refusal]
			if before := ratio[max(v.refusal-1, 0)]; before > v.saturation {
				v.saturation = before
			}
		}
		if !(v.saturation >= s.Saturation) {
			fail("saturation is %v at the first refusal, below %v", v.saturation, s.Saturation)
		}
	}
	for _, counter := range s.Counters {
		if family, _, _ := strings.Cut(counter, "{"); o.image.lacks(family) {
			continue
		}
		if !rose(r, "sockpressure_"+counter) {
			fail("%s did not rise", counter)
			continue
		}
		values := r.Get("sockpressure_" + counter)
		v.moved = append(v.moved, fmt.Sprintf("%s +%.0f", counter, values[len(values)-1]-values[0]))
	}
	for _, labels := range s.Netns {
		series := "sockpressure_netns_saturation_ratio{" + labels + "}"
		if values := r.Get(series); !slices.ContainsFunc(values, func(v float64) bool { return v >= 1 }) {
			fail("%s does not reach 1, but is %v", series, values)
		}
	}
	if lines := s.LogLines(); len(lines) > 0 && !slices.ContainsFunc(r.Log, func(l recording.Line) bool { return matchesAny(l.Text, lines) }) {
		fail("the kernel did not log %q", lines)
	} else if len(lines) > 0 && !slices.ContainsFunc(lines, func(l collector.LogLine) bool { return rose(r, counterOf(l)) }) {
		fail("what the kernel logged was not counted: %q", lines)
	}
	if s.Name == "low_memory" && v.refusal >= 0 {
		judgeLowMemory(r, fail)
	}
	judgeContract(o, r, fail)
	return v
}

// judgeForged requires that only the line that the kernel itself must write is counted.
func judgeForged(r *recording.Recording, fail func(string, ...any)) {
	for _, lines := range logLines() {
		series := counterOf(lines[0])
		if values := r.Get(series); values == nil || rose(r, series) && lines[0].Message != "conntrack_table_full" {
			fail("%s is %v", series, values)
		}
	}
}

// judgeFloods requires that a flood costs little, and that what was missed is reported.
// The exporter is designed to use less than 5 % of a processor; one that read as fast as
// it could would use all of it. A guest charges it with what other programs use of the
// machine while it runs, so the bound is well above the former and below the latter.
func judgeFloods(floods []scenario.Flood, fail func(string, ...any)) {
	if len(floods) == 0 {
		fail("there was no flood")
	}
	for _, f := range floods {
		if cost := f.Share - f.Rest; !(cost <= 0.1) {
			fail("a flood cost %.1f %% of a processor: %+v", 100*cost, f)
		}
		if !(f.Lost > 0 && f.Lost < f.Records) {
			fail("of %.0f records %.0f were said to be lost: %+v", f.Records, f.Lost, f)
		}
		if !(f.Counted > 0 && f.Counted <= f.Logged) {
			fail("of %.0f lines %.0f were counted: %+v", f.Logged, f.Counted, f)
		}
	}
}

// firstIs returns an error unless the first row of a table of the command who matches a
// pattern.
func firstIs(table, pattern string) error {
	lines := strings.Split(table, "\n")
	first := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "SHARE ") }) + 1
	if first == 0 {
		return fmt.Errorf("it has no table: %q ", table)
	}
	if !regexp.MustCompile("  " + pattern + "(  |$)").MatchString(lines[first]) {
		return fmt.Errorf("the first is %q, want %q ", lines[first], pattern)
	}
	return nil
}

func counterOf(l collector.LogLine) string {
	return fmt.Sprintf("sockpressure_kernel_messages_total{message=%q}", l.Message)
}

func rose(r *recording.Recording, series string) bool {
	values := r.Get(series)
	return values != nil && values[len(values)-1] > values[0]
}

func matchesAny(text string, lines []collector.LogLine) bool {
	return slices.ContainsFunc(lines, func(l collector.LogLine) bool { return l.Matches(text) })
}

// mayMiss reports whether scrapes may be missed because TCP is out of memory and the
// kernel has nothing left for an answer: until Linux 6.0 a socket has no guaranteed
// minimum for sending, and over loopback the other end lacks memory too.
func (o *outcome) mayMiss(step, refusal int) bool {
	return o.image.before("6.0") && o.scenario.Name == "tcp_memory" && refusal >= 0 && step >= refusal
}

func saturationOf(resource string) string {
	return fmt.Sprintf("sockpressure_saturation_ratio{resource=%q}", resource)
}

// judgeLowMemory requires that the machine looks healthy by the usual metrics.
func judgeLowMemory(r *recording.Recording, fail func(string, ...any)) {
	for _, name := range []string{"memory_low_total_bytes", "memory_low_free_bytes", "memory_high_total_bytes", "memory_high_free_bytes"} {
		if r.Get("sockpressure_"+name) == nil {
			fail("no %s", name)
		}
	}
	// The step before the kill: what the process held is free after it.
	at := r.Refusal - 1
	available, total := r.Get("sockpressure_memory_available_bytes")[at], r.Get("sockpressure_memory_total_bytes")[at]
	if share := available / total; !(share > 0.3) {
		fail("only %.0f percent of memory was available before the OOM kill", 100*share)
	}
}

// judgeContract requires every metric on every kernel that has it, and no collector that
// is not supported: these kernels have everything.
func judgeContract(o *outcome, r *recording.Recording, fail func(string, ...any)) {
	for _, s := range r.Series {
		name, ok := strings.CutPrefix(s.Name, "sockpressure_scrape_collector_supported")
		// Neighbours are counted only in the machine's initial network namespace.
		if !ok || o.scenario.Name == "conntrack_entries_netns" && strings.Contains(name, "neighbour") {
			continue
		}
		if n := slices.Index(s.Values, 0); n >= 0 {
			fail("step %d: not supported: %s", n, name)
		}
	}
	if o.scenario.Name != "idle" {
		return
	}
	has := map[string]bool{}
	for _, s := range r.Series {
		family, _, _ := strings.Cut(s.Name, "{")
		has[family] = true
	}
	for _, spec := range collector.Specs() {
		for _, m := range spec.Metrics {
			if !has["sockpressure_"+m.Name] && !o.image.lacks(m.Name) {
				fail("no metric %s", m.Name)
			}
		}
	}
}
