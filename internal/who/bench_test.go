package who

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// BenchmarkVisit counts the sockets of a hundred listeners, half of them accepted, as
// bench/who does.
func BenchmarkVisit(b *testing.B) {
	for _, by := range []Grouping{ByUnit, ByListener, ByPeer} {
		b.Run(string(by), func(b *testing.B) {
			q := &inquiry{Question: Question{By: by}, row: &row{memory: true}, answer: new(Answer), tally: newTally(maxGroups)}
			v := &socketVisitor{inquiry: q, key: socketKey(by), listening: new(listening), limits: map[uint32]float64{}, owners: by.byOwner(), memory: true}
			v.listening.Reset()
			var all []sockdiag.Socket
			for i := range uint16(1 << 14) {
				server := [16]byte{127, 2, 0, byte(i % 100)}
				s := sockdiag.Socket{
					Family: unix.AF_INET, State: sockdiag.Established, SourceAddr: server, SourcePort: 9000,
					DestinationAddr: [16]byte{127, 1, 0, byte(i % 100)}, DestinationPort: 10000 + i, Inode: uint32(i + 1), Cgroup: 1,
				}
				if i%2 == 1 {
					s.SourceAddr, s.SourcePort, s.DestinationAddr, s.DestinationPort = s.DestinationAddr, s.DestinationPort, s.SourceAddr, s.SourcePort
				}
				all = append(all, s)
				v.listening.Visit(&sockdiag.Socket{Family: unix.AF_INET, SourceAddr: server, SourcePort: 9000})
				if i%20 == 0 {
					q.processes.inodes.set(s.Inode, uint32(i%100))
				}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				v.Visit(&all[i%len(all)])
			}
		})
	}
}
