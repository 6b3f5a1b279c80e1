package collector

import (
	"context"

	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// threads is one reading of the tasks of the machine.
type threads struct {
	count, limit Number
}

func threadsSpec() Spec {
	return define(Definition[threads]{
		Name:      "threads",
		Privilege: "Since Linux 6.14 each PID namespace has its own kernel.pid_max, so in a container threads_limit needs the host's PID namespace (hostPID).",
		Help:      "Threads of the whole machine, including the kernel's own, and their limit, from /proc/loadavg, kernel.threads-max and kernel.pid_max.",
		Open: func(k *Scope) func(context.Context, *threads) error {
			loadavg := k.Proc("loadavg")
			threadsMax, pidMax := k.GlobalSysctl("kernel.threads-max"), k.GlobalSysctl("kernel.pid_max")
			return func(_ context.Context, s *threads) error {
				b, err := required(loadavg, "/proc/loadavg")
				if b == nil {
					return err
				}
				var p parse.Problems
				p.Add(err)
				s.count, err = parse.Threads(b, loadavg.Path())
				p.Add(err)
				most, err := sysctlNumber(threadsMax)
				p.Add(err)
				pids, err := sysctlNumber(pidMax)
				p.Add(err)
				// Whichever is less; absent if one cannot be read, which may be the lower
				// one.
				if most.Present && pids.Present && k.PIDMax() {
					s.limit = number(min(most.Value, pids.Value))
				}
				return p.Err()
			}
		},
		Metrics: []Metric[threads]{
			{
				Name:  "threads",
				Help:  "Threads of the whole machine, including the kernel's own. From /proc/loadavg.",
				Value: func(s *threads) Number { return s.count },
			},
			{
				Name:  "threads_limit",
				Help:  "Number of threads above which no more can be created. The smaller of kernel.threads-max and kernel.pid_max.",
				Value: func(s *threads) Number { return s.limit },
			},
		},
		Limits: []Limit[threads]{{
			LimitInfo: LimitInfo{
				Resource: "threads", Unit: Threads, WarningRatio: 0.8, CriticalRatio: 0.95,
				Effect: "fork and pthread_create fail with EAGAIN for every user, including root: \"Resource temporarily unavailable\". Nothing is counted or logged.",
				Usage:  series("threads"), Max: series("threads_limit"),
				Sysctls: []Sysctl{{"kernel.threads-max", Threads, false}, {"kernel.pid_max", Threads, false}},
				Sizing: Sizing{
					Needs:   func(l Load) float64 { return l.Processes },
					Rule:    "processes, each with all its threads, plus those of all other programs",
					Initial: "by memory: 15,000 for 2 GiB; `kernel.pid_max` 32,768, or 4,194,304 where systemd sets it",
					Objects: []Object{{"kernel stack", 16384}, {"task_struct", 9792}},
					Most:    1 << 22, // PID_MAX_LIMIT (include/linux/threads.h) of 64 bits
				},
			},
		}},
	})
}
