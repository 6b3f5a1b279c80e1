package collector

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// TestNetnsMemory checks that the namespace of a process is looked up while the process is
// new, if the answer is old, and if another process has its PID; a process whose lookup fails
// is looked up at each reading.
func TestNetnsMemory(t *testing.T) {
	var m netnsMemory
	start := time.Unix(1e9, 0)
	type process struct {
		pid   int
		inode uint64
	}
	step := func(what string, after time.Duration, processes []process, want ...int) {
		t.Helper()
		var asked []int
		m.begin(start.Add(after))
		for _, p := range processes {
			name, id, err := m.find(p.pid, p.inode, func() (string, uint64, error) {
				asked = append(asked, p.pid)
				if p.pid == 13 {
					return "", 0, errors.New("it has ended")
				}
				return "name", p.inode, nil
			})
			if (err != nil) != (p.pid == 13) || err == nil && (name != "name" || id != p.inode) {
				t.Errorf("%s: process %d: %q, %d, %v", what, p.pid, name, id, err)
			}
		}
		if !slices.Equal(asked, want) {
			t.Errorf("%s: asked %v, want %v", what, asked, want)
		}
	}
	all := []process{{1, 100}, {5, 101}, {13, 102}}
	step("at first", 0, all, 1, 5, 13)
	step("not settled", netnsSettled-1, all, 1, 5, 13)
	step("settled", netnsSettled, all, 13)
	step("a PID of another process", netnsSettled+1, []process{{1, 100}, {5, 999}}, 5)
	step("the other is new", 2*netnsSettled, []process{{1, 100}, {5, 999}}, 5)
	step("one comes back", 2*netnsSettled+1, []process{{1, 100}}, nil...)
	step("as a new one", 2*netnsSettled+2, []process{{1, 100}, {5, 999}}, 5)
	step("old", netnsSettled+netnsAge+netnsAge/4, []process{{1, 100}}, 1)
}
