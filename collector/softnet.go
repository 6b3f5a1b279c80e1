package collector

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
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
		Open: func(k *Scope) func(context.Context, *softnet) error {
			file, limit := k.Host.File("softnet_stat"), k.Host.Sysctl("net.core.netdev_max_backlog")
			online := k.Sys("devices/system/cpu/online", procfile.Open)
			rows := &softnetRows{counters: newPerCPU(2)}
			return func(_ context.Context, s *softnet) error {
				b, err := required(file, "/proc/net/softnet_stat")
				if isNotSupported(err) {
					return err
				}
				var p problems
				p.add(err)
				if b != nil {
					p.add(rows.parse(b, file.Path(), func() []int { return readOnline(online) }, s))
				}
				s.limit, err = sysctlNumber(limit)
				p.add(err)
				return p.err()
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
				Resource: "netdev_backlog", Unit: Packets, WarningRatio: 0.5, CriticalRatio: 0.9,
				Effect: "Received packets are dropped before any protocol sees them.",
				Usage:  series("netdev_backlog_length"), Max: series("netdev_backlog_limit"),
				Sysctls:   []Sysctl{{"net.core.netdev_max_backlog", Packets, false}},
				UnitBytes: 256 + 704, // skbuff_head_cache, skbuff_small_head
			},
			// Of the packets that wait, those that the kernel compares with the limit.
			Used: func(s *softnet) Number { return s.input },
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

// softnetRows reads /proc/net/softnet_stat: a line of 32-bit hexadecimal numbers
// for each CPU that is online.
type softnetRows struct {
	counters *perCPU
	// cpus is the CPU of each line at the last reading, as far as it was known.
	cpus  []int
	known bool
}

// parse fills s. Before Linux 5.10 a line does not say which CPU it is of; online
// does, as long as there are as many.
func (r *softnetRows) parse(b []byte, path string, online func() []int, s *softnet) error {
	var p problems
	var lines [][]byte
	columns := 0
	for row := 1; len(b) > 0; row++ {
		var line []byte
		line, b, _ = procfile.NextLine(b)
		if !isHex(line) && procfile.CountFields(line) != columns {
			continue // of no CPU
		}
		if columns == 0 {
			columns = procfile.CountFields(line)
		}
		lines = append(lines, line)
	}
	if len(lines) == 0 {
		return fieldError(path, "every line", errMissing)
	}
	if columns <= softnetCPU {
		r.identify(len(lines), online())
	}

	lost, lostLength, lostInput := [2]bool{}, false, false
	for row, line := range lines {
		at := func(column int) string { return fmt.Sprintf("line %d, column %d", row+1, column+1) }
		n := procfile.CountFields(line)
		if n != columns || n <= softnetSqueezed {
			p.add(fieldError(path, fmt.Sprintf("line %d", row+1), fmt.Errorf("%d columns in place of %d", n, columns)))
			lost, lostLength, lostInput = [2]bool{true, true}, true, true
			continue
		}
		var v [softnetInputQueue + 1]Number
		for i := range min(n, len(v)) {
			var f []byte
			f, line, _ = procfile.NextField(line)
			switch i {
			case softnetDropped, softnetSqueezed, softnetBacklog, softnetCPU, softnetInputQueue:
				x, err := procfile.Uint(f, 16)
				if err == nil && x > math.MaxUint32 {
					err = fmt.Errorf("%q has more than 32 bits", f)
				}
				if err != nil {
					p.add(fieldError(path, at(i), err))
					v[i].bad = true
					continue
				}
				v[i] = number(x)
			}
		}
		cpu := v[softnetCPU]
		if n <= softnetCPU {
			cpu = number(r.cpus[row])
		}
		for counter, column := range [2]int{softnetDropped, softnetSqueezed} {
			if !cpu.Present || !v[column].Present {
				lost[counter] = true
				continue
			}
			r.counters.add(int(cpu.Value), counter, uint64(v[column].Value))
		}
		input := v[softnetBacklog]
		if n > softnetInputQueue {
			input = v[softnetInputQueue]
		}
		s.length, s.input = larger(s.length, v[softnetBacklog]), larger(s.input, input)
		lostLength, lostInput = lostLength || v[softnetBacklog].bad, lostInput || input.bad
	}
	r.counters.end()
	// Without one CPU there is no sum, and no longest.
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
	return p.err()
}

// identify finds the CPUs of lines that do not name them. When it cannot, and
// there are not the same lines as before, what a line had before says nothing of
// what it has now.
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

// readOnline reads /sys/devices/system/cpu/online, a list of numbers and ranges;
// nil where that is not possible.
func readOnline(f kernel.File) []int {
	b, err := f.Read()
	if err != nil {
		return nil
	}
	var cpus []int
	err = parseList(b, f.Path(), func(low, high uint16) {
		for cpu := int(low); cpu <= int(high); cpu++ {
			cpus = append(cpus, cpu)
		}
	})
	if err != nil {
		return nil
	}
	return cpus
}
