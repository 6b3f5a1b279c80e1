package ctnetlink

import "testing"

// FuzzMessage checks that parsing any message returns either valid counters or an error.
func FuzzMessage(f *testing.F) {
	// CPU 1: found, invalid, insert_failed, drop, early_drop, search_restart.
	f.Add([]byte{
		0, 0, 0, 1,
		8, 0, 2, 0, 0, 0, 0, 9, 8, 0, 4, 0, 0, 0, 0, 1, 8, 0, 9, 0, 0, 0, 0, 2,
		8, 0, 10, 0, 0, 0, 0, 3, 8, 0, 11, 0, 0, 0, 0, 4, 8, 0, 13, 0, 0xff, 0xff, 0xff, 0xff,
	})
	f.Add([]byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		cpu, err := parse(b)
		if err != nil && cpu != (CPU{}) {
			t.Errorf("%+v together with error %v", cpu, err)
		}
		for _, c := range []Counter{cpu.Drop, cpu.EarlyDrop, cpu.InsertFailed, cpu.Invalid, cpu.SearchRestart} {
			if c.Value != 0 && !c.Present {
				t.Errorf("an absent counter of %d", c.Value)
			}
		}
	})
}
