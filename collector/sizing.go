package collector

import (
	"math"
	"time"
)

// Load is what a host is planned to hold, or holds: its TCP connections, and their rates.
// Both ends of a connection between two programs of the host count.
type Load struct {
	// Accepted and Outbound are the numbers of connection ends that the host has open:
	// those that it accepted and those that it opened.
	Accepted, Outbound float64
	// Tracked is the number of connections, each counted once.
	Tracked float64
	// Destinations is the number of pairs of a source address and a destination (an
	// address and a port) over which Outbound are distributed evenly.
	Destinations float64
	// Opens and Closes are connections per second. Closes are those that the host closes
	// first, and so has to remember.
	Opens, Closes float64
	// Waiting is the memory of the data that waits in each connection for the program, in
	// bytes, including the kernel's overhead. Charged is what the kernel counts as such.
	Waiting, Charged float64
	// Processes is the number of processes over which the connections are distributed
	// evenly.
	Processes float64
	// Pause is the longest time for which no program accepts.
	Pause time.Duration

	// KernelBytes is the memory that the kernel needs for the load, ProgramBytes what the
	// programs need.
	KernelBytes, ProgramBytes float64
}

// Ends returns the number of sockets of connections.
func (l Load) Ends() float64 { return l.Accepted + l.Outbound }

// Sizing describes how a limit is set: what a load needs of it, what that costs, and
// where it is set.
type Sizing struct {
	// Needs returns how much of the limit a load takes, in the limit's unit. For a list,
	// that is how much of one item's limit. It is nil if TCP connections do not affect
	// the limit.
	Needs func(Load) float64
	// Rule describes Needs in words, Initial the kernel's default.
	Rule, Initial string
	// Objects are the kernel memory that one unit takes, without data.
	Objects []Object
	// OfSocket is set if Objects are part of those of an open connection (Socket).
	OfSocket bool
	// Fresh is the limit of a new item, 0 if the first of Sysctls gives it.
	Fresh float64
	// Fixed is set if the limit is a property of the machine. Most is the highest value
	// that it can be set to, 0 if no load can reach that.
	Fixed bool
	Most  float64
	// Write returns the value of the first of Sysctls that makes the limit as high as
	// needed. now is its present value, which makes the given limit; all are in the
	// sysctl's unit. It never lowers anything. nil means that the sysctl is the limit
	// itself.
	Write func(now []float64, limit, needed float64) []float64
	// Alone is set if setting the first of Sysctls is enough.
	Alone bool
	// Settings are the places other than Sysctls that set the limit.
	Settings []Setting
	// Safe is set if Kubernetes lets a pod set Sysctls without the kubelet's permission.
	Safe bool
}

// Object is an object that the kernel allocates.
type Object struct {
	// Cache is the name of its slab cache, as below /sys/kernel/slab, or a description if
	// it does not come from a slab cache.
	Cache string
	// Bytes is its size on Linux 6.12, 64 bits. Other kernels may have another size, or
	// not have the object.
	Bytes float64
}

// Setting is a place other than a sysctl where a limit is set.
type Setting struct {
	// Where is the file or program. Line is what to write there, with a verb of package
	// fmt for the number.
	Where, Line string
}

// UnitBytes returns the kernel memory that one unit takes on Linux 6.12, 64 bits.
func (s *Sizing) UnitBytes() (sum float64) {
	for _, o := range s.Objects {
		sum += o.Bytes
	}
	return sum
}

// Socket returns what the kernel allocates for an open connection that a program waits
// for by epoll.
func Socket() []Object {
	return []Object{
		{"TCP", 2432},
		{"sock_inode_cache", 832},
		{"dentry", 192},
		{"filp", 192},
		{"eventpoll_epi", 128},
		{"eventpoll_pwq", 72},
		{"ep_head", 16},
		// Used by security modules, if the kernel has some.
		{"lsm_inode_cache", 0},
		{"lsm_file_cache", 0},
		{"its place in the table of descriptors", 8},
	}
}

// How long the kernel keeps what is left of a connection, in seconds.
const (
	// timeWait is TCP_TIMEWAIT_LEN (include/net/tcp.h).
	timeWait = 60
	// trackedAfter is the default of net.netfilter.nf_conntrack_tcp_timeout_time_wait.
	trackedAfter = 120
	// handshake is how long a connection request waits for a client that is far away.
	handshake = 0.25
	// orphaned is the longest time for which a closed connection has unsent data, if its
	// last segment is lost four times and sent again after 0.2, 0.4, 0.8 and 1.6 s; or
	// one second, if the kernel counts it four times (tcp_out_of_resources).
	orphaned = 4
)

// The default range of net.ipv4.ip_local_port_range, and the widest that is used.
const (
	lowestPort, firstPort, lastPort, highestPort = 1024, 32768, 60999, 65535
)

// writeRange widens a range of ports, first upwards, because services listen below it.
func writeRange(now []float64, limit, needed float64) []float64 {
	low, high := now[0], now[1]
	needed = math.Ceil(needed + high - low + 1 - limit) // some of its ports cannot be assigned
	high = min(max(high, low+needed-1), highestPort)
	low = min(low, max(high-needed+1, lowestPort))
	return []float64{low, high}
}

// pressure is the share of its limit from which the kernel saves TCP memory. With the
// usual headroom of the limit, the usage stays an eighth below it.
const pressure = 0.8

// writeThresholds returns the thresholds of a kind of memory: where the kernel stops
// saving it, starts saving it, and refuses it.
func writeThresholds(now []float64, _, needed float64) []float64 {
	start := math.Ceil(needed * pressure)
	return higher(now, math.Ceil(start*3/4), start, math.Ceil(needed))
}

// writeFirst is writeThresholds for memory of which the first threshold is the limit.
func writeFirst(now []float64, _, needed float64) []float64 {
	return higher(now, math.Ceil(needed), math.Ceil(needed*4/3), math.Ceil(needed*2))
}

// higher returns the higher of each pair of numbers.
func higher(now []float64, wanted ...float64) []float64 {
	for i := range wanted {
		wanted[i] = max(wanted[i], now[i])
	}
	return wanted
}

// backlogLine shows how programs set how many connections may wait.
const backlogLine = "listen(fd, %.0[1]f); backlog=%.0[1]f (nginx, on its line listen), backlog %.0[1]f (HAProxy)"

// forever is the value that means no limit of connections: the maximum of an int.
const forever = math.MaxInt32
