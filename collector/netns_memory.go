package collector

import "time"

// netnsMemory keeps the network namespace of each process. A process enters its namespace
// soon after it starts. If it moves later, it is found in the new namespace within
// netnsAge and a quarter. It is never taken for a process of the namespace that it left,
// because reading a namespace checks again where the process is.
type netnsMemory struct{ perProcess[netnsProcess] }

type netnsProcess struct {
	name  string // of the process, or of its thread that is in the namespace
	id    uint64 // of the namespace
	asked time.Time
}

const (
	// netnsSettled is how long a process is known before it is no longer asked at each
	// reading: container runtimes start a process and then move it.
	netnsSettled = time.Minute
	// netnsAge is how long an answer is valid, plus up to a quarter.
	netnsAge = 2 * time.Minute
)

// find returns the last answer of ask for a process, calling ask if it is too old: the
// name by which the process or a thread of it is visited, and the ID of its namespace.
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
