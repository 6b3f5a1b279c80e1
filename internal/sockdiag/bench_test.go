package sockdiag

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
)

// BenchmarkDatagram decodes datagrams of recorded messages, as large as those of the kernel.
// It does not allocate, whatever the number of sockets.
func BenchmarkDatagram(b *testing.B) {
	for _, sockets := range []int{1, 1_000, 100_000} {
		b.Run(fmt.Sprintf("%d-sockets", sockets), func(b *testing.B) {
			datagrams := datagramsOf(b, sockets)
			c := New(nil)
			c.seq = 1
			v := new(counter)
			visit := c.decoded(Request{States: AllStates}, v)
			b.ReportAllocs()
			for b.Loop() {
				v.Reset()
				for _, d := range datagrams {
					if _, err := c.datagram(d, visit); err != nil {
						b.Fatal(err)
					}
				}
			}
			total := 0
			for _, n := range v.states {
				total += n
			}
			if total != sockets {
				b.Fatalf("%d sockets of %d", total, sockets)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(sockets), "ns/socket")
		})
	}
}

// datagramsOf returns datagrams with the messages of a recording, repeated.
func datagramsOf(t testing.TB, sockets int) [][]byte {
	t.Helper()
	var messages [][]byte
	for b := recordings(t)[0]; len(b) >= sizeofHeader; {
		size := int(binary.NativeEndian.Uint32(b))
		if binary.NativeEndian.Uint16(b[4:]) >= uint16(typeTCPDiag) {
			messages = append(messages, b[:size])
		}
		b = b[(size+3)&^3:]
	}
	var datagrams [][]byte
	var d bytes.Buffer
	for i := range sockets {
		m := messages[i%len(messages)]
		if d.Len()+len(m) > bufferSize {
			datagrams = append(datagrams, bytes.Clone(d.Bytes()))
			d.Reset()
		}
		d.Write(m)
	}
	return append(datagrams, d.Bytes())
}

// TestNoAllocation checks that decoding does not allocate.
func TestNoAllocation(t *testing.T) {
	datagrams := datagramsOf(t, 1000)
	c := New(nil)
	c.seq = 1
	v := new(counter)
	visit := c.decoded(Request{States: AllStates, Details: true}, v)
	if n := testing.AllocsPerRun(10, func() {
		for _, d := range datagrams {
			if _, err := c.datagram(d, visit); err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations for 1,000 sockets", n)
	}
}
