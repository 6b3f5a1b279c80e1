package collector

import "time"

// processMemory keeps the limits of processes from one reading to the next. Reading them
// costs four times as much as counting the descriptors, because the kernel writes a table
// of sixteen limits.
//
// A limit is used for a limited time only, because prlimit can change it at any moment.
// Limits that are shown never come from here: a raised limit is read before a process is
// reported to be near it, a lowered one within limitAge and a quarter.
//
// A name is kept as long, to skip the many processes with a name that is already shown.
type processMemory struct{ perProcess[knownLimit] }

type knownLimit struct {
	limit float64 // 0 means none
	// name is empty until it is needed, and until the process has settled.
	name string
	read time.Time // when the limit was read
}

const (
	// limitAge is how long a limit is used, plus up to a quarter.
	limitAge = 2 * time.Minute
	// settled is how long a process is known before its name is kept: programs set their
	// name, or execute another program, soon after they start.
	settled = 30 * time.Second
)

// find returns what is known about a process, after reading its limit if necessary, and
// its index as perProcess.keep returns it.
func (m *processMemory) find(pid int, inode uint64, read func() (float64, error)) (k knownLimit, place int, err error) {
	p := m.last(pid, inode)
	if m.old(pid, p.of.read, limitAge) {
		p.of.read, p.of.name = m.now, ""
		if p.of.limit, err = read(); err != nil {
			return p.of, -1, err
		}
	}
	return p.of, m.keep(p), nil
}

// fresh reports whether the limit was read in this reading.
func (m *processMemory) fresh(k knownLimit) bool { return k.read.Equal(m.now) }

// note records the present limit and name of the process at an index.
func (m *processMemory) note(place int, limit float64, name string) {
	if place >= 0 {
		p := &m.next[place]
		p.of.limit, p.of.read = limit, m.now
		if m.now.Sub(p.since) >= settled {
			p.of.name = name
		}
	}
}
