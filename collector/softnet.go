package collector

import (
	"context"
	"fmt"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// softnet is one reading of /proc/net/softnet_stat, over all CPUs.
type softnet struct {
	drops, squeezes Number
	// length is the longest backlog of a CPU, as a user sees it. input is the
	// part of it that the kernel compares with the limit, which stands alone in
	// the file since Linux 6.6.
	length, input Number
	limit         Number
}

func softnetSpec() Spec {
	return define(Definition[softnet]{
		Name: "softnet",
		Help: "The queue of received packets that each CPU has, from /proc/net/softnet_stat.",
		Open: func(k *Kernel) func(context.Context, *softnet) error {
			file, limit := k.net("softnet_stat"), k.sysctl("net.core.netdev_max_backlog")
			counters := newPerCPU(2)
			return func(_ context.Context, s *softnet) error {
				b, err := required(file, "/proc/net/softnet_stat")
				if err != nil {
					return err
				}
				if err := parseSoftnet(b, file.Path(), counters, s); err != nil {
					return err
				}
				s.limit, err = sysctlNumber(limit)
				return err
			}
		},
		Metrics: []Metric[softnet]{
			{
				Name:  "netdev_backlog_drops_total",
				Help:  "Packets dropped because the backlog of a CPU was full, over all CPUs. From /proc/net/softnet_stat.",
				Value: func(s *softnet) Number { return s.drops },
			},
			{
				Name:  "netdev_time_squeezes_total",
				Help:  "Times that a CPU had packets left when its time for a round (net.core.netdev_budget) was over, over all CPUs. From /proc/net/softnet_stat.",
				Value: func(s *softnet) Number { return s.squeezes },
			},
			{
				Name:  "netdev_backlog_length",
				Help:  "Packets that wait in the longest backlog of a CPU. From /proc/net/softnet_stat, Linux 5.10.",
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
				Resource: "netdev_backlog", Unit: Packets, Sysctl: "net.core.netdev_max_backlog", Warning: 0.5, Critical: 0.9,
				Effect: "Received packets are dropped before any protocol sees them.",
			},
			Usage: func(s *softnet) Number { return s.input },
			Limit: func(s *softnet) Number { return s.limit },
		}},
	})
}

// Columns of /proc/net/softnet_stat (softnet_seq_show in net/core/net-procfs.c).
const (
	softnetDropped    = 1
	softnetSqueezed   = 2
	softnetBacklog    = 11 // Linux 5.10
	softnetCPU        = 12 // Linux 5.10
	softnetInputQueue = 13 // Linux 6.6
)

// parseSoftnet reads a line of 32-bit hexadecimal numbers for each CPU that is
// online. The counters wrap, so they go through counters.
func parseSoftnet(b []byte, path string, counters *perCPU, s *softnet) error {
	columns := 0
	for row := 0; len(b) > 0; row++ {
		var line []byte
		line, b, _ = procfile.NextLine(b)
		n := procfile.CountFields(line)
		if row == 0 {
			columns = n
		}
		if n != columns || n <= softnetSqueezed {
			return fieldError(path, fmt.Sprintf("line %d", row+1), fmt.Errorf("cut short at %d columns", n))
		}
		var v [softnetInputQueue + 1]uint64
		for i := range min(n, len(v)) {
			var f []byte
			f, line, _ = procfile.NextField(line)
			x, err := procfile.Uint(f, 16)
			if err != nil {
				return fieldError(path, fmt.Sprintf("line %d, column %d", row+1, i+1), err)
			}
			v[i] = x
		}
		cpu := row
		if n > softnetCPU {
			cpu = int(v[softnetCPU])
		}
		counters.add(cpu, 0, v[softnetDropped])
		counters.add(cpu, 1, v[softnetSqueezed])
		if n > softnetBacklog {
			s.length = larger(s.length, number(v[softnetBacklog]))
			input := v[softnetBacklog]
			if n > softnetInputQueue {
				input = v[softnetInputQueue]
			}
			s.input = larger(s.input, number(input))
		}
	}
	if columns == 0 {
		return fieldError(path, "every line", errMissing)
	}
	s.drops, s.squeezes = counters.total(0), counters.total(1)
	return nil
}
