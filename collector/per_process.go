package collector

import "time"

// perProcess keeps something about each process from one reading to the next, because
// asking every process again is most of the cost of a reading. A process that reuses the
// PID of another has a different inode, and counts as new.
type perProcess[T any] struct {
	now time.Time
	// known is what the last reading kept, in ascending order of PIDs, as in procfs, and
	// at the index of the next one in it. next is what this reading keeps.
	known, next []known[T]
	at          int
}

type known[T any] struct {
	pid   int
	inode uint64
	since time.Time // since when it is known
	of    T
}

// maxKnown bounds the memory, to some 5 MB. Nothing is kept about further processes.
const maxKnown = 32768

// begin begins a reading.
func (m *perProcess[T]) begin(now time.Time) {
	m.known, m.next = m.next, m.known[:0]
	m.now, m.at = now, 0
}

// last returns what was kept about a process, or a new entry. It must be called in
// ascending order of PIDs; a process out of order counts as new.
func (m *perProcess[T]) last(pid int, inode uint64) known[T] {
	for m.at < len(m.known) && m.known[m.at].pid < pid {
		m.at++
	}
	if m.at < len(m.known) && m.known[m.at].pid == pid && m.known[m.at].inode == inode {
		return m.known[m.at]
	}
	return known[T]{pid: pid, inode: inode, since: m.now}
}

// keep keeps an entry for the next reading. It returns the entry's index in next, -1 if
// there is no room.
func (m *perProcess[T]) keep(k known[T]) int {
	if len(m.next) == maxKnown {
		return -1
	}
	m.next = append(m.next, k)
	return len(m.next) - 1
}

// old reports whether a value found at the given time has to be read again: after age,
// plus up to a quarter, so that not all processes are asked at once.
func (m *perProcess[T]) old(pid int, found time.Time, age time.Duration) bool {
	return m.now.Sub(found) >= age+age/4*time.Duration(pid%64)/64
}
