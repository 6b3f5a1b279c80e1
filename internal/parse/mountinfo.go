package parse

import (
	"bytes"
	"strconv"
)

// NetnsMount is where a network namespace is bound to a file.
type NetnsMount struct {
	Inode uint64 // of the namespace, as stat of the file and of /proc/<pid>/ns/net has it
	Path  string // in the mount namespace of the process that was asked
}

// NetnsMounts finds the mounts of network namespaces in /proc/<pid>/mountinfo
// (fs/proc_namespace.c, Linux 2.6.26; nsfs, Linux 3.19), up to most of them. Of one
// that is mounted at several places it is the first. Lines of other mounts, and such as
// it does not know, are passed over.
func NetnsMounts(b []byte, most int) []NetnsMount {
	var mounts []NetnsMount
	known := map[uint64]bool{}
	for line, b, ok := NextLine(b); ok && len(mounts) < most; line, b, ok = NextLine(b) {
		var root, at []byte
		for field := range 5 { // ID, parent, device, root, where it is mounted
			f, rest, _ := NextField(line)
			switch line = rest; field {
			case 3:
				root = f
			case 4:
				at = f
			}
		}
		number, ok := bytes.CutPrefix(root, []byte("net:["))
		if !ok || !bytes.Contains(line, []byte(" - nsfs ")) {
			continue
		}
		inode, err := strconv.ParseUint(string(bytes.TrimSuffix(number, []byte("]"))), 10, 64)
		if err != nil || known[inode] {
			continue
		}
		known[inode] = true
		mounts = append(mounts, NetnsMount{inode, unescapeOctal(at)})
	}
	return mounts
}

// unescapeOctal undoes what the kernel does to blanks and the like in a path: "\040".
func unescapeOctal(b []byte) string {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+3 < len(b) {
			if c, err := strconv.ParseUint(string(b[i+1:i+4]), 8, 8); err == nil {
				out = append(out, byte(c))
				i += 3
				continue
			}
		}
		out = append(out, b[i])
	}
	return string(out)
}
