package collector

import (
	"context"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// sockstat is one reading of /proc/net/sockstat and sockstat6, and of the sysctls that
// bound what they count. The kernel provides all of it in constant time.
type sockstat struct {
	parse.Sockets
	ipv6 parse.FamilySockets

	fragmentsLimit              [2]Number // bytes, by family
	orphansLimit, timeWaitLimit Number
	tcpThresholds               [3]Number // bytes: low, pressure, high
	udpThresholds               [3]Number // bytes: low, pressure, high
	receiveBuffer               [3]Number // bytes: min, default, max
	sendBuffer                  [3]Number // bytes: min, default, max
	listenBacklog, synBacklog   Number
}

// byFamily returns the counts of each address family.
func (s *sockstat) byFamily() [2]parse.FamilySockets {
	return [2]parse.FamilySockets{s.FamilySockets, s.ipv6}
}

func sockstatSpec() Spec {
	return define(Definition[sockstat]{
		Name: "sockstat",
		Help: "Sockets and socket memory and their limits, from /proc/net/sockstat, /proc/net/sockstat6 and sysctls.",
		Open: openSockstat,
		Metrics: []Metric[sockstat]{
			{
				Name:  "sockets_used",
				Help:  "Sockets of all address families, including unix and netlink, in the host's network namespace. From /proc/net/sockstat.",
				Value: func(s *sockstat) Number { return s.Used },
			},
			{
				Name:   "sockets_inuse",
				Help:   "Sockets in use in the host's network namespace, by address family and protocol, excluding TIME_WAIT and connection requests. From /proc/net/sockstat and sockstat6.",
				Labels: []string{"family", "protocol"},
				Values: func(s *sockstat, emit Emit) {
					for i, f := range s.byFamily() {
						emit(f.TCP, familyName(i), "tcp")
						emit(f.UDP, familyName(i), "udp")
						emit(f.UDPLite, familyName(i), "udplite")
						emit(f.Raw, familyName(i), "raw")
					}
				},
			},
			{
				Name:  "tcp_sockets_allocated",
				Help:  "TCP sockets allocated on the whole machine, in both address families and all network namespaces. From /proc/net/sockstat.",
				Value: func(s *sockstat) Number { return s.Allocated },
			},
			{
				Name:  "tcp_orphans",
				Help:  "TCP sockets on the whole machine that no process holds any more and the kernel has not closed yet. From /proc/net/sockstat.",
				Value: func(s *sockstat) Number { return s.Orphans },
			},
			{
				Name:  "tcp_orphans_limit",
				Help:  "Number of orphans above which the kernel resets new ones; it may count an orphan up to four times. From net.ipv4.tcp_max_orphans.",
				Value: func(s *sockstat) Number { return s.orphansLimit },
			},
			{
				Name:  "tcp_time_wait",
				Help:  "Sockets in the host's network namespace that count towards tcp_time_wait_limit: all in TIME_WAIT, and those in FIN_WAIT2 that no process holds, while tcp_sockets counts the two states separately. From /proc/net/sockstat.",
				Value: func(s *sockstat) Number { return s.TimeWait },
			},
			{
				Name:  "tcp_time_wait_limit",
				Help:  "Number of sockets in TIME_WAIT, and orphaned ones in FIN_WAIT2, above which connections are closed without TIME_WAIT. From net.ipv4.tcp_max_tw_buckets.",
				Value: func(s *sockstat) Number { return s.timeWaitLimit },
			},
			{
				Name:  "tcp_memory_bytes",
				Help:  "Memory of all TCP buffers on the whole machine; it lags by up to 1 MiB per CPU. From /proc/net/sockstat.",
				Value: func(s *sockstat) Number { return s.TCPMemory },
			},
			{
				Name:   "tcp_memory_threshold_bytes",
				Help:   "Thresholds of TCP memory: the kernel enters memory pressure above pressure, leaves it below low, and refuses memory above high. From net.ipv4.tcp_mem.",
				Labels: []string{"threshold"},
				Values: func(s *sockstat, emit Emit) { emitThresholds(s.tcpThresholds, emit) },
			},
			{
				Name:  "udp_memory_bytes",
				Help:  "Memory of all UDP buffers on the whole machine; it lags by up to 1 MiB per CPU. From /proc/net/sockstat.",
				Value: func(s *sockstat) Number { return s.UDPMemory },
			},
			{
				Name:   "udp_memory_threshold_bytes",
				Help:   "Thresholds of UDP memory: above low a socket gets at most net.ipv4.udp_rmem_min, pressure and high have almost no effect. From net.ipv4.udp_mem.",
				Labels: []string{"threshold"},
				Values: func(s *sockstat, emit Emit) { emitThresholds(s.udpThresholds, emit) },
			},
			{
				Name:   "ip_fragment_memory_bytes",
				Help:   "Memory of IP fragments waiting for reassembly in the host's network namespace. From /proc/net/sockstat and sockstat6.",
				Labels: []string{"family"},
				Values: func(s *sockstat, emit Emit) {
					for i, f := range s.byFamily() {
						emit(f.Fragments, familyName(i))
					}
				},
			},
			{
				Name:   "ip_fragment_memory_limit_bytes",
				Help:   "Memory of IP fragments above which new ones are dropped. From net.ipv4.ipfrag_high_thresh and net.ipv6.ip6frag_high_thresh.",
				Labels: []string{"family"},
				Values: func(s *sockstat, emit Emit) {
					for i, f := range s.fragmentsLimit {
						emit(f, familyName(i))
					}
				},
			},
			{
				Name:   "tcp_buffer_bytes",
				Help:   "Minimum, default and maximum size of one TCP socket's receive and send buffer. From net.ipv4.tcp_rmem and tcp_wmem.",
				Labels: []string{"direction", "bound"},
				Values: func(s *sockstat, emit Emit) {
					for i, bound := range [...]string{"min", "default", "max"} {
						emit(s.receiveBuffer[i], "receive", bound)
						emit(s.sendBuffer[i], "send", bound)
					}
				},
			},
			{
				Name:  "listen_backlog_limit",
				Help:  "Longest accept queue that a program can request. From net.core.somaxconn.",
				Value: func(s *sockstat) Number { return s.listenBacklog },
			},
			{
				Name:  "syn_backlog_limit",
				Help:  "Connection requests that may wait at one listener while SYN cookies are off. From net.ipv4.tcp_max_syn_backlog.",
				Value: func(s *sockstat) Number { return s.synBacklog },
			},
		},
		Limits: []Limit[sockstat]{
			{
				LimitInfo: LimitInfo{
					Resource: "tcp_memory", Unit: Bytes, WarningRatio: 0.7, CriticalRatio: 0.9,
					Effect: "Buffers are not grown, received data is dropped, and connections are reset: \"TCP: out of memory -- consider tuning tcp_mem\".",
					Usage:  series("tcp_memory_bytes"), Max: series("tcp_memory_threshold_bytes", "threshold", "high"),
					Soft:     series("tcp_memory_threshold_bytes", "threshold", "pressure"),
					Sysctls:  []Sysctl{{"net.ipv4.tcp_mem", Pages, false}},
					LogLines: []LogLine{{Message: "tcp_out_of_memory", Pattern: `TCP: out of memory -- consider tuning tcp_mem`}},
					Sizing: Sizing{
						Needs:   func(l Load) float64 { return l.Tracked * l.Charged },
						Rule:    "connections, times the data in the buffers of each; 4 KiB of data count as 8 KiB",
						Initial: "high is 9 % of memory",
						Write:   writeThresholds,
					},
				},
			},
			{
				LimitInfo: LimitInfo{
					Resource: "udp_memory", Unit: Bytes, WarningRatio: 0.7, CriticalRatio: 0.9,
					Effect: "Datagrams are dropped on arrival.",
					Usage:  series("udp_memory_bytes"),
					// Not the last one: UDP has no state of memory pressure, and without
					// that __sk_mem_raise_allocated refuses everything above the first.
					Max:     series("udp_memory_threshold_bytes", "threshold", "low"),
					Proofs:  []Proof{{Counter: series("udp_memory_errors_total")}, {Counter: series("udp6_memory_errors_total")}},
					Sysctls: []Sysctl{{"net.ipv4.udp_mem", Pages, false}},
					Sizing: Sizing{
						Rule:    "sockets, times the datagrams queued in each; only the first number counts",
						Initial: "the first is 9 % of memory",
						Write:   writeFirst,
					},
				},
			},
			{
				LimitInfo: LimitInfo{
					Resource: "tcp_orphans", Unit: Sockets, WarningRatio: 0.25, CriticalRatio: 0.5,
					Effect: "Closed connections are reset with their data unsent: \"TCP: too many orphaned sockets\". This may begin at a quarter of the limit.",
					Usage:  series("tcp_orphans"), Max: series("tcp_orphans_limit"),
					Sysctls:  []Sysctl{{"net.ipv4.tcp_max_orphans", Sockets, false}},
					LogLines: []LogLine{{Message: "tcp_too_many_orphans", Pattern: `TCP: too many orphaned sockets`}},
					Sizing: Sizing{
						Needs:   func(l Load) float64 { return l.Closes * orphaned },
						Rule:    "4 times the connections that the host closes per second",
						Initial: "by memory: 8,192 for 2 GiB",
						Objects: []Object{{"TCP", 2432}},
						Most:    forever,
					},
				},
			},
			{
				LimitInfo: LimitInfo{
					Resource: "tcp_time_wait", Unit: Sockets, WarningRatio: 0.8, CriticalRatio: 0.95,
					Effect: "Connections are closed without TIME_WAIT, so that delayed segments may reach a later connection; nothing is logged since Linux 4.1.",
					Usage:  series("tcp_time_wait"), Max: series("tcp_time_wait_limit"),
					Proofs:   []Proof{{Counter: series("tcp_time_wait_overflows_total")}},
					Sysctls:  []Sysctl{{"net.ipv4.tcp_max_tw_buckets", Sockets, true}},
					LogLines: []LogLine{{Message: "tcp_time_wait_overflow", Pattern: `TCP: time wait bucket table overflow`, Before: "4.1"}},
					Sizing: Sizing{
						Needs:   func(l Load) float64 { return l.Closes * timeWait },
						Rule:    "60 times the connections that the host closes per second",
						Initial: "by memory: 8,192 for 2 GiB, 262,144 at most",
						Objects: []Object{{"tw_sock_TCP", 256}},
						Most:    forever,
					},
				},
			},
			{LimitInfo: fragmentLimit("ipv4", "net.ipv4.ipfrag_high_thresh")},
			{LimitInfo: fragmentLimit("ipv6", "net.ipv6.ip6frag_high_thresh")},
		},
	})
}

func fragmentLimit(family, sysctl string) LimitInfo {
	return LimitInfo{
		Resource: "ip_fragments_" + family, Unit: Bytes, WarningRatio: 0.8, CriticalRatio: 0.95,
		Effect: "Fragments are dropped, and so are the packets that they belong to.",
		Usage:  series("ip_fragment_memory_bytes", "family", family), Max: series("ip_fragment_memory_limit_bytes", "family", family),
		Sysctls: []Sysctl{{sysctl, Bytes, true}},
		Sizing: Sizing{
			Rule:    "fragmented packets per second, times their size, times the seconds until they are complete",
			Initial: "4 MiB",
		},
	}
}

// familyName returns the label value for an index into an array by address family.
func familyName(i int) string { return [...]string{"ipv4", "ipv6"}[i] }

func emitThresholds(n [3]Number, emit Emit) {
	for i, threshold := range [...]string{"low", "pressure", "high"} {
		emit(n[i], threshold)
	}
}

func openSockstat(k *Scope) func(context.Context, *sockstat) error {
	file, file6 := k.Host.File("sockstat"), k.Host.File("sockstat6")
	single := []struct {
		file kernel.File
		into func(*sockstat) *Number
	}{
		{k.Host.Sysctl("net.ipv4.tcp_max_orphans"), func(s *sockstat) *Number { return &s.orphansLimit }},
		{k.Host.Sysctl("net.ipv4.tcp_max_tw_buckets"), func(s *sockstat) *Number { return &s.timeWaitLimit }},
		{k.Host.Sysctl("net.ipv4.ipfrag_high_thresh"), func(s *sockstat) *Number { return &s.fragmentsLimit[0] }},
		{k.Host.Sysctl("net.ipv6.ip6frag_high_thresh"), func(s *sockstat) *Number { return &s.fragmentsLimit[1] }},
		{k.Host.Sysctl("net.core.somaxconn"), func(s *sockstat) *Number { return &s.listenBacklog }},
		{k.Host.Sysctl("net.ipv4.tcp_max_syn_backlog"), func(s *sockstat) *Number { return &s.synBacklog }},
	}
	triple := []struct {
		file kernel.File
		unit float64
		into func(*sockstat) *[3]Number
	}{
		{k.Host.Sysctl("net.ipv4.tcp_mem"), float64(k.PageSize), func(s *sockstat) *[3]Number { return &s.tcpThresholds }},
		{k.Host.Sysctl("net.ipv4.udp_mem"), float64(k.PageSize), func(s *sockstat) *[3]Number { return &s.udpThresholds }},
		{k.Host.Sysctl("net.ipv4.tcp_rmem"), 1, func(s *sockstat) *[3]Number { return &s.receiveBuffer }},
		{k.Host.Sysctl("net.ipv4.tcp_wmem"), 1, func(s *sockstat) *[3]Number { return &s.sendBuffer }},
	}
	unit := 0 // of socket memory; 0 until it is known
	return func(_ context.Context, s *sockstat) error {
		var p parse.Problems
		b, err := required(file, "IPv4 (CONFIG_INET)")
		if isNotSupported(err) {
			return err
		}
		p.Add(err)
		if b != nil {
			if unit == 0 {
				unit, err = k.MemoryUnit()
				p.Add(err)
			}
			s.Sockets, err = parse.Sockstat(b, file.Path(), unit)
			p.Add(err)
		}
		b, err = optional(file6)
		p.Add(err)
		if b != nil {
			s.ipv6, err = parse.Sockstat6(b, file6.Path())
			p.Add(err)
		}
		for _, l := range single {
			*l.into(s), err = sysctlNumber(l.file)
			p.Add(err)
		}
		for _, l := range triple {
			into := l.into(s)
			p.Add(sysctlNumbers(l.file, into[:]))
			for i := range into {
				into[i] = into[i].Times(l.unit)
			}
		}
		return p.Err()
	}
}
