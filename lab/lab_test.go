package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/lab/recording"
	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

func TestNewest(t *testing.T) {
	packages := []string{
		"linux-image-5.10.0-9-amd64", "linux-image-5.10.0-32-amd64", "linux-image-5.10.0-33-cloud-amd64", "linux-image-5.10.0-33-amd64-dbg",
		"linux-image-6.1.0-50-amd64", "linux-image-6.12.9+deb13-arm64", "linux-image-6.12.107+deb13-arm64", "linux-image-6.12.108+deb13-arm64-16k",
		"linux-image-6.12.108+deb13-rt-arm64", "linux-image-6.12.95+deb12-powerpc64le", "linux-image-6.12.95+deb12-powerpc64le-64k",
		"linux-image-7.3-amd64", "linux-image-amd64",
	}
	for want, k := range map[string]kernel{
		"linux-image-5.10.0-32-amd64":               {version: "5.10", flavour: "amd64"},
		"linux-image-6.1.0-50-amd64":                {version: "6.1", flavour: "amd64"},
		"linux-image-6.12.107+deb13-arm64":          {version: "6.12", flavour: "arm64"},
		"linux-image-6.12.108+deb13-arm64-16k":      {version: "6.12", flavour: "arm64-16k"},
		"linux-image-6.12.95+deb12-powerpc64le-64k": {version: "6.12", flavour: "powerpc64le-64k"},
		"linux-image-7.3-amd64":                     {version: "7.3", flavour: "amd64"},
		"":                                          {version: "6.2", flavour: "amd64"},
	} {
		if got := k.newest(packages); got != want {
			t.Errorf("%s of %s: %q, want %q", k.version, k.flavour, got, want)
		}
	}
}

func TestPlan(t *testing.T) {
	written := func(trips []trip) string {
		var b strings.Builder
		for _, trip := range trips {
			fmt.Fprintf(&b, "%s: %s\n", trip.kernel.name(), names(trip.scenarios, scenarioName))
		}
		return b.String()
	}
	short := slices.DeleteFunc(scenario.All(), func(s scenario.Scenario) bool { return s.Prometheus })
	whole := names(short, scenarioName)
	ordinary := names(slices.DeleteFunc(short, func(s scenario.Scenario) bool { return s.HighMemory }), scenarioName)
	for _, test := range []struct{ kernels, scenarios, want string }{
		{"6.18", "", "6.18: " + ordinary + "\n"},
		{"6.1-686-pae,6.12-arm64", "all", "6.1-686-pae: " + whole + "\n6.12-arm64: " + ordinary + "\n"},
		{"6.12-arm64,6.1-686-pae", "low_memory", "6.1-686-pae: low_memory\n"},
		{"7.2-riscv64", "idle,busy", "7.2-riscv64: idle,busy\n"},
		{"6.18", "between_scrapes", "6.18: between_scrapes\n"},
		{"6.18", "low_memory", ""},
		{"sid", "", ""},
		{"6.12", "nothing", ""},
		{"6.12,", "", ""},
	} {
		trips, err := plan(test.kernels, test.scenarios)
		if got := written(trips); got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("--kernels=%q --scenarios=%q: %v\n%swant\n%s", test.kernels, test.scenarios, err, got, test.want)
		}
	}

	all, err := plan(everything, "")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(all), len(kernels()); got != want {
		t.Errorf("--kernels=all is %d kernels, want %d", got, want)
	}
	// CI covers every limit, both byte orders and a page size other than 4 KiB.
	ci, err := plan("", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"5.10: " + ordinary, "6.1-686-pae: " + whole, "6.12-arm64: tcp_memory", "6.12-s390x: tcp_memory", "6.12-powerpc64le-64k: tcp_memory"} {
		if !strings.Contains("\n"+written(ci), "\n"+line+"\n") {
			t.Errorf("CI does not run %s, but\n%s", line, written(ci))
		}
	}
	if again, err := plan("", everything); err != nil || len(again) != len(ci) {
		t.Errorf("--scenarios=all is %d of CI's %d kernels (%v)", len(again), len(ci), err)
	}
}

// TestRecords checks that lab/recordings and docs/kernels.md agree with the lab's kernels.
func TestRecords(t *testing.T) {
	files, err := filepath.Glob("recordings/*/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../docs/kernels.md")
	if err != nil {
		t.Fatal(err)
	}
	rows, sections := kernelsParts(string(doc))
	logged, err := readMessages("recordings")
	if err != nil {
		t.Fatal(err)
	}
	if written, err := kernelsDocument(rows, sections, logged); err != nil || !bytes.Equal(doc, written) {
		t.Errorf("docs/kernels.md is not what the lab writes of the same kernels (%v)", err)
	}
	for _, k := range kernels() {
		if rows[k.name()] == "" || sections[k.name()] == "" {
			t.Errorf("docs/kernels.md does not have %s: go run ./lab --record --kernels=%[1]s", k.name())
		}
		delete(rows, k.name())
		delete(sections, k.name())
		for _, s := range scenario.All() {
			if !k.runs(s) || !k.records(s) {
				continue
			}
			path := filepath.Join("recordings", k.name(), s.Name+".txt")
			r, err := recording.Read(path)
			if err != nil {
				t.Errorf("%v: go run ./lab --record --kernels=%s", err, k.name())
				continue
			}
			if r.Kernel != k.name() || r.Scenario != s.Name {
				t.Errorf("%s is of %s/%s", path, r.Kernel, r.Scenario)
			}
			files = slices.DeleteFunc(files, func(file string) bool { return file == path })
		}
	}
	if len(files) > 0 {
		t.Errorf("unknown recordings: %s", files)
	}
	if len(rows)+len(sections) > 0 {
		t.Errorf("docs/kernels.md has unknown kernels: %v", rows)
	}
}

// TestWriteKernels checks that writing one kernel leaves the others unchanged.
func TestWriteKernels(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kernels.md")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ks := kernels()
	of := func(n int, release string) verdict {
		return verdict{image: image{kernel: ks[n], release: release}, scenario: "idle", refusal: -1}
	}
	write := func(verdicts ...verdict) string {
		if err := writeKernels(path, "recordings", verdicts); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	whole := write(of(0, "a"), of(1, "b"), of(2, "c"))
	if got := write(of(1, "b")); got != whole {
		t.Errorf("one kernel written again changes others: %s", got)
	}
	want := strings.Replace(whole, " b |", " d |", 1)
	if got := write(of(1, "d")); got != want || got == whole {
		t.Errorf("another release of a kernel: got\n%s\nwant\n%s", got, want)
	}

	// A single scenario is added to those of earlier runs.
	busy := of(1, "d")
	busy.scenario, busy.failures = "busy", []string{"it failed"}
	got := write(busy)
	for _, row := range []string{"| d | amd64, little endian | 4 KiB | 1 of 2 |", "\n| idle | 0 of 0 |", "\n| busy (failed) | 0 of 0 |"} {
		if !strings.Contains(got, row) {
			t.Errorf("%q is missing in\n%s", row, got)
		}
	}
	busy.failures = nil
	if got = write(busy); !strings.Contains(got, "| 2 of 2 |") || strings.Contains(got, failedMark) {
		t.Errorf("a scenario that failed before is not updated:\n%s", got)
	}
}
