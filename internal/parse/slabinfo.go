package parse

import (
	"bytes"
	"slices"
)

// Slab is the memory that a slab cache of the kernel has taken.
type Slab struct {
	Cache string
	Size  float64 // bytes
}

// Slabinfo reads the wanted lines of /proc/slabinfo, or all if wanted is nil, version 2
// (Linux 2.6.10, mm/slab_common.c). Its columns are found by the names in its second
// line; pages have the given size in bytes. The sizes of a cache that is listed several
// times, as those of memory cgroups were before Linux 5.9, are added up.
func Slabinfo(b []byte, path string, wanted []string, pageSize int) ([]Slab, error) {
	if !bytes.HasPrefix(b, []byte("slabinfo - version: 2.")) {
		return nil, FieldError(path, "version", ErrMissing)
	}
	var p Problems
	var slabs []Slab
	var broken []string    // caches of which a part could not be read
	pages, count := -1, -1 // the columns, counted from the name
	for line, b, ok := NextLine(b); ok; line, b, ok = NextLine(b) {
		name, line, _ := NextField(line)
		if string(name) == "#" {
			// Columns are in angle brackets; both lines have the words between them.
			for i := 0; ; i++ {
				var column []byte
				if column, line, ok = NextField(line); !ok {
					break
				}
				switch string(column) {
				case "<pagesperslab>":
					pages = i
				case "<num_slabs>":
					count = i
				}
			}
			continue
		}
		if wanted == nil && string(name) == "slabinfo" && pages < 0 {
			continue // the first line
		}
		if wanted != nil && !slices.Contains(wanted, string(name)) {
			continue
		}
		if pages < 0 || count < 0 {
			return nil, FieldError(path, "names of columns", ErrMissing)
		}
		var pagesOf, slabsOf Number
		for i := 1; ; i++ {
			var value []byte
			if value, line, ok = NextField(line); !ok {
				break
			}
			switch i {
			case pages:
				if err := pagesOf.parse(value); err != nil {
					p.Add(FieldError(path, string(name)+" pagesperslab", err))
				}
			case count:
				if err := slabsOf.parse(value); err != nil {
					p.Add(FieldError(path, string(name)+" num_slabs", err))
				}
			}
		}
		p.Add(complete(path, []field{{string(name) + " pagesperslab", pagesOf}, {string(name) + " num_slabs", slabsOf}}))
		if !pagesOf.Present || !slabsOf.Present {
			broken = append(broken, string(name))
			continue
		}
		size := pagesOf.Value * slabsOf.Value * float64(pageSize)
		if i := slices.IndexFunc(slabs, func(s Slab) bool { return s.Cache == string(name) }); i >= 0 {
			slabs[i].Size += size
		} else {
			slabs = append(slabs, Slab{string(name), size})
		}
	}
	slabs = slices.DeleteFunc(slabs, func(s Slab) bool { return slices.Contains(broken, s.Cache) })
	return slabs, p.Err()
}
