package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/sockpressure/sockpressure_exporter/lab/recording"
	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// print writes a line for people who wait, and the failures below it.
func (v verdict) print(out io.Writer) {
	state := "ok"
	if len(v.failures) > 0 {
		state = "FAILED"
	}
	fmt.Fprintf(out, "%-21s %-25s %-6s %5.1f s  %d/%d scrapes, slowest %.2f s", v.image.name(), v.scenario, state, v.seconds, v.answered, v.steps, v.slowest)
	if v.refusal >= 0 {
		fmt.Fprintf(out, "; step %d: %s; saturation %s", v.refusal, v.refused, ratio(v.saturation))
	}
	if p := v.planned; p != nil {
		fmt.Fprintf(out, "; %d connections held, %.1f MiB where plan said %.1f MiB", p.Connections, p.Measured/(1<<20), p.Predicted/(1<<20))
		for _, c := range p.Cuts {
			fmt.Fprintf(out, "\n    %s %s (%s of it was in use), cut to %s: %s", c.Setting, c.From, ratio(p.Saturation[c.Resource]), c.To, cmp.Or(c.Refused, strings.Join(c.Moved, ", ")))
		}
	}
	for _, t := range v.tried {
		fmt.Fprintf(out, "\n    %s: %s", t.Setting, t.Result)
	}
	fmt.Fprintln(out)
	for _, note := range v.notes {
		fmt.Fprintf(out, "    %s\n", note)
	}
	for i, f := range v.failures {
		if i == 15 {
			fmt.Fprintf(out, "    and %d more\n", len(v.failures)-i)
			break
		}
		fmt.Fprintf(out, "    %s\n", f)
	}
}

func ratio(v float64) string {
	if math.IsNaN(v) {
		return "-"
	}
	return fmt.Sprintf("%.3f", v)
}

// save writes a recording to the folder in which the tests of the alerts look for it.
func save(r *recording.Recording) error {
	dir := filepath.Join("lab", "recordings", r.Kernel)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := r.Write(&b); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, r.Scenario+".txt"), b.Bytes(), 0o644)
}

// printKernels writes a line for each kernel: how many guests passed, and the sum of
// their times. Guests run concurrently, so the sum exceeds the time that passed.
func printKernels(out io.Writer, verdicts []verdict) {
	for _, vs := range byKernel(verdicts) {
		seconds := 0.0
		for _, v := range vs {
			seconds += v.seconds
		}
		fmt.Fprintf(out, "%-21s %-25s %d of %d passed, %.0f s\n", vs[0].image.name(), vs[0].image.release, passed(vs), len(vs), seconds)
	}
}

// byKernel groups verdicts, which are sorted by kernel.
func byKernel(verdicts []verdict) [][]verdict {
	var parts [][]verdict
	for n, v := range verdicts {
		if n == 0 || v.image.name() != verdicts[n-1].image.name() {
			parts = append(parts, nil)
		}
		parts[len(parts)-1] = append(parts[len(parts)-1], v)
	}
	return parts
}

func passed(verdicts []verdict) (n int) {
	for _, v := range verdicts {
		if len(v.failures) == 0 {
			n++
		}
	}
	return n
}

// writeKernels replaces the rows and sections of these verdicts' kernels in
// docs/kernels.md, and keeps those of the lab's other kernels. The messages of all
// kernels come from the recordings below dir.
func writeKernels(path, dir string, verdicts []verdict) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	rows, sections := kernelsParts(string(old))
	for _, vs := range byKernel(verdicts) {
		name := vs[0].image.name()
		sections[name] = kernelSection(vs, sections[name])
		rows[name] = kernelRow(vs[0], sections[name])
	}
	logged, err := readMessages(dir)
	if err != nil {
		return err
	}
	doc, err := kernelsDocument(rows, sections, logged)
	if err != nil {
		return err
	}
	return os.WriteFile(path, doc, 0o644)
}

//go:embed kernels.md.tmpl
var kernelsTemplate string

// kernelsDocument returns docs/kernels.md with the available rows and sections of each
// kernel.
func kernelsDocument(rows, sections map[string]string, logged messages) ([]byte, error) {
	doc, err := template.New("kernels.md.tmpl").Parse(kernelsTemplate)
	if err != nil {
		return nil, err
	}
	parts := struct {
		Rows, Sections []string
		Messages       messages
	}{Messages: logged}
	for _, k := range kernels() {
		parts.Rows = append(parts.Rows, rows[k.name()])
		parts.Sections = append(parts.Sections, sections[k.name()])
	}
	var b bytes.Buffer
	err = doc.Execute(&b, parts)
	return b.Bytes(), err
}

// kernelsParts splits docs/kernels.md into the rows of its first table and its sections,
// by kernel.
func kernelsParts(doc string) (rows, sections map[string]string) {
	rows, sections = map[string]string{}, map[string]string{}
	for n, part := range strings.Split(doc, "\n## ") {
		if n > 0 {
			name, _, _ := strings.Cut(part, "\n")
			sections[name] = "\n## " + strings.TrimSuffix(part, "\n") + "\n"
			continue
		}
		for line := range strings.Lines(part) {
			if row, ok := strings.CutPrefix(line, "| ["); ok {
				name, _, _ := strings.Cut(row, "]")
				rows[name] = line
			}
		}
	}
	return rows, sections
}

// failedMark follows the name of a scenario that failed.
const failedMark = " (failed)"

// kernelRow returns the row of a kernel, with the number of scenarios of its section that
// passed.
func kernelRow(v verdict, section string) string {
	k, order := v.image, "little endian"
	if v.bigEndian {
		order = "big endian"
	}
	all := scenarioRows(section)
	passed := 0
	for name := range all {
		if !strings.HasSuffix(name, failedMark) {
			passed++
		}
	}
	anchor := strings.ReplaceAll(k.name(), ".", "")
	return fmt.Sprintf("| [%s](#%s) | %s | %s, %s | %d KiB | %d of %d |\n", k.name(), anchor, k.release, k.debian, order, k.page, passed, len(all))
}

// scenarioRows returns the rows of a section by their first cell.
func scenarioRows(section string) map[string]string {
	rows := map[string]string{}
	for line := range strings.Lines(section) {
		cells := strings.Split(line, " | ")
		if name, ok := strings.CutPrefix(cells[0], "| "); ok && name != "scenario" {
			rows[name] = line
		}
	}
	return rows
}

// kernelSection returns the section of a kernel: the present results, and for scenarios
// that were not run those of the old section.
func kernelSection(vs []verdict, old string) string {
	rows := scenarioRows(old)
	var b strings.Builder
	fmt.Fprintf(&b, "\n## %s\n\n", vs[0].image.name())
	b.WriteString("| scenario | scrapes answered | slowest, s | first refusal | the program saw | saturation | counters that moved | series equal |\n")
	b.WriteString("|---|---:|---:|---:|---|---:|---|---:|\n")
	for _, v := range vs {
		answered := fmt.Sprintf("%d of %d", v.answered, v.steps)
		if v.missed > 0 {
			answered += fmt.Sprintf(", %d missed before", v.missed)
		}
		refusal, refused := "-", "nothing refused"
		if v.refusal >= 0 {
			refusal, refused = fmt.Sprintf("step %d", v.refusal), v.refused
		}
		name := v.scenario
		delete(rows, name)
		delete(rows, name+failedMark)
		if len(v.failures) > 0 {
			name += failedMark
		}
		rows[name] = fmt.Sprintf("| %s | %s | %.2f | %s | %s | %s | %s | %d |\n",
			name, answered, v.slowest, refusal, refused, ratio(v.saturation), strings.Join(v.moved, ", "), v.agreed)
	}
	for _, s := range scenario.All() {
		b.WriteString(cmp.Or(rows[s.Name], rows[s.Name+failedMark]))
	}
	return b.String()
}
