package collector

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzSoftnet checks that softnet_stat with any lines after those of a recorded kernel, as
// when CPUs come and go, gives no negative or falling values. internal/parse has a fuzz test
// for the lines themselves.
func FuzzSoftnet(f *testing.F) {
	for _, kernel := range kernels() {
		b, err := os.ReadFile(filepath.Join(testdata, kernel, "proc/net/softnet_stat"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
		f.Add(b, b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		rows := &softnetRows{counters: newPerCPU(2)}
		online := func() []int { return []int{0, 1} }
		var before, s softnet
		whole := rows.parse(first, "softnet_stat", online, &before) == nil
		if err := rows.parse(second, "softnet_stat", online, &s); err == nil && !s.drops.Present {
			t.Error("neither an error nor drops")
		}
		for _, n := range []Number{s.drops, s.squeezes, s.length, s.input} {
			if n.Present && !(n.Value >= 0) {
				t.Errorf("%+v", s)
			}
		}
		if whole && s.drops.Present && s.drops.Value < before.drops.Value {
			t.Errorf("drops fell from %v to %v", before.drops.Value, s.drops.Value)
		}
	})
}
