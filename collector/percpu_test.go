package collector

import (
	"math"
	"testing"
)

// cpuModel is a counter of a CPU in the kernel, of which a reader sees the low 32 bits.
type cpuModel struct {
	count uint64
	// read is the value of count at the last reading, if known is set.
	read  uint64
	known bool
	// again is set if the counter was reset to 0 since then.
	again  bool
	absent bool
}

// FuzzPerCPU checks totals of counters that wrap or are reset to 0, of CPUs that come and go.
// A total must never fall. It must be the sum of all growth, unless a counter grew by 2^31 or
// more between two readings, or was reset in a way that looks like growth or like a wrap.
func FuzzPerCPU(f *testing.F) {
	const (
		grow      = iota // by the operand
		growMuch         // by the operand times 2^24
		disappear        // from /proc, or reappear
		reload
		forget
		read
		operations
	)
	op := func(what, cpu byte) byte { return what + operations*cpu }
	f.Add([]byte{op(grow, 0), 9, op(grow, 1), 7, read, 0, op(grow, 0), 1, read, 0})
	f.Add([]byte{op(growMuch, 0), 255, read, 0, op(growMuch, 0), 101, read, 0}) // it wraps
	f.Add([]byte{op(disappear, 1), 0, read, 0, op(grow, 1), 200, op(disappear, 1), 0, read, 0, op(grow, 1), 1, read, 0})
	f.Add([]byte{op(grow, 0), 200, read, 0, reload, 0, op(grow, 0), 1, read, 0})
	f.Add([]byte{op(growMuch, 0), 101, read, 0, reload, 0, op(grow, 0), 1, read, 0})
	f.Add([]byte{op(grow, 0), 9, read, 0, forget, 0, op(grow, 0), 9, read, 0})
	f.Fuzz(func(t *testing.T, program []byte) {
		const counters = 2
		p := newPerCPU(counters)
		var cpus [4][counters]cpuModel
		var want, last [counters]uint64
		exact := [counters]bool{true, true}
		first := true
		for ; len(program) >= 2; program = program[2:] {
			cpu := &cpus[int(program[0]/operations)%len(cpus)]
			operand := uint64(program[1])
			switch program[0] % operations {
			case grow:
				cpu[operand%counters].count += operand
			case growMuch:
				cpu[operand%counters].count += operand << 24
			case disappear:
				for i := range cpu {
					cpu[i].absent = !cpu[i].absent
				}
			case reload: // a module with the counters of all CPUs
				for i := range cpus {
					for j := range cpus[i] {
						cpus[i][j].count, cpus[i][j].again = 0, true
					}
				}
			case forget:
				p.forget()
				for i := range cpus {
					for j := range cpus[i] {
						cpus[i][j].known = false
					}
				}
			case read:
				for i := range cpus {
					for j := range cpus[i] {
						c := &cpus[i][j]
						if c.absent {
							continue
						}
						before, now := c.read&math.MaxUint32, c.count&math.MaxUint32
						p.add(i, j, now)
						switch {
						case !c.known && !first:
						case !c.known:
							// The value since the machine started, of which only 32 bits are
							// visible.
							want[j] += now
						case c.again:
							want[j] += c.count
							exact[j] = exact[j] && c.count == now && (before == 0 || now < before && before-now < 1<<31)
						default:
							want[j] += c.count - c.read
							exact[j] = exact[j] && c.count-c.read < 1<<31
						}
						c.read, c.known, c.again = c.count, true, false
					}
				}
				p.end()
				first = false
				for j := range counters {
					total := p.total(j)
					got := p.totals[j]
					if !total.Present || got < last[j] {
						t.Fatalf("counter %d fell from %d to %v", j, last[j], total)
					}
					if exact[j] && got != want[j] {
						t.Fatalf("counter %d is %d, want %d", j, got, want[j])
					}
					last[j] = got
				}
			}
		}
	})
}
