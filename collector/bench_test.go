package collector

import (
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// BenchmarkScrape reads every collector of this machine and gathers the result, which is all
// of a scrape except writing and compressing the page. Every walk is repeated.
func BenchmarkScrape(b *testing.B) {
	set := NewSet(machine(b, running()), Specs(), Config{MaxCPU: 0, Top: 10, Logger: slog.New(slog.DiscardHandler)})
	defer closeSet(b, set)
	b.ReportAllocs()
	for b.Loop() {
		registry := prometheus.NewRegistry()
		registry.MustRegister(set.Read(b.Context(), Query{}).Collector())
		if _, err := registry.Gather(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCollector reads each collector of this machine separately.
func BenchmarkCollector(b *testing.B) {
	for _, spec := range Specs() {
		b.Run(spec.Name, func(b *testing.B) {
			read := spec.open(scope(b, running()))
			if _, err := read(b.Context(), nil); err != nil {
				b.Skip(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := read(b.Context(), nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSample takes samples of each collector of this machine separately, as between
// scrapes.
func BenchmarkSample(b *testing.B) {
	set := NewSet(machine(b, running()), Specs(), Config{Top: 10, SampleInterval: time.Hour, Logger: slog.New(slog.DiscardHandler)})
	defer closeSet(b, set)
	set.Read(b.Context(), Query{})
	for _, r := range set.sampler.runners {
		b.Run(r.spec.Name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.takeSample(b.Context(), time.Second)
			}
		})
	}
}
