package collector

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// zone is one memory zone of /proc/zoneinfo, in pages until it is scaled.
type zone struct {
	node, name                string
	free                      Number
	managed, present, spanned Number
	min, low, high            Number
	// The page cache in the zone. Before Linux 4.8 the fields have other names, which
	// are those of the whole node since.
	activeFile, inactiveFile       Number
	oldActiveFile, oldInactiveFile Number
}

// isLow says whether the kernel can put its own data, sockets among it, into the
// zone: all but high memory and what only movable pages may use.
func (z *zone) isLow() bool {
	switch z.name {
	case "HighMem", "Movable", "Device":
		return false
	}
	return true
}

// file is the page cache in the zone, which the kernel gives back when asked; not
// present where a part of it is not.
func (z *zone) file() Number {
	active, inactive := z.activeFile, z.inactiveFile
	if !active.Present && !active.bad {
		active = z.oldActiveFile
	}
	if !inactive.Present && !inactive.bad {
		inactive = z.oldInactiveFile
	}
	return active.plus(inactive)
}

// need is how near the zone is to its reserves: the high watermark against what
// is free.
func (z *zone) need() float64 {
	if z.free.Value == 0 {
		return z.high.Value
	}
	return z.high.Value / z.free.Value
}

// scale makes bytes of pages.
func (z *zone) scale(pageSize float64) {
	for _, n := range []*Number{
		&z.free, &z.managed, &z.present, &z.spanned, &z.min, &z.low, &z.high,
		&z.activeFile, &z.inactiveFile, &z.oldActiveFile, &z.oldInactiveFile,
	} {
		*n = n.times(pageSize)
	}
}

// parseZoneinfo reads /proc/zoneinfo (mm/vmstat.c, Linux 2.6). Zones without
// memory are left out. What cannot be read of a zone is absent from it, and named
// in the error.
func parseZoneinfo(b []byte, path string) ([]zone, error) {
	var p problems
	var zones []zone
	in := false // a zone: what comes before the first one, or after a broken head, is of none
	for line, b, ok := procfile.NextLine(b); ok; line, b, ok = procfile.NextLine(b) {
		if after, ok := bytes.CutPrefix(line, []byte("Node ")); ok {
			node, after, _ := bytes.Cut(after, []byte(","))
			word, after, _ := procfile.NextField(after)
			name, _, _ := procfile.NextField(after)
			if in = string(word) == "zone" && len(name) > 0; in {
				zones = append(zones, zone{node: string(node), name: string(name)})
			} else {
				p.add(fieldError(path, "zone of node "+string(node), errMissing))
			}
			continue
		}
		if !in {
			continue
		}
		z := &zones[len(zones)-1]
		name, rest, _ := procfile.NextField(line)
		if string(name) == "pages" { // "pages free"
			name, rest, _ = procfile.NextField(rest)
		}
		// The per-CPU lists at the end of a zone have a "high:" of their own, but
		// with a colon; what comes first is the zone's.
		n := z.field(name)
		if n == nil || n.Present {
			continue
		}
		if (n == &z.oldActiveFile || n == &z.oldInactiveFile) && !z.free.Present {
			continue // of the node, whose numbers come first
		}
		value, _, _ := procfile.NextField(rest)
		if err := n.parse(value); err != nil {
			p.add(fieldError(path, z.String()+": "+string(name), err))
		}
	}
	if len(zones) == 0 {
		p.add(fieldError(path, "every zone", errMissing))
	}
	zones = slices.DeleteFunc(zones, func(z zone) bool { return z.size().Present && z.size().Value == 0 })
	for i := 1; i < len(zones); i++ {
		if slices.ContainsFunc(zones[:i], func(z zone) bool { return z.node == zones[i].node && z.name == zones[i].name }) {
			p.add(fmt.Errorf("%s: the kernel shows %v twice", path, &zones[i]))
		}
	}
	for _, z := range zones {
		for _, f := range [...]field{{"pages free", z.free}, {"min", z.min}, {"low", z.low}, {"high", z.high}, {"managed", z.size()}} {
			if f.isMissing() {
				p.add(fieldError(path, z.String()+": "+f.name, errMissing))
			}
		}
	}
	return zones, p.err()
}

// size is how much memory the zone has: managed by the kernel, or where that is not
// said, present, or spanned.
func (z *zone) size() Number {
	for _, n := range []Number{z.managed, z.present} {
		if n.Present {
			return n
		}
	}
	return z.spanned
}

// String names the zone.
func (z *zone) String() string { return "zone " + z.name + " of node " + z.node }

// field returns where a field of a zone belongs, nil for one that is not read.
func (z *zone) field(name []byte) *Number {
	switch string(name) {
	case "free":
		return &z.free
	case "min":
		return &z.min
	case "low":
		return &z.low
	case "high":
		return &z.high
	case "managed":
		return &z.managed
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
