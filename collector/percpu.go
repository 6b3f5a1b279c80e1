package collector

import "math"

// perCPU adds up counters that the kernel keeps for each CPU. Their sum is no
// counter: it falls when one that has 32 bits wraps, and when a CPU goes offline
// whose line goes with it. The sum of what each has grown by is.
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

// add takes the value of a CPU's counter as it is now. In the first reading it
// counts whole: it is what happened since the machine started. That of a CPU which
// is seen later counts from then on, because what it counted before did not happen
// since the last reading.
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
		p.totals[counter] += value // it began again at 0: its module was loaded again
	}
}

// end ends a reading.
func (p *perCPU) end() { p.began = true }

// forget drops what each CPU had, where it is not known any more which is which.
func (p *perCPU) forget() { clear(p.last) }

func (p *perCPU) total(counter int) Number { return number(p.totals[counter]) }
