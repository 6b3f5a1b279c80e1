package sockdiag

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// counter counts the sockets of a walk.
type counter struct {
	resets int
	states [Closing + 1]int
}

func (c *counter) Reset()          { *c = counter{resets: c.resets + 1} }
func (c *counter) Visit(s *Socket) { c.states[s.State]++ }

func recordings(t testing.TB) [][]byte {
	t.Helper()
	paths, err := filepath.Glob("../../testdata/*/sock_diag/*.bin")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no recordings: %v", err)
	}
	paths = append(paths, "../../testdata/sock_diag/udp.bin")
	var all [][]byte
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

// FuzzDatagram checks that decoding any datagram does not panic and gives only valid sockets.
func FuzzDatagram(f *testing.F) {
	for _, b := range recordings(f) {
		f.Add(b, uint32(0xfff))
		f.Add(b[:len(b)/2], uint32(0xfff))
		f.Add(b[:200], uint32(1<<Listen))
	}
	f.Fuzz(func(t *testing.T, b []byte, states uint32) {
		c := New(nil)
		r := Request{States: Mask(states), Details: states&1 != 0} // no state has bit 0
		v := visitorFunc(func(s *Socket) {
			if s.State < Established || s.State > Closing || r.States&MaskOf(s.State) == 0 {
				t.Errorf("state %d with mask %x", s.State, states)
			}
			if s.Family != unix.AF_INET && s.Family != unix.AF_INET6 {
				t.Errorf("family %d", s.Family)
			}
			if !s.Source().IsValid() || !s.Destination().IsValid() {
				t.Errorf("addresses of %+v", s)
			}
		})
		c.seq = 1
		done, err := c.datagram(b, c.decoded(r, v))
		if done && err == nil && len(b) < sizeofHeader {
			t.Error("the end of a dump without a message")
		}
	})
}

type visitorFunc func(*Socket)

func (visitorFunc) Reset()            {}
func (f visitorFunc) Visit(s *Socket) { f(s) }
