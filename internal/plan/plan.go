package plan

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// Verdict is the result for a limit, or for the whole plan.
type Verdict int

// The verdicts, numbered like the exit status.
const (
	Holds  Verdict = iota // it is high enough
	Set                   // it has to be set
	Cannot                // it cannot be set so high
)

// String returns the verdict in one word.
func (v Verdict) String() string { return [...]string{"holds", "set", "cannot"}[v] }

// Plan is what a demand requires of a host.
type Plan struct {
	Demand Demand
	Facts  Facts
	// Rows are the limits that the connections affect, in the order of the collectors.
	// Other are the resources of the other limits.
	Rows  []Row
	Other []string
	// Bill is what takes memory, Kernel and Programs the totals, in bytes.
	Bill             []Item
	Kernel, Programs float64
	Verdict          Verdict
}

// Row is a limit in a plan, in the limit's unit.
type Row struct {
	*collector.LimitInfo
	// Now is the present limit, Used what is in use for other things, and Takes what the
	// demand takes. Needed is the minimum that the limit has to be; it leaves room, so
	// that no alert warns while the demand is satisfied.
	Now, Used, Takes, Needed float64
	Verdict                  Verdict
	// Item is the item whose limit Now is, if it is one of many.
	Item string
	// Writes are the sysctls to write.
	Writes []Write
}

// Write is a sysctl that has to be written.
type Write struct {
	collector.Sysctl
	Now, Value []float64
}

// Item is a line of the bill: a number of objects that take a number of bytes each.
type Item struct {
	What        string
	Count, Each float64
	// Read is set if the size was read from this kernel.
	Read bool
}

// Bytes returns the memory that the item takes.
func (i Item) Bytes() float64 { return i.Count * i.Each }

// Make plans for a valid demand on a host, given all facts of the host.
func Make(d Demand, f Facts) Plan {
	p := Plan{Demand: d, Facts: f}
	load := d.load(cmp.Or(f.Unit, f.PageSize))
	p.Bill = f.bill(load)
	for _, i := range p.Bill {
		p.Kernel += i.Bytes()
	}
	programs := d.programs(load)
	for _, i := range programs {
		p.Programs += i.Bytes()
	}
	p.Bill = append(p.Bill, programs...)
	load.KernelBytes, load.ProgramBytes = p.Kernel, p.Programs
	for i := range f.Infos {
		l := &f.Infos[i]
		if l.Needs == nil {
			p.Other = append(p.Other, l.Resource)
			continue
		}
		if row, ok := p.row(l, load); ok {
			p.Rows = append(p.Rows, row)
			p.Verdict = max(p.Verdict, row.Verdict)
		}
	}
	p.unite()
	return p
}

// unite gives a sysctl that affects several limits the highest of the values that they
// need, in the first row that writes it, and removes it from the other rows.
func (p *Plan) unite() {
	first := map[string]*Write{}
	for i := range p.Rows {
		r := &p.Rows[i]
		r.Writes = slices.DeleteFunc(r.Writes, func(w Write) bool {
			have := first[w.Name]
			if have == nil {
				return false
			}
			if len(w.Value) == 1 {
				have.Value = []float64{max(have.Value[0], w.Value[0])}
			}
			return true
		})
		for j := range r.Writes {
			first[r.Writes[j].Name] = &r.Writes[j]
		}
	}
}

// tls is the memory that a program takes for a connection end that it encrypts, in bytes:
// OpenSSL 3.0 after a TLS 1.3 handshake, with nothing in its buffers. With
// SSL_MODE_RELEASE_BUFFERS it is a fifth less.
const tls = 26 << 10

// programs returns the memory of the programs.
func (d Demand) programs(l collector.Load) []Item {
	var items []Item
	if d.TLS {
		items = append(items, Item{What: "TLS in programs, approximately", Count: l.Ends(), Each: tls})
	}
	if d.ApplicationMemory > 0 {
		items = append(items, Item{What: "programs", Count: 1, Each: float64(d.ApplicationMemory)})
	}
	return items
}

// bill returns the kernel memory of a load.
func (f *Facts) bill(l collector.Load) []Item {
	var items []Item
	add := func(count float64, o collector.Object) {
		i := Item{What: o.Cache, Count: count, Each: o.Bytes}
		if len(f.Objects) > 0 && !strings.Contains(o.Cache, " ") {
			i.Each, i.Read = f.Objects[o.Cache], true
		}
		at := slices.IndexFunc(items, func(have Item) bool { return have.What == i.What })
		switch {
		case count == 0, i.Each == 0:
		case at >= 0:
			items[at].Count += count
		default:
			items = append(items, i)
		}
	}
	for _, o := range collector.Socket() {
		add(l.Ends(), o)
	}
	if l.Waiting > 0 {
		items = append(items, Item{What: "unread data, with its headers", Count: l.Tracked, Each: l.Waiting})
	}
	for i := range f.Infos {
		info := &f.Infos[i]
		// What the kernel does not have, or does not enforce, costs nothing.
		if info.Needs == nil || info.OfSocket || info.List == nil && f.reading(info) == nil {
			continue
		}
		for _, o := range info.Objects {
			add(info.Needs(l), o)
		}
	}
	return items
}

// reading returns the present reading of a limit, nil if the host does not have it.
func (f *Facts) reading(l *collector.LimitInfo) *collector.LimitReading {
	at := slices.IndexFunc(f.Limits, func(r collector.LimitReading) bool { return r.Resource == l.Resource })
	if at < 0 {
		return nil
	}
	return &f.Limits[at]
}

// present returns the load of the host as far as it is known: its connections.
func (f *Facts) present() collector.Load {
	l := collector.Load{Accepted: f.Connections, Tracked: f.Connections, Destinations: 1, Processes: 1}
	for _, i := range f.bill(l) {
		l.KernelBytes += i.Bytes()
	}
	return l
}

// row plans a limit. ok is false if the host does not have it.
func (p *Plan) row(l *collector.LimitInfo, load collector.Load) (Row, bool) {
	f := &p.Facts
	r := Row{LimitInfo: l, Takes: l.Needs(load)}
	reading := f.reading(l)
	switch {
	case l.List == nil && reading == nil:
		return r, false
	case l.List == nil:
		r.Now = reading.Limit
		r.Used = max(reading.Usage-l.Needs(f.present()), 0)
		if l.Fixed && l.List == nil && p.Demand.Memory > 0 && l.Resource == machineMemory {
			r.Now = float64(p.Demand.Memory)
		}
	case l.List.OwnMax:
		r.Now, r.Item = f.carrier(l, reading)
	case reading != nil:
		r.Now = reading.Limit
	}
	if r.Now == 0 && len(l.Sysctls) > 0 && len(f.Sysctls[l.Sysctls[0].Name]) == 1 {
		r.Now = f.Sysctls[l.Sysctls[0].Name][0]
	}
	if r.Now == 0 {
		return r, false
	}
	exact := r.Takes + r.Used
	r.Needed = exact * room(l)
	if !l.Fixed {
		r.Needed = roundUp(r.Needed)
	}
	if l.Most > 0 && exact <= l.Most {
		r.Needed = min(r.Needed, l.Most)
	}
	switch {
	case r.Takes == 0 || r.Needed <= r.Now:
		r.Needed = max(r.Needed, 0)
		return r, true
	case l.Fixed, l.Most > 0 && r.Needed > l.Most:
		r.Verdict = Cannot
		return r, true
	}
	r.Verdict = Set
	r.Writes = f.writes(l, r)
	return r, true
}

// machineMemory is the limit that a demand may set, instead of using the host's.
const machineMemory = "memory"

// carrier returns the limit and the name of the item that holds the connections, or the
// limit of a new item if there is none.
func (f *Facts) carrier(l *collector.LimitInfo, reading *collector.LimitReading) (limit float64, name string) {
	if reading != nil && f.Connections > 0 {
		most := 0.0
		for _, i := range reading.Items {
			if i.Usage >= f.Connections/2 && i.Usage > most && l.Fresh > 0 {
				limit, name, most = i.Limit, i.Name(), i.Usage
			}
		}
	}
	return cmp.Or(limit, l.Fresh), name
}

// mostRoom is the maximum factor by which a limit exceeds the need. It is low enough that
// a limit reduced by a third is too low.
const mostRoom = 1 / 0.7

// room returns the factor by which a limit has to exceed its usage for there to be no
// warning.
func room(l *collector.LimitInfo) float64 { return min(1/l.WarningRatio, mostRoom) }

// roundUp rounds up to three digits, and to a whole number.
func roundUp(v float64) float64 {
	if v <= 0 {
		return 0
	}
	step := max(math.Pow(10, math.Floor(math.Log10(v))-2), 1)
	return math.Ceil(v/step) * step
}

// writes returns the sysctls that have to be written to raise a limit to what a row
// needs.
func (f *Facts) writes(l *collector.LimitInfo, r Row) []Write {
	var writes []Write
	for i, s := range l.Sysctls {
		now := f.Sysctls[s.Name]
		unit := f.bytes(l.Unit, s.Unit)
		if now == nil || unit == 0 || i > 0 && l.Alone {
			continue
		}
		wanted := slices.Clone(now)
		if i == 0 && l.Write != nil {
			if len(now) < 2 {
				continue
			}
			wanted = l.Write(now, r.Now/unit, r.Needed/unit)
		} else if wanted[0] < r.Needed/unit {
			wanted[0] = math.Ceil(r.Needed / unit)
		}
		if !slices.Equal(wanted, now) {
			writes = append(writes, Write{s, now, wanted})
		}
	}
	return writes
}

// bytes returns the number of a limit's units in a sysctl's unit, 0 if there is no such
// number.
func (f *Facts) bytes(limit, sysctl collector.Unit) float64 {
	switch {
	case limit == sysctl:
		return 1
	case limit == collector.Bytes && sysctl == collector.Pages:
		return float64(f.PageSize)
	case limit == collector.Bytes && sysctl == collector.Kibibytes:
		return 1024
	}
	return 0
}

// First returns the limit that prevents the host from satisfying the demand and is
// exceeded most, nil if there is none.
func (p *Plan) First() *Row {
	var first *Row
	for i := range p.Rows {
		r := &p.Rows[i]
		if r.Verdict != Holds && (first == nil || (r.Takes+r.Used)/r.Now > (first.Takes+first.Used)/first.Now) {
			first = r
		}
	}
	return first
}
