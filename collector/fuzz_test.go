package collector

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

// seed adds a file of every recorded kernel, whole and cut.
func seed(f *testing.F, name string) {
	f.Helper()
	for _, kernel := range kernels() {
		b, err := os.ReadFile(filepath.Join(testdata, kernel, "proc", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
}

// sane fails for a number that no kernel counts.
func sane(t *testing.T, name string, numbers ...Number) {
	t.Helper()
	for i, n := range numbers {
		if math.IsNaN(n.Value) || math.IsInf(n.Value, 0) || n.Present && n.Value < 0 {
			t.Errorf("%s: number %d is %v", name, i, n.Value)
		}
	}
}

func FuzzSoftnet(f *testing.F) {
	seed(f, "net/softnet_stat")
	f.Fuzz(func(t *testing.T, b []byte) {
		var s softnet
		rows := &softnetRows{counters: newPerCPU(2)}
		if err := rows.parse(b, "softnet_stat", func() []int { return []int{0, 1} }, &s); err == nil && !s.drops.Present {
			t.Error("no error, and no drops")
		}
		sane(t, "softnet", s.drops, s.squeezes, s.length, s.input)
	})
}

func FuzzConntrackStats(f *testing.F) {
	// CPU 1: found, invalid, insert_failed, drop, early_drop, search_restart.
	f.Add([]byte{
		0, 0, 0, 1,
		8, 0, 2, 0, 0, 0, 0, 9, 8, 0, 4, 0, 0, 0, 0, 1, 8, 0, 9, 0, 0, 0, 0, 2,
		8, 0, 10, 0, 0, 0, 0, 3, 8, 0, 11, 0, 0, 0, 0, 4, 8, 0, 13, 0, 0xff, 0xff, 0xff, 0xff,
	})
	f.Add([]byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = parseConntrackStats(b, func(cpu, counter int, v uint64) {
			if cpu < 0 || counter < 0 || counter >= conntrackCounters || v > math.MaxUint32 {
				t.Errorf("counter %d of CPU %d is %d", counter, cpu, v)
			}
		})
	})
}
