package collector

import (
	"context"
	"errors"

	"github.com/sockpressure/sockpressure_exporter/internal/ctnetlink"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// conntrack is one reading of the connection tracking table of the host's network
// namespace.
type conntrack struct {
	entries, limit, buckets Number
	counters                [conntrackCounters]Number
}

// The counters of connection tracking, in the order of conntrackColumns.
const (
	conntrackDrop = iota
	conntrackEarlyDrop
	conntrackInsertFailed
	conntrackInvalid
	conntrackSearchRestart
	conntrackCounters
)

// conntrackColumns returns the columns of /proc/net/stat/nf_conntrack that are read. The
// number of entries is in every row, and is that of the whole table.
func conntrackColumns() []string {
	return []string{"drop", "early_drop", "insert_failed", "invalid", "search_restart", "entries"}
}

func conntrackSpec() Spec {
	counter := func(i int) func(*conntrack) Number {
		return func(s *conntrack) Number { return s.counters[i] }
	}
	const source = " From /proc/net/stat/nf_conntrack or ctnetlink."
	return define(Definition[conntrack]{
		Name:      "conntrack",
		Help:      "Connection tracking table of the host's network namespace, from sysctls and /proc/net/stat/nf_conntrack, or from ctnetlink if the kernel does not have that file.",
		Privilege: "On a kernel without CONFIG_NF_CONNTRACK_PROCFS the counters need CAP_NET_ADMIN.",
		Open:      openConntrack,
		Metrics: []Metric[conntrack]{
			{
				Name:  "conntrack_entries",
				Help:  "Connections tracked in the host's network namespace. From net.netfilter.nf_conntrack_count.",
				Value: func(s *conntrack) Number { return s.entries },
			},
			{
				Name:  "conntrack_entries_limit",
				Help:  "Connections that may be tracked in each network namespace; 0 means no limit. From net.netfilter.nf_conntrack_max.",
				Value: func(s *conntrack) Number { return s.limit },
			},
			{
				Name:  "conntrack_buckets",
				Help:  "Buckets of the connection tracking hash table, which all network namespaces share. From net.netfilter.nf_conntrack_buckets.",
				Value: func(s *conntrack) Number { return s.buckets },
			},
			{
				Name:  "conntrack_drops_total",
				Help:  "Packets dropped because a new connection could not be tracked: the table was full, memory was exhausted, or the insertion failed, which conntrack_insert_failures_total also counts." + source,
				Value: counter(conntrackDrop),
			},
			{
				Name:  "conntrack_early_drops_total",
				Help:  "Tracked connections evicted to make room in a full table." + source,
				Value: counter(conntrackEarlyDrop),
			},
			{
				Name:  "conntrack_insert_failures_total",
				Help:  "Connections that could not be inserted into the table, for example because of a clash." + source,
				Value: counter(conntrackInsertFailed),
			},
			{
				Name:  "conntrack_invalid_total",
				Help:  "Packets that belong to no tracked connection and cannot open one." + source,
				Value: counter(conntrackInvalid),
			},
			{
				Name:  "conntrack_search_restarts_total",
				Help:  "Lookups restarted because the table was being resized." + source,
				Value: counter(conntrackSearchRestart),
			},
		},
		Limits: []Limit[conntrack]{{
			LimitInfo: LimitInfo{
				Resource: "conntrack_entries", Unit: Entries, WarningRatio: 0.75, CriticalRatio: 0.9,
				Effect: "Packets of new connections are dropped: \"nf_conntrack: table full, dropping packet\".",
				Usage:  series("conntrack_entries"), Max: series("conntrack_entries_limit"),
				// A packet that could not be tracked, or an entry evicted to make room.
				Proofs: []Proof{
					{Counter: series("conntrack_drops_total"), Less: series("conntrack_insert_failures_total")},
					{Counter: series("conntrack_early_drops_total")},
				},
				// Set in the initial network namespace, for every namespace separately.
				Sysctls:  []Sysctl{{"net.netfilter.nf_conntrack_max", Entries, false}},
				LogLines: []LogLine{{Message: "conntrack_table_full", Pattern: `(nf_conntrack: ){1,2}table full, dropping packet`}},
				Sizing: Sizing{
					Needs:   func(l Load) float64 { return l.Tracked + max(l.Opens, l.Closes)*trackedAfter },
					Rule:    "connections, plus 120 times those that end per second; set `net.netfilter.nf_conntrack_buckets` to the same number, or a quarter of it",
					Initial: "by memory: 65,536 for 2 GiB",
					// Its extensions, and a bucket of the table.
					Objects: []Object{{"nf_conntrack", 256}, {"kmalloc-128", 128}, {"a hash bucket", 8}},
					Most:    forever,
					Settings: []Setting{
						{"/etc/modprobe.d, and /etc/modules-load.d so that the sysctl exists at boot", "options nf_conntrack hashsize=%.0f"},
						{"kube-proxy, which sets it whenever it starts", "--conntrack-min=%.0f"},
					},
				},
			},
		}},
		LogLines: []LogLine{
			{Message: "conntrack_expectation_table_full", Pattern: `(nf_conntrack: ){1,2}expectation table full`},
			// Of network namespaces other than the initial one. Older kernels do not
			// distinguish them.
			{Message: "conntrack_table_full_in_netns", Pattern: `(nf_conntrack: ){1,2}table full in netns (?P<netns>\d+), dropping packet`},
		},
	})
}

func openConntrack(k *Scope) func(context.Context, *conntrack) error {
	count := k.Host.SysctlUsage("net.netfilter.nf_conntrack_count")
	// One value for all namespaces, so the file of any namespace will do.
	limit := k.GlobalSysctl("net.netfilter.nf_conntrack_max")
	buckets := k.GlobalSysctl("net.netfilter.nf_conntrack_buckets")
	stat := k.Host.File("stat/nf_conntrack")
	netlink := k.Host.CTNetlink()
	counters := newPerCPU(conntrackCounters)

	return func(ctx context.Context, s *conntrack) error {
		var p parse.Problems
		var err error
		for _, l := range []struct {
			file kernel.File
			into *Number
		}{{count, &s.entries}, {limit, &s.limit}, {buckets, &s.buckets}} {
			*l.into, err = sysctlNumber(l.file)
			p.Add(err)
		}
		b, err := optional(stat)
		if !s.limit.Present && b == nil && err == nil && p.Err() == nil {
			return &NotSupportedError{Feature: "connection tracking (module nf_conntrack is not loaded)"}
		}
		p.Add(err)

		found := [conntrackCounters]bool{}
		lost := make([]bool, conntrackCounters+1)
		add := func(cpu, column int, v uint64) {
			if column < conntrackCounters {
				counters.add(cpu, column, v)
				found[column] = true
			} else if !s.entries.Present {
				// The host's sysctl is out of reach, but this file is not.
				s.entries = number(v)
			}
		}
		switch {
		case b != nil:
			lost, err = parse.CPUTable(b, stat.Path(), conntrackColumns(), add)
			counters.end()
		case err == nil:
			if err = readCTNetlink(ctx, netlink, add); err == nil {
				counters.end()
			}
		}
		p.Add(err)
		for i := range s.counters {
			if found[i] && !lost[i] && (b != nil || err == nil) {
				s.counters[i] = counters.total(i)
			}
		}
		return p.Err()
	}
}

// readCTNetlink calls visit for each counter of each CPU, with the counter's index in
// conntrackColumns. If the kernel has no ctnetlink, or does not permit its use,
// readCTNetlink visits nothing and returns no error.
func readCTNetlink(ctx context.Context, c *ctnetlink.Client, visit func(cpu, counter int, v uint64)) error {
	cpus, err := c.Stats(ctx)
	if errors.Is(err, ctnetlink.ErrNotSupported) || errors.Is(err, ctnetlink.ErrNotPermitted) || isAbsent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, cpu := range cpus {
		for counter, n := range [conntrackCounters]ctnetlink.Counter{
			conntrackDrop:          cpu.Drop,
			conntrackEarlyDrop:     cpu.EarlyDrop,
			conntrackInsertFailed:  cpu.InsertFailed,
			conntrackInvalid:       cpu.Invalid,
			conntrackSearchRestart: cpu.SearchRestart,
		} {
			if n.Present {
				visit(int(cpu.ID), counter, uint64(n.Value))
			}
		}
	}
	return nil
}
