package main

import (
	"os"

	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// load is what a scenario does to the kernel.
type load struct {
	// step brings the load to n parts of scenario.Ramp of the limit, and returns what it
	// saw if the kernel refused something.
	step func(n int) (refused string, err error)
	// release releases everything. It may be nil.
	release func() error
	// in and proc are the network namespace and the procfs that the exporter reads, if
	// they are not the machine's.
	in   func(func() error) error
	proc string
}

// loads returns the functions that prepare the load of each scenario, by name.
func loads() map[string]func(*guest) (*load, error) {
	return map[string]func(*guest) (*load, error){
		"conntrack_entries":        conntrackEntries,
		"conntrack_entries_netns":  conntrackEntriesNetns,
		"pods":                     pods,
		"tcp_memory":               tcpMemory,
		"udp_memory":               udpMemory,
		"tcp_orphans":              tcpOrphans,
		"tcp_time_wait":            tcpTimeWait,
		"accept_queue":             acceptQueue,
		"syn_flood":                synFlood,
		"unix_accept_queue":        unixAcceptQueue,
		"udp_receive_queue":        udpReceiveQueue,
		"ephemeral_ports":          ephemeralPorts,
		"file_descriptors":         fileDescriptors,
		"process_file_descriptors": processFileDescriptors,
		"threads":                  threads,
		"neighbours_ipv4":          neighboursIPv4,
		"neighbours_ipv6":          neighboursIPv6,
		"ip_fragments_ipv4":        fragmentsIPv4,
		"ip_fragments_ipv6":        fragmentsIPv6,
		"netdev_backlog":           netdevBacklog,
		"committed_memory":         committedMemory,
		"memory":                   memory,
		"cgroup_memory":            cgroupMemory,
		"cgroup_sockets":           cgroupSockets,
		"low_memory":               lowMemory,
		"log_forged":               logForged,
		"log_flood":                logFlood,
		"between_scrapes":          betweenScrapes,
		"idle":                     idle,
		"busy":                     busy,
		"burst":                    burst,
		"page_cache":               pageCache,
	}
}

// share returns n parts of the ramp of a limit.
func share(n, limit int) int { return n * limit / scenario.Ramp }

// pages converts bytes to pages.
func pages(bytes int) int { return bytes / os.Getpagesize() }

// Ports of the loads. They are below the ephemeral ports.
const (
	portTrack = 9000 + iota
	portMemory
	portNarrow
	portDatagrams
	portOrphans
	portTimeWait
	portQueue
	portFlood
	portEphemeral
	portFragments
	portBacklog
	portChurn
	portUnread
	portDropped
	portPlan // and those after it
)

// everybody is a backlog that no load fills by accident.
const everybody = 4096

func setAll(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if err := sysctl(pairs[i], pairs[i+1]); err != nil {
			return err
		}
	}
	return nil
}
