package collector

import (
	"slices"
	"sync"
	"time"
)

// peakSeconds is how far back a peak looks. It does not depend on scrapes: otherwise two
// servers that scrape the same exporter would take the peaks from each other.
const peakSeconds = 60

// Proof is a counter that rises only if a limit was reached. It is the only trace if that
// happens between two samples.
type Proof struct {
	// Counter is a metric of any collector.
	Counter Series
	// Less counts the part of Counter that has another cause, empty if there is none.
	Less Series
}

// peaks keeps the highest saturation that each limit had in the last seconds.
type peaks struct {
	began  time.Time
	proofs map[string][]Proof // by resource
	counts map[string]bool    // the metrics that the proofs refer to

	mu      sync.Mutex
	limits  map[string]*window
	counted map[string]float64 // the last value of a proof's series
}

func newPeaks(specs []Spec) *peaks {
	p := &peaks{
		began:  time.Now(),
		proofs: map[string][]Proof{}, counts: map[string]bool{},
		limits: map[string]*window{}, counted: map[string]float64{},
	}
	for _, spec := range specs {
		for _, l := range spec.Limits {
			all := slices.Clone(l.Proofs)
			for _, line := range l.LogLines {
				all = append(all, Proof{Counter: series("kernel_messages_total", "message", line.Message)})
			}
			for _, proof := range all {
				p.counts[proof.Counter.Metric] = true
				p.counts[proof.Less.Metric] = true
			}
			p.proofs[l.Resource] = all
		}
	}
	return p
}

// of reports whether readings of a collector affect the peak of a limit.
func (p *peaks) of(spec Spec) bool {
	for _, m := range spec.Metrics {
		if p.counts[m.Name] {
			return true
		}
	}
	return len(spec.Limits) > 0
}

// observe records a reading.
func (p *peaks) observe(r reading) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := int64(time.Since(p.began) / time.Second)
	for _, l := range r.limits {
		w := p.limits[l.Resource]
		if w == nil {
			w = new(window)
			p.limits[l.Resource] = w
		}
		w.add(now, l.Saturation())
	}
	moved := map[string]float64{}
	for _, s := range r.samples {
		if !p.counts[s.metric.Name] {
			continue
		}
		key := s.series().String()
		if last, ok := p.counted[key]; ok && s.value > last {
			moved[key] = s.value - last
		}
		p.counted[key] = s.value
	}
	if len(moved) == 0 {
		return
	}
	for resource, proofs := range p.proofs {
		for _, proof := range proofs {
			if w := p.limits[resource]; w != nil && moved[proof.Counter.String()] > moved[proof.Less.String()] {
				w.add(now, 1)
			}
		}
	}
}

// peak returns the highest saturation of a limit, absent if it was not sampled.
func (p *peaks) peak(resource string) Number {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.limits[resource]
	if w == nil {
		return Number{}
	}
	return w.highest(int64(time.Since(p.began) / time.Second))
}

// window keeps the highest saturation in each of the last seconds.
type window [peakSeconds + 1]struct {
	saturation Number
	second     int64
}

func (w *window) add(second int64, saturation float64) {
	at := &w[second%int64(len(w))]
	if !at.saturation.Present || at.second != second || saturation > at.saturation.Value {
		at.saturation, at.second = number(saturation), second
	}
}

func (w *window) highest(now int64) (highest Number) {
	for _, at := range w {
		if at.saturation.Present && now-at.second <= peakSeconds && (!highest.Present || at.saturation.Value > highest.Value) {
			highest = at.saturation
		}
	}
	return highest
}
