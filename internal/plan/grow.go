package plan

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// Growth is how far the load of a host can grow, if each further connection takes what
// the present ones take.
type Growth struct {
	// Connections is the number of connection ends open in the host's network namespace
	// now.
	Connections float64
	// Steps are the limits in the order in which they are reached.
	Steps []Step
}

// Step is a limit that growth reaches.
type Step struct {
	*collector.LimitInfo
	// Item is the item that has the limit, if it is one of many.
	Item       string
	Now, Limit float64
	// Connections is the number at which the limit is reached.
	Connections float64
}

// beyond is more connections than are realistic. A limit that is reached only there does
// not matter.
const beyond = most

// few is so few connections that other usage does not result from them.
const few = 100

// carries is the minimum share of the connections that an item has to hold for its limit
// to apply to them.
const carries = 0.1

// Grow follows the present load up to its limits.
func Grow(f Facts) Growth {
	g := Growth{Connections: f.Connections}
	now := f.present()
	// Whether the host accepted or opened it does not show.
	next := collector.Load{Accepted: now.Accepted, Outbound: 1, Tracked: now.Tracked + 1, Destinations: 1, Processes: 1}
	for _, i := range f.bill(next) {
		next.KernelBytes += i.Bytes()
	}
	for i := range f.Limits {
		l := &f.Limits[i]
		// What is not in use now, such as tracking entries if no rule tracks connections,
		// will not be used by more of the same load.
		if l.Needs == nil || l.Usage == 0 && g.Connections >= few {
			continue
		}
		each := l.Needs(next) - l.Needs(now) // for one more connection
		at := func(usage, limit, each float64) float64 {
			return max(math.Floor(g.Connections+(limit-usage)/each), 0)
		}
		step := Step{LimitInfo: l.LimitInfo, Now: l.Usage, Limit: l.Limit, Connections: math.Inf(1)}
		if l.List != nil {
			for _, item := range l.Items {
				share := min(item.Usage/g.Connections, 1)
				// A queue is full because its program does not accept, however many
				// connections others have accepted.
				if each == 0 || g.Connections < few || share < carries {
					continue
				}
				if c := at(item.Usage, item.Limit, share); c < step.Connections {
					step.Item, step.Now, step.Limit, step.Connections = item.Name(), item.Usage, item.Limit, c
				}
			}
		} else {
			if each == 0 && g.Connections >= few {
				each = l.Usage / g.Connections // it grows with them
			}
			if each > 0 {
				step.Connections = at(l.Usage, l.Limit, each)
			}
		}
		if step.Connections < beyond {
			g.Steps = append(g.Steps, step)
		}
	}
	slices.SortStableFunc(g.Steps, func(a, b Step) int { return cmp.Compare(a.Connections, b.Connections) })
	return g
}

// String returns a one-line summary.
func (g Growth) String() string {
	var b strings.Builder
	switch g.Connections {
	case 0:
		b.WriteString("This host holds no connections now.")
	case 1:
		b.WriteString("This host holds 1 connection now.")
	default:
		fmt.Fprintf(&b, "This host holds %s connections now.", Group(g.Connections))
	}
	if len(g.Steps) == 0 {
		b.WriteString(" No limit on further connections is known.")
		return b.String()
	}
	s := g.Steps[0]
	fmt.Fprintf(&b, " The first limit reached would be %s", s.Resource)
	if s.Item != "" {
		fmt.Fprintf(&b, " of %s", s.Item)
	}
	fmt.Fprintf(&b, ", at %s.", Group(s.Connections))
	return b.String()
}

// Group formats a whole number with a comma before each group of three digits.
func Group(v float64) string {
	s := fmt.Sprintf("%.0f", math.Abs(v))
	for at := len(s) - 3; at > 0; at -= 3 {
		s = s[:at] + "," + s[at:]
	}
	if v <= -0.5 {
		s = "-" + s
	}
	return s
}
