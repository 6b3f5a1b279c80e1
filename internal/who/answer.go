package who

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// An Answer describes who holds the things that a limit counts.
type Answer struct {
	Resource string
	// Nobody is the reason why nothing can be attributed, if so. Then the fields below
	// are empty.
	Nobody string
	By     Grouping
	// Things is what is counted, in the plural. ByMemory is set if the groups with the
	// most memory come first, HasMemory if their memory is known.
	Things              string
	ByMemory, HasMemory bool
	// Count and Memory are totals over all groups, including those that are not shown.
	Count, Memory float64
	// Namespaces is the number of network namespaces that were read, 0 if that does not
	// matter.
	Namespaces int
	Groups     []Group
	// Others is the number of groups that are not shown.
	Others int
	// TooLow is the greatest error of the number by which the groups are ordered: it may
	// be that much too low, because there are too many groups.
	TooLow float64
	// Notes are what could not be read and why, and how to understand the numbers, one
	// sentence each.
	Notes []string
	// Stopped is set if the inquiry was stopped before everything was read.
	Stopped bool
}

// A Group is things that belong together.
type Group struct {
	// Who is the name of the group, for people: the process, the unit, the listener.
	Who string
	// PID is the number of a process, 0 for any other group.
	PID int
	// User is the user of a process, or of sockets for which no process was found.
	User string
	// Unit is the unit, container or pod that the group belongs to, if any, or a cgroup's
	// path if that names none. Namespace and Pod are those of a pod.
	Unit, Namespace, Pod string
	// Netns is the network namespace of the group. It is empty for the host's, and if it
	// does not matter.
	Netns string
	// Count is the number of things, and Memory their memory in bytes.
	Count, Memory float64
	// Share is the group's share of all things, Cumulative that of this group and those
	// before it.
	Share, Cumulative float64
	// Estimated is set if part of the numbers comes from a sample of descriptors.
	Estimated bool
	// Limit is the limit of the group, 0 if it has no limit of its own.
	Limit float64
	// Processes are the processes that have the most things of the group, MoreProcesses
	// the number of further processes that have some.
	Processes     []string
	MoreProcesses int
	// Mostly is what more than half of the group has in common, empty if there is
	// nothing.
	Mostly string

	score float64
}

func (a *Answer) add(g Group) { a.Groups = append(a.Groups, g) }

// finish orders the groups and keeps the first.
func (a *Answer) finish(top int) {
	slices.SortFunc(a.Groups, func(x, y Group) int {
		return cmp.Or(cmp.Compare(y.score, x.score), cmp.Compare(a.measure(y), a.measure(x)), cmp.Compare(y.Count, x.Count),
			cmp.Compare(x.Netns, y.Netns), cmp.Compare(x.Who, y.Who), cmp.Compare(x.PID, y.PID))
	})
	if more := len(a.Groups) - top; more > 0 {
		a.Others += more
		a.Groups = a.Groups[:top]
	}
	all := a.measure(Group{Count: a.Count, Memory: a.Memory})
	before := 0.0
	for i := range a.Groups {
		g := &a.Groups[i]
		if all > 0 {
			g.Share = a.measure(*g) / all
		}
		before += g.Share
		g.Cumulative = min(before, 1)
	}
}

// measure returns the number of a group that its share is computed from: the memory if
// the answer is by memory and anything has memory, or else the count.
func (a *Answer) measure(g Group) float64 {
	if a.ByMemory && a.Memory > 0 {
		return g.Memory
	}
	return g.Count
}

// title returns the heading of the column that names the groups.
func (a *Answer) title() string {
	title := strings.ToUpper(string(a.By))
	with := func(part string) bool {
		return slices.ContainsFunc(a.Groups, func(g Group) bool { return strings.Contains(" "+g.Who, part) })
	}
	switch {
	case a.By == ByUnit:
		return "UNIT, CONTAINER OR POD"
	case a.By == ByListener && with(" to "):
		return "LISTENER OR DESTINATION"
	case a.By == ByDestination && with(" → "):
		return "FROM → DESTINATION"
	}
	return title
}

// digits formats a number with commas between the thousands.
func digits(v float64) string {
	s := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Digits formats a number with commas between the thousands.
func Digits(n uint64) string { return digits(float64(n)) }

func digitsOf(port uint16) string { return strconv.Itoa(int(port)) }

// some formats a number of things, as in 1 socket, 2 sockets.
func some(n float64, things string) string {
	if n == 1 {
		if stem, ok := strings.CutSuffix(things, "ies"); ok {
			things = stem + "y"
		} else if stem, ok := strings.CutSuffix(things, "sses"); ok {
			things = stem + "ss"
		} else {
			things = strings.TrimSuffix(things, "s")
		}
	}
	return fmt.Sprintf("%s %s", digits(n), things)
}
