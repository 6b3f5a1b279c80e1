package collector

import (
	"math"
	"time"
)

// Load is what a host is asked to hold, or holds: its TCP connections, and how fast they
// come and go. A connection between two programs of the host has both ends there.
type Load struct {
	// Accepted and Outbound are the ends of connections that the host has open: those
	// that it accepted and those that it opened.
	Accepted, Outbound float64
	// Tracked is the connections themselves, each counted once.
	Tracked float64
	// Destinations is the pairs of a source address and a destination, an address and a
	// port, to which Outbound go in equal parts.
	Destinations float64
	// Opens and Closes are connections a second. Closes are those that the host closes
	// first, and so has to remember.
	Opens, Closes float64
	// Waiting is the memory of the data that waits in each connection for the program, in
	// bytes, with what the kernel needs around it; Charged is what it counts as such.
	Waiting, Charged float64
	// Processes hold the connections in equal parts.
	Processes float64
	// Pause is the longest time for which no program accepts.
	Pause time.Duration

	// KernelBytes is the memory that the kernel needs for all of it, ProgramBytes what
	// the programs do.
	KernelBytes, ProgramBytes float64
}

// Ends are the sockets of connections.
func (l Load) Ends() float64 { return l.Accepted + l.Outbound }

// Sizing is what is known of how a limit is set: what a load needs of it, what that costs,
// and where it is written.
type Sizing struct {
	// Needs returns how much of the limit a load takes, in the limit's unit; of a list,
	// how much of that of one item. It is nil where TCP connections do not move it.
	Needs func(Load) float64
	// Rule says the same in words; Initial where the kernel starts.
	Rule, Initial string
	// Objects is the kernel memory that one unit takes, without data.
	Objects []Object
	// OfSocket is set where Objects are among those of an open connection (Socket).
	OfSocket bool
	// Fresh is the limit of an item that is yet to come, 0 where the first of Sysctls
	// says it.
	Fresh float64
	// Fixed is set where the limit is a property of the machine, and Most is how high it
	// can be set, 0 where that is out of anyone's reach.
	Fixed bool
	Most  float64
	// Write returns what the first of Sysctls has to be for the limit to be as needed,
	// where it is now and makes the given limit, all in the sysctl's unit: it narrows
	// nothing. nil is for a sysctl that is the limit itself.
	Write func(now []float64, limit, needed float64) []float64
	// Alone is set where the first of Sysctls is enough.
	Alone bool
	// Settings move it besides Sysctls.
	Settings []Setting
	// Safe is set where Kubernetes lets a pod set Sysctls without the kubelet's
	// permission.
	Safe bool
}

// Object is something that the kernel allocates.
type Object struct {
	// Cache is the slab cache that it comes from, as below /sys/kernel/slab, or what it
	// is where it comes from none.
	Cache string
	// Bytes is its size on Linux 6.12, 64 bits; another kernel says its own, or does not
	// have it.
	Bytes float64
}

// Setting is a place other than a sysctl where a limit is set.
type Setting struct {
	// Where is the file or program, Line what it says there, with a verb of package fmt
	// for the number.
	Where, Line string
}

// UnitBytes is the kernel memory that one unit takes on Linux 6.12, 64 bits.
func (s *Sizing) UnitBytes() (sum float64) {
	for _, o := range s.Objects {
		sum += o.Bytes
	}
	return sum
}

// Socket is what the kernel allocates for an open connection that a program waits for by
// epoll.
func Socket() []Object {
	return []Object{
		{"TCP", 2432},
		{"sock_inode_cache", 832},
		{"dentry", 192},
		{"filp", 192},
		{"eventpoll_epi", 128},
		{"eventpoll_pwq", 72},
		{"ep_head", 16},
		// What security modules keep, on a kernel that has some.
		{"lsm_inode_cache", 0},
		{"lsm_file_cache", 0},
		{"its place in the table of descriptors", 8},
	}
}

// Times that the kernel keeps what is left of a connection, in seconds.
const (
	// timeWait is TCP_TIMEWAIT_LEN (include/net/tcp.h).
	timeWait = 60
	// trackedAfter is net.netfilter.nf_conntrack_tcp_timeout_time_wait as it is at first.
	trackedAfter = 120
	// handshake is how long a request for a connection waits for a client that is far away.
	handshake = 0.25
	// orphaned is how long a closed connection has unsent data at most, if its last
	// segment is lost four times and sent again after 0.2, 0.4, 0.8 and 1.6 s; or one
	// second, where the kernel counts it four times (tcp_out_of_resources).
	orphaned = 4
)

// The range of ports that net.ipv4.ip_local_port_range starts with, and may have.
const (
	lowestPort, firstPort, lastPort, highestPort = 1024, 32768, 60999, 65535
)

// writeRange widens a range of ports upwards first: below it services listen.
func writeRange(now []float64, limit, needed float64) []float64 {
	low, high := now[0], now[1]
	needed = math.Ceil(needed + high - low + 1 - limit) // some of its ports cannot be handed out
	high = min(max(high, low+needed-1), highestPort)
	low = min(low, max(high-needed+1, lowestPort))
	return []float64{low, high}
}

// pressure is where the kernel begins to save TCP memory, of its limit: what is used, if
// the limit has the usual room, stays an eighth below it.
const pressure = 0.8

// writeThresholds writes the thresholds of a kind of memory: where the kernel stops to
// save it, begins, and refuses.
func writeThresholds(now []float64, _, needed float64) []float64 {
	start := math.Ceil(needed * pressure)
	return higher(now, math.Ceil(start*3/4), start, math.Ceil(needed))
}

// writeFirst is writeThresholds for memory of which the first threshold is the limit.
func writeFirst(now []float64, _, needed float64) []float64 {
	return higher(now, math.Ceil(needed), math.Ceil(needed*4/3), math.Ceil(needed*2))
}

// higher returns the higher of each of some numbers.
func higher(now []float64, wanted ...float64) []float64 {
	for i := range wanted {
		wanted[i] = max(wanted[i], now[i])
	}
	return wanted
}

// backlogLine is how programs are told how many connections may wait.
const backlogLine = "listen(fd, %.0[1]f); backlog=%.0[1]f (nginx, on its line listen), backlog %.0[1]f (HAProxy)"

// forever is what the kernel takes for no limit of connections: an int.
const forever = math.MaxInt32
