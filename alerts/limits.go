package alerts

// themes is the table of limits. A new limit is a row here: its near alerts, its
// forecasts, its place in every test (ramps, quiet hosts, documents) follow from it;
// what its counters tell goes into met. Its section of docs/runbooks.md, under the name
// of its near alert, is the other half of the work, and a test asks for it.
func themes() []theme {
	return []theme{
		{
			name:    "conntrack",
			comment: `The connection tracking table: "nf_conntrack: table full, dropping packet". A limit of 0 is no limit: it has no saturation, and nothing here fires.`,
			limits: []limit{{
				resource: "conntrack_entries", name: "Conntrack", near: "NearlyFull",
				summary: "The connection tracking table is nearly full.",
				usage:   "tracks {{ $value | humanizePercentage }} of the connections that net.netfilter.nf_conntrack_max allows",
				effect:  "When it is full, packets of new connections are dropped.",
				met: []Rule{
					{
						Alert: "SockPressureConntrackFull", Severity: Critical,
						Comment: "Drops count every connection that could not be inserted too, for instance because of a\nclash: those are taken off, with a quarter on top because Prometheus extrapolates each\nincrease by itself.",
						Expr:    "(\n" + conntrackDrops + "\n) > 0\nand " + seen,
						Summary: "Packets of new connections are dropped because the connection tracking table is full.",
						Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} packets in the last 5 minutes while its
							connection tracking table was full.`,
					},
					{
						Alert: "SockPressureConntrackDropping", Severity: Warning,
						Comment: "The table was never seen full: it was full between two scrapes, or there was no memory\nfor an entry.",
						Expr:    "(\n" + conntrackDrops + "\n) > ${count}\nunless " + seen, Params: map[string]string{"count": "10"},
						Summary: "Connection tracking drops packets though its table was not seen full.",
						Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} packets of new connections in the last
							5 minutes that it could not track.`,
					},
					{
						Alert: "SockPressureConntrackEarlyDrop", Severity: Warning,
						Expr: "increase(sockpressure_conntrack_early_drops_total[5m]) > ${count}", Params: map[string]string{"count": "10"},
						Summary: "Connection tracking evicts entries to make room for new ones.",
						Description: `{{ $labels.instance }} evicted {{ $value | printf "%.0f" }} tracked connections from its full table
							in the last 5 minutes; new connections got in so far, because some entries were not assured.`,
					},
				},
			}},
			others: []Rule{{
				Alert: "SockPressureConntrackInsertFailing", Severity: Info, For: "15m",
				Comment: "Some clashes are part of life with NAT and DNS over UDP; one a second for a quarter of\nan hour is worth a look.",
				Expr:    "rate(sockpressure_conntrack_insert_failures_total[5m]) > ${rate}", Params: map[string]string{"rate": "1"},
				Summary: "Connections cannot be put into the connection tracking table.",
				Description: `{{ $labels.instance }} drops {{ $value | printf "%.1f" }} packets a second because their connection
					clashes with one that is tracked already. The table is not full because of this.`,
			}},
		},
		{
			name:    "tcp",
			comment: `TCP as a whole: its memory ("TCP: out of memory -- consider tuning tcp_mem"), orphans ("TCP: too many orphaned sockets"), TIME_WAIT and ephemeral ports.`,
			limits: []limit{
				{
					resource: "tcp_memory", name: "TCPMemory", near: "NearlyFull",
					summary: "TCP buffers take up nearly all the memory that TCP may have.",
					usage:   "uses {{ $value | humanizePercentage }} of the high threshold of net.ipv4.tcp_mem, or is past its pressure threshold",
					effect:  "From there on the kernel shrinks windows and buffers; at high it drops received data and resets connections.",
					comment: "The kernel begins to save at the pressure threshold, two thirds of high by default, and\nconnections get slower from there on. A threshold of 0 (tcp_mem \"0 0 N\") is none.",
					or: saturation + `
and ignoring (resource) (
  sockpressure_tcp_memory_bytes
  >= ignoring (threshold) sockpressure_tcp_memory_threshold_bytes{threshold="pressure"} > 0
)`,
					met: []Rule{
						{
							Alert: "SockPressureTCPOutOfMemory", Severity: Critical,
							Comment: "Both counters have other causes (too many orphans, a single socket's buffer), so either\nTCP memory was seen nearly full as well, or connections are reset by the hundred while\norphans are few.",
							Expr: `(
  increase(sockpressure_tcp_aborts_on_memory_total[5m]) > 0
  or
  increase(sockpressure_tcp_receive_queue_drops_total[5m]) > 0
)
and ` + seen + `
or
increase(sockpressure_tcp_aborts_on_memory_total[5m]) > 300 * ${rate}
unless ignoring (resource) max_over_time(sockpressure_saturation_ratio{resource="tcp_orphans"}[5m]) >= 0.25`,
							Params:  map[string]string{"rate": "1"},
							Summary: "TCP is out of memory and drops data or resets connections.",
							Description: `{{ $labels.instance }} reset connections or dropped received segments {{ $value | printf "%.0f" }} times
								in the last 5 minutes because TCP buffers met net.ipv4.tcp_mem.`,
						},
						{
							Alert: "SockPressureTCPOutOfMemory", Severity: Warning,
							Comment: "Memory was not seen full: it was between two scrapes. A burst drops some segments at the\nbuffers of single sockets.",
							Expr: `(
  increase(sockpressure_tcp_aborts_on_memory_total[5m]) > ${count}
  unless ignoring (resource) max_over_time(sockpressure_saturation_ratio{resource="tcp_orphans"}[5m]) >= 0.25
  or
  increase(sockpressure_tcp_receive_queue_drops_total[5m]) > ${drops}
)
unless ` + seen,
							Params:  map[string]string{"count": "10", "drops": "300"},
							Summary: "TCP is out of memory and drops data or resets connections.",
							Description: `{{ $labels.instance }} reset connections or dropped received segments {{ $value | printf "%.0f" }} times
								in the last 5 minutes for lack of memory; TCP memory was not seen full, so it may have been between two scrapes.`,
						},
						{
							Alert: "SockPressureTCPMemoryPressure", Severity: Info,
							Comment: "The spikes that a scrape does not see. Pressure that passes by itself costs some speed\nand no connection, so this is for the record.",
							Expr:    "increase(sockpressure_tcp_memory_pressures_total[5m]) > 0",
							Summary: "TCP came under memory pressure.",
							Description: `{{ $labels.instance }} came under TCP memory pressure {{ $value | printf "%.0f" }} times in the last
								5 minutes: the memory of TCP buffers rose above the pressure threshold of net.ipv4.tcp_mem.`,
						},
					},
				},
				{
					resource: "tcp_orphans", name: "TCPOrphans", near: "High", forecast: brief, raw: true,
					hold:    map[string]string{Warning: "5m", Critical: "3m"},
					summary: "Many TCP sockets are orphans.",
					usage:   "has {{ $value | humanizePercentage }} of the orphans that net.ipv4.tcp_max_orphans allows",
					effect:  "The kernel can begin to reset them at a quarter.",
					comment: "The kernel can count an orphan up to four times, so it can hurt from a quarter of the\nlimit on. A wave of closed connections may pass that for some minutes without harm.",
					met: []Rule{
						{
							Alert: "SockPressureTCPOrphansReset", Severity: Critical,
							Comment: "The counter is shared with TCP memory, so orphans must be many now.",
							Expr: `increase(sockpressure_tcp_aborts_on_memory_total[2m]) > ${count}
and ignoring (resource) max_over_time(` + saturation + `[1m]) >= ${warning}`,
							Params:  map[string]string{"count": "10"},
							Summary: "Closed connections are reset with their data unsent because there are too many orphans.",
							Description: `{{ $labels.instance }} reset {{ $value | printf "%.0f" }} connections in the last 2 minutes while its
								orphans were above a quarter of net.ipv4.tcp_max_orphans.`,
						},
						{
							Alert: "SockPressureTCPOrphansReset", Severity: Warning,
							Expr: `increase(sockpressure_tcp_aborts_on_memory_total[5m]) > 0
and ignoring (resource) max_over_time(` + saturation + `[5m]) >= ${warning}`,
							Summary: "Closed connections are reset with their data unsent because there are too many orphans.",
							Description: `{{ $labels.instance }} reset {{ $value | printf "%.0f" }} connections in the last 5 minutes while its
								orphans were above a quarter of net.ipv4.tcp_max_orphans.`,
						},
					},
				},
				{
					resource: "tcp_time_wait", name: "TimeWait", near: "NearlyFull", forecast: ticket, raw: true,
					hold:    map[string]string{Warning: "45s"},
					summary: "There are nearly as many TIME_WAIT sockets as the kernel keeps.",
					usage:   "has {{ $value | humanizePercentage }} of the TIME_WAIT sockets that net.ipv4.tcp_max_tw_buckets allows",
					effect:  "Above it connections are closed without TIME_WAIT.",
					comment: "Nothing breaks at once when this limit is met, and some hosts are capped by design: it\nwrites one ticket, and never pages.",
					met: []Rule{{
						Alert: "SockPressureTimeWaitOverflow", Severity: Info,
						Expr:    "increase(sockpressure_tcp_time_wait_overflows_total[5m]) > 0",
						Summary: "Connections are closed without TIME_WAIT.",
						Description: `{{ $labels.instance }} closed {{ $value | printf "%.0f" }} connections without TIME_WAIT in the last
							5 minutes because there were net.ipv4.tcp_max_tw_buckets already. Nothing is logged.`,
					}},
				},
				{
					resource: "ephemeral_ports", name: "EphemeralPorts", near: "NearlyUsedUp",
					summary: "The ephemeral ports to one destination are nearly used up.",
					usage: `uses {{ $value | humanizePercentage }} of the ports that its connections to one destination can have` +
						worst("sockpressure_ephemeral_ports_used", "", `from {{ . | first | label "source" }} to {{ . | first | label "destination" }}`),
					effect:  "At the limit connect fails with EADDRNOTAVAIL.",
					comment: "The saturation is that of the fullest pair of addresses.",
					full:    "The ephemeral ports to one destination are used up.", fullAt: "0.99",
				},
			},
		},
		{
			name:    "listeners",
			comment: "Listeners: the queue of connections that wait to be accepted, and before it the queue of connection requests whose handshake is under way.",
			limits: []limit{{
				resource: "accept_queue", name: "AcceptQueue", near: "NearlyFull", forecast: brief, raw: true,
				hold:    map[string]string{Critical: "1m"},
				summary: "A program does not accept its connections fast enough.",
				usage: `has an accept queue that is {{ $value | humanizePercentage }} full` +
					worst("sockpressure_accept_queue_saturation_ratio", "", `listener {{ . | first | label "listener" }}`),
				effect:  "When it is full, new connections are dropped at the end of their handshake.",
				comment: "The saturation is that of the fullest queue of the host. A queue is full at 1 and\noverflows with the next connection, not before: so the critical level is 1.",
				met: []Rule{
					{
						Alert: "SockPressureAcceptQueueOverflow", Severity: Critical, For: "5m",
						Comment: "The rate looks back 5 minutes; 5 minutes of it mean that it goes on.",
						Expr:    "rate(sockpressure_tcp_listen_overflows_total[5m]) > ${rate}", Params: map[string]string{"rate": "1"},
						Summary: "Connections are dropped because an accept queue is full.",
						Description: `{{ $labels.instance }} has been dropping {{ $value | printf "%.1f" }} connections a second at a full
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
							last 5 minutes. The other side tries again after a second or more, or gives up.`,
					},
					{
						Alert: "SockPressureAcceptQueueOverflow", Severity: Info,
						Expr:    `increase(sockpressure_tcp_listen_overflows_total[5m]) > 0`,
						Summary: "Connections are dropped because an accept queue is full.",
						Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} connections at a full accept queue in the
							last 5 minutes. The other side tries again after a second or more, or gives up.`,
					},
				},
			}, {
				resource: "unix_accept_queue", name: "UnixAcceptQueue", near: "NearlyFull", forecast: brief, raw: true,
				hold:    map[string]string{Warning: "2m", Critical: "3m"},
				summary: "A program does not accept the connections to its unix socket fast enough.",
				usage: `has a unix socket whose accept queue is {{ $value | humanizePercentage }} full` +
					worst("sockpressure_unix_accept_queue_length", "sockpressure_unix_accept_queue_limit", `{{ . | first | label "path" }}`),
				effect:  "While it is full, connect waits or fails with EAGAIN.",
				comment: "The saturation is that of the fullest queue of the host.",
				met: []Rule{{
					Alert: "SockPressureUnixAcceptQueueFull", Severity: Info,
					Comment: "The kernel counts no refusal, and a queue that is full for a moment is no trouble: for the\nrecord.",
					Expr:    saturation + " >= 1",
					Summary: "The accept queue of a unix socket was full.",
					Description: `{{ $labels.instance }} has a unix socket whose accept queue is {{ $value | humanizePercentage }} full; who
						connects waits, or is refused with EAGAIN.`,
				}},
			}, {
				resource: "request_queue", name: "RequestQueue", near: "NearlyFull", forecast: ticket, raw: true,
				hold:    map[string]string{Warning: "3m"},
				summary: "Many connections to a listener have begun their handshake and do not end it.",
				usage: `has a queue of connection requests that is {{ $value | humanizePercentage }} full` +
					worst("sockpressure_request_queue_length", "sockpressure_request_queue_limit", `listener {{ . | first | label "listener" }}`),
				effect:  "When it is full, new connections begin with a SYN cookie, or are dropped without cookies.",
				comment: "With SYN cookies, the default, a full queue does little harm, and anybody can fill it: it\nwrites a ticket. What is dropped pages.",
				met: []Rule{
					{
						Alert: "SockPressureRequestQueueFull", Severity: Critical, For: "5m",
						Comment: "With SYN cookies (the default) the host still answers, without them it drops.",
						Expr:    `rate(sockpressure_tcp_request_queue_full_drops_total[5m]) > ${rate}`, Params: map[string]string{"rate": "1"},
						Summary: "A queue of connection requests is full.",
						Description: `{{ $labels.instance }} has been dropping {{ $value | printf "%.1f" }} connection requests a second for
						10 minutes, with SYN cookies switched off.`,
					},
					{
						Alert: "SockPressureRequestQueueFull", Severity: Warning,
						Expr: `increase(sockpressure_tcp_request_queue_full_drops_total[5m]) > ${count}`, Params: map[string]string{"count": "30"},
						Summary: "A queue of connection requests is full.",
						Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} connection requests in the last 5 minutes:
						a queue of them was full, and SYN cookies are switched off.`,
					},
					{
						Alert: "SockPressureRequestQueueFull", Severity: Info,
						Comment: "Cookies that nobody answers are a flood. With tcp_syncookies=2 every connection begins\nwith a cookie, and its answer is counted.",
						Expr: `increase(sockpressure_tcp_request_queue_full_drops_total[5m]) > 0
or
increase(sockpressure_tcp_request_queue_full_cookies_total[5m])
- (increase(sockpressure_tcp_syncookies_received_total[5m]) or 0 * increase(sockpressure_tcp_request_queue_full_cookies_total[5m]))
> ${count}`,
						Params:  map[string]string{"count": "30"},
						Summary: "A queue of connection requests is full.",
						Description: `{{ $labels.instance }} met a full queue of connection requests {{ $value | printf "%.0f" }} times in the
						last 5 minutes, and dropped the request or sent a SYN cookie that was not answered: a SYN flood, most likely.`,
					},
				},
			}},
			others: []Rule{
				{
					Alert: "SockPressureListenDropping", Severity: Warning, For: "5m", Labels: map[string]string{"stage": met},
					Comment: "Beyond the overflows, which ListenDrops includes: no memory, no route, a filter.",
					Expr: `rate(sockpressure_tcp_listen_drops_total[5m])
- rate(sockpressure_tcp_listen_overflows_total[5m]) > ${rate}`,
					Params:  map[string]string{"rate": "1"},
					Summary: "Listeners drop connections for other reasons than a full accept queue.",
					Description: `{{ $labels.instance }} drops {{ $value | printf "%.1f" }} connections a second at its listeners, without
						a full accept queue: no memory for the socket, or a full queue of requests.`,
				},
			},
		},
		{
			name:    "network",
			comment: "The network below and beside TCP: UDP memory, IP fragments, the neighbour tables and the backlog of received packets.",
			limits: []limit{
				{
					resource: "udp_receive_queue", name: "UDPReceiveQueue", near: "NearlyFull", forecast: ticket, raw: true,
					hold:    map[string]string{Warning: "5m"},
					summary: "A program does not read its UDP socket fast enough.",
					usage: `has a UDP socket whose receive queue is {{ $value | humanizePercentage }} full` +
						worst("sockpressure_udp_receive_queue_bytes", "sockpressure_udp_receive_queue_limit_bytes", `{{ . | first | label "socket" }}`),
					effect:  "While it is full, datagrams to it are dropped.",
					comment: "A queue is full for a moment at every burst, so only one that stays so writes a ticket. Some\nprograms never read a socket of theirs (dhclient has one), whose queue is full and stands\nstill: that is told of where datagrams for it keep coming.",
					unless:  "(\n  changes(" + saturation + "[10m]) == 0\n  unless ignoring (resource) " + udpDrops("rate") + " > 1\n)",
					met: []Rule{{
						Alert: "SockPressureUDPReceiveQueueFull", Severity: Info,
						Comment: "Drops by the thousand are SockPressureUDPReceiveErrors.",
						Expr:    udpDrops("increase") + " > 0\nand " + seen,
						Summary: "A UDP socket dropped datagrams because its receive queue was full.",
						Description: `{{ $labels.instance }} dropped {{ $value | printf "%.0f" }} datagrams in the last 5 minutes while the
							receive queue of a UDP socket was full.`,
					}},
				},
				{
					resource: "udp_memory", name: "UDPMemory", near: "NearlyFull",
					summary: "UDP buffers take up nearly all the memory that UDP may have.",
					usage:   "uses {{ $value | humanizePercentage }} of the first number of net.ipv4.udp_mem",
					effect:  "Above it every datagram that needs more memory is dropped.",
					met: []Rule{
						{
							Alert: "SockPressureUDPOutOfMemory", Severity: Critical,
							Comment: "Before Linux 5.11 the kernel does not count this: there a limit that is met is taken for it.",
							Expr: `(
  increase(sockpressure_udp_memory_errors_total[5m]) > 0
  or
  increase(sockpressure_udp6_memory_errors_total[5m]) > 0
)
and ` + seen + `
or
sum without (resource) (` + saturation + ` >= 1)
unless sockpressure_udp_memory_errors_total`,
							Summary: "Datagrams are dropped because UDP is out of memory.",
							Description: `{{ $labels.instance }} drops datagrams because UDP buffers met net.ipv4.udp_mem ({{ $value | printf "%.0f" }} in the
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
								buffers met net.ipv4.udp_mem, between two scrapes.`,
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
					summary: "A CPU does not keep up with the packets it receives.",
					usage:   "has a CPU whose backlog of received packets is {{ $value | humanizePercentage }} of net.core.netdev_max_backlog",
					effect:  "When it is full, packets are dropped before any protocol sees them.",
					comment: "It is mostly 0, and rarely seen in between: scrapes in a row that see half a queue are\nno chance. What does not last is left to the counter.",
					met: []Rule{
						{
							Alert: "SockPressureNetdevBacklogDropping", Severity: Critical, For: "5m",
							Comment: "The rate looks back 5 minutes; 5 minutes of it mean that it goes on.",
							Expr:    "rate(sockpressure_netdev_backlog_drops_total[5m]) > ${rate}", Params: map[string]string{"rate": "10"},
							Summary: "Received packets are dropped because the backlog of a CPU is full.",
							Description: `{{ $labels.instance }} has been dropping {{ $value | printf "%.0f" }} received packets a second for
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
			comment: "File descriptors: of the whole machine (ENFILE) and of each process (EMFILE). Every socket is one. The kernel counts no refusal of either kind.",
			limits: []limit{
				{
					resource: "file_descriptors", name: "FileDescriptors", near: "NearlyUsedUp",
					summary: "The machine is nearly out of file descriptors.",
					usage:   "has {{ $value | humanizePercentage }} of the files open that fs.file-max allows",
					effect:  "At the limit open, socket and accept fail with ENFILE for every unprivileged process.",
					full:    "The machine is out of file descriptors.", fullAt: "0.99",
				},
				{
					resource: "threads", name: "Threads", near: "NearlyUsedUp", forecast: jumpy,
					summary: "The machine is nearly out of threads.",
					usage:   "runs {{ $value | humanizePercentage }} of the threads that kernel.threads-max and kernel.pid_max allow",
					effect:  "At the limit fork and pthread_create fail with EAGAIN for every program, a login too.",
					full:    "The machine is out of threads.", fullAt: "0.99",
				},
				{
					resource: "process_file_descriptors", name: "ProcessFileDescriptors", near: "NearlyUsedUp",
					summary: "A process is nearly out of file descriptors.",
					usage: `has a process that uses {{ $value | humanizePercentage }} of its file descriptors` +
						worst("sockpressure_process_open_file_descriptors", "sockpressure_process_file_descriptors_limit", `{{ . | first | label "process" }}`),
					effect: "At the limit its open, socket and accept fail with EMFILE.",
					full:   "A process is out of file descriptors.", fullAt: "0.99",
				},
			},
		},
		{
			name:    "memory",
			comment: "Memory, as far as it ends in a refused allocation or in the OOM killer. The levels are high, because a host may well live at them; what fills within minutes is foreseen by SockPressureFillingFast.",
			limits: []limit{
				{
					resource: "memory", name: "Memory", near: "NearlyFull", forecast: jumpy,
					unless:  "ignoring (resource) sockpressure_memory_available_bytes > " + plenty,
					summary: "The machine is nearly out of memory.",
					usage:   "uses {{ $value | humanizePercentage }} of its memory, page cache that it could give back not included",
					effect:  "When it is gone, the OOM killer ends a process.",
					comment: "A large machine at 91 percent has tens of gigabytes left: no alert while there is plenty.",
					met: []Rule{
						{
							Alert: "SockPressureOOMKill", Severity: Critical,
							Comment: "The counter includes kills inside a memory cgroup that reached its own limit. The\nmachine itself is out of memory if the kernel logged that, or if it was seen: at its\ncritical level, or high and not as it always is, and without plenty of memory left.",
							Expr: `max without (message) (increase(sockpressure_kernel_messages_total{message="oom_kill"}[5m])) > 0
or
increase(sockpressure_oom_kills_total[5m]) > 0
and ignoring (resource) (
  max_over_time(` + saturation + `[5m]) >= ${critical}
  or
  max_over_time(` + saturation + `[5m]) >= ${warning}
  and max_over_time(` + saturation + `[5m]) - min_over_time(` + saturation + `[5m]) > 0.05
)
unless min_over_time(sockpressure_memory_available_bytes[5m]) > ` + plenty,
							Summary: "The OOM killer ended processes.",
							Description: `{{ $labels.instance }} ended {{ $value | printf "%.0f" }} processes in the last 5 minutes; the machine
								was out of memory.`,
						},
					},
				},
				{
					resource: "low_memory", name: "LowMemory", near: "NearlyFull", forecast: jumpy,
					summary: "A 32-bit kernel is nearly out of low memory.",
					usage:   "uses {{ $value | humanizePercentage }} of the low memory that sockets and all other data of the kernel live in",
					effect:  "When it is gone, the OOM killer ends a process, though high memory is free.",
					comment: "32-bit kernels with high memory only. The usage leaves out what the kernel can take back,\nand the limit leaves out the reserve at which the OOM killer comes (5 to 6 percent of\nLowTotal), so these are levels of what is really left.",
					met: []Rule{{
						Alert: "SockPressureOOMKill", Severity: Critical,
						Expr: `increase(sockpressure_oom_kills_total[5m]) > 0
and ignoring (resource) max_over_time(` + saturation + `[5m]) >= ${warning}`,
						Summary: "The OOM killer ended processes.",
						Description: `{{ $labels.instance }} ended {{ $value | printf "%.0f" }} processes in the last 5 minutes; its 32-bit
							kernel was out of low memory, while high memory may have been free.`,
					}},
				},
				{
					resource: "cgroup_memory", name: "CgroupMemory", near: "NearlyFull", forecast: ticket, raw: true,
					hold:    map[string]string{Warning: "5m"},
					summary: "A pod, container or unit is nearly out of the memory that it may have.",
					usage: `has a control group that uses {{ $value | humanizePercentage }} of its limit of memory` +
						worst("sockpressure_cgroup_memory_saturation_ratio", "", `{{ . | first | label "cgroup" }}`),
					effect:  "At the limit the OOM killer ends a process of it.",
					comment: "What it could give back is left out. The harm is that of one program, and some run so for\nyears: it writes one ticket, and never pages.",
					met: []Rule{{
						Alert: "SockPressureCgroupOOMKill", Severity: Info,
						Comment: "SockPressureOOMKill writes the ticket; this one says where.",
						Expr:    "increase(sockpressure_cgroup_oom_kills_all_total[5m]) > 0",
						Summary: "The OOM killer ended processes of a pod, container or unit.",
						Description: `{{ $labels.instance }} ended {{ $value | printf "%.0f" }} processes of control groups that were at
							their limit of memory in the last 5 minutes` + killedIn() + `.`,
					}},
				},
				{
					resource: "committed_memory", name: "CommittedMemory", near: "NearlyFull", forecast: jumpy,
					summary: "Committed memory is close to CommitLimit.",
					usage:   "has committed {{ $value | humanizePercentage }} of its CommitLimit to programs",
					effect:  "At the limit fork, mmap and malloc fail with ENOMEM, whether memory is free or not.",
					comment: "Only where vm.overcommit_memory is 2: elsewhere nothing is enforced, and there is no\nseries. The kernel keeps the last few percent for root and for small programs, so others\nare refused from 95 percent on.",
					full:    "Committed memory is at CommitLimit.", fullAt: "0.97",
				},
			},
			others: []Rule{
				{
					Alert: "SockPressureOOMKill", Severity: Warning, Labels: map[string]string{"stage": met},
					Comment: "Neither was seen: a memory cgroup met its limit (a container's, mostly), or the machine's\nmemory came and went between two scrapes.",
					Expr: `increase(sockpressure_oom_kills_total[5m]) > 0
unless ignoring (resource) (
  max_over_time(sockpressure_saturation_ratio{resource="memory"}[5m]) >= ` + number(levels("memory").CriticalRatio) + `
  unless ignoring (resource) sockpressure_memory_available_bytes > ` + plenty + `
)
unless ignoring (resource)
max_over_time(sockpressure_saturation_ratio{resource="low_memory"}[5m]) >= ` + number(levels("low_memory").WarningRatio),
					Summary: "The OOM killer ended processes.",
					Description: `{{ $labels.instance }} ended {{ $value | printf "%.0f" }} processes in the last 5 minutes; the machine's
						memory was not seen full, so most likely a memory cgroup met its own limit` + killedIn() + `.`,
				},
				pressure(Warning, "5m", "0.1"),
				pressure(Critical, "5m", "0.4"),
			},
		},
	}
}

// plenty of memory is no shortage, whatever the share of it: in bytes.
const plenty = "8 * 2^30"

// conntrackDrops are the packets dropped within 5 minutes because the table was full
// or there was no memory.
const conntrackDrops = `  increase(sockpressure_conntrack_drops_total[5m])
  - (
    1.25 * increase(sockpressure_conntrack_insert_failures_total[5m])
    or
    0 * increase(sockpressure_conntrack_drops_total[5m])
  )`

// worst writes, in parentheses, which one of a list it is: the text is a template of
// what the query for its highest value answers.
func worst(metric, limit, text string) string {
	const matchers = "{cluster=%q,job=%q,instance=%q}"
	const of = " $labels.cluster $labels.job $labels.instance"
	query, args := metric+matchers, of
	if limit != "" {
		query, args = query+" / "+limit+matchers, args+of
	}
	return ` {{- with printf "topk(1, ` + query + `)"` + args + ` | query }} (` + text + `) {{- end }}`
}

// killedIn writes, in parentheses, the control group in which a process was killed last.
func killedIn() string {
	const kills = "sockpressure_cgroup_oom_kills_total{cluster=%q,job=%q,instance=%q}"
	const of = " $labels.cluster $labels.job $labels.instance"
	return ` {{- with printf "topk(1, ` + kills + ` unless ` + kills + ` == ` + kills + ` offset 10m)"` + of + of + of +
		` | query }} ({{ . | first | label "cgroup" }}) {{- end }}`
}

func fragments(family, counter, sysctl string) limit {
	const summary = "Fragmented packets are lost because the memory for fragments is full."
	description := `{{ $labels.instance }} failed to put {{ $value | printf "%.0f" }} packets together in the last 5 minutes
		(` + family + `, ` + sysctl + `).`
	return limit{
		resource: "ip_fragments_" + family, name: "Fragments", near: "NearlyFull",
		summary: "The memory for IP fragments is nearly full.",
		usage:   "uses {{ $value | humanizePercentage }} of the limit {{ $labels.resource }}",
		effect:  "When it is met, fragments are dropped, and with them the packets that they belong to.",
		met: []Rule{
			{
				Alert: "SockPressureFragmentsDropped", Severity: Critical,
				Comment: "The counter also rises when a fragment never came, which is the network's loss and not\nthis limit's: so it pages by its rate, and with a full memory only.",
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
	description := `{{ $labels.instance }} could not make {{ $value | printf "%.0f" }} entries of its ` + family + `
		neighbour table in the last 5 minutes because it was full.`
	return limit{
		resource: "neighbours_" + family, name: "Neighbours", near: "NearlyFull",
		summary: "A neighbour table is nearly full.",
		usage:   "uses {{ $value | humanizePercentage }} of the limit {{ $labels.resource }} (gc_thresh3)",
		effect:  "When it is met, packets to further hosts of the local network are dropped.",
		met: []Rule{
			{
				Alert: "SockPressureNeighbourTableFull", Severity: Critical,
				Expr:    counter + " > 0\nand ignoring (family, resource) max_over_time(" + saturation + "[5m]) >= ${critical}",
				Summary: summary, Description: description,
			},
			{
				Alert: "SockPressureNeighbourTableFull", Severity: Warning,
				Comment: "The table was not seen full: it was between two scrapes.",
				Expr:    counter + " > ${count}\nunless ignoring (family, resource) max_over_time(" + saturation + "[5m]) >= ${critical}",
				Params:  map[string]string{"count": "10"},
				Summary: summary, Description: description,
			},
		},
	}
}

// pressure is the kernel's own measure of how much it hurts.
func pressure(severity, hold, share string) Rule {
	return Rule{
		Alert: "SockPressureMemoryStalls", Severity: severity, For: hold,
		Expr:    `rate(sockpressure_memory_pressure_seconds_total{kind="full"}[5m]) > ${share}`,
		Params:  map[string]string{"share": share},
		Summary: "All tasks of the machine wait for memory.",
		Description: `{{ $labels.instance }} stood still {{ $value | humanizePercentage }} of the last 5 minutes because every
			task that could run waited for memory (PSI, full).`,
	}
}

// udpDrops is what sockets of both address families dropped in 5 minutes, by a function of
// a counter. Without IPv6 there is no counter of it.
func udpDrops(function string) string {
	ipv4, ipv6 := function+"(sockpressure_udp_receive_buffer_errors_total[5m])", function+"(sockpressure_udp6_receive_buffer_errors_total[5m])"
	return "(" + ipv4 + " + " + ipv6 + " or " + ipv4 + ")"
}
