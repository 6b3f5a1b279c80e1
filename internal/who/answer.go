package who

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// An Answer is who holds the things that a limit counts.
type Answer struct {
	Resource string
	// Nobody is the reason why nothing can be attributed, if so. The rest is empty then.
	Nobody string
	By     Grouping
	// Things is what is counted, in the plural. ByMemory is set where the groups with the
	// most memory come first; HasMemory where their memory is known.
	Things              string
	ByMemory, HasMemory bool
	// Count and Memory are of all things, in groups that are shown and others.
	Count, Memory float64
	// Namespaces is how many network namespaces were read, 0 where that does not matter.
	Namespaces int
	Groups     []Group
	// Others is how many groups are not shown.
	Others int
	// TooLow is by how much the number of a group that the groups are ordered by may be
	// too low, because there are so many groups.
	TooLow float64
	// Notes are what could not be seen and why, and what to know about the numbers, a
	// sentence each.
	Notes []string
	// Stopped is set where it was told to stop before everything was read.
	Stopped bool
}

// A Group is things that belong together.
type Group struct {
	// Who is what it goes by, for people: the process, the unit, the listener.
	Who string
	// PID is that of a process, 0 for any other group.
	PID int
	// User is that of a process, or of the sockets that no process was found for.
	User string
	// Unit is the unit, container or pod that it is of, as far as it is one; a cgroup's path
	// where that names none. Namespace and Pod are those of a pod.
	Unit, Namespace, Pod string
	// Netns is the network namespace that it is in, empty for the host's, and where that
	// does not matter.
	Netns string
	// Count and Memory are how many things there are, and their bytes.
	Count, Memory float64
	// Share is of all, Cumulative that of this group and those before it.
	Share, Cumulative float64
	// Estimated is set where a part of the numbers comes from a sample of descriptors.
	Estimated bool
	// Limit is that of the group, 0 if it has none of its own.
	Limit float64
	// Processes are those that have the most of it, MoreProcesses how many have some besides.
	Processes     []string
	MoreProcesses int
	// Mostly is what more than half of it has in common, empty if there is nothing.
	Mostly string

	score float64
}

// add adds a group.
func (a *Answer) add(g Group) { a.Groups = append(a.Groups, g) }

// finish orders the groups and keeps the first ones.
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

// measure is what of a group its share is of: where nothing has any memory, the number.
func (a *Answer) measure(g Group) float64 {
	if a.ByMemory && a.Memory > 0 {
		return g.Memory
	}
	return g.Count
}

// title is the heading of the column with who a group is.
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

// digits writes a number with commas between the thousands.
func digits(v float64) string {
	s := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Digits writes a number with commas between the thousands.
func Digits(n uint64) string { return digits(float64(n)) }

func digitsOf(port uint16) string { return strconv.Itoa(int(port)) }

// some writes how many things there are: 1 socket, 2 sockets.
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
