// Package plan calculates what a host needs to hold a number of connections: which of the
// kernel's limits would be reached, what to set them to, what that costs in memory, and
// which limit is reached first. Everything it knows about a limit is in the limit's own
// row (collector.LimitInfo), so a new limit there is also in the plan.
package plan

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// Demand is what a host is asked to hold. Counts and rates are whole numbers, sizes are
// in bytes; 0 means not asked for.
type Demand struct {
	// Connections is the number of TCP connections that are open at once. Outbound is how
	// many of them the host itself opens, to so many Destinations: pairs of a local
	// address and a remote address and port.
	Connections, Outbound, Destinations int64
	// Opens and Closes are connections per second. Closes are those that the host closes
	// first.
	Opens, Closes int64
	// Unread is the data that waits in each connection.
	Unread int64
	// Processes is the number of processes over which the connections are distributed
	// evenly.
	Processes int64
	// Pause is the longest time for which the program does not accept.
	Pause time.Duration
	// TLS is set if the programs encrypt.
	TLS bool
	// Proxy means that the host opens a connection for each that it accepts, Loopback
	// that it has both ends of each connection.
	Proxy, Loopback bool
	// Memory is the memory of the host, 0 for its actual memory. ApplicationMemory is
	// what its programs take, without what they take for TLS.
	Memory, ApplicationMemory int64
}

// most is more connections than there are IPv4 addresses.
const most = 1 << 32

// mostMemory is more than any machine has, in bytes.
const mostMemory = 1 << 50

// mostPause is a pause after which every client has given up.
const mostPause = time.Hour

// Validate returns an error for a demand that is not valid. The error names flags of the
// command line.
func (d Demand) Validate() error {
	for _, n := range []struct {
		flag     string
		value    int64
		min, max int64
	}{
		{"connections", d.Connections, 1, most},
		{"outbound", d.Outbound, 0, most},
		{"destinations", d.Destinations, 0, most},
		{"opens-per-second", d.Opens, 0, most},
		{"closes-per-second", d.Closes, 0, most},
		{"processes", d.Processes, 1, most},
		{"unread", d.Unread, 0, math.MaxInt32},
		{"memory", d.Memory, 0, mostMemory},
		{"application-memory", d.ApplicationMemory, 0, mostMemory},
	} {
		if n.value < n.min || n.value > n.max {
			return fmt.Errorf("--%s=%d must be between %d and %d", n.flag, n.value, n.min, n.max)
		}
	}
	switch {
	case d.Pause < 0 || d.Pause > mostPause:
		return fmt.Errorf("--listen-pause=%v must be between 0s and %v", d.Pause, mostPause)
	case d.Proxy && d.Loopback:
		return errors.New("--proxy and --loopback cannot be combined: the other ends of a proxy's connections are on other hosts")
	case (d.Proxy || d.Loopback) && d.Outbound > 0:
		return errors.New("--proxy and --loopback imply --outbound, omit it")
	case d.Outbound > d.Connections:
		return fmt.Errorf("--outbound=%d must be at most --connections=%d", d.Outbound, d.Connections)
	case d.Destinations > 0 && d.outbound() == 0:
		return errors.New("--destinations needs --outbound, --proxy or --loopback")
	case d.Destinations > max(d.outbound(), 1):
		return fmt.Errorf("--destinations=%d must be at most %d, the number of connections that the host opens", d.Destinations, d.outbound())
	case d.Opens > 0 && d.Closes > d.Opens:
		return fmt.Errorf("--closes-per-second=%d must be at most --opens-per-second=%d", d.Closes, d.Opens)
	case d.Pause > 0 && d.Opens == 0:
		return errors.New("--listen-pause needs --opens-per-second")
	case d.Pause > 0 && d.accepted() == 0:
		return errors.New("--listen-pause cannot be combined with --outbound for all connections: the host accepts none")
	case d.Processes > d.ends():
		return fmt.Errorf("--processes=%d must be at most %d, the number of sockets", d.Processes, d.ends())
	case d.Memory > 0 && d.ApplicationMemory > d.Memory:
		return fmt.Errorf("--application-memory=%d must be at most --memory=%d", d.ApplicationMemory, d.Memory)
	}
	return nil
}

// outbound returns the number of connection ends that the host opens.
func (d Demand) outbound() int64 {
	if d.Proxy || d.Loopback {
		return d.Connections
	}
	return d.Outbound
}

// accepted returns the number of connection ends that the host accepts.
func (d Demand) accepted() int64 { return d.ends() - d.outbound() }

// ends returns the number of connection ends that the host has open.
func (d Demand) ends() int64 {
	if d.Proxy || d.Loopback {
		return 2 * d.Connections
	}
	return d.Connections
}

// load returns the demand in the form that limits use. unit is the unit in which the
// kernel counts socket memory, in bytes.
func (d Demand) load(unit int) collector.Load {
	l := collector.Load{
		Accepted: float64(d.accepted()), Outbound: float64(d.outbound()),
		Tracked:      float64(d.Connections),
		Destinations: float64(max(d.Destinations, 1)),
		Opens:        float64(d.Opens), Closes: float64(d.Closes),
		Processes: float64(max(d.Processes, 1)),
		Pause:     d.Pause,
	}
	if d.Proxy {
		l.Tracked, l.Opens, l.Closes = 2*l.Tracked, 2*l.Opens, 2*l.Closes
	}
	var truesize float64
	l.Waiting, truesize = waiting(float64(d.Unread), d.Loopback)
	l.Charged = math.Ceil(truesize/float64(unit)) * float64(unit)
	return l
}

// waiting returns the memory that unread data takes, and what the kernel counts for it
// (its truesize), in bytes.
func waiting(data float64, loopback bool) (taken, truesize float64) {
	const (
		// For a segment over Ethernet most drivers use half a page, with a struct sk_buff
		// of 256 bytes.
		segment, ofSegment = 1448, 2048 + 256
		// Loopback passes on what was written, in pages and with a header: here in pieces
		// of 4 KiB. The header is allocated as skbuff_fclone_cache and skbuff_small_head,
		// and counted as struct sk_buff and skb_shared_info.
		piece, ofPiece, counted = 4096, 512 + 704, 832
	)
	if loopback {
		pieces := math.Ceil(data / piece)
		return data + pieces*ofPiece, data + pieces*counted
	}
	segments := math.Ceil(data / segment)
	return segments * ofSegment, segments * ofSegment
}
