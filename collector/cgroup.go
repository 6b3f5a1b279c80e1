package collector

import (
	"cmp"
	"context"
	"iter"
	"math"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/cgroup"
	"github.com/sockpressure/sockpressure_exporter/internal/owner"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// cgroupWarning is the share of its limit at which a cgroup is near it.
const cgroupWarning = 0.9

// cgroups is one reading of the host's cgroups.
type cgroups struct {
	// count is the number of cgroups, unreadable how many of them could not be read.
	count, unreadable Number
	// owners are the cgroups of pods, containers and units, and those without an owner
	// that have no cgroups below them. bounded are all cgroups that have a limit.
	owners, bounded []*cgroupReading
	// kills and ooms count over all cgroups, including those that no longer exist.
	kills, ooms Number
}

// cgroupReading is one reading of one cgroup.
type cgroupReading struct {
	path  string
	inode uint64
	// group is the outermost of its owner's cgroups, or the cgroup itself if it has no
	// owner.
	group cgroup.Group
	// owner is the owner of the cgroup. No other owner has the same name.
	owner owner.Owner
	past  *cgroupPast
	// sockets is the memory of its socket buffers, usage all of its memory, used the part
	// of usage that it cannot give back, and limit its memory limit. All are in bytes and
	// include the cgroups below it.
	sockets, usage, used, limit Number
	events                      parse.MemoryEvents
	failed                      bool // part of it could not be read
}

func (c *cgroupReading) saturation() float64 { return c.used.Value / c.limit.Value }

func cgroupSpec() Spec {
	labels := []string{"cgroup", "namespace", "pod"}
	key := func(c *cgroupReading) []string {
		if c == nil { // when the rows are checked
			return make([]string, len(labels))
		}
		return []string{c.owner.Name, c.owner.Namespace, c.owner.Pod}
	}
	return define(Definition[cgroups]{
		Name: "cgroup",
		Help: "Memory of cgroups, such as those of pods and units: socket memory, how close each is to its limit, and OOM kills.",
		Walk: true,
		Open: func(k *Scope) func(context.Context, *cgroups) error { return newCgroupReader(k).read },
		Metrics: []Metric[cgroups]{
			{
				Name:  "cgroup_groups",
				Help:  "Cgroups of the host that account for memory, excluding the root.",
				Value: func(s *cgroups) Number { return s.count },
			},
			{
				Name:  "cgroup_unreadable",
				Help:  "Cgroups that could not be read; only cgroup_groups includes them. If there are too many cgroups, all that are left out count as one.",
				Value: func(s *cgroups) Number { return s.unreadable },
			},
			{
				Name:  "cgroup_ooms_all_total",
				Help:  "Times that cgroups reached a memory limit and had nothing left to reclaim since the exporter started, including cgroups that no longer exist. From memory.events, oom; cgroup v1 does not count this.",
				Value: func(s *cgroups) Number { return s.ooms },
			},
			{
				Name:  "cgroup_oom_kills_all_total",
				Help:  "Processes killed by the OOM killer in cgroups since the exporter started, including cgroups that no longer exist, whether the cgroup or the machine was out of memory. From memory.events, or memory.oom_control of cgroup v1.",
				Value: func(s *cgroups) Number { return s.kills },
			},
		},
		Lists: []Lister[cgroups]{
			List[cgroups, *cgroupReading]{
				Items: func(s *cgroups) iter.Seq[*cgroupReading] {
					return where(s.owners, func(c *cgroupReading) bool { return c.sockets.Value > 0 })
				},
				Before: func(a, b *cgroupReading) bool {
					return cmp.Or(cmp.Compare(b.sockets.Value, a.sockets.Value), cmp.Compare(a.inode, b.inode)) < 0
				},
				Labels: labels, Key: key,
				Columns: []Metric[*cgroupReading]{{
					Name:  "cgroup_socket_memory_bytes",
					Help:  "Memory of the socket buffers of a pod, container or unit, in all network namespaces, for those with the most. From memory.stat, sock, or memory.kmem.tcp.usage_in_bytes of cgroup v1, which counts only if it has a limit.",
					Value: func(c **cgroupReading) Number { return (*c).sockets },
				}},
			},
			List[cgroups, *cgroupReading]{
				Items: func(s *cgroups) iter.Seq[*cgroupReading] {
					return slices.Values(s.bounded)
				},
				Before: func(a, b *cgroupReading) bool {
					return cmp.Or(cmp.Compare(b.saturation(), a.saturation()), cmp.Compare(a.inode, b.inode)) < 0
				},
				Labels: labels, Key: key,
				Columns: []Metric[*cgroupReading]{
					{
						Name:  "cgroup_memory_used_bytes",
						Help:  "Memory of a cgroup excluding page cache and reclaimable slab, for the cgroups closest to their limit. From memory.current and memory.stat, or memory.usage_in_bytes of cgroup v1.",
						Value: func(c **cgroupReading) Number { return (*c).used },
					},
					{
						Name:  "cgroup_memory_limit_bytes",
						Help:  "Memory limit of the cgroup. From memory.max, or memory.limit_in_bytes of cgroup v1.",
						Value: func(c **cgroupReading) Number { return (*c).limit },
					},
					{
						Name:  "cgroup_memory_saturation_ratio",
						Help:  "cgroup_memory_used_bytes divided by cgroup_memory_limit_bytes. For a pod, the ratio of its fullest cgroup, its own or a container's.",
						Value: func(c **cgroupReading) Number { return number((*c).saturation()) },
					},
				},
				Limit: &ItemLimit[*cgroupReading]{LimitInfo: LimitInfo{
					Resource: "cgroup_memory", Unit: Bytes, WarningRatio: cgroupWarning, CriticalRatio: 0.97,
					Effect: "The OOM killer kills a process of the pod, container or unit: \"Memory cgroup out of memory: Killed process\".",
					Usage:  series("cgroup_memory_used_bytes"), Max: series("cgroup_memory_limit_bytes"), Share: series("cgroup_memory_saturation_ratio"),
					List:    &ListInfo{Title: "Cgroups closest to their memory limit", Column: "cgroup"},
					SetWith: "resources.limits.memory of the container, MemoryMax= of the unit",
					Sizing: Sizing{
						Needs:   func(l Load) float64 { return l.KernelBytes + l.ProgramBytes },
						Rule:    "the programs of the cgroup, plus the kernel's memory for their connections and data, which is charged to the cgroup",
						Initial: "none",
						Fresh:   math.MaxInt64, // the value of memory.max if nobody sets it
						Settings: []Setting{
							{"the container of a pod, in bytes", "resources.limits.memory: %.0f"},
							{"the unit of the service, in bytes", "MemoryMax=%.0f"},
						},
					},
				}},
			},
			List[cgroups, *cgroupReading]{
				Items: func(s *cgroups) iter.Seq[*cgroupReading] {
					return where(s.owners, func(c *cgroupReading) bool { return c.events.Kills.Value > 0 })
				},
				Before: func(a, b *cgroupReading) bool {
					return cmp.Or(cmp.Compare(b.past.rose, a.past.rose), cmp.Compare(b.events.Kills.Value, a.events.Kills.Value), cmp.Compare(a.inode, b.inode)) < 0
				},
				Labels: labels, Key: key,
				Columns: []Metric[*cgroupReading]{{
					Name:  "cgroup_oom_kills_total",
					Help:  "Processes killed by the OOM killer in a pod, container or unit since it started, for those with the latest kills. From memory.events, or memory.oom_control of cgroup v1.",
					Value: func(c **cgroupReading) Number { return (*c).events.Kills },
				}},
			},
		},
		Holders: func(s *cgroups) []holding {
			most := func(of func(*cgroupReading) Number) (held holding) {
				for _, c := range s.owners {
					if of(c).Value > held.amount {
						held = holding{owner: c.owner, amount: of(c).Value}
					}
				}
				return held
			}
			sockets := most(func(c *cgroupReading) Number { return c.sockets })
			memory := most(func(c *cgroupReading) Number { return c.used })
			tcp, udp := sockets, sockets
			tcp.resource, udp.resource, memory.resource = "tcp_memory", "udp_memory", "memory"
			return []holding{tcp, udp, memory}
		},
	})
}

// where yields the cgroups for which wanted returns true.
func where(all []*cgroupReading, wanted func(*cgroupReading) bool) iter.Seq[*cgroupReading] {
	return func(yield func(*cgroupReading) bool) {
		for _, c := range all {
			if wanted(c) && !yield(c) {
				return
			}
		}
	}
}
