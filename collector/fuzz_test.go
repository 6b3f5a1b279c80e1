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
