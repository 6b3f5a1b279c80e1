package collector

// perCPU adds up counters that the kernel keeps in 32 bits for each CPU. Their
// sum is no counter, since it falls when one CPU's wraps; the sum of what each
// has grown by is.
type perCPU struct {
	last   map[perCPUKey]uint32
	totals []uint64
}

type perCPUKey struct{ cpu, counter int }

func newPerCPU(counters int) *perCPU {
	return &perCPU{last: map[perCPUKey]uint32{}, totals: make([]uint64, counters)}
}

// add takes the value of a CPU's counter as it is now. The first value seen
// counts whole: it is what happened since the machine started.
func (p *perCPU) add(cpu, counter int, value uint64) {
	now := uint32(value)
	key := perCPUKey{cpu, counter}
	grown := now - p.last[key] // wraps as the counter does
	if grown > 1<<31 {
		grown = now // it began again at 0: its module was loaded anew
	}
	p.last[key] = now
	p.totals[counter] += uint64(grown)
}

func (p *perCPU) total(counter int) Number { return number(p.totals[counter]) }
