package collector

import (
	"context"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// neighbour is one reading of the neighbour tables, IPv4 (ARP) and IPv6.
type neighbour [2]neighbourTable

type neighbourTable struct {
	entries, limit, full Number
}

func neighbourSpec() Spec {
	return define(Definition[neighbour]{
		Name: "neighbour",
		Help: "Neighbour tables (ARP and IPv6 neighbour discovery), which all network namespaces share, from /proc/net/stat/arp_cache and ndisc_cache.",
		Open: openNeighbour,
		Metrics: []Metric[neighbour]{
			{
				Name:   "neighbour_entries",
				Help:   "Entries of the neighbour table of the whole machine, including permanent ones. From /proc/net/stat/arp_cache and ndisc_cache.",
				Labels: []string{"family"},
				Values: func(s *neighbour, emit Emit) {
					for i, t := range s {
						emit(t.entries, familyName(i))
					}
				},
			},
			{
				Name:   "neighbour_entries_limit",
				Help:   "Number of entries above which no new neighbour can be reached. From net.ipv4.neigh.default.gc_thresh3 and net.ipv6.neigh.default.gc_thresh3.",
				Labels: []string{"family"},
				Values: func(s *neighbour, emit Emit) {
					for i, t := range s {
						emit(t.limit, familyName(i))
					}
				},
			},
			{
				Name:   "neighbour_table_full_total",
				Help:   "Times that an entry could not be created because the table was full. From /proc/net/stat/arp_cache and ndisc_cache.",
				Labels: []string{"family"},
				Values: func(s *neighbour, emit Emit) {
					for i, t := range s {
						emit(t.full, familyName(i))
					}
				},
			},
		},
		Limits: []Limit[neighbour]{
			{LimitInfo: neighbourLimit("ipv4", "net.ipv4.neigh.default.gc_thresh3", "arp_cache")},
			{LimitInfo: neighbourLimit("ipv6", "net.ipv6.neigh.default.gc_thresh3", "ndisc_cache")},
		},
	})
}

func neighbourLimit(family, sysctl, table string) LimitInfo {
	return LimitInfo{
		Resource: "neighbours_" + family, Unit: Entries, WarningRatio: 0.8, CriticalRatio: 0.95,
		Effect: "Packets to hosts on the local network that have no entry are dropped: \"neighbor table overflow!\".",
		Usage:  series("neighbour_entries", "family", family), Max: series("neighbour_entries_limit", "family", family),
		Proofs:  []Proof{{Counter: series("neighbour_table_full_total", "family", family)}},
		Sysctls: []Sysctl{{sysctl, Entries, false}},
		LogLines: []LogLine{{
			Message: "neighbour_" + family + "_table_overflow",
			Pattern: `neighbour: ` + table + `: neighbor table overflow!`,
		}},
		Sizing: Sizing{
			Rule:    "hosts and pods on the local networks, plus 50 %",
			Initial: "1,024",
			Objects: []Object{{"kmalloc-512", 512}}, // struct neighbour and its key
		},
	}
}

func openNeighbour(k *Scope) func(context.Context, *neighbour) error {
	type source struct{ stat, limit kernel.File }
	sources := [2]source{
		{k.Host.File("stat/arp_cache"), k.Host.Sysctl("net.ipv4.neigh.default.gc_thresh3")},
		{k.Host.File("stat/ndisc_cache"), k.Host.Sysctl("net.ipv6.neigh.default.gc_thresh3")},
	}
	wanted := []string{"entries", "table_fulls"}
	counters := [2]*perCPU{newPerCPU(1), newPerCPU(1)}

	return func(_ context.Context, s *neighbour) error {
		var p parse.Problems
		present := false
		for i, f := range sources {
			t := &s[i]
			b, err := optional(f.stat)
			p.Add(err)
			if b != nil || err != nil {
				present = true
			}
			if b != nil {
				full := false
				lost, err := parse.CPUTable(b, f.stat.Path(), wanted, func(cpu, column int, v uint64) {
					switch column {
					case 0: // the whole table's, repeated in every row
						t.entries = number(v)
					case 1:
						counters[i].add(cpu, 0, v)
						full = true
					}
				})
				p.Add(err)
				counters[i].end()
				if full && !lost[1] {
					t.full = counters[i].total(0)
				}
			}
			t.limit, err = sysctlNumber(f.limit)
			p.Add(err)
		}
		if !present {
			return &NotSupportedError{Feature: "statistics of the neighbour tables (/proc/net/stat/arp_cache)"}
		}
		return p.Err()
	}
}
