package collector

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// budget bounds the share of one core that all walks together may take. If each walk is
// repeated after the CPU time that all of them took, divided by the share, then each runs
// once in that time and the share is kept. If one walk takes longer than all others
// together, it gets half of the share and the others get the other half, so it at most
// doubles the interval of the others. A share of 0 means no bound.
type budget struct {
	maxCPU float64
	// cpuTime returns the CPU time that the process has used so far.
	cpuTime func() time.Duration

	mu   sync.Mutex
	took map[string]time.Duration // the last walk of each collector
}

// interval returns how long after the start of a collector's walk the next one may start.
func (b *budget) interval(collector string) time.Duration {
	if b.maxCPU == 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var sum, longest time.Duration
	for _, t := range b.took {
		sum += t
		longest = max(longest, t)
	}
	if rest := sum - longest; rest > 0 && longest > rest {
		sum = 2 * rest
		if b.took[collector] == longest {
			sum = 2 * longest
		}
	}
	return time.Duration(float64(sum) / b.maxCPU)
}

// processCPUTime is CLOCK_PROCESS_CPUTIME_ID: user and system time of all threads.
func processCPUTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// spend records how much CPU time a walk took.
func (b *budget) spend(collector string, took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.took[collector] = took
}
