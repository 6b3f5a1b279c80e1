package parse

import (
	"bytes"
	"strconv"
)

// NetnsMount is a file that a network namespace is bound to.
type NetnsMount struct {
	Inode uint64 // of the namespace, as reported by stat of the file and of /proc/<pid>/ns/net
	Path  string // in the mount namespace of the process that was asked
}

// NetnsMounts finds the mounts of network namespaces in /proc/<pid>/mountinfo
// (fs/proc_namespace.c, Linux 2.6.26; nsfs, Linux 3.19), at most the given number. If a
// namespace is mounted several times, the first mount is returned. Lines of other mounts,
// and lines that it cannot parse, are skipped.
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

// unescapeOctal decodes blanks and similar characters, which the kernel escapes in a
// path: "\040".
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
