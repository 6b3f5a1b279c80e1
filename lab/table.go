package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

// print writes a line for people who wait, and what failed below it.
func (v verdict) print(out io.Writer) {
	state := "ok"
	if len(v.failures) > 0 {
		state = "FAILED"
	}
	fmt.Fprintf(out, "%-12s %-25s %-6s %5.1f s  %d/%d scrapes, slowest %.2f s", v.kernel, v.scenario, state, v.seconds, v.answered, v.steps, v.slowest)
	if v.refusal >= 0 {
		fmt.Fprintf(out, "; step %d: %s; saturation %s", v.refusal, v.refused, ratio(v.saturation))
	}
	fmt.Fprintln(out)
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

// save writes a recording where the tests of the alerts look for it.
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

// writeKernels writes docs/kernels.md.
func writeKernels(path string, verdicts []verdict) error {
	var b strings.Builder
	b.WriteString("# Kernels\n")
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
