// Package recording reads and writes the lab's recordings: the pages of one scenario on
// one kernel, step by step, and the step at which the kernel first refused. The format is
// described in lab/recordings/README.md.
package recording

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Recording is a recording of a scenario on one kernel.
type Recording struct {
	Kernel   string // as named by the lab, "6.1"
	Release  string // uname -r
	Scenario string
	Resource string // the limit it drives, empty if none
	Steps    int
	Refusal  int    // the step of the first refusal, -1 if there was none
	Refused  string // what the program under load saw then
	Log      []Line
	Series   []Series // sorted by name
}

// Line is a line of the kernel's log.
type Line struct {
	Step int
	Text string
}

// Series is a metric with its labels, as on the page, and its value at each step, NaN if
// it was absent.
type Series struct {
	Name   string
	Values []float64
}

// Get returns the values of a series, nil if there is none.
func (r *Recording) Get(name string) []float64 {
	for _, s := range r.Series {
		if s.Name == name {
			return s.Values
		}
	}
	return nil
}

// Read reads a recording from a file.
func Read(path string) (*Recording, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// Parse parses a recording.
func Parse(b []byte) (*Recording, error) {
	r := &Recording{Refusal: -1}
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		if err := r.parseLine(lines.Text()); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if r.Steps == 0 || len(r.Series) == 0 {
		return nil, errors.New("no steps or no series")
	}
	return r, nil
}

func (r *Recording) parseLine(line string) error {
	switch {
	case line == "", strings.HasPrefix(line, "#"):
		return nil
	case strings.HasPrefix(line, "sockpressure_"):
		// A label value may have a space, the values cannot have a brace.
		at := strings.LastIndex(line, "}") + 1
		space := strings.Index(line[at:], " ")
		if space < 0 {
			return errors.New("a series without values")
		}
		name, notation := line[:at+space], line[at+space+1:]
		values, err := expand(notation)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if len(values) != r.Steps {
			return fmt.Errorf("%s: %d values for %d steps", name, len(values), r.Steps)
		}
		r.Series = append(r.Series, Series{name, values})
		return nil
	}
	key, value, ok := strings.Cut(line, ": ")
	if !ok {
		return fmt.Errorf("%q is no series, no comment and no \"key: value\"", line)
	}
	var err error
	switch key {
	case "kernel":
		r.Kernel = value
	case "release":
		r.Release = value
	case "scenario":
		r.Scenario = value
	case "resource":
		r.Resource = value
	case "steps":
		r.Steps, err = strconv.Atoi(value)
	case "refusal":
		r.Refusal, err = strconv.Atoi(value)
	case "refused":
		r.Refused = value
	case "log":
		step, text, _ := strings.Cut(value, " ")
		l := Line{Text: text}
		l.Step, err = strconv.Atoi(step)
		r.Log = append(r.Log, l)
	default:
		err = fmt.Errorf("unknown key %q", key)
	}
	return err
}

// Write writes the recording in the format that Parse reads.
func (r *Recording) Write(w io.Writer) error {
	b := new(bytes.Buffer)
	fmt.Fprintf(b, "kernel: %s\nrelease: %s\nscenario: %s\n", r.Kernel, r.Release, r.Scenario)
	if r.Resource != "" {
		fmt.Fprintf(b, "resource: %s\n", r.Resource)
	}
	fmt.Fprintf(b, "steps: %d\n", r.Steps)
	if r.Refusal >= 0 {
		fmt.Fprintf(b, "refusal: %d\nrefused: %s\n", r.Refusal, r.Refused)
	}
	for _, l := range r.Log {
		fmt.Fprintf(b, "log: %d %s\n", l.Step, l.Text)
	}
	b.WriteByte('\n')
	for _, s := range slices.SortedFunc(slices.Values(r.Series), func(a, b Series) int { return strings.Compare(a.Name, b.Name) }) {
		fmt.Fprintf(b, "%s %s\n", s.Name, Notation(s.Values))
	}
	_, err := w.Write(b.Bytes())
	return err
}

// Notation formats values like the input_series of promtool's unit tests: "1", "1+2x3"
// for 1 3 5 7, "_x2" for two steps without a value.
func Notation(values []float64) string {
	var b strings.Builder
	for i := 0; i < len(values); {
		if i > 0 {
			b.WriteByte(' ')
		}
		n := 1
		if math.IsNaN(values[i]) {
			for i+n < len(values) && math.IsNaN(values[i+n]) {
				n++
			}
			if n == 1 {
				b.WriteByte('_')
			} else {
				fmt.Fprintf(&b, "_x%d", n)
			}
			i += n
			continue
		}
		step := 0.0
		if i+1 < len(values) {
			step = values[i+1] - values[i]
		}
		for i+n < len(values) && values[i]+float64(n)*step == values[i+n] && exact(values[i], step) {
			n++
		}
		b.WriteString(number(values[i]))
		// Two values are shorter by themselves.
		if n > 2 {
			sign := "+"
			if math.Signbit(step) {
				sign = ""
			}
			fmt.Fprintf(&b, "%s%sx%d", sign, number(step), n-1)
			i += n
		} else {
			i++
		}
	}
	return b.String()
}

// exact reports whether adding up such values involves no rounding.
func exact(first, step float64) bool {
	return step == 0 || first == math.Trunc(first) && step == math.Trunc(step)
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// expand parses what Notation returns.
func expand(notation string) ([]float64, error) {
	var values []float64
	for item := range strings.FieldsSeq(notation) {
		run, times, isRun := strings.Cut(item, "x")
		n := 0
		if isRun {
			var err error
			if n, err = strconv.Atoi(times); err != nil || n < 1 || n > 1<<20 {
				return nil, fmt.Errorf("%q has no number of values", item)
			}
		}
		if run == "_" {
			for range max(n, 1) {
				values = append(values, math.NaN())
			}
			continue
		}
		first, step := run, "0"
		if isRun {
			// The sign of the step comes after the first digit of the first value.
			at := strings.LastIndexAny(run, "+-")
			if at < 1 {
				return nil, fmt.Errorf("%q has no step", item)
			}
			first, step = run[:at], run[at:]
		}
		v, err := strconv.ParseFloat(first, 64)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", item, err)
		}
		d, err := strconv.ParseFloat(step, 64)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", item, err)
		}
		for i := range n + 1 {
			values = append(values, v+float64(i)*d)
		}
	}
	return values, nil
}
