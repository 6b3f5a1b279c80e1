package parse

import (
	"bytes"
	"fmt"
)

// PortRange reads net.ipv4.ip_local_port_range: the first and the last port.
func PortRange(b []byte, path string) (low, high uint16, err error) {
	line, _, _ := NextLine(b)
	first, rest, _ := NextField(line)
	last, _, _ := NextField(rest)
	if low, err = parsePort(first); err != nil {
		return 0, 0, FieldError(path, "first port", err)
	}
	if high, err = parsePort(last); err != nil {
		return 0, 0, FieldError(path, "last port", err)
	}
	if low > high {
		return 0, 0, FieldError(path, "first port", fmt.Errorf("%d is above the last, %d", low, high))
	}
	return low, high, nil
}

// List reads a comma-separated list of numbers and ranges, which may be empty, such as
// net.ipv4.ip_local_reserved_ports (Linux 2.6.35).
func List(b []byte, path string, visit func(low, high uint16)) error {
	b, _, _ = NextLine(b)
	b = bytes.TrimSpace(b)
	for len(b) > 0 {
		var item []byte
		item, b, _ = bytes.Cut(b, []byte(","))
		first, last, isRange := bytes.Cut(item, []byte("-"))
		if !isRange {
			last = first
		}
		low, err := parsePort(first)
		if err != nil {
			return FieldError(path, "ports", err)
		}
		high, err := parsePort(last)
		if err != nil {
			return FieldError(path, "ports", err)
		}
		if low > high {
			return FieldError(path, "ports", fmt.Errorf("%q is not a range", item))
		}
		visit(low, high)
	}
	return nil
}

func parsePort(b []byte) (uint16, error) {
	v, err := Uint(b, 10)
	if err != nil {
		return 0, err
	}
	if v > 65535 {
		return 0, fmt.Errorf("%d is not a port", v)
	}
	return uint16(v), nil
}
