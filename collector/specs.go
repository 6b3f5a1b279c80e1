// Package collector reads the kernel's limits on sockets and memory, and how near the
// host is to them.
//
// The package is a table. A collector is a function that reads its kernel sources into a
// snapshot, rows of metrics over the snapshot, and rows of limits over it. Specs lists
// the collectors; the metrics, the saturation of every limit, the flags, the reference in
// docs/metrics.md, the status page and the check command are made from the rows. A new
// metric or limit is a row, a new collector is a file and a line here.
package collector

// Specs returns the collectors, in the order in which they are shown.
func Specs() []Spec {
	specs := []Spec{
		sockstatSpec(),
		tcpSpec(),
		portsSpec(),
		unixSpec(),
		udpSpec(),
		netstatSpec(),
		conntrackSpec(),
		filefdSpec(),
		processSpec(),
		threadsSpec(),
		memorySpec(),
		softnetSpec(),
		neighbourSpec(),
		netnsSpec(),
		cgroupSpec(),
	}
	return append(specs, kmsgSpec(specs))
}
