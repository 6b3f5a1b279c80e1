package collector

import "math"

// perCPU adds up counters that the kernel keeps per CPU. Their plain sum is not a
// counter: it falls when a 32-bit counter wraps, and when a CPU goes offline and its line
// disappears. So perCPU sums how much each counter has grown.
type perCPU struct {
	last   map[perCPUKey]uint64
	totals []uint64
	// began is set after the first reading.
	began bool
}

type perCPUKey struct{ cpu, counter int }

func newPerCPU(counters int) *perCPU {
	return &perCPU{last: map[perCPUKey]uint64{}, totals: make([]uint64, counters)}
}

// add records the current value of a CPU's counter. In the first reading the whole value
// counts: it is what happened since the machine started. The counter of a CPU that
// appears later counts from then on, because its value did not accumulate since the last
// reading.
func (p *perCPU) add(cpu, counter int, value uint64) {
	key := perCPUKey{cpu, counter}
	last, seen := p.last[key]
	p.last[key] = value
	switch {
	case !seen && p.began:
	case value >= last:
		p.totals[counter] += value - last
	case last <= math.MaxUint32 && last-value >= 1<<31:
		p.totals[counter] += value + 1<<32 - last // it wrapped
	default:
		p.totals[counter] += value // it was reset to 0: its module was loaded again
	}
}

// end ends a reading.
func (p *perCPU) end() { p.began = true }

// forget drops the values of all CPUs, for when they can no longer be told apart.
func (p *perCPU) forget() { clear(p.last) }

func (p *perCPU) total(counter int) Number { return number(p.totals[counter]) }
