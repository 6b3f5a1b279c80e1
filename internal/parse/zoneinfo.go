package parse

import (
	"bytes"
	"fmt"
	"slices"
)

// Zone is one memory zone of /proc/zoneinfo, in bytes.
type Zone struct {
	Node, Name                string
	Free                      Number
	Managed, present, spanned Number
	Min, Low, High            Number // the watermarks
	// The page cache in the zone. Before Linux 4.8 the fields have other names; since
	// then those are the names of the whole node's fields.
	activeFile, inactiveFile       Number
	oldActiveFile, oldInactiveFile Number
}

// IsLow reports whether the kernel can put its own data, including sockets, into the
// zone: any zone except high memory and those that only movable pages may use.
func (z *Zone) IsLow() bool {
	switch z.Name {
	case "HighMem", "Movable", "Device":
		return false
	}
	return true
}

// PageCache returns the page cache in the zone, which the kernel reclaims on demand. It
// is absent if part of it is.
func (z *Zone) PageCache() Number {
	active, inactive := z.activeFile, z.inactiveFile
	if active.IsMissing() {
		active = z.oldActiveFile
	}
	if inactive.IsMissing() {
		inactive = z.oldInactiveFile
	}
	return active.Plus(inactive)
}

// Need returns how near the zone is to its reserves: the high watermark divided by the
// free memory.
func (z *Zone) Need() float64 {
	if z.Free.Value == 0 {
		return z.High.Value
	}
	return z.High.Value / z.Free.Value
}

// scale converts pages to bytes.
func (z *Zone) scale(pageSize float64) {
	for _, n := range []*Number{
		&z.Free, &z.Managed, &z.present, &z.spanned, &z.Min, &z.Low, &z.High,
		&z.activeFile, &z.inactiveFile, &z.oldActiveFile, &z.oldInactiveFile,
	} {
		*n = n.Times(pageSize)
	}
}

// Zoneinfo reads /proc/zoneinfo (mm/vmstat.c, Linux 2.6), which counts pages of the given
// size in bytes. Zones without memory are left out. What cannot be read of a zone is
// absent from it, and named in the error.
func Zoneinfo(b []byte, path string, pageSize int) ([]Zone, error) {
	var p Problems
	var zones []Zone
	in := false // in a zone: lines before the first one, or after a broken header, belong to none
	for line, b, ok := NextLine(b); ok; line, b, ok = NextLine(b) {
		if after, ok := bytes.CutPrefix(line, []byte("Node ")); ok {
			node, after, _ := bytes.Cut(after, []byte(","))
			word, after, _ := NextField(after)
			name, _, _ := NextField(after)
			if in = string(word) == "zone" && len(name) > 0; in {
				zones = append(zones, Zone{Node: string(node), Name: string(name)})
			} else {
				p.Add(FieldError(path, "zone of node "+string(node), ErrMissing))
			}
			continue
		}
		if !in {
			continue
		}
		z := &zones[len(zones)-1]
		name, rest, _ := NextField(line)
		if string(name) == "pages" { // "pages free"
			name, rest, _ = NextField(rest)
		}
		// The per-CPU lists at the end of a zone have a "high:" of their own, but with a
		// colon; the first value is the zone's.
		n := z.field(name)
		if n == nil || n.Present {
			continue
		}
		if (n == &z.oldActiveFile || n == &z.oldInactiveFile) && !z.Free.Present {
			continue // the node's, whose numbers come first
		}
		value, _, _ := NextField(rest)
		if err := n.parse(value); err != nil {
			p.Add(FieldError(path, z.String()+": "+string(name), err))
		}
	}
	if len(zones) == 0 {
		p.Add(FieldError(path, "every zone", ErrMissing))
	}
	zones = slices.DeleteFunc(zones, func(z Zone) bool { return z.Size().Present && z.Size().Value == 0 })
	for i := 1; i < len(zones); i++ {
		if slices.ContainsFunc(zones[:i], func(z Zone) bool { return z.Node == zones[i].Node && z.Name == zones[i].Name }) {
			p.Add(fmt.Errorf("%s: the kernel lists %v twice", path, &zones[i]))
		}
	}
	for _, z := range zones {
		for _, f := range [...]field{{"pages free", z.Free}, {"min", z.Min}, {"low", z.Low}, {"high", z.High}, {"managed", z.Size()}} {
			if f.n.IsMissing() {
				p.Add(FieldError(path, z.String()+": "+f.name, ErrMissing))
			}
		}
	}
	for i := range zones {
		zones[i].scale(float64(pageSize))
	}
	return zones, p.Err()
}

// Size returns how much memory the zone has: what is managed by the kernel or, if that is
// not known, present, or else spanned.
func (z *Zone) Size() Number {
	for _, n := range []Number{z.Managed, z.present} {
		if n.Present {
			return n
		}
	}
	return z.spanned
}

// String returns the name of the zone.
func (z *Zone) String() string { return "zone " + z.Name + " of node " + z.Node }

// field returns where to store a field of a zone, nil for a field that is not read.
func (z *Zone) field(name []byte) *Number {
	switch string(name) {
	case "free":
		return &z.Free
	case "min":
		return &z.Min
	case "low":
		return &z.Low
	case "high":
		return &z.High
	case "managed":
		return &z.Managed
	case "present":
		return &z.present
	case "spanned":
		return &z.spanned
	case "nr_zone_active_file":
		return &z.activeFile
	case "nr_zone_inactive_file":
		return &z.inactiveFile
	case "nr_active_file":
		return &z.oldActiveFile
	case "nr_inactive_file":
		return &z.oldInactiveFile
	}
	return nil
}
