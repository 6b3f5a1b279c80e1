package plan

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// Facts is what a plan knows about the host.
type Facts struct {
	// Infos are the limits of the collectors, and Limits the present readings of those
	// that the host has.
	Infos  []collector.LimitInfo
	Limits []collector.LimitReading
	// Connections is the number of ends of TCP connections in the host's network
	// namespace, if Counted is set.
	Connections float64
	Counted     bool
	// Sysctls are the values of the sysctls of Infos, as far as the kernel has them.
	Sysctls map[string][]float64
	// Objects are the sizes in bytes of the objects of each cache that could be read.
	Objects map[string]float64
	// PageSize is the page size, and Unit the unit in which the kernel counts socket
	// memory, both in bytes.
	PageSize, Unit int
	// Release is the kernel's release, empty if it is not known.
	Release string
}

// FactsOf returns the facts that a reading contains. It lacks sysctls and object sizes.
func FactsOf(r *collector.Reading) Facts {
	f := Facts{Limits: slices.DeleteFunc(r.Limits(), func(l collector.LimitReading) bool { return l.OnlyNetns })}
	sockets, known := 0.0, false
	for _, result := range r.Results {
		f.Infos = append(f.Infos, result.Infos...)
		for labels, n := range result.Samples("tcp_sockets") {
			switch f.Counted = true; strings.Join(labels, "") {
			case "listen", "syn_recv", "time_wait", "close":
			default:
				f.Connections += n
			}
		}
		for labels, n := range result.Samples("sockets_inuse") {
			if labels[len(labels)-1] == "tcp" {
				sockets, known = sockets+n, true
			}
		}
	}
	if !f.Counted { // then including listening sockets
		f.Connections, f.Counted = sockets, known
	}
	return f
}

// Read reads the facts of a machine, together with a reading of it.
func Read(ctx context.Context, m *kernel.Machine, set *collector.Set) (Facts, error) {
	reading := set.Read(ctx, collector.Query{})
	if err := reading.View.Network; err != nil {
		return Facts{}, err
	}
	for _, r := range reading.Results {
		needed := slices.ContainsFunc(r.Infos, func(l collector.LimitInfo) bool { return l.Needs != nil })
		if r.Err != nil && needed {
			return Facts{}, fmt.Errorf("collector %s: %w", r.Collector, r.Err)
		}
	}
	f := FactsOf(reading)
	f.PageSize = m.PageSize
	var err error
	if f.Unit, err = m.MemoryUnit(); err != nil {
		return Facts{}, err
	}
	files, done := open(m)
	defer done()
	f.Sysctls = settings(files, f.Infos)
	f.Objects = map[string]float64{}
	objects := collector.Socket()
	for _, l := range f.Infos {
		objects = append(objects, l.Objects...)
	}
	for _, o := range objects {
		dir := filepath.Join("kernel/slab", o.Cache)
		of, order := all(files.Sys(dir+"/objs_per_slab", procfile.Open)), all(files.Sys(dir+"/order", procfile.Open))
		if len(of) > 0 && len(order) > 0 && of[0] > 0 && order[0] < 20 {
			f.Objects[o.Cache] = float64(f.PageSize) * float64(int(1)<<int(order[0])) / of[0]
		}
	}
	if file, err := files.Proc("sys/kernel/osrelease").Read(); err == nil {
		f.Release = strings.TrimSpace(string(file))
	}
	return f, nil
}

// open returns the files of a machine, and a function that closes those that were read.
func open(m *kernel.Machine) (files *kernel.Files, done func()) {
	var closers []func()
	files = &kernel.Files{Machine: m, Defer: func(c func()) { closers = append(closers, c) }}
	return files, func() {
		for _, c := range closers {
			c()
		}
	}
}

// settings reads the sysctls of limits, as far as the kernel has them and this user may
// read them.
func settings(files *kernel.Files, infos []collector.LimitInfo) map[string][]float64 {
	host := files.Host()
	found := map[string][]float64{}
	for _, l := range infos {
		for _, s := range l.Sysctls {
			file := files.GlobalSysctl(s.Name)
			if strings.HasPrefix(s.Name, "net.") {
				file = host.Sysctl(s.Name)
			}
			if numbers := all(file); numbers != nil {
				found[s.Name] = numbers
			}
		}
	}
	return found
}

// all reads the numbers of a sysctl. It returns nil if there is no such sysctl, or if
// this user may not read it.
func all(file kernel.File) []float64 {
	b, err := file.Read()
	if err != nil {
		return nil
	}
	into := make([]parse.Number, len(strings.Fields(string(b))))
	if parse.Numbers(b, file.Path(), into) != nil {
		return nil
	}
	var numbers []float64
	for _, n := range into {
		numbers = append(numbers, n.Value)
	}
	return numbers
}
