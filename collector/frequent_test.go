package collector

import (
	"math/rand/v2"
	"testing"
)

// TestFrequent counts a stream with few frequent keys among very many rare ones,
// and holds the counts to the bound of their error.
func TestFrequent(t *testing.T) {
	const capacity, n = 1000, 400_000
	random := rand.New(rand.NewPCG(1, 2))
	f := newFrequent[int](capacity)
	exact := map[int]uint32{}
	for range n {
		key := random.IntN(50) // the frequent ones
		if random.IntN(4) > 0 {
			key = 50 + random.IntN(n) // the rare ones
		}
		exact[key]++
		f.add(key)
		if len(f.counts) > capacity {
			t.Fatalf("%d keys", len(f.counts))
		}
	}
	for key := range 50 {
		if got, want := f.counts[key], exact[key]; got > want || want-got > 2*n/capacity {
			t.Errorf("key %d: %d, exactly %d", key, got, want)
		}
	}
	for key, got := range f.counts {
		if got > exact[key] {
			t.Errorf("key %d: %d, exactly %d", key, got, exact[key])
		}
	}

	// Few keys are counted exactly, as often as it is used.
	for range 3 {
		f.reset()
		for i := range capacity * 10 {
			f.add(i % capacity)
		}
		for key := range capacity {
			if f.counts[key] != 10 {
				t.Fatalf("key %d: %d", key, f.counts[key])
			}
		}
	}
}

func BenchmarkFrequent(b *testing.B) {
	for name, keys := range map[string]int{"one": 1, "thousand": 1000, "million": 1_000_000} {
		b.Run(name, func(b *testing.B) {
			f := newFrequent[tuple](maxTuples)
			i := 0
			for b.Loop() {
				i++
				key := i % keys
				f.add(tuple{source: [16]byte{byte(key), byte(key >> 8), byte(key >> 16)}})
			}
		})
	}
}
