package parse

import (
	"fmt"
	"maps"
	"slices"
)

// SNMP reads /proc/net/snmp or /proc/net/netstat (net/ipv4/proc.c, Linux 2.4): pairs of
// lines, the names of a section's fields and their values. The fields differ between
// kernels, so they are found by name: index has the index of a field in into, by section
// (with its colon) and name. A field that the file does not have stays absent. The error
// names each section of the index that is missing, or whose values do not match its
// names; the other sections are read all the same.
func SNMP(b []byte, path string, index map[string]map[string]int, into []Number) error {
	var p Problems
	found := make([]string, 0, 4)
	var section, names []byte // of the last line of names
	for line, b, ok := NextLine(b); ok; line, b, ok = NextLine(b) {
		head, values, _ := NextField(line)
		wanted := index[string(head)]
		if wanted == nil || slices.Contains(found, string(head)) {
			continue
		}
		if string(head) != string(section) {
			section, names = head, values
			continue
		}
		section = nil
		found = append(found, string(head))
		if n, v := CountFields(names), CountFields(values); n != v || n == 0 {
			p.Add(FieldError(path, string(head), fmt.Errorf("%d names, %d values", n, v)))
			continue
		}
		for name, names, ok := NextField(names); ok; name, names, ok = NextField(names) {
			var value []byte
			value, values, _ = NextField(values)
			if i, ok := wanted[string(name)]; ok {
				if err := into[i].parseCounter(value); err != nil {
					p.Add(FieldError(path, string(head)+" "+string(name), err))
				}
			}
		}
	}
	for _, section := range slices.Sorted(maps.Keys(index)) {
		if !slices.Contains(found, section) {
			p.Add(FieldError(path, section, ErrMissing))
		}
	}
	return p.Err()
}

// SNMP6 reads /proc/net/snmp6 (net/ipv6/proc.c, Linux 2.6): one name and value per line.
// wanted has the index of a name in into. An empty file means a host without IPv6.
func SNMP6(b []byte, path string, wanted map[string]int, into []Number) error {
	var p Problems
	for line, b, ok := NextLine(b); ok; line, b, ok = NextLine(b) {
		name, line, _ := NextField(line)
		if i, ok := wanted[string(name)]; ok {
			value, _, _ := NextField(line)
			if err := into[i].parseCounter(value); err != nil {
				p.Add(FieldError(path, string(name), err))
			}
		}
	}
	return p.Err()
}
