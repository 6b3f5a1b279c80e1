package collector

import (
	"cmp"
	"math"
	"strconv"
	"strings"
	"time"
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

// LimitReading is one reading of a limit.
type LimitReading struct {
	*LimitInfo
	// Usage and Limit are those of the first item, if the limit has items.
	Usage, Limit float64
	// OnlyNetns is set if nothing on the host itself has this limit, but something in Netns
	// is near to it. Usage is 0, and Limit is infinite.
	OnlyNetns bool
	// Items are the first items, if each has this limit separately.
	Items []Item
	// Peak is the highest saturation of the last minute, absent if the limit is not read
	// between scrapes.
	Peak Number
	// Netns is the network namespace other than the host's that is nearest to its own
	// limit of this kind, nil if there is none or its limit cannot be known.
	Netns *NetnsLimit
	// Holder is the largest holder, nil if it is not known or the limit is far from being
	// reached.
	Holder *Holder
	// Since is when the limit was first seen at its warning level, zero while it is
	// below. Full is how long it takes to reach the limit at the pace of the last minute,
	// 0 if usage does not grow or that takes more than an hour.
	Since time.Time
	// Longer is set if it was at that level when it was first read, so that it may have
	// been since long before.
	Longer bool
	Full   time.Duration
	soft   Number
}

// NetnsLimit is a reading of a limit of a network namespace other than the host's.
type NetnsLimit struct {
	Resource string
	// Name is the label netns of the namespace. Namespace and Pod are those of a pod.
	Name, Namespace, Pod string
	// Item is the fullest of several things that have the limit each, empty if it is the
	// namespace's own. Usage and Limit are its numbers.
	Item         string
	Usage, Limit float64
	Saturation   float64
	// Most is the highest level that it can cause.
	Most Level
}

// Title returns the name, for people. A namespace that was created inside a pod is named
// by its number and the pod.
func (l NetnsLimit) Title() string {
	if l.Pod != "" && strings.HasPrefix(l.Name, "inode/") {
		return l.Name + " of pod/" + l.Namespace + "/" + l.Pod
	}
	return l.Name
}

// NetnsAmount formats what the namespace uses of its limit, for people, with the name of its
// fullest item.
func (l LimitReading) NetnsAmount() string {
	amount := l.Amount(l.Netns.Usage, l.Netns.Limit)
	if l.Netns.Item != "" {
		amount += ", " + l.Netns.Item
	}
	return amount
}

// Share formats the saturation in percent, for people.
func (l NetnsLimit) Share() string { return share(100 * l.Saturation) }

// Saturation returns usage / limit.
func (l LimitReading) Saturation() float64 { return l.Usage / l.Limit }

// Elsewhere reports whether Netns is closer to its limit than the host is.
func (l LimitReading) Elsewhere() bool {
	return l.Netns != nil && l.Netns.Saturation > l.Saturation()
}

// WhoArgs returns the arguments of the program that show who holds the limit, for a shell:
// names come from others.
func (l LimitReading) WhoArgs() string {
	if l.Elsewhere() && l.Level() > l.OwnLevel() {
		return "who " + l.Resource + " --netns=" + shellQuoted(l.Netns.Name)
	}
	return "who " + l.Resource
}

// shellQuoted returns a word that a shell takes literally.
func shellQuoted(word string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@%+,=", r)
	}
	if word != "" && !strings.ContainsFunc(word, func(r rune) bool { return !plain(r) }) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// Shown returns the usage and the limit that Worst is made of.
func (l LimitReading) Shown() (usage, limit float64) {
	if l.Elsewhere() {
		return l.Netns.Usage, l.Netns.Limit
	}
	return l.Usage, l.Limit
}

// Compare orders limits by level and then by saturation, the worst first.
func (l LimitReading) Compare(o LimitReading) int {
	return cmp.Or(cmp.Compare(o.Level(), l.Level()), cmp.Compare(o.Worst(), l.Worst()))
}

// Worst returns the saturation of the host or that of Netns, whichever is higher.
func (l LimitReading) Worst() float64 {
	if l.Netns != nil {
		return max(l.Saturation(), l.Netns.Saturation)
	}
	return l.Saturation()
}

// Warning returns the saturation from which a person should look at the limit:
// WarningRatio, or the saturation at Soft if that is lower.
func (l LimitReading) Warning() float64 {
	if l.soft.Present {
		return min(l.WarningRatio, l.soft.Value/l.Limit)
	}
	return l.WarningRatio
}

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
