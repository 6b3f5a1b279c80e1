package collector

import (
	"math"
	"strconv"
	"strings"
)

// Level is the urgency of the state of a limit.
type Level int

// The levels, numbered like the exit status of a monitoring plugin.
const (
	OK Level = iota
	Warning
	Critical
)

// String returns the level's name in lower case.
func (l Level) String() string { return [...]string{"ok", "warning", "critical"}[l] }

// Level returns the higher of the host's level and that of the worst other network
// namespace, which may be limited to a warning.
func (l LimitReading) Level() Level {
	level := l.OwnLevel()
	if l.Netns != nil {
		level = max(level, min(l.level(l.Netns.Saturation), l.Netns.Most))
	}
	return level
}

// OwnLevel returns the level of the host, without other network namespaces.
func (l LimitReading) OwnLevel() Level { return l.level(l.Saturation()) }

func (l LimitReading) level(saturation float64) Level {
	switch s := saturation; {
	case s >= l.CriticalRatio:
		return Critical
	case s >= l.Warning():
		return Warning
	default:
		return OK
	}
}

// WithThresholds returns the limit with other thresholds, given as saturations; 0 keeps
// the present one. A given warning threshold replaces the soft threshold too.
func (l LimitReading) WithThresholds(warning, critical float64) LimitReading {
	info := *l.LimitInfo
	if warning > 0 {
		info.WarningRatio, l.soft = warning, Number{}
	}
	if critical > 0 {
		info.CriticalRatio = critical
	}
	l.LimitInfo = &info
	return l
}

// Percent returns the saturation in percent.
func (l LimitReading) Percent() float64 { return 100 * l.Saturation() }

// Share formats the percentage for people. It does not show how many times over a limit
// is exceeded, which would not tell them more.
func (l LimitReading) Share() string { return share(l.Percent()) }

// WorstShare formats Worst in percent, for people.
func (l LimitReading) WorstShare() string { return share(100 * l.Worst()) }

// PeakShare formats the peak in percent, for people. It is empty unless the peak is
// higher than the present share.
func (l LimitReading) PeakShare() string {
	if peak := share(100 * l.Peak.Value); l.Peak.Present && l.Peak.Value > l.Saturation() && peak != l.Share() {
		return peak
	}
	return ""
}

func share(percent float64) string {
	if percent < 1000 {
		return strconv.FormatFloat(percent, 'f', 1, 64)
	}
	return ">999"
}

// Format formats a usage or a limit with its unit, for people.
func (l LimitReading) Format(v float64) string {
	if v >= 1<<62 {
		return "none" // the kernel's largest number
	}
	return l.Unit.Format(v)
}

// Format formats a number with its unit, for people.
func (u Unit) Format(v float64) string {
	if u != Bytes {
		return strconv.FormatFloat(v, 'f', -1, 64) + " " + u.of(v)
	}
	for _, binary := range []struct {
		size float64
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if v >= binary.size {
			return strconv.FormatFloat(v/binary.size, 'f', 1, 64) + " " + binary.name
		}
	}
	return strconv.FormatFloat(math.Round(v), 'f', -1, 64) + " " + u.of(math.Round(v))
}

// Amount formats a usage and a limit for people, as in "3 of 10 ports".
func (l LimitReading) Amount(usage, limit float64) string {
	used, most := l.Format(usage), l.Format(limit)
	if most == "none" {
		return used + ", no limit"
	}
	if l.Unit != Bytes {
		used, _, _ = strings.Cut(used, " ")
	}
	return used + " of " + most
}

// of returns the unit that goes with a number, as in 1 port, 2 ports.
func (u Unit) of(v float64) string {
	if v != 1 {
		return string(u)
	}
	if stem, ok := strings.CutSuffix(string(u), "ies"); ok {
		return stem + "y"
	}
	return strings.TrimSuffix(string(u), "s")
}
