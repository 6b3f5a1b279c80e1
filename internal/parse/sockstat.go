package parse

import "strings"

// Sockets is what /proc/net/sockstat counts.
type Sockets struct {
	FamilySockets // of IPv4

	// Used counts the sockets of every address family, in the network namespace.
	Used Number
	// Orphans and Allocated count TCP sockets of both address families, on the whole
	// machine. TimeWait counts mini-sockets of both, in the network namespace.
	Orphans, TimeWait, Allocated Number
	// TCPMemory and UDPMemory are the buffers of both address families, on the whole
	// machine, in bytes.
	TCPMemory, UDPMemory Number
}

// FamilySockets is what is counted for each address family, in the network namespace.
type FamilySockets struct {
	TCP, UDP, UDPLite, Raw Number
	Fragments              Number // bytes
}

// Sockstat reads /proc/net/sockstat (net/ipv4/proc.c, Linux 2.4; UDPLITE was removed in
// 7.1), whose memory counts are in the given unit of bytes. If unit is 0, because it is
// not known, they are absent.
func Sockstat(b []byte, path string, unit int) (s Sockets, err error) {
	var tcpMemory, udpMemory Number
	err = sockstatLines(b, path, []sockstatField{
		{"sockets:", "used", &s.Used},
		{"TCP:", "inuse", &s.TCP},
		{"TCP:", "orphan", &s.Orphans},
		{"TCP:", "tw", &s.TimeWait},
		{"TCP:", "alloc", &s.Allocated},
		{"TCP:", "mem", &tcpMemory},
		{"UDP:", "inuse", &s.UDP},
		{"UDP:", "mem", &udpMemory},
		{"UDPLITE:", "inuse", &s.UDPLite},
		{"RAW:", "inuse", &s.Raw},
		{"FRAG:", "memory", &s.Fragments},
	})
	if unit > 0 {
		s.TCPMemory, s.UDPMemory = tcpMemory.Times(float64(unit)), udpMemory.Times(float64(unit))
	}
	return s, err
}

// Sockstat6 reads /proc/net/sockstat6 (net/ipv6/proc.c, Linux 2.6), which counts only
// sockets and fragments.
func Sockstat6(b []byte, path string) (s FamilySockets, err error) {
	err = sockstatLines(b, path, []sockstatField{
		{"TCP6:", "inuse", &s.TCP},
		{"UDP6:", "inuse", &s.UDP},
		{"UDPLITE6:", "inuse", &s.UDPLite},
		{"RAW6:", "inuse", &s.Raw},
		{"FRAG6:", "memory", &s.Fragments},
	})
	return s, err
}

// sockstatField is where to store a value of a line such as "TCP: inuse 5 orphan 0".
type sockstatField struct {
	protocol, name string
	into           *Number
}

// sockstatLines reads lines of names and values. It skips names that are not wanted, with
// or without values. Every field is required, except those of UDPLITE.
func sockstatLines(b []byte, path string, fields []sockstatField) error {
	var p Problems
	for line, b, ok := NextLine(b); ok; line, b, ok = NextLine(b) {
		protocol, line, _ := NextField(line)
		for name, line, ok := NextField(line); ok; name, line, ok = NextField(line) {
			for _, f := range fields {
				if string(protocol) == f.protocol && string(name) == f.name {
					var value []byte
					value, line, _ = NextField(line)
					if err := f.into.parse(value); err != nil {
						p.Add(FieldError(path, f.String(), err))
					}
					break
				}
			}
		}
	}
	for _, f := range fields {
		if !strings.HasPrefix(f.protocol, "UDPLITE") {
			if f.into.IsMissing() {
				p.Add(FieldError(path, f.String(), ErrMissing))
				f.into.bad = true
			}
		}
	}
	return p.Err()
}

// String returns the name of the field, as in "TCP inuse".
func (f sockstatField) String() string {
	return strings.TrimSuffix(f.protocol, ":") + " " + f.name
}
