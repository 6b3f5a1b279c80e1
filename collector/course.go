package collector

import (
	"slices"
	"sync"
	"time"
)

// courses keeps the recent course of each limit's saturation: since when it has been at
// its warning level, and how fast it grows.
type courses struct {
	mu sync.Mutex
	of map[string]*course // by resource
}

func newCourses() *courses { return &courses{of: map[string]*course{}} }

// course is the recent course of one limit's saturation.
type course struct {
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
		c.since, c.longer = time.Time{}, false
	case c.since.IsZero():
		c.since, c.longer = p.at, len(c.points) == 0
	}
	if last := len(c.points) - 1; last > 0 && c.points[last].at.Sub(c.points[last-1].at) < pointGap {
		c.points[last] = p
	} else {
		c.points = append(c.points, p)
	}
	// Points are kept for twice the time, in case readings are far apart.
	c.points = slices.DeleteFunc(c.points, func(o point) bool { return p.at.Sub(o.at) > 2*paceTime })
}

// last returns since when a limit has been at its warning level, or longer, and in how
// long it will be reached at the pace of the last minute. full is 0 if the saturation does not grow or
// the limit will not be reached within foreseen.
func (c *courses) last(resource string) (since time.Time, longer bool, full time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if of := c.of[resource]; of != nil {
		return of.since, of.longer, of.full()
	}
	return time.Time{}, false, 0
}

func (c *course) full() time.Duration {
	if len(c.points) == 0 {
		return 0
	}
	now := c.points[len(c.points)-1]
	// before returns the latest point that is at least this old.
	before := func(age time.Duration) (p point, ok bool) {
		for _, p := range slices.Backward(c.points) {
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
