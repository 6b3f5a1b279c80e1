package who

import (
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// row is a limit: what holds the things that it counts, and how to find the holders.
type row struct {
	resource string
	// things is what is counted, in the plural.
	things string
	// by is what they can be grouped by. The first is the default, unless choose is set,
	// which then returns it.
	by     []Grouping
	choose func(*inquiry) Grouping
	// memory is set if they are ordered by the memory that they take.
	memory bool
	// machine is set if they do not belong to a network namespace or pod.
	machine bool
	// processes is set if they are read process by process, rather than in each network
	// namespace.
	processes bool
	// perNetns is set if each network namespace has its own limit of this kind.
	perNetns bool
	// loose is set for sockets that no process can have any more.
	loose bool
	// kinds is set if it helps to know the kinds of a process's descriptors.
	kinds bool
	// read finds the groups. If nothing can be attributed, nobody is set instead, and
	// gives the reason.
	read   func(*inquiry) error
	nobody string
}

// rows returns a row for each limit.
func rows() []row {
	fragments := "A fragment belongs to no socket or process until its packet is reassembled, and the kernel shows only the memory of fragments, per network namespace. To see the senders: tcpdump 'ip[6:2] & 0x3fff != 0'."
	return []row{
		{
			resource: "tcp_memory", things: "sockets", memory: true,
			by: []Grouping{ByUnit, ByProcess, ByPod, ByListener, ByPeer, ByState}, choose: unitsOr(ByProcess),
			read: readSockets(sockets{
				protocol: sockdiag.TCP, about: tcpSockets,
				states: sockdiag.AllStates.Without(sockdiag.TimeWait, sockdiag.SynRecv), // these have none
			}),
		},
		{
			resource: "udp_memory", things: "sockets", memory: true,
			by: []Grouping{ByUnit, ByProcess, ByPod, ByListener}, choose: unitsOr(ByProcess),
			read: readSockets(sockets{protocol: sockdiag.UDP, about: udpSockets, states: sockdiag.AllStates}),
		},
		{
			resource: "tcp_orphans", things: "sockets", loose: true,
			by: []Grouping{ByListener, ByUnit, ByPod, ByPeer, ByState},
			read: readSockets(sockets{
				protocol: sockdiag.TCP, about: tcpSockets,
				states: sockdiag.MaskOf(sockdiag.FinWait1, sockdiag.FinWait2, sockdiag.LastAck, sockdiag.Closing),
				keep: func(s *sockdiag.Socket) bool {
					return s.Inode == 0 && s.Timer != sockdiag.TimerTimeWait
				},
			}),
		},
		{
			resource: "tcp_time_wait", things: "sockets", loose: true, perNetns: true,
			by: []Grouping{ByListener, ByPeer, ByState},
			read: readSockets(sockets{
				protocol: sockdiag.TCP, about: tcpSockets, mini: true,
				states: sockdiag.MaskOf(sockdiag.TimeWait, sockdiag.FinWait2),
				keep:   func(s *sockdiag.Socket) bool { return s.Timer == sockdiag.TimerTimeWait },
			}),
		},
		{
			resource: "accept_queue", things: "connections", perNetns: true,
			by:   []Grouping{ByListener, ByProcess, ByUnit, ByPod, ByPeer},
			read: readAcceptQueues,
		},
		{
			resource: "request_queue", things: "connections", loose: true, perNetns: true,
			by: []Grouping{ByListener, ByPeer},
			read: readSockets(sockets{
				protocol: sockdiag.TCP, about: tcpSockets, mini: true, states: sockdiag.MaskOf(sockdiag.SynRecv),
			}),
		},
		{
			resource: "unix_accept_queue", things: "connections", perNetns: true,
			by:   []Grouping{ByListener, ByProcess, ByUnit, ByPod},
			read: readUnixQueues,
		},
		{
			resource: "udp_receive_queue", things: "sockets", memory: true, perNetns: true,
			by:   []Grouping{ByProcess, ByUnit, ByPod, ByListener},
			read: readSockets(sockets{protocol: sockdiag.UDP, about: udpSockets, states: sockdiag.AllStates}),
		},
		{
			resource: "threads", things: "threads", processes: true,
			by:   []Grouping{ByProcess, ByUnit, ByPod},
			read: readProcesses(countThreads),
		},
		{
			resource: "ephemeral_ports", things: "ports", perNetns: true,
			by: []Grouping{ByDestination, BySource, ByProcess, ByUnit, ByPod, ByState},
			read: readSockets(sockets{
				protocol: sockdiag.TCP, about: tcpSockets, ephemeral: true,
				states: sockdiag.AllStates.Without(sockdiag.Listen, sockdiag.Close, sockdiag.SynRecv),
			}),
		},
		{
			resource: "file_descriptors", things: "descriptors", processes: true, kinds: true,
			by:   []Grouping{ByProcess, ByUnit, ByPod, ByKind},
			read: byKindOr(readKinds, readProcesses(countDescriptors)),
		},
		{
			resource: "process_file_descriptors", things: "descriptors", processes: true, kinds: true,
			by:   []Grouping{ByProcess},
			read: readProcesses(countAgainstLimit),
		},
		{
			resource: "conntrack_entries", things: "entries", perNetns: true,
			by:   []Grouping{BySource, ByDestination, ByPod, ByKind},
			read: readConntrack,
		},
		{
			resource: "neighbours_ipv4", things: "entries",
			by:   []Grouping{ByInterface, ByDestination, ByState},
			read: readNeighbours(unix.AF_INET),
		},
		{
			resource: "neighbours_ipv6", things: "entries",
			by:   []Grouping{ByInterface, ByDestination, ByState},
			read: readNeighbours(unix.AF_INET6),
		},
		{
			resource: "memory", things: "processes", memory: true, processes: true,
			by:   []Grouping{ByProcess, ByUnit, ByPod, ByKind},
			read: byKindOr(readMemoryKinds(false), readProcesses(residentMemory)),
		},
		{
			resource: "cgroup_memory", things: "processes", memory: true, processes: true,
			by:   []Grouping{ByProcess, ByUnit, ByPod},
			read: readProcesses(residentMemory),
		},
		{
			resource: "low_memory", things: "kinds", memory: true, machine: true,
			by:   []Grouping{ByKind},
			read: readMemoryKinds(true),
		},
		{
			resource: "committed_memory", things: "processes", memory: true, processes: true,
			by:   []Grouping{ByProcess, ByUnit, ByPod},
			read: readProcesses(promisedMemory),
		},
		{
			resource: "netdev_backlog",
			nobody:   "A packet stays in the backlog for microseconds and does not belong to a socket yet. The backlog fills up because of devices without a queue of their own (lo, veth, tunnels), or because one CPU handles all interrupts: see /proc/net/softnet_stat and /proc/interrupts.",
		},
		{resource: "ip_fragments_ipv4", nobody: fragments},
		{resource: "ip_fragments_ipv6", nobody: fragments},
	}
}

// unitsOr chooses units if there are any, because the kernel reports the cgroup of each
// socket.
func unitsOr(other Grouping) func(*inquiry) Grouping {
	return func(q *inquiry) Grouping {
		if q.haveUnits() {
			return ByUnit
		}
		return other
	}
}

// byKindOr reads with kinds for the grouping by kind, and with other for any other.
func byKindOr(kinds, other func(*inquiry) error) func(*inquiry) error {
	return func(q *inquiry) error {
		if q.By == ByKind {
			return kinds(q)
		}
		return other(q)
	}
}
