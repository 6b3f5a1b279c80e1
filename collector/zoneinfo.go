package collector

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// zone is one memory zone of /proc/zoneinfo, in pages.
type zone struct {
	node, name     string
	free, managed  Number
	min, low, high Number
	// file is the page cache in the zone, which the kernel gives back when asked.
	activeFile, inactiveFile Number
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

// need is how near the zone is to its reserves: the high watermark against what
// is free.
func (z *zone) need() float64 {
	if z.free.Value == 0 {
		return z.high.Value
	}
	return z.high.Value / z.free.Value
}

// neediest returns at most n zones, those nearest to their reserves first.
func neediest(zones []zone, n int) []zone {
	zones = slices.Clone(zones)
	slices.SortStableFunc(zones, func(a, b zone) int { return cmp.Compare(b.need(), a.need()) })
	return zones[:min(n, len(zones))]
}

// parseZoneinfo reads /proc/zoneinfo (mm/vmstat.c, Linux 2.6). Zones without
// memory are left out.
func parseZoneinfo(b []byte, path string) ([]zone, error) {
	var zones []zone
	for line, b, ok := procfile.NextLine(b); ok; line, b, ok = procfile.NextLine(b) {
		if after, ok := bytes.CutPrefix(line, []byte("Node ")); ok {
			node, after, _ := bytes.Cut(after, []byte(","))
			_, name, ok := bytes.Cut(after, []byte("zone"))
			if name = bytes.TrimSpace(name); !ok || len(name) == 0 {
				return nil, fieldError(path, "zone of node "+string(node), errMissing)
			}
			zones = append(zones, zone{node: string(node), name: string(name)})
			continue
		}
		if len(zones) == 0 {
			continue
		}
		z := &zones[len(zones)-1]
		name, rest, _ := procfile.NextField(line)
		if string(name) == "pages" { // "pages free"
			name, rest, _ = procfile.NextField(rest)
		}
		n := z.field(name)
		// The per-CPU lists at the end of a zone have a "high:" of their own, but
		// with a colon; what comes first is the zone's.
		if n == nil || n.Present {
			continue
		}
		value, _, _ := procfile.NextField(rest)
		v, err := procfile.Uint(value, 10)
		if err != nil {
			return nil, fieldError(path, "zone "+z.name+" of node "+z.node+", "+string(name), err)
		}
		*n = number(v)
	}
	if len(zones) == 0 {
		return nil, fieldError(path, "every zone", errMissing)
	}
	for _, z := range zones {
		at := path + ": zone " + z.name + " of node " + z.node
		if err := complete(at, []field{{"managed", z.managed}}); err != nil {
			return nil, err
		}
		if z.managed.Value == 0 {
			continue
		}
		err := complete(at, []field{
			{"pages free", z.free},
			{"min", z.min},
			{"low", z.low},
			{"high", z.high},
			{"nr_zone_active_file", z.activeFile},
			{"nr_zone_inactive_file", z.inactiveFile},
		})
		if err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(zones, func(z zone) bool { return z.managed.Value == 0 }), nil
}

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
	case "nr_zone_active_file":
		return &z.activeFile
	case "nr_zone_inactive_file":
		return &z.inactiveFile
	}
	return nil
}
