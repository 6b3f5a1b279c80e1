package collector

import (
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/owner"
)

// netnsHistory keeps the counters of each namespace.
type netnsHistory struct {
	of      map[uint64]*netnsPast
	reading int // number of the current reading
	// waiting is the number of namespaces in which connection requests wait, waited
	// that number at the last reading.
	waiting, waited int
	// complete is set after the first reading that was not truncated.
	complete bool
	refused  [netnsCounterCount]Number
}

// netnsPast is the state of a namespace at earlier readings.
type netnsPast struct {
	// known is set once it has been read.
	known     bool
	counters  [netnsCounterCount]Number
	clashes   Number
	udp       Number // sockets
	requested Number
	requests  netnsUse // of its fullest request queue
	settings  netnsSettings
	// processes are those through which it was found, claim the owner chosen from theirs,
	// and name its last name.
	processes []string
	claim     owner.Claim
	name      string
	// ownerless counts the last readings in which the same processes had no owner.
	ownerless int
	rose      int
	rise      float64
	reading   int // the last in which it existed
}

func (h *netnsHistory) begin() {
	h.reading++
	h.waiting, h.waited = 0, h.waiting
	for i := range h.refused {
		h.refused[i] = h.refused[i].OrZero()
	}
}

// end forgets the namespaces that have not been seen for the longest time, once there are
// too many. A namespace may come back: one of ip netns has a process only now and then.
func (h *netnsHistory) end() {
	h.complete = true
	forget(h.of, maxNamespaces, func(p *netnsPast) int { return p.reading })
}

// keep remembers a namespace that exists but could not be read.
func (h *netnsHistory) keep(id uint64) {
	if h.of[id] == nil {
		h.of[id] = new(netnsPast)
	}
	h.of[id].reading = h.reading
}

// freshEvery is after how many readings values that seldom change are read again. The
// kernel looks up a sysctl of a namespace among those of all, so reading them each time
// would take time that grows with the square of the number of namespaces.
const freshEvery = 8

// settled reports whether the owner of the processes through which a namespace was found
// is final, even if they have none: a process is put into its cgroup a moment after it is
// started.
func (p *netnsPast) settled(processes []string) bool {
	return (p.claim.Kind != "" || p.ownerless >= freshEvery) && slices.Equal(p.processes, processes)
}

// last returns the past of a namespace, and whether values that seldom change have to be
// read again.
func (h *netnsHistory) last(id uint64) (past netnsPast, fresh bool) {
	known := h.of[id]
	if known == nil || !known.known {
		return netnsPast{}, true
	}
	return *known, (uint64(h.reading)+id)%freshEvery == 0
}

// requestTurns is the approximate number of namespaces whose connection requests are read
// in one reading: for each, the kernel goes through the connections of all namespaces.
const requestTurns = 4

// turn reports whether the connection requests of a namespace are to be read now.
func (h *netnsHistory) turn(id uint64) bool {
	turns := (h.waited + requestTurns - 1) / requestTurns
	return turns < 2 || (uint64(h.reading)+id)%uint64(turns) == 0
}

// hasRequests reports whether connection requests have waited in a namespace since past.
func (n *netnsReading) hasRequests(past *netnsPast) bool {
	return past.known && n.requested.Value > past.requested.Value
}

// note compares the counters of a namespace with their previous values. Everything that a
// new namespace has counted happened since the last reading, unless the namespace existed
// before and could not be read, or this is the first reading.
func (h *netnsHistory) note(n *netnsReading, processes []string) {
	past := h.of[n.id]
	counts := h.complete
	if past == nil {
		past = new(netnsPast)
		h.of[n.id] = past
	} else {
		counts = past.known
	}
	if n.hasRequests(past) {
		h.waiting++
	}
	rise := 0.0
	var grew [netnsCounterCount]float64
	for i, now := range n.counters {
		grew[i] = grown(now, &past.counters[i])
		rise += grew[i]
	}
	grew[netnsConntrackDrops] = max(grew[netnsConntrackDrops]-grown(n.clashes, &past.clashes), 0)
	if counts {
		for i := range grew {
			h.refused[i].Value += grew[i]
		}
	}
	if rise > 0 {
		past.rose, past.rise = h.reading, rise
	}
	n.rose, n.rise = past.rose, past.rise
	past.known, past.udp, past.settings, past.reading = true, n.udp, n.settings, h.reading
	past.requested, past.requests = n.requested, n.uses[netnsRequestQueue]
	if n.claim.Kind != "" || !slices.Equal(past.processes, processes) {
		past.ownerless = 0
	} else {
		past.ownerless++
	}
	past.processes, past.claim = processes, n.claim
}
