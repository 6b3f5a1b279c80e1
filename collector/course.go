package collector

import (
	"slices"
	"sync"
	"time"
)

// courses keeps how the saturation of limits has gone of late: since when each is at
// its warning, and how fast it grows.
type courses struct {
	mu sync.Mutex
	of map[string]*course // by resource
}

func newCourses() *courses { return &courses{of: map[string]*course{}} }

// course is that of one limit.
type course struct {
	// since is when it came to its warning, zero while it is below.
	since  time.Time
	points []point // the last ones, some seconds apart, the oldest first
}

type point struct {
	at         time.Time
	saturation float64
}

const (
	// pointGap is how far apart points are at least. paceTime is the time that the pace is
	// taken of, half of it twice: what grew in one half only is a step.
	pointGap = 5 * time.Second
	paceTime = time.Minute
	// foreseen is how far ahead anything is said.
	foreseen = time.Hour
)

// observe takes note of a reading of limits.
func (c *courses) observe(limits []LimitReading, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range limits {
		of := c.of[l.Resource]
		if of == nil {
			of = new(course)
			c.of[l.Resource] = of
		}
		of.add(point{now, l.Saturation()}, l.Warning())
	}
}

func (c *course) add(p point, warning float64) {
	switch {
	case p.saturation < warning:
		c.since = time.Time{}
	case c.since.IsZero():
		c.since = p.at
	}
	if last := len(c.points) - 1; last > 0 && c.points[last].at.Sub(c.points[last-1].at) < pointGap {
		c.points[last] = p
	} else {
		c.points = append(c.points, p)
	}
	// Points are kept for twice the time, for readings that are far apart.
	c.points = slices.DeleteFunc(c.points, func(o point) bool { return p.at.Sub(o.at) > 2*paceTime })
}

// last returns since when a limit is at its warning, and how long it is from now until
// it is reached at the pace of the last minute, 0 where it does not grow or that is far.
func (c *courses) last(resource string) (since time.Time, full time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if of := c.of[resource]; of != nil {
		return of.since, of.full()
	}
	return time.Time{}, 0
}

func (c *course) full() time.Duration {
	if len(c.points) == 0 {
		return 0
	}
	now := c.points[len(c.points)-1]
	// before returns the youngest point that is at least so old.
	before := func(age time.Duration) (p point, ok bool) {
		for _, p := range slices.Backward(c.points) {
			if now.at.Sub(p.at) >= age {
				return p, true
			}
		}
		return point{}, false
	}
	middle, _ := before(paceTime / 2)
	old, ok := before(max(paceTime, now.at.Sub(middle.at)+1)) // there may be none between
	if !ok || now.saturation >= 1 || now.saturation <= middle.saturation || middle.saturation <= old.saturation {
		return 0
	}
	left := (1 - now.saturation) / (now.saturation - old.saturation) * now.at.Sub(old.at).Seconds()
	if left > foreseen.Seconds() {
		return 0
	}
	return max(time.Duration(left*float64(time.Second)).Round(time.Second), time.Second)
}
