package collector

import (
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/owner"
)

// netnsHistory remembers the counters of each namespace.
type netnsHistory struct {
	of      map[uint64]*netnsPast
	reading int // counts them
	// stirring is in how many namespaces connection requests waited, now and at the last
	// reading.
	stirring, stirred int
	// complete is set after the first one that was not truncated.
	complete bool
	refused  [netnsCounterCount]Number
}

// netnsPast is a namespace as it was.
type netnsPast struct {
	// known is set once it was read.
	known    bool
	counters [netnsCounterCount]Number
	clashes  Number
	udp      Number // sockets
	stirred  Number
	requests Number // the saturation of the queue of requests
	settings netnsSettings
	// processes are those by which it was found, and claim whose it was by them. name
	// is what it was called.
	processes []string
	claim     owner.Claim
	name      string
	// nobodys counts the last readings in which the same processes were all nobody's.
	nobodys int
	rose    int
	rise    float64
	reading int // the last in which it was there
}

func (h *netnsHistory) begin() {
	h.reading++
	h.stirring, h.stirred = 0, h.stirring
	for i := range h.refused {
		h.refused[i] = h.refused[i].OrZero()
	}
}

// end forgets what was not there for the longest time, once it is too much. A namespace
// that is not there may come back: that of ip netns has a process only now and then.
func (h *netnsHistory) end() {
	h.complete = true
	forget(h.of, maxNamespaces, func(p *netnsPast) int { return p.reading })
}

// keep remembers a namespace that is there and could not be read.
func (h *netnsHistory) keep(id uint64) {
	if h.of[id] == nil {
		h.of[id] = new(netnsPast)
	}
	h.of[id].reading = h.reading
}

// freshEvery is how many readings what seldom changes is believed for. The kernel looks
// for a sysctl of a namespace among those of all, so reading them each time would take a
// time that grows with the square of the namespaces.
const freshEvery = 8

// settled reports whether the processes by which a namespace was found have said whose
// it is, even if it has no owner: a process is put into its cgroup a moment after it was started.
func (p *netnsPast) settled(processes []string) bool {
	return (p.claim.Kind != "" || p.nobodys >= freshEvery) && slices.Equal(p.processes, processes)
}

// last returns what a namespace was, and whether what seldom changes is to be read again.
func (h *netnsHistory) last(id uint64) (past netnsPast, fresh bool) {
	known := h.of[id]
	if known == nil || !known.known {
		return netnsPast{}, true
	}
	return *known, (uint64(h.reading)+id)%freshEvery == 0
}

// requestTurns is how many namespaces are looked at for connection requests in a reading,
// more or less: the kernel goes through the connections of all namespaces for each.
const requestTurns = 4

// turn reports whether it is a namespace's turn to be looked at for connection requests.
func (h *netnsHistory) turn(id uint64) bool {
	turns := (h.stirred + requestTurns - 1) / requestTurns
	return turns < 2 || (uint64(h.reading)+id)%uint64(turns) == 0
}

// stirs reports whether connection requests have waited in a namespace since it was what
// it is compared with.
func (n *netnsReading) stirs(past *netnsPast) bool {
	return past.known && n.stirred.Value > past.stirred.Value
}

// note compares a namespace with what it was. What a new one has counted happened since
// the last reading, unless it was there before and could not be read, or nobody knows
// because this is the first reading.
func (h *netnsHistory) note(n *netnsReading, processes []string) {
	past := h.of[n.id]
	counts := h.complete
	if past == nil {
		past = new(netnsPast)
		h.of[n.id] = past
	} else {
		counts = past.known
	}
	if n.stirs(past) {
		h.stirring++
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
	past.stirred, past.requests = n.stirred, n.saturation[netnsRequestQueue]
	if n.claim.Kind != "" || !slices.Equal(past.processes, processes) {
		past.nobodys = 0
	} else {
		past.nobodys++
	}
	past.processes, past.claim = processes, n.claim
}
