package alerts

// themes is the table of limits. A new limit is a row here: its near alerts, its
// forecasts and its place in every test (ramps, quiet hosts, documents) follow from it;
// alerts on its counters go into met. A test asks for the other half of the work: its
// section of docs/runbooks.md, under the name of its near alert.
func themes() []theme {
	return []theme{
		{
			name:    "conntrack",
			comment: `The connection tracking table: "nf_conntrack: table full, dropping packet". A limit of 0 means unlimited: it has no saturation, so none of these alerts fire.`,
			limits: []limit{{
				resource: "conntrack_entries", name: "Conntrack", near: "NearlyFull",
				summary: "The connection tracking table is nearly full.",
				usage:   "tracks {{ $value | humanizePercentage }} of the connections that net.netfilter.nf_conntrack_max allows",
				effect:  "When it is full, packets of new connections are dropped.",
				met: []Rule{
					{
						Alert: "SockPressureConntrackFull", Severity: Critical,
						Comment: "The drop counter includes connections that could not be inserted, for example because of a\nclash. These are subtracted, times 1.25 because Prometheus extrapolates each increase\nseparately.",
						Expr:    "(\n" + conntrackDrops + "\n) > 0\nand " + seen,
						Summary: "Packets of new connections are dropped because the connection tracking table is full.",
						Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} packets in the last 5 minutes while its
							connection tracking table was full.`,
					},
					{
						Alert: "SockPressureConntrackDropping", Severity: Warning,
						Comment: "The table was not full at any scrape: it was full between two scrapes, or there was no\nmemory for an entry.",
						Expr:    "(\n" + conntrackDrops + "\n) > ${count}\nunless " + seen, Params: map[string]string{"count": "10"},
						Summary: "Connection tracking drops packets although no scrape saw its table full.",
						Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} packets of new connections in the last
							5 minutes that it could not track.`,
					},
					{
						Alert: "SockPressureConntrackEarlyDrop", Severity: Warning,
						Expr: "increase(sockpressure_conntrack_early_drops_total[5m]) > ${count}", Params: map[string]string{"count": "10"},
						Summary: "Connection tracking evicts entries to make room for new ones.",
						Description: `{{ $labels.instance }} evicted {{ $value | printf "%.0f" }} tracked connections from its full table
							in the last 5 minutes. New connections are still accepted as long as the table has entries that are not assured.`,
					},
				},
			}},
			others: []Rule{{
				Alert: "SockPressureConntrackInsertFailing", Severity: Info, For: "15m",
				Comment: "Occasional clashes are normal with NAT and DNS over UDP. One per second for 15 minutes is\nworth a look.",
				Expr:    "rate(sockpressure_conntrack_insert_failures_total[5m]) > ${rate}", Params: map[string]string{"rate": "1"},
				Summary: "Connections cannot be inserted into the connection tracking table.",
				Description: `{{ $labels.instance }} drops {{ $value | printf "%.1f" }} packets per second because their connection
					clashes with one that is already tracked. A full table is not the cause.`,
			}},
		},
		{
			name:    "tcp",
			comment: `TCP: its memory ("TCP: out of memory -- consider tuning tcp_mem"), orphans ("TCP: too many orphaned sockets"), TIME_WAIT and ephemeral ports.`,
			limits: []limit{
				{
					resource: "tcp_memory", name: "TCPMemory", near: "NearlyFull",
					summary: "TCP memory is close to its limit.",
					usage:   "uses {{ $value | humanizePercentage }} of the high threshold of net.ipv4.tcp_mem, or is above its pressure threshold",
					effect:  "Under memory pressure the kernel shrinks windows and buffers; at the high threshold it drops received data and resets connections.",
					comment: "The kernel enters memory pressure at the pressure threshold, two thirds of high by default,\nand connections get slower. A threshold of 0 (tcp_mem \"0 0 N\") is ignored.",
					or: saturation + `
and ignoring (resource) (
  sockpressure_tcp_memory_bytes
  >= ignoring (threshold) (sockpressure_tcp_memory_threshold_bytes{threshold="pressure"} > 0)
)`,
					met: []Rule{
						{
							Alert: "SockPressureTCPOutOfMemory", Severity: Critical,
							Comment: "Both counters have other causes (too many orphans, the buffer of a single socket). So\neither a scrape must have seen TCP memory nearly full, or hundreds of connections must be\nreset while there are few orphans.",
							Expr: `(
  increase(sockpressure_tcp_aborts_on_memory_total[5m]) > 0
  or
  increase(sockpressure_tcp_receive_queue_drops_total[5m]) > 0
)
and ` + seen + `
or
increase(sockpressure_tcp_aborts_on_memory_total[5m]) > 300 * ${rate}
unless ignoring (resource) max_over_time(${levels}{resource="tcp_orphans"}[4m]) >= 0.25`,
							Params:  map[string]string{"rate": "1"},
							Summary: "TCP is out of memory and drops data or resets connections.",
							Description: `{{ $labels.instance }} reset connections or dropped received segments {{ $value | printf "%.0f" }} times
								in the last 5 minutes because TCP buffers reached net.ipv4.tcp_mem.`,
						},
						{
							Alert: "SockPressureTCPOutOfMemory", Severity: Warning,
							Comment: "No scrape saw memory full; it was full between two scrapes. A burst drops some segments at\nthe buffers of single sockets.",
							Expr: `(
  increase(sockpressure_tcp_aborts_on_memory_total[5m]) > ${count}
  unless ignoring (resource) max_over_time(${levels}{resource="tcp_orphans"}[4m]) >= 0.25
  or
  increase(sockpressure_tcp_receive_queue_drops_total[5m]) > ${drops}
)
unless ` + seen,
							Params:  map[string]string{"count": "10", "drops": "300"},
							Summary: "TCP is out of memory and drops data or resets connections.",
							Description: `{{ $labels.instance }} reset connections or dropped received segments {{ $value | printf "%.0f" }} times
								in the last 5 minutes for lack of memory. No scrape saw TCP memory full, so it was probably full between two scrapes.`,
						},
						{
							Alert: "SockPressureTCPMemoryPressure", Severity: Info,
							Comment: "Spikes between scrapes. Short memory pressure costs some speed but no connections, so this\nis only for the record.",
							Expr:    "increase(sockpressure_tcp_memory_pressures_total[5m]) > 0",
							Summary: "TCP entered memory pressure.",
							Description: `{{ $labels.instance }} entered TCP memory pressure {{ $value | printf "%.0f" }} times in the last
								5 minutes: the memory of TCP buffers rose above the pressure threshold of net.ipv4.tcp_mem.`,
						},
					},
				},
				{
					resource: "tcp_orphans", name: "TCPOrphans", near: "High", forecast: brief, raw: true,
					hold:    map[string]string{Warning: "5m", Critical: "3m"},
					summary: "There are many orphaned TCP sockets.",
					usage:   "has {{ $value | humanizePercentage }} of the orphans that net.ipv4.tcp_max_orphans allows",
					effect:  "The kernel may begin to reset them at 25 %.",
					comment: "The kernel may count an orphan up to four times, so it may enforce the limit from 25 % on.\nA wave of closed connections can exceed that for some minutes without harm.",
					met: []Rule{
						{
							Alert: "SockPressureTCPOrphansReset", Severity: Critical,
							Comment: "TCP memory increments the same counter, so there must be many orphans as well.",
							Expr: `increase(sockpressure_tcp_aborts_on_memory_total[2m]) > ${count}
and ignoring (resource) ` + level + ` >= ${warning}`,
							Params:  map[string]string{"count": "10"},
							Summary: "Closed connections are reset with their data unsent because there are too many orphans.",
							Description: `{{ $labels.instance }} reset {{ $value | printf "%.0f" }} connections in the last 2 minutes while its
								orphans were above 25 % of net.ipv4.tcp_max_orphans.`,
						},
						{
							Alert: "SockPressureTCPOrphansReset", Severity: Warning,
							Expr: `increase(sockpressure_tcp_aborts_on_memory_total[5m]) > 0
and ignoring (resource) max_over_time(` + level + `[4m]) >= ${warning}`,
							Summary: "Closed connections are reset with their data unsent because there are too many orphans.",
							Description: `{{ $labels.instance }} reset {{ $value | printf "%.0f" }} connections in the last 5 minutes while its
								orphans were above 25 % of net.ipv4.tcp_max_orphans.`,
						},
					},
				},
				{
					resource: "tcp_time_wait", name: "TimeWait", near: "NearlyFull", forecast: ticket, raw: true,
					hold:    map[string]string{Warning: "45s"},
					summary: "The number of TIME_WAIT sockets is close to its limit.",
					usage:   "has {{ $value | humanizePercentage }} of the TIME_WAIT sockets that net.ipv4.tcp_max_tw_buckets allows",
					effect:  "Above the limit, connections are closed without TIME_WAIT.",
					comment: "Nothing breaks immediately when this limit is reached, and some hosts run at it by design,\nso it writes one ticket and never pages.",
					met: []Rule{{
						Alert: "SockPressureTimeWaitOverflow", Severity: Info,
						Expr:    "increase(sockpressure_tcp_time_wait_overflows_total[5m]) > 0",
						Summary: "Connections are closed without TIME_WAIT.",
						Description: `{{ $labels.instance }} closed {{ $value | printf "%.0f" }} connections without TIME_WAIT in the last
							5 minutes because net.ipv4.tcp_max_tw_buckets was reached. Nothing is logged.`,
					}},
				},
				{
					resource: "ephemeral_ports", name: "EphemeralPorts", near: "NearlyUsedUp",
					summary: "The ephemeral ports to one destination are nearly used up.",
					usage: `uses {{ $value | humanizePercentage }} of the ports available for connections to one destination` +
						worst("sockpressure_ephemeral_ports_used", "", `from {{ . | first | label "source" }} to {{ . | first | label "destination" }}`),
					effect:  "At the limit, connect fails with EADDRNOTAVAIL.",
					comment: "The saturation is that of the fullest pair of source and destination.",
					full:    "The ephemeral ports to one destination are used up.", fullAt: "0.99",
				},
			},
		},
		{
			name:    "listeners",
			comment: "Listeners: accept queues, and the queues of connection requests with an incomplete handshake.",
			limits: []limit{{
				resource: "accept_queue", name: "AcceptQueue", near: "NearlyFull", forecast: brief, raw: true,
				hold:    map[string]string{Critical: "1m"},
				summary: "A program does not accept its connections fast enough.",
				usage: `has an accept queue that is {{ $value | humanizePercentage }} full` +
					worst("sockpressure_accept_queue_saturation_ratio", "", `listener {{ . | first | label "listener" }}`),
				effect:  "When it is full, new connections are dropped at the end of their handshake.",
				comment: "The saturation is that of the fullest queue of the host. A queue is full at 1 and overflows\nwith the next connection, so the critical level is 1.",
				met: []Rule{
					{
						Alert: "SockPressureAcceptQueueOverflow", Severity: Critical, For: "5m",
						Comment: "The rate looks back 5 minutes, so the condition must hold for another 5.",
						Expr:    "rate(sockpressure_tcp_listen_overflows_total[5m]) > ${rate}", Params: map[string]string{"rate": "1"},
						Summary: "Connections are dropped because an accept queue is full.",
						Description: `{{ $labels.instance }} has been dropping {{ $value | printf "%.1f" }} connections per second at a full
							accept queue for 10 minutes.`,
					},
					{
						Alert: "SockPressureAcceptQueueOverflow", Severity: Warning,
						Expr: `increase(sockpressure_tcp_listen_overflows_total[5m]) > ${count}
or
increase(sockpressure_tcp_listen_overflows_total[5m]) > 0
and ` + seen,
						Params:  map[string]string{"count": "30"},
						Summary: "Connections are dropped because an accept queue is full.",
						Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} connections at a full accept queue in the
							last 5 minutes. The peers retry after a second or more, or give up.`,
					},
					{
						Alert: "SockPressureAcceptQueueOverflow", Severity: Info,
						Expr:    `increase(sockpressure_tcp_listen_overflows_total[5m]) > 0`,
						Summary: "Connections are dropped because an accept queue is full.",
						Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} connections at a full accept queue in the
							last 5 minutes. The peers retry after a second or more, or give up.`,
					},
				},
			}, {
				resource: "unix_accept_queue", name: "UnixAcceptQueue", near: "NearlyFull", forecast: brief, raw: true,
				hold:    map[string]string{Warning: "2m", Critical: "3m"},
				summary: "A program does not accept connections at its unix socket fast enough.",
				usage: `has a unix socket whose accept queue is {{ $value | humanizePercentage }} full` +
					worst("sockpressure_unix_accept_queue_length", "sockpressure_unix_accept_queue_limit", `{{ . | first | label "path" }}`),
				effect:  "While it is full, connect blocks or fails with EAGAIN.",
				comment: "The saturation is that of the fullest queue of the host.",
				met: []Rule{{
					Alert: "SockPressureUnixAcceptQueueFull", Severity: Info,
					Comment: "The kernel does not count refusals, and a queue that is full for a moment does no harm, so\nthis is only for the record.",
					Expr:    saturation + " >= 1",
					Summary: "The accept queue of a unix socket was full.",
					Description: `{{ $labels.instance }} has a unix socket whose accept queue is {{ $value | humanizePercentage }} full:
						connect blocks or fails with EAGAIN.`,
				}},
			}, {
				resource: "request_queue", name: "RequestQueue", near: "NearlyFull", forecast: ticket, raw: true,
				hold:    map[string]string{Warning: "3m"},
				summary: "Many connections to a listener do not complete their handshake.",
				usage: `has a queue of connection requests that is {{ $value | humanizePercentage }} full` +
					worst("sockpressure_request_queue_length", "sockpressure_request_queue_limit", `listener {{ . | first | label "listener" }}`),
				effect:  "When it is full, new connections are answered with a SYN cookie, or dropped if cookies are off.",
				comment: "With SYN cookies, the default, a full queue does little harm, and anybody can fill it, so it\nwrites a ticket. Dropped requests page.",
				met: []Rule{
					{
						Alert: "SockPressureRequestQueueFull", Severity: Critical, For: "5m",
						Comment: "With SYN cookies (the default) the host still answers; without them it drops requests.",
						Expr:    `rate(sockpressure_tcp_request_queue_full_drops_total[5m]) > ${rate}`, Params: map[string]string{"rate": "1"},
						Summary: "A queue of connection requests is full.",
						Description: `{{ $labels.instance }} has been dropping {{ $value | printf "%.1f" }} connection requests per second for
						10 minutes, with SYN cookies switched off.`,
					},
					{
						Alert: "SockPressureRequestQueueFull", Severity: Warning,
						Expr: `increase(sockpressure_tcp_request_queue_full_drops_total[5m]) > ${count}`, Params: map[string]string{"count": "30"},
						Summary: "A queue of connection requests is full.",
						Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} connection requests in the last 5 minutes:
						a request queue was full, and SYN cookies are switched off.`,
					},
					{
						Alert: "SockPressureRequestQueueFull", Severity: Info,
						Comment: "Unanswered cookies indicate a flood. With tcp_syncookies=2 every connection begins with a\ncookie, and its answer is counted.",
						Expr: `increase(sockpressure_tcp_request_queue_full_drops_total[5m]) > 0
or
increase(sockpressure_tcp_request_queue_full_cookies_total[5m])
- (increase(sockpressure_tcp_syncookies_received_total[5m]) or 0 * increase(sockpressure_tcp_request_queue_full_cookies_total[5m]))
> ${count}`,
						Params:  map[string]string{"count": "30"},
						Summary: "A queue of connection requests is full.",
						Description: `{{ $labels.instance }} found a request queue full {{ $value | printf "%.0f" }} times in the
						last 5 minutes, and dropped the request or sent a SYN cookie that was not answered. This is probably a SYN flood.`,
					},
				},
			}},
			others: []Rule{
				{
					Alert: "SockPressureListenDropping", Severity: Warning, For: "5m", Labels: map[string]string{"stage": met},
					Comment: "Drops other than overflows, which ListenDrops includes: no memory, no route, a filter.",
					Expr: `rate(sockpressure_tcp_listen_drops_total[5m])
- (rate(sockpressure_tcp_listen_overflows_total[5m]) or 0 * rate(sockpressure_tcp_listen_drops_total[5m]))
> ${rate}`,
					Params:  map[string]string{"rate": "1"},
					Summary: "Listeners drop connections for reasons other than a full accept queue.",
					Description: `{{ $labels.instance }} drops {{ $value | printf "%.1f" }} connections per second at its listeners, without
						a full accept queue. There is no memory for the socket, or a request queue is full.`,
				},
			},
		},
		{
			name:    "network",
			comment: "UDP memory and receive queues, IP fragments, neighbour tables and the backlog of received packets.",
			limits: []limit{
				{
					resource: "udp_receive_queue", name: "UDPReceiveQueue", near: "NearlyFull", forecast: ticket, raw: true,
					hold:    map[string]string{Warning: "5m"},
					summary: "A program does not read its UDP socket fast enough.",
					usage: `has a UDP socket whose receive queue is {{ $value | humanizePercentage }} full` +
						worst("sockpressure_udp_receive_queue_bytes", "sockpressure_udp_receive_queue_limit_bytes", `{{ . | first | label "socket" }}`),
					effect:  "While it is full, datagrams to that socket are dropped.",
					comment: "Every burst fills a queue for a moment, so only one that stays full writes a ticket. Some\nprograms never read one of their sockets (dhclient, for example), so its queue stays full and\ndoes not change. This alerts only if datagrams for it keep arriving.",
					unless:  "(\n  changes(" + saturation + "[10m]) == 0\n  unless ignoring (resource) " + udpDrops("rate") + " > 1\n)",
					met: []Rule{{
						Alert: "SockPressureUDPReceiveQueueFull", Severity: Info,
						Comment: "Larger numbers of drops raise SockPressureUDPReceiveErrors.",
						Expr:    udpDrops("increase") + " > 0\nand " + seen,
						Summary: "A UDP socket dropped datagrams because its receive queue was full.",
						Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} datagrams in the last 5 minutes while the
							receive queue of a UDP socket was full.`,
					}},
				},
				{
					resource: "udp_memory", name: "UDPMemory", near: "NearlyFull",
					summary: "UDP memory is close to its limit.",
					usage:   "uses {{ $value | humanizePercentage }} of the first number of net.ipv4.udp_mem",
					effect:  "Above it, every datagram that needs more memory is dropped.",
					met: []Rule{
						{
							Alert: "SockPressureUDPOutOfMemory", Severity: Critical,
							Comment: "Before Linux 5.11 the kernel does not count these drops, so there the alert fires when\nthe limit is reached.",
							Expr: `(
  increase(sockpressure_udp_memory_errors_total[5m]) > 0
  or
  increase(sockpressure_udp6_memory_errors_total[5m]) > 0
)
and ` + seen + `
or
sum without (resource) (` + level + ` >= 1)
unless sockpressure_udp_memory_errors_total`,
							Summary: "Datagrams are dropped because UDP is out of memory.",
							Description: `{{ $labels.instance }} drops datagrams because UDP buffers reached net.ipv4.udp_mem ({{ $value | printf "%.0f" }} in the
								last 5 minutes; kernels before 5.11 do not count them).`,
						},
						{
							Alert: "SockPressureUDPOutOfMemory", Severity: Warning,
							Expr: `(
  increase(sockpressure_udp_memory_errors_total[5m]) > ${count}
  or
  increase(sockpressure_udp6_memory_errors_total[5m]) > ${count}
)
unless ` + seen,
							Params:  map[string]string{"count": "10"},
							Summary: "Datagrams are dropped because UDP is out of memory.",
							Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} datagrams in the last 5 minutes because UDP
								buffers reached net.ipv4.udp_mem between two scrapes.`,
						},
					},
				},
				fragments("ipv4", "sockpressure_ip_reassembly_failures_total", "net.ipv4.ipfrag_high_thresh"),
				fragments("ipv6", "sockpressure_ip6_reassembly_failures_total", "net.ipv6.ip6frag_high_thresh"),
				neighbours("ipv4"),
				neighbours("ipv6"),
				{
					resource: "netdev_backlog", name: "NetdevBacklog", near: "NearlyFull", forecast: brief, raw: true,
					hold:    map[string]string{Warning: "1m", Critical: "1m"},
					summary: "A CPU does not keep up with received packets.",
					usage:   "has a CPU whose backlog of received packets is {{ $value | humanizePercentage }} of net.core.netdev_max_backlog",
					effect:  "When it is full, packets are dropped before any protocol sees them.",
					comment: "It is usually 0 and rarely anything in between, so several scrapes in a row that see half a\nqueue are not a coincidence. Short bursts are left to the counter.",
					met: []Rule{
						{
							Alert: "SockPressureNetdevBacklogDropping", Severity: Critical, For: "5m",
							Comment: "The rate looks back 5 minutes, so the condition must hold for another 5.",
							Expr:    "rate(sockpressure_netdev_backlog_drops_total[5m]) > ${rate}", Params: map[string]string{"rate": "10"},
							Summary: "Received packets are dropped because the backlog of a CPU is full.",
							Description: `{{ $labels.instance }} has been dropping {{ $value | printf "%.0f" }} received packets per second for
								10 minutes because the backlog of a CPU is full.`,
						},
						{
							Alert: "SockPressureNetdevBacklogDropping", Severity: Warning,
							Expr: "increase(sockpressure_netdev_backlog_drops_total[5m]) > ${count}", Params: map[string]string{"count": "300"},
							Summary: "Received packets are dropped because the backlog of a CPU is full.",
							Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} received packets in the last 5 minutes
								because the backlog of a CPU was full.`,
						},
						{
							Alert: "SockPressureNetdevBacklogDropping", Severity: Info,
							Expr:    "increase(sockpressure_netdev_backlog_drops_total[5m]) > 0",
							Summary: "Received packets are dropped because the backlog of a CPU is full.",
							Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} received packets in the last 5 minutes
								because the backlog of a CPU was full.`,
						},
					},
				},
			},
		},
		{
			name:    "files",
			comment: "File descriptors of the whole machine (ENFILE) and of each process (EMFILE), and threads. Every socket is a file descriptor. The kernel does not count refusals of any of these.",
			limits: []limit{
				{
					resource: "file_descriptors", name: "FileDescriptors", near: "NearlyUsedUp",
					summary: "The machine is nearly out of file descriptors.",
					usage:   "has {{ $value | humanizePercentage }} of the open files that fs.file-max allows",
					effect:  "At the limit, open, socket and accept fail with ENFILE for every unprivileged process.",
					full:    "The machine is out of file descriptors.", fullAt: "0.99",
				},
				{
					resource: "threads", name: "Threads", near: "NearlyUsedUp", forecast: jumpy,
					summary: "The machine is nearly out of threads.",
					usage:   "runs {{ $value | humanizePercentage }} of the threads that kernel.threads-max and kernel.pid_max allow",
					effect:  "At the limit, fork and pthread_create fail with EAGAIN for every program, including logins.",
					full:    "The machine is out of threads.", fullAt: "0.99",
				},
				{
					resource: "process_file_descriptors", name: "ProcessFileDescriptors", near: "NearlyUsedUp",
					summary: "A process is nearly out of file descriptors.",
					usage: `has a process that uses {{ $value | humanizePercentage }} of its file descriptors` +
						worst("sockpressure_process_open_file_descriptors", "sockpressure_process_file_descriptors_limit", `{{ . | first | label "process" }}`),
					effect: "At the limit, its calls to open, socket and accept fail with EMFILE.",
					full:   "A process is out of file descriptors.", fullAt: "0.99",
				},
			},
		},
		{
			name:    "memory",
			comment: "Memory that decides over failed allocations and OOM kills. The levels are high, because some hosts permanently run close to them; SockPressureFillingFast forecasts what fills within minutes.",
			limits: []limit{
				{
					resource: "memory", name: "Memory", near: "NearlyFull", forecast: jumpy,
					unless:  "ignoring (resource) sockpressure_memory_available_bytes > " + plenty,
					summary: "The machine is nearly out of memory.",
					usage:   "uses {{ $value | humanizePercentage }} of its memory, not counting page cache that can be reclaimed",
					effect:  "When it is used up, the OOM killer kills a process.",
					comment: "A large machine at 91 % has tens of gigabytes left, so this does not alert while plenty is\navailable.",
					met: []Rule{
						{
							Alert: "SockPressureOOMKill", Severity: Critical,
							Comment: "The counter includes kills in a memory cgroup that reached its own limit. The machine itself\nwas out of memory if the kernel logged that, or if a scrape saw memory at its critical level,\nor at its warning level and rising, without plenty of memory left.",
							Expr: `max without (message) (increase(sockpressure_kernel_messages_total{message="oom_kill"}[5m])) > 0
or
increase(sockpressure_oom_kills_total[5m]) > 0
and ignoring (resource) (
  max_over_time(` + level + `[4m]) >= ${critical}
  or
  max_over_time(` + level + `[4m]) >= ${warning}
  and max_over_time(` + level + `[4m]) - min_over_time(` + saturation + `[5m]) > 0.05
)
unless min_over_time(sockpressure_memory_available_bytes[5m]) > ` + plenty,
							Summary: "The OOM killer killed processes.",
							Description: `{{ $labels.instance }} killed {{ $value | printf "%.0f" }} processes in the last 5 minutes; the machine
								was out of memory.`,
						},
					},
				},
				{
					resource: "low_memory", name: "LowMemory", near: "NearlyFull", forecast: jumpy,
					summary: "A 32-bit kernel is nearly out of low memory.",
					usage:   "uses {{ $value | humanizePercentage }} of its low memory, which holds sockets and all other kernel data",
					effect:  "When it is used up, the OOM killer kills a process although high memory is free.",
					comment: "Only 32-bit kernels with high memory. The usage excludes what the kernel can reclaim, and the\nlimit excludes the reserve at which the OOM killer runs (5 to 6 % of LowTotal).",
					met: []Rule{{
						Alert: "SockPressureOOMKill", Severity: Critical,
						Expr: `increase(sockpressure_oom_kills_total[5m]) > 0
and ignoring (resource) max_over_time(` + level + `[4m]) >= ${warning}`,
						Summary: "The OOM killer killed processes.",
						Description: `{{ $labels.instance }} killed {{ $value | printf "%.0f" }} processes in the last 5 minutes; its 32-bit
							kernel was out of low memory, while high memory may have been free.`,
					}},
				},
				{
					resource: "cgroup_memory", name: "CgroupMemory", near: "NearlyFull", forecast: ticket, raw: true,
					hold:    map[string]string{Warning: "5m"},
					summary: "A pod, container or unit is close to its memory limit.",
					usage: `has a cgroup that uses {{ $value | humanizePercentage }} of its memory limit` +
						worst("sockpressure_cgroup_memory_saturation_ratio", "", `{{ . | first | label "cgroup" }}`),
					effect:  "At the limit, the OOM killer kills one of its processes.",
					comment: "Memory that can be reclaimed is not counted. Only one program is affected, and some run like\nthis for years, so it writes one ticket and never pages.",
					met: []Rule{{
						Alert: "SockPressureCgroupOOMKill", Severity: Info,
						Comment: "SockPressureOOMKill writes the ticket; this alert names the cgroup.",
						Expr:    "increase(sockpressure_cgroup_oom_kills_all_total[5m]) > 0",
						Summary: "The OOM killer killed processes of a pod, container or unit.",
						Description: `{{ $labels.instance }} killed {{ $value | printf "%.0f" }} processes of cgroups that were at
							their memory limit in the last 5 minutes` + killedIn() + `.`,
					}},
				},
				{
					resource: "committed_memory", name: "CommittedMemory", near: "NearlyFull", forecast: jumpy,
					summary: "Committed memory is close to CommitLimit.",
					usage:   "has committed {{ $value | humanizePercentage }} of its CommitLimit to programs",
					effect:  "At the limit, fork, mmap and malloc fail with ENOMEM, even if memory is free.",
					comment: "Only if vm.overcommit_memory is 2; otherwise the limit is not enforced and has no series. The\nkernel reserves the last few percent for root and small programs, so others are refused from\n95 % on.",
					full:    "Committed memory is at CommitLimit.", fullAt: "0.97",
				},
			},
			others: []Rule{
				{
					Alert: "SockPressureOOMKill", Severity: Warning, Labels: map[string]string{"stage": met},
					Comment: "No scrape saw the machine out of memory: a memory cgroup reached its limit (usually a\ncontainer's), or the machine ran out of memory between two scrapes.",
					Expr: `increase(sockpressure_oom_kills_total[5m]) > 0
unless ignoring (resource) (
  max_over_time(${levels}{resource="memory"}[4m]) >= ` + number(levels("memory").CriticalRatio) + `
  unless ignoring (resource) sockpressure_memory_available_bytes > ` + plenty + `
)
unless ignoring (resource)
max_over_time(${levels}{resource="low_memory"}[4m]) >= ` + number(levels("low_memory").WarningRatio),
					Summary: "The OOM killer killed processes.",
					Description: `{{ $labels.instance }} killed {{ $value | printf "%.0f" }} processes in the last 5 minutes; the machine's
						memory was not full at any scrape, so probably a memory cgroup reached its own limit` + killedIn() + `.`,
				},
				pressure(Warning, "5m", "0.1"),
				pressure(Critical, "5m", "0.4"),
			},
		},
	}
}

// plenty is the available memory, in bytes, from which there is no shortage whatever the
// saturation.
const plenty = "8 * 2^30"

// conntrackDrops is the number of packets dropped within 5 minutes because the table was
// full or memory was exhausted.
const conntrackDrops = `  increase(sockpressure_conntrack_drops_total[5m])
  - (
    1.25 * increase(sockpressure_conntrack_insert_failures_total[5m])
    or
    0 * increase(sockpressure_conntrack_drops_total[5m])
  )`

// worst returns a template that names, in parentheses, the worst item of a list. text is
// a template for the result of the query for the highest value.
func worst(metric, limit, text string) string {
	const matchers = "{cluster=%q,job=%q,instance=%q}"
	const of = " $labels.cluster $labels.job $labels.instance"
	query, args := metric+matchers, of
	if limit != "" {
		query, args = query+" / "+limit+matchers, args+of
	}
	return ` {{- with printf "topk(1, ` + query + `)"` + args + ` | query }} (` + text + `) {{- end }}`
}

// killedIn returns a template that names, in parentheses, the cgroup with the latest
// kill.
func killedIn() string {
	const kills = "sockpressure_cgroup_oom_kills_total{cluster=%q,job=%q,instance=%q}"
	const of = " $labels.cluster $labels.job $labels.instance"
	return ` {{- with printf "topk(1, ` + kills + ` unless ` + kills + ` == ` + kills + ` offset 10m)"` + of + of + of +
		` | query }} ({{ . | first | label "cgroup" }}) {{- end }}`
}

func fragments(family, counter, sysctl string) limit {
	const summary = "Fragmented packets are lost because the memory for fragments is full."
	description := `{{ $labels.instance }} failed to reassemble {{ $value | printf "%.0f" }} packets in the last 5 minutes
		(` + family + `, ` + sysctl + `).`
	return limit{
		resource: "ip_fragments_" + family, name: "Fragments", near: "NearlyFull",
		summary: "The memory for IP fragments is nearly full.",
		usage:   "uses {{ $value | humanizePercentage }} of the limit {{ $labels.resource }}",
		effect:  "When the limit is reached, fragments are dropped, and so are the packets that they belong to.",
		met: []Rule{
			{
				Alert: "SockPressureFragmentsDropped", Severity: Critical,
				Comment: "The counter also rises if a fragment never arrived, which this limit does not cause. So it\npages by its rate, and only if the fragment memory is full.",
				Expr:    "increase(" + counter + "[5m]) > 300 * ${rate}\nand " + seen, Params: map[string]string{"rate": "1"},
				Summary: summary, Description: description,
			},
			{
				Alert: "SockPressureFragmentsDropped", Severity: Warning,
				Expr:    "increase(" + counter + "[5m]) > 300 * ${rate}\nor\nincrease(" + counter + "[5m]) > 0\nand " + seen,
				Params:  map[string]string{"rate": "10"},
				Summary: summary, Description: description,
			},
		},
	}
}

func neighbours(family string) limit {
	const summary = "Packets are dropped because a neighbour table is full."
	counter := `increase(sockpressure_neighbour_table_full_total{family="` + family + `"}[5m])`
	description := `{{ $labels.instance }} could not create {{ $value | printf "%.0f" }} entries in its ` + family + `
		neighbour table in the last 5 minutes because it was full.`
	return limit{
		resource: "neighbours_" + family, name: "Neighbours", near: "NearlyFull",
		summary: "A neighbour table is nearly full.",
		usage:   "uses {{ $value | humanizePercentage }} of the limit {{ $labels.resource }} (gc_thresh3)",
		effect:  "When the limit is reached, packets to further hosts on the local network are dropped.",
		met: []Rule{
			{
				Alert: "SockPressureNeighbourTableFull", Severity: Critical,
				Expr:    counter + " > 0\nand ignoring (family, resource) max_over_time(" + level + "[4m]) >= ${critical}",
				Summary: summary, Description: description,
			},
			{
				Alert: "SockPressureNeighbourTableFull", Severity: Warning,
				Comment: "No scrape saw the table full; it was full between two scrapes.",
				Expr:    counter + " > ${count}\nunless ignoring (family, resource) max_over_time(" + level + "[4m]) >= ${critical}",
				Params:  map[string]string{"count": "10"},
				Summary: summary, Description: description,
			},
		},
	}
}

// pressure returns a rule on the kernel's own measure of memory stalls.
func pressure(severity, hold, share string) Rule {
	return Rule{
		Alert: "SockPressureMemoryStalls", Severity: severity, For: hold,
		Expr:    `rate(sockpressure_memory_pressure_seconds_total{kind="full"}[5m]) > ${share}`,
		Params:  map[string]string{"share": share},
		Summary: "All tasks of the machine are waiting for memory.",
		Description: `{{ $labels.instance }} was stalled for {{ $value | humanizePercentage }} of the last 5 minutes because every
			task that could run waited for memory (PSI, full).`,
	}
}

// udpDrops returns an expression for the drops of sockets of both address families in 5
// minutes, by a function of a counter. Without IPv6 there is no counter for it.
func udpDrops(function string) string {
	ipv4, ipv6 := function+"(sockpressure_udp_receive_buffer_errors_total[5m])", function+"(sockpressure_udp6_receive_buffer_errors_total[5m])"
	return "(" + ipv4 + " + " + ipv6 + " or " + ipv4 + " or " + ipv6 + ")"
}
