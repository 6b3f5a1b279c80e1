package collector

import "time"

// netnsMemory keeps which network namespace each process is in. A process enters its
// namespace soon after it begins; one that moves later is found in the new one within
// netnsAge and a quarter, and is never taken for one of that which it left: whoever
// reads a namespace asks again where the process is.
type netnsMemory struct{ perProcess[netnsProcess] }

type netnsProcess struct {
	name  string // of the process, or of the thread of it that is in the namespace
	id    uint64 // of the namespace
	asked time.Time
}

const (
	// netnsSettled is how long a process is known before it is not asked at each
	// reading: container runtimes start a process and then move it.
	netnsSettled = time.Minute
	// netnsAge is how long an answer is of use, and up to a quarter more.
	netnsAge = 2 * time.Minute
)

// find returns what ask returns for a process, or did: the name by which the process
// or a thread of it is visited, and the ID of its namespace.
func (m *netnsMemory) find(pid int, inode uint64, ask func() (name string, id uint64, err error)) (name string, id uint64, err error) {
	p := m.last(pid, inode)
	if m.now.Sub(p.since) < netnsSettled || m.old(pid, p.of.asked, netnsAge) {
		if p.of.name, p.of.id, err = ask(); err != nil {
			return "", 0, err
		}
		p.of.asked = m.now
	}
	m.keep(p)
	return p.of.name, p.of.id, nil
}
