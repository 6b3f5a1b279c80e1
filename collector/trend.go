package collector

import (
	"slices"
	"sync"
	"time"
)

// trends keeps the recent trend of each limit's saturation: since when it has been at
// its warning level, and how fast it grows.
type trends struct {
	mu sync.Mutex
	of map[string]*trend // by resource
}

func newTrends() *trends { return &trends{of: map[string]*trend{}} }

// trend is the recent trend of one limit's saturation.
type trend struct {
	// since is when it reached its warning level, zero while it is below.
	since time.Time
	// longer is set if the first reading was at that level.
	longer bool
	points []point // the latest, some seconds apart, oldest first
}

type point struct {
	at         time.Time
	saturation float64
}

const (
	// pointGap is the minimum distance between two points. paceTime is the period over
	// which the pace is measured. The saturation must have grown in both halves of it:
	// growth in only one half is a step.
	pointGap = 5 * time.Second
	paceTime = time.Minute
	// foreseen is the longest time ahead for which a prediction is made.
	foreseen = time.Hour
)

// observe records a reading of limits.
func (t *trends) observe(limits []LimitReading, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range limits {
		of := t.of[l.Resource]
		if of == nil {
			of = new(trend)
			t.of[l.Resource] = of
		}
		of.add(point{now, l.Saturation()}, l.Warning())
	}
}

func (t *trend) add(p point, warning float64) {
	switch {
	case p.saturation < warning:
		t.since, t.longer = time.Time{}, false
	case t.since.IsZero():
		t.since, t.longer = p.at, len(t.points) == 0
	}
	if last := len(t.points) - 1; last > 0 && t.points[last].at.Sub(t.points[last-1].at) < pointGap {
		t.points[last] = p
	} else {
		t.points = append(t.points, p)
	}
	// Points are kept for twice the time, in case readings are far apart.
	t.points = slices.DeleteFunc(t.points, func(o point) bool { return p.at.Sub(o.at) > 2*paceTime })
}

// last returns since when a limit has been at its warning level, or longer, and in how
// long it will be reached at the pace of the last minute. full is 0 if the saturation does not grow or
// the limit will not be reached within foreseen.
func (t *trends) last(resource string) (since time.Time, longer bool, full time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if of := t.of[resource]; of != nil {
		return of.since, of.longer, of.full()
	}
	return time.Time{}, false, 0
}

func (t *trend) full() time.Duration {
	if len(t.points) == 0 {
		return 0
	}
	now := t.points[len(t.points)-1]
	// before returns the latest point that is at least this old.
	before := func(age time.Duration) (p point, ok bool) {
		for _, p := range slices.Backward(t.points) {
			if now.at.Sub(p.at) >= age {
				return p, true
			}
		}
		return point{}, false
	}
	middle, _ := before(paceTime / 2)
	old, ok := before(max(paceTime, now.at.Sub(middle.at)+1)) // there may be none in between
	if !ok || now.saturation >= 1 || now.saturation <= middle.saturation || middle.saturation <= old.saturation {
		return 0
	}
	left := (1 - now.saturation) / (now.saturation - old.saturation) * now.at.Sub(old.at).Seconds()
	if left > foreseen.Seconds() {
		return 0
	}
	return max(time.Duration(left*float64(time.Second)).Round(time.Second), time.Second)
}
