package collector

import (
	"testing"
	"time"
)

// TestTrends checks the time until a limit is full, which is forecast only if usage grew in
// both halves of the last minute, and the time since which the limit has been at its warning
// level, for different intervals of reading.
func TestTrends(t *testing.T) {
	start := time.Unix(1e9, 0)
	for name, c := range map[string]struct {
		every, until time.Duration
		saturation   func(seconds float64) float64
		full         time.Duration
		since        time.Duration // after the start, -1 for never
	}{
		"a ramp, sampled":      {time.Second, 100 * time.Second, func(s float64) float64 { return s / 200 }, 100 * time.Second, -1},
		"a ramp, scraped":      {15 * time.Second, 150 * time.Second, func(s float64) float64 { return s / 200 }, 50 * time.Second, 150 * time.Second},
		"a ramp, seldom read":  {time.Minute, 2 * time.Minute, func(s float64) float64 { return s / 240 }, 2 * time.Minute, -1},
		"too young":            {time.Second, 50 * time.Second, func(s float64) float64 { return s / 200 }, 0, -1},
		"a step":               {time.Second, 100 * time.Second, func(s float64) float64 { return map[bool]float64{true: 0.8, false: 0.1}[s > 80] }, 0, 81 * time.Second},
		"steady":               {time.Second, 100 * time.Second, func(float64) float64 { return 0.9 }, 0, 0},
		"full":                 {time.Second, 100 * time.Second, func(s float64) float64 { return 0.5 + s/200 }, 0, 50 * time.Second},
		"falling":              {time.Second, 100 * time.Second, func(s float64) float64 { return 1 - s/200 }, 0, -1},
		"far from full":        {time.Second, 100 * time.Second, func(s float64) float64 { return s / 1e4 }, 0, -1},
		"back below a warning": {time.Second, 100 * time.Second, func(s float64) float64 { return map[bool]float64{true: 0.8, false: 0.1}[s < 80] }, 0, -1},
	} {
		info := LimitInfo{Resource: "r", WarningRatio: 0.75, CriticalRatio: 0.9}
		if name == "falling" {
			info.WarningRatio = 0.6
		}
		trends := newTrends()
		for at := time.Duration(0); at <= c.until; at += c.every {
			trends.observe([]LimitReading{{LimitInfo: &info, Usage: c.saturation(at.Seconds()), Limit: 1}}, start.Add(at))
		}
		since, longer, full := trends.last("r")
		if d := full - c.full; d.Abs() > 3*time.Second {
			t.Errorf("%s: full in %v, want %v", name, full, c.full)
		}
		if c.since < 0 != since.IsZero() || c.since >= 0 && !since.Equal(start.Add(c.since)) {
			t.Errorf("%s: since %v, want %v after the start", name, since.Sub(start), c.since)
		}
		// A limit that is at its warning level at the first reading may have been so for
		// longer.
		if longer != (c.since == 0) {
			t.Errorf("%s: longer is %v", name, longer)
		}
		if n := len(trends.of["r"].points); n > 30 {
			t.Errorf("%s: %d points are kept", name, n)
		}
	}
	if since, _, full := newTrends().last("unknown"); !since.IsZero() || full != 0 {
		t.Errorf("a limit that was never read: %v, %v", since, full)
	}
}
