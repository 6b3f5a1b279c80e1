package who

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestKindOf(t *testing.T) {
	for link, want := range map[string]string{
		"socket:[123]": "socket", "pipe:[7]": "pipe", "anon_inode:[eventpoll]": "eventpoll", "anon_inode:inotify": "inotify",
		"/var/log/syslog": "file", "/tmp/a: b": "file", "/tmp/x (deleted)": "deleted file", "/dev/null": "device", "/memfd:x (deleted)": "memfd",
		"net:[4026531840]": "net", "": "file",
	} {
		if got := kindOf(link); got != want {
			t.Errorf("%q is %s, want %s", link, got, want)
		}
	}
}

func TestSocketInode(t *testing.T) {
	for link, want := range map[string]uint32{"socket:[123]": 123, "socket:[4294967295]": 4294967295, "socket:[0]": 0, "socket:[x]": 0, "pipe:[1]": 0, "socket:[4294967296]": 0} {
		if got, ok := socketInode([]byte(link)); ok != (want != 0) || ok && got != want {
			t.Errorf("%q is %d, %v", link, got, ok)
		}
	}
}

// TestLocalAddresses checks the addresses of a namespace that has another interface in
// addition to loopback.
func TestLocalAddresses(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"fib_trie": `Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 198.51.100.0/24 2 0 2
        |-- 198.51.100.0
           /24 link UNICAST
        |-- 198.51.100.7
           /32 host LOCAL
        |-- 198.51.100.255
           /32 link BROADCAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
`,
		"if_inet6": "20010db8000000000000000000000007 02 40 00 80     eth0\ngarbage\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("2001:db8::7")}
	if got := localAddresses(dir); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := localAddresses(t.TempDir()); got != nil {
		t.Errorf("%v for empty files", got)
	}
}

// TestMemoryKinds checks what the memory of a recorded kernel is used for.
func TestMemoryKinds(t *testing.T) {
	h := newHost(t)
	h.write("sys/kernel/slab/dentry/reclaim_account", "1\n")
	a, lines := h.ask(Question{Resource: "memory", By: ByKind, Top: 1000})
	has := func(part string) bool {
		return slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, part) })
	}
	if !has("programs (AnonPages)") || !has("slab cache TCP") || has("slab cache dentry") || a.Memory == 0 {
		t.Errorf("%v", lines)
	}
	if _, lines = h.ask(Question{Resource: "low_memory", Top: 1000}); has("programs (AnonPages)") || !has("slab cache dentry (can be given back)") {
		t.Errorf("low memory: %v", lines)
	}
}

func TestNeighbourState(t *testing.T) {
	for state, want := range map[uint16]string{0: "none", 2: "reachable", 0x80: "permanent", 0xc0: "noarp, permanent"} {
		if got := neighbourState(state); got != want {
			t.Errorf("%#x is %q, want %q", state, got, want)
		}
	}
}

func TestSome(t *testing.T) {
	for want, of := range map[string]struct {
		n      float64
		things string
	}{
		"1 socket": {1, "sockets"}, "2,059,200 sockets": {2_059_200, "sockets"}, "1 entry": {1, "entries"}, "1 process": {1, "processes"}, "999 ports": {999, "ports"}, "0 ports": {0, "ports"},
	} {
		if got := some(of.n, of.things); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
