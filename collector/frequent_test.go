package collector

import (
	"math/rand/v2"
	"testing"
)

// TestFrequent checks that the counts of a stream with a few frequent keys among very many
// rare ones stay within the error bound.
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
			t.Errorf("key %d: %d, want %d", key, got, want)
		}
	}
	for key, got := range f.counts {
		if got > exact[key] {
			t.Errorf("key %d: %d, want %d", key, got, exact[key])
		}
	}

	// If there are no more keys than the capacity, the counts are exact, also after a reset.
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

// FuzzFrequent checks that the counts of any stream, in a sketch of any size, stay within the
// error bound after each addition.
func FuzzFrequent(f *testing.F) {
	f.Add([]byte("abcabcabdeabfga"), byte(3))
	f.Add([]byte("aaaaaaaaaaaaaaaab"), byte(1))
	f.Add([]byte("aaaaaaaaaaaaaaaabcde"), byte(3))
	f.Add([]byte("abcdefghijklmnopqrstuvwxyzaaaaaaaaaaaaaabbbbbbbbbbbbbb"), byte(8))
	f.Add([]byte("aabbccddeeffgghhiijj"), byte(4))
	f.Fuzz(func(t *testing.T, stream []byte, size byte) {
		capacity := int(size%64) + 1
		sketch := newFrequent[byte](capacity)
		for range 2 { // the second time after a reset
			sketch.reset()
			exact := map[byte]uint32{}
			for i, key := range stream {
				sketch.add(key)
				exact[key]++
				if len(sketch.counts) > capacity {
					t.Fatalf("%d keys, want at most %d", len(sketch.counts), capacity)
				}
				for key := range sketch.counts {
					if exact[key] == 0 {
						t.Fatalf("key %d, which was never added", key)
					}
				}
				for key, want := range exact {
					got := sketch.counts[key]
					if got > want {
						t.Fatalf("after %d additions key %d has %d, want %d", i+1, key, got, want)
					}
					// A count is too low by less than 2n/capacity, and exact while there is
					// room for all keys.
					low := int(want - got)
					if low > 0 && (len(exact) <= capacity || low*capacity >= 2*(i+1)) {
						t.Fatalf("capacity %d: after %d additions key %d has %d, want %d", capacity, i+1, key, got, want)
					}
				}
			}
		}
	})
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
