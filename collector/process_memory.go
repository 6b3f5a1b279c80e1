package collector

import "time"

// processMemory keeps the limits of processes from one reading to the next. They
// cost four times as much to read as it does to count the descriptors: the kernel
// writes a table of sixteen limits.
//
// A limit is of use as long as it is of the same process: of a PID that was given
// to another one, procfs has another inode of its folder of descriptors. And it is
// of use for a time only, because prlimit changes it at any moment. What is shown
// is never from here: a limit that was raised is read before a process is called
// near to it, one that was lowered within limitAge and a quarter.
//
// A name is kept as long, to pass over the many processes of a name that is shown
// already.
type processMemory struct {
	now time.Time
	// known is what the last reading found, in ascending order of PIDs, as procfs has
	// them, and place that of the next one in it. next is what this reading finds.
	known, next []knownProcess
	place       int
}

type knownProcess struct {
	pid   int
	id    uint64
	limit float64 // 0 is none
	// name is empty until it is needed, and until the process has settled.
	name  string
	read  time.Time // the limit
	since time.Time // it is known
}

const (
	// limitAge is how long a limit is of use, and up to a quarter more, so that not
	// all are read at once.
	limitAge = 2 * time.Minute
	// settled is how long a process is known before its name is kept: programs name
	// themselves, or become another one, soon after they begin.
	settled = 30 * time.Second
	// maxKnown bounds the memory: some 5 MB. Limits of more processes are read at each
	// reading.
	maxKnown = 32768
)

// begin begins a reading.
func (m *processMemory) begin(now time.Time) {
	m.known, m.next = m.next, m.known[:0]
	m.now, m.place = now, 0
}

// find returns a process whose folder of descriptors is the inode id, as it is known or with the
// limit that is read now, and its place, -1 if it finds no room. Processes come in
// ascending order of their PIDs; where they do not, their limits are read.
func (m *processMemory) find(pid int, id uint64, read func() (float64, error)) (k knownProcess, place int, err error) {
	for m.place < len(m.known) && m.known[m.place].pid < pid {
		m.place++
	}
	k = knownProcess{pid: pid, id: id, since: m.now}
	if m.place < len(m.known) && m.known[m.place].pid == pid && m.known[m.place].id == id {
		k = m.known[m.place]
	}
	if age := limitAge + limitAge/4*time.Duration(pid%64)/64; m.now.Sub(k.read) >= age {
		k.read, k.name = m.now, ""
		if k.limit, err = read(); err != nil {
			return k, -1, err
		}
	}
	if len(m.next) == maxKnown {
		return k, -1, nil
	}
	m.next = append(m.next, k)
	return k, len(m.next) - 1, nil
}

// fresh reports whether the limit is of this reading.
func (m *processMemory) fresh(k knownProcess) bool { return k.read.Equal(m.now) }

// keep notes the limit and the name that the process at a place has now.
func (m *processMemory) keep(place int, limit float64, name string) {
	if place >= 0 {
		k := &m.next[place]
		k.limit, k.read = limit, m.now
		if m.now.Sub(k.since) >= settled {
			k.name = name
		}
	}
}
