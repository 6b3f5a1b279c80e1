package owner

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// A Kind is the kind of owner that a cgroup names. It is the first part of Owner.Name.
type Kind string

// The kinds, and the ID of a Claim of each.
const (
	Pod    Kind = "pod"    // of Kubernetes; the ID is its uid, with dashes as the API server writes it
	Docker Kind = "docker" // the ID is the first 12 hex digits of the container's ID
	Podman Kind = "podman" // the same
	LXC    Kind = "lxc"    // also Incus and LXD; the ID is the name, <project>_<name> outside of the default project
	Nspawn Kind = "nspawn" // the ID is the name of the machine
	Unit   Kind = "unit"   // of systemd; the ID is its full name
)

// rank orders kinds by how well they identify one network namespace; higher is better. A
// container runs in a unit, and a pod in what may look like a container.
func (k Kind) rank() int {
	switch k {
	case Pod:
		return 3
	case Docker, Podman, LXC, Nspawn:
		return 2
	case Unit:
		return 1
	default:
		return 0
	}
}

// A Claim is the owner that a cgroup's path names. The zero Claim names none.
type Claim struct {
	Kind Kind
	ID   string // printable ASCII without a slash
}

// Claimed returns the owner that /proc/<pid>/cgroup (kernel/cgroup/cgroup.c,
// proc_cgroup_show) names. If it names several, a pod takes precedence over a container
// and that over a unit; then the line of cgroup v2 over that of systemd's own hierarchy,
// and that over the others in the order of the file; then the innermost component of the
// path.
//
// A path is a claim, not proof: anyone who may create a cgroup can give it any name.
func Claimed(cgroup []byte) Claim {
	var best Claim
	most := 0
	for line, b, ok := parse.NextLine(cgroup); ok; line, b, ok = parse.NextLine(b) {
		id, line, _ := bytes.Cut(line, []byte(":"))
		controllers, path, _ := bytes.Cut(line, []byte(":"))
		claim := inPath(string(bytes.TrimSuffix(path, []byte(" (deleted)")))) // which the kernel appends for a zombie
		score := 4 * claim.Kind.rank()
		// If both versions are mounted, systemd creates no cgroup for a unit in the
		// hierarchies of controllers that the unit does not use.
		switch {
		case score == 0:
			continue
		case string(id) == "0" && len(controllers) == 0:
			score += 2
		case string(controllers) == "name=systemd":
			score++
		}
		if score > most {
			best, most = claim, score
		}
	}
	return best
}

// inPath returns the innermost claim of the best rank in a path.
func inPath(path string) (best Claim) {
	var above, parent string
	for name := range strings.SplitSeq(path, "/") {
		if c := inName(above, parent, name); c.Kind.rank() > 0 && c.Kind.rank() >= best.Kind.rank() {
			best = c
		}
		above, parent = parent, name
	}
	return best
}

// inName returns the claim of one component of a path, given the two components above it.
func inName(above, parent, name string) Claim {
	if uid := podUID(parent, name); uid != "" {
		return Claim{Pod, uid}
	}
	scope := strings.TrimSuffix(name, ".scope")
	if id, ok := strings.CutPrefix(scope, "docker-"); ok && isHex(id, 64) {
		return Claim{Docker, id[:12]}
	}
	if parent == "docker" && isHex(name, 64) {
		return Claim{Docker, name[:12]}
	}
	if id, ok := strings.CutPrefix(scope, "libpod-"); ok {
		// The cgroup of a container that podman creates below that of its unit. The
		// cgroup of its monitor, libpod-conmon-<id>, is not the container's.
		id = strings.TrimPrefix(id, "payload-")
		if isHex(id, 64) {
			return Claim{Podman, id[:12]}
		}
	}
	if id, ok := strings.CutPrefix(name, "lxc.payload."); ok && legible(id) {
		return Claim{LXC, id}
	}
	if (parent == "lxc" || parent == "lxc.payload") && legible(name) {
		return Claim{LXC, name}
	}
	if id := machine(above, parent, name); legible(id) {
		return Claim{Nspawn, id}
	}
	// The other kinds of units that run processes for more than a moment. Scopes are left
	// out, because the names of sessions and similar scopes are numbers.
	for _, suffix := range []string{".service", ".socket", ".mount"} {
		if len(name) > len(suffix) && strings.HasSuffix(name, suffix) && legible(name) {
			return Claim{Unit, name}
		}
	}
	return Claim{}
}

// podUID returns the uid of the pod that a component names, or "".
func podUID(parent, name string) string {
	var uid string
	// Slices as the systemd driver names them: [<root>-]kubepods[-<qos>]-pod<uid>.slice.
	// Without systemd, containerd creates a cgroup <slice>:cri-containerd:<id> instead.
	slice, container, ok := strings.Cut(name, ".slice")
	if at := strings.LastIndex(slice, "-pod"); ok && at >= 0 && (container == "" || container[0] == ':') {
		root := strings.TrimSuffix(strings.TrimSuffix(slice[:at], "-burstable"), "-besteffort")
		if root == "kubepods" || strings.HasSuffix(root, "-kubepods") {
			uid = strings.ReplaceAll(slice[at+len("-pod"):], "_", "-") // in the name of a slice, a dash separates levels
		}
	}
	// The cgroupfs driver: kubepods[/<qos>]/pod<uid>, of which a cgroup namespace may
	// show only the last.
	switch parent {
	case "kubepods", "burstable", "besteffort", "..":
		if id, ok := strings.CutPrefix(name, "pod"); ok {
			uid = id
		}
	}
	if !isUID(uid) {
		return ""
	}
	return uid
}

// isUID reports whether s is the uid of a pod: a UUID, or for a static pod a hash of 32
// hex digits.
func isUID(s string) bool {
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		s = s[:8] + s[9:13] + s[14:18] + s[19:23] + s[24:]
	}
	return isHex(s, 32)
}

// machine returns the name of the systemd-nspawn machine that a component names, or "". A
// machine runs in a scope that systemd-machined creates, machine-<name>.scope, or in
// machine.slice in its own scope or service, whose component payload is the machine's.
func machine(above, parent, name string) string {
	unit, scope := name, strings.HasPrefix(name, "machine-") && strings.HasSuffix(name, ".scope")
	if name == "payload" && above == "machine.slice" {
		unit = parent
	} else if !scope {
		return ""
	}
	unit, scope = strings.CutSuffix(unit, ".scope")
	if service, ok := strings.CutSuffix(unit, ".service"); ok {
		unit = service[strings.IndexByte(service, '@')+1:] // systemd-nspawn@<name>.service
	} else if !scope {
		return ""
	}
	unit = unescape(strings.TrimPrefix(unit, "machine-"))
	// Machines of libvirt: qemu-<id>-<name>, lxc-<id>-<name>.
	if driver, rest, _ := strings.Cut(unit, "-"); driver == "qemu" || driver == "lxc" {
		id, _, _ := strings.Cut(rest, "-")
		if _, err := strconv.ParseUint(id, 10, 32); err == nil {
			return ""
		}
	}
	return unit
}

// unescape decodes systemd's \xNN, which encodes a dash in the name of a machine.
func unescape(s string) string {
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(s, `\x`)
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		if c, err := strconv.ParseUint(after[:min(2, len(after))], 16, 8); err == nil && len(after) >= 2 {
			b.WriteByte(byte(c))
			after = after[2:]
		} else {
			b.WriteString(`\x`)
		}
		s = after
	}
}

// isHex reports whether s is n lower-case hex digits.
func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

// legible reports whether s may be used as a name: text that is not ASCII might not be a
// valid label, and text with slashes might look like another name.
func legible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == '/' {
			return false
		}
	}
	return s != "" && len(s) <= 255 // NAME_MAX
}
