package collector

import (
	"log/slog"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// runningKernel opens the kernel that the benchmark runs on.
func runningKernel(b *testing.B) *Kernel {
	b.Helper()
	k, err := OpenKernel("/proc", "/sys", 10)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(k.Close)
	return k
}

// BenchmarkScrape reads every collector of this machine and gathers the result,
// all that a scrape does but to write and compress the page. Every walk is fresh.
func BenchmarkScrape(b *testing.B) {
	set := NewSet(runningKernel(b), Specs(), Config{MaxCPU: 0, Logger: slog.New(slog.DiscardHandler)})
	b.ReportAllocs()
	for b.Loop() {
		registry := prometheus.NewRegistry()
		registry.MustRegister(set.Collector(set.Read(b.Context(), All)))
		if _, err := registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCollector reads each collector of this machine alone.
func BenchmarkCollector(b *testing.B) {
	for _, spec := range Specs() {
		b.Run(spec.Name, func(b *testing.B) {
			read := spec.open(runningKernel(b))
			if _, err := read(b.Context()); err != nil {
				b.Skip(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := read(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
