package collector

import (
	"context"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// softnet is one reading of /proc/net/softnet_stat, over all CPUs.
type softnet struct {
	drops, squeezes Number
	// length is the longest backlog of a CPU, as a user sees it. input is the part of it
	// that the kernel compares with the limit. Since Linux 6.6 the file has input alone.
	length, input Number
	limit         Number
}

func softnetSpec() Spec {
	return define(Definition[softnet]{
		Name: "softnet",
		Help: "Queues of received packets, one per CPU, from /proc/net/softnet_stat.",
		Open: func(k *Scope) func(context.Context, *softnet) error {
			file, limit := k.Host.File("softnet_stat"), k.Host.Sysctl("net.core.netdev_max_backlog")
			online := k.Sys("devices/system/cpu/online", procfile.Open)
			rows := &softnetRows{counters: newPerCPU(2)}
			return func(_ context.Context, s *softnet) error {
				b, err := required(file, "/proc/net/softnet_stat")
				if isNotSupported(err) {
					return err
				}
				var p parse.Problems
				p.Add(err)
				if b != nil {
					p.Add(rows.parse(b, file.Path(), func() []int { return readOnline(online) }, s))
				}
				s.limit, err = sysctlNumber(limit)
				p.Add(err)
				return p.Err()
			}
		},
		Metrics: []Metric[softnet]{
			{
				Name:  "netdev_backlog_drops_total",
				Help:  "Packets dropped because the backlog of a CPU was full, summed over all CPUs. From /proc/net/softnet_stat.",
				Value: func(s *softnet) Number { return s.drops },
			},
			{
				Name:  "netdev_time_squeezes_total",
				Help:  "Times that a CPU stopped with packets left because net.core.netdev_budget (packets) or netdev_budget_usecs (time) was used up, summed over all CPUs. From /proc/net/softnet_stat.",
				Value: func(s *softnet) Number { return s.squeezes },
			},
			{
				Name:  "netdev_backlog_length",
				Help:  "Packets waiting in the longest backlog of all CPUs. From /proc/net/softnet_stat, since Linux 5.10.",
				Value: func(s *softnet) Number { return s.length },
			},
			{
				Name:  "netdev_backlog_limit",
				Help:  "Packets that may wait in the backlog of each CPU. From net.core.netdev_max_backlog.",
				Value: func(s *softnet) Number { return s.limit },
			},
		},
		Limits: []Limit[softnet]{{
			LimitInfo: LimitInfo{
				Resource: "netdev_backlog", Unit: Packets, WarningRatio: 0.5, CriticalRatio: 0.9,
				Effect: "Received packets are dropped before any protocol sees them.",
				Usage:  series("netdev_backlog_length"), Max: series("netdev_backlog_limit"),
				Proofs:  []Proof{{Counter: series("netdev_backlog_drops_total")}},
				Sysctls: []Sysctl{{"net.core.netdev_max_backlog", Packets, false}},
				Sizing: Sizing{
					Rule:    "packets that arrive while a CPU is briefly busy",
					Initial: "1,000",
					Objects: []Object{{"skbuff_head_cache", 256}, {"skbuff_small_head", 704}},
				},
			},
			// Of the waiting packets, only those that the kernel compares with the limit.
			Used: func(s *softnet) Number { return s.input },
		}},
	})
}

// softnetRows adds up the lines of /proc/net/softnet_stat, one for each online CPU.
type softnetRows struct {
	counters *perCPU
	// cpus is the CPU of each line at the last reading, as far as it was known.
	cpus  []int
	known bool
}

// parse fills s. Before Linux 5.10 a line does not name its CPU. Then online does, if it
// returns as many CPUs as there are lines.
func (r *softnetRows) parse(b []byte, path string, online func() []int, s *softnet) error {
	lines, err := parse.Softnet(b, path)
	if len(lines) == 0 {
		return err
	}
	named := !lines[0].CPU.IsMissing()
	if !named {
		r.identify(len(lines), online())
	}
	lost, lostLength, lostInput := [2]bool{}, false, false
	for i, l := range lines {
		cpu := l.CPU
		if !named {
			cpu = number(r.cpus[i])
		}
		for counter, n := range [2]Number{l.Dropped, l.Squeezed} {
			if !cpu.Present || !n.Present {
				lost[counter] = true
				continue
			}
			r.counters.add(int(cpu.Value), counter, uint64(n.Value))
		}
		s.length, s.input = larger(s.length, l.Backlog), larger(s.input, l.Input)
		lostLength, lostInput = lostLength || l.Backlog.IsUnreadable(), lostInput || l.Input.IsUnreadable()
	}
	r.counters.end()
	// If a CPU is missing, there is no sum and no maximum.
	if lostLength {
		s.length = Number{}
	}
	if lostInput {
		s.input = Number{}
	}
	if !lost[0] {
		s.drops = r.counters.total(0)
	}
	if !lost[1] {
		s.squeezes = r.counters.total(1)
	}
	return err
}

// larger returns the larger of the numbers that are present.
func larger(a, b Number) Number {
	if !a.Present || b.Present && b.Value > a.Value {
		return b
	}
	return a
}

// identify finds the CPUs of lines that do not name them. If it cannot, and the lines may
// be of other CPUs than before, it drops the previous counts, which cannot be compared
// with the new ones.
func (r *softnetRows) identify(lines int, online []int) {
	cpus, known := online, len(online) == lines
	if !known {
		cpus = make([]int, lines)
		for i := range cpus {
			cpus[i] = i
		}
	}
	if (!known || !r.known) && !slices.Equal(cpus, r.cpus) {
		r.counters.forget()
	}
	r.cpus, r.known = cpus, known
}

// readOnline reads /sys/devices/system/cpu/online, a list of numbers and ranges. It
// returns nil if that fails.
func readOnline(f kernel.File) []int {
	b, err := f.Read()
	if err != nil {
		return nil
	}
	var cpus []int
	err = parse.List(b, f.Path(), func(low, high uint16) {
		for cpu := int(low); cpu <= int(high); cpu++ {
			cpus = append(cpus, cpu)
		}
	})
	if err != nil {
		return nil
	}
	return cpus
}
