package collector

import "time"

// processMemory keeps the limits of processes from one reading to the next. They
// cost four times as much to read as it does to count the descriptors: the kernel
// writes a table of sixteen limits.
//
// A limit is of use for a time only, because prlimit changes it at any moment. What is shown
// is never from here: a limit that was raised is read before a process is called
// near to it, one that was lowered within limitAge and a quarter.
//
// A name is kept as long, to pass over the many processes of a name that is shown
// already.
type processMemory struct{ perProcess[knownLimit] }

type knownLimit struct {
	limit float64 // 0 is none
	// name is empty until it is needed, and until the process has settled.
	name string
	read time.Time // the limit
}

const (
	// limitAge is how long a limit is of use, and up to a quarter more.
	limitAge = 2 * time.Minute
	// settled is how long a process is known before its name is kept: programs name
	// themselves, or become another one, soon after they begin.
	settled = 30 * time.Second
)

// find returns what is known of a process, or the limit that is read now, and its place
// as perProcess.keep does.
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

// fresh reports whether the limit is of this reading.
func (m *processMemory) fresh(k knownLimit) bool { return k.read.Equal(m.now) }

// note notes the limit and the name that the process at a place has now.
func (m *processMemory) note(place int, limit float64, name string) {
	if place >= 0 {
		p := &m.next[place]
		p.of.limit, p.of.read = limit, m.now
		if m.now.Sub(p.since) >= settled {
			p.of.name = name
		}
	}
}
