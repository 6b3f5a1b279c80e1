package main

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

// messages is what the kernels' logs contained in the lab, by message.
type messages struct {
	// Kernels are those of which every scenario is recorded.
	Kernels []string
	Rows    []messageRow
	// Unmet are the messages that no kernel logged.
	Unmet []string
}

// messageRow is a wording of a message, and the number of scenarios in which each kernel
// logged it.
type messageRow struct {
	Message, Wording string
	Scenarios        []int
}

// readMessages counts the messages in the recordings below dir.
func readMessages(dir string) (messages, error) {
	var m messages
	count := map[[2]string][]int{} // by message and wording
	for _, k := range kernels() {
		if k.whole() {
			m.Kernels = append(m.Kernels, k.name())
		}
	}
	lines := logLines()
	for at, name := range m.Kernels {
		files, err := filepath.Glob(filepath.Join(dir, name, "*.txt"))
		if err != nil {
			return m, err
		}
		for _, file := range files {
			r, err := recording.Read(file)
			if err != nil {
				return m, err
			}
			seen := map[[2]string]bool{}
			for _, logged := range r.Log {
				for _, message := range slices.Sorted(maps.Keys(lines)) {
					if slices.ContainsFunc(lines[message], func(l collector.LogLine) bool { return l.Matches(logged.Text) }) {
						seen[[2]string{message, wording(logged.Text)}] = true
						break // the OOM killer's line is the same for the machine and a cpuset
					}
				}
			}
			for key := range seen {
				if count[key] == nil {
					count[key] = make([]int, len(m.Kernels))
				}
				count[key][at]++
			}
		}
	}
	met := map[string]bool{}
	for _, key := range slices.SortedFunc(maps.Keys(count), func(a, b [2]string) int { return strings.Compare(a[0]+" "+a[1], b[0]+" "+b[1]) }) {
		m.Rows = append(m.Rows, messageRow{key[0], key[1], count[key]})
		met[key[0]] = true
	}
	for _, message := range slices.Sorted(maps.Keys(lines)) {
		if !met[message] {
			m.Unmet = append(m.Unmet, message)
		}
	}
	return m, nil
}

// logLines returns all lines that the exporter looks for, by message.
func logLines() map[string][]collector.LogLine {
	lines := map[string][]collector.LogLine{}
	add := func(all []collector.LogLine) {
		for _, line := range all {
			lines[line.Message] = append(lines[line.Message], line)
		}
	}
	for _, spec := range collector.Specs() {
		add(spec.LogLines)
		for _, limit := range spec.Limits {
			add(limit.LogLines)
		}
	}
	return lines
}

// wording returns the text of a line without the parts that differ between hosts.
func wording(text string) string {
	if process, _, ok := strings.Cut(text, " total-vm:"); ok {
		text = process + " ..."
	}
	text = regexp.MustCompile(`[0-9a-f:.]*[0-9][0-9a-f:.]*[0-9a-f]|\d`).ReplaceAllString(text, "N")
	return regexp.MustCompile(`\((\w+)\)`).ReplaceAllString(text, "(NAME)")
}

// Counts returns the cells of the row.
func (r messageRow) Counts() string {
	cells := make([]string, len(r.Scenarios))
	for i, n := range r.Scenarios {
		if cells[i] = strconv.Itoa(n); n == 0 {
			cells[i] = "-"
		}
	}
	return strings.Join(cells, " | ")
}
