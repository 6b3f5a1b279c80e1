package collector

import "time"

// perProcess keeps something of each process from one reading to the next, because
// asking every process again is most of what a reading costs. A process that got the
// PID of another has another inode, and is new.
type perProcess[T any] struct {
	now time.Time
	// known is what the last reading kept, in ascending order of PIDs, as procfs has
	// them, and at the place of the next one in it. next is what this reading keeps.
	known, next []known[T]
	at          int
}

type known[T any] struct {
	pid   int
	inode uint64
	since time.Time // it is known
	of    T
}

// maxKnown bounds the memory: some 5 MB. Of more processes nothing is kept.
const maxKnown = 32768

// begin begins a reading.
func (m *perProcess[T]) begin(now time.Time) {
	m.known, m.next = m.next, m.known[:0]
	m.now, m.at = now, 0
}

// last returns what was kept of a process, or a new one. Processes come in ascending
// order of their PIDs; one that does not is new.
func (m *perProcess[T]) last(pid int, inode uint64) known[T] {
	for m.at < len(m.known) && m.known[m.at].pid < pid {
		m.at++
	}
	if m.at < len(m.known) && m.known[m.at].pid == pid && m.known[m.at].inode == inode {
		return m.known[m.at]
	}
	return known[T]{pid: pid, inode: inode, since: m.now}
}

// keep keeps it for the next reading, and returns its place in next, -1 if there is no
// room.
func (m *perProcess[T]) keep(k known[T]) int {
	if len(m.next) == maxKnown {
		return -1
	}
	m.next = append(m.next, k)
	return len(m.next) - 1
}

// old reports whether what was found at a time is to be found again: after age, and
// up to a quarter more, so that not all of the processes are asked at once.
func (m *perProcess[T]) old(pid int, found time.Time, age time.Duration) bool {
	return m.now.Sub(found) >= age+age/4*time.Duration(pid%64)/64
}
