package collector

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files and docs/metrics.md")

// golden compares got with a file, or writes the file if -update is set.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (write it with: go test ./collector -update)", err)
	}
	if got == string(want) {
		return
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		var g, w string
		if i < len(gotLines) {
			g = gotLines[i]
		}
		if i < len(wantLines) {
			w = wantLines[i]
		}
		if g != w {
			t.Fatalf("%s is stale (to update: go test ./collector -update)\nline %d\nhas:  %s\ngets: %s", path, i+1, w, g)
		}
	}
}

// TestGolden checks that the page of each scenario matches its file in testdata/golden.
func TestGolden(t *testing.T) {
	type scenario struct {
		kernel string
		change func(*tree)
	}
	scenarios := map[string]scenario{
		"no-ipv6": {"linux-6.12", func(tr *tree) {
			tr.remove("proc/net/sockstat6", "proc/net/snmp6", "proc/net/stat/ndisc_cache", "proc/sys/net/ipv6")
			tr.replay.Dump = tr.dump("sock_diag_by_family_ipv4.bin")
		}},
		"no-conntrack": {"linux-6.12", func(tr *tree) {
			tr.remove("proc/net/stat/nf_conntrack", "proc/sys/net/netfilter")
		}},
		"conntrack-without-limit": {"linux-6.12", func(tr *tree) {
			tr.write("proc/sys/net/netfilter/nf_conntrack_max", "0\n")
		}},
		"no-tcp-diag":           {"linux-6.12", func(tr *tree) { tr.replay.RefuseAll = 2 /* ENOENT */ }},
		"page-64k":              {"linux-6.12", func(tr *tree) { tr.pageSize, tr.memoryUnit = 64<<10, 64<<10 }},
		"page-64k-unit-unknown": {"linux-6.12", func(tr *tree) { tr.pageSize, tr.memoryUnit = 64<<10, 0 }},
		"page-64k-linux-5": {"linux-5.10", func(tr *tree) {
			tr.pageSize = 64 << 10
			tr.edit("proc/net/sockstat", "mem 0", "mem 100")
		}},
		"overcommit-2": {"linux-6.12", func(tr *tree) { tr.write("proc/sys/vm/overcommit_memory", "2\n") }},
		"unix-udp": {"linux-6.12", func(tr *tree) {
			for name, dump := range map[string]*[]byte{"unix": &tr.replay.Unix, "udp": &tr.replay.UDP} {
				b, err := os.ReadFile(filepath.Join(testdata, "sock_diag", name+".bin"))
				if err != nil {
					t.Fatal(err)
				}
				*dump = b
			}
		}},
		"slab-sysfs": {"linux-6.12", func(tr *tree) {
			tr.write("sys/kernel/slab/TCP/slabs", "3 N0=2 N1=1\n")
			tr.write("sys/kernel/slab/TCP/order", "3\n")
			// A merged cache is a symbolic link, whose target has the size of all merged
			// caches.
			tr.write("sys/kernel/slab/:0000256/slabs", "99 N0=99\n")
			tr.write("sys/kernel/slab/:0000256/order", "0\n")
			tr.link("sys/kernel/slab/skbuff_head_cache", ":0000256")
		}},
		"low-memory-gone": {"linux-6.1-686-pae", func(tr *tree) {
			// As recorded on a 32-bit kernel just before its OOM killer ran.
			tr.edit("proc/meminfo", "LowFree:          840780 kB", "LowFree:           52416 kB")
		}},
		"low-memory-page-cache": {"linux-6.1-686-pae", func(tr *tree) {
			// As little is free, but page cache uses the rest.
			tr.edit("proc/meminfo", "LowFree:          840780 kB", "LowFree:           52416 kB")
			z := tr.read("proc/zoneinfo")
			normal := strings.Index(z, "zone   Normal")
			z = z[:normal] + strings.Replace(z[normal:], "nr_zone_inactive_file 0", "nr_zone_inactive_file 180000", 1)
			tr.write("proc/zoneinfo", z)
		}},
		"truncated": {"linux-6.12", func(tr *tree) {
			for _, name := range tr.files() {
				content := tr.read(name)
				tr.write(name, content[:len(content)*2/3])
			}
		}},
		"garbage": {"linux-6.12", func(tr *tree) {
			for _, name := range tr.files() {
				tr.write(name, strings.Map(func(r rune) rune {
					if r >= '1' && r <= '9' {
						return '?'
					}
					return r
				}, tr.read(name)))
			}
		}},
		// Every field of the files whose values are exported unchanged has a different number,
		// so that mixed-up fields are noticed.
		"numbered": {"linux-6.1-686-pae", func(tr *tree) {
			// The numbers count down, because no memory may exceed MemTotal, which comes
			// first. The start is chosen so that LowTotal matches the zones.
			n := 864_152
			number := regexp.MustCompile(`-?\b[0-9]+\b`)
			copied := regexp.MustCompile(`sockstat6?$|snmp6?$|/netstat$|meminfo$|vmstat$|pressure/|sys/net/`)
			for _, name := range tr.files() {
				if copied.MatchString(name) && !strings.Contains(name, "ip_local_") {
					tr.write(name, number.ReplaceAllStringFunc(tr.read(name), func(string) string {
						n--
						return strconv.Itoa(n)
					}))
				}
			}
		}},
		"garbage-in-one-file": {"linux-6.12", func(tr *tree) {
			tr.edit("proc/net/sockstat", "TCP: inuse", "TCP: inuse x")
		}},
	}
	for _, kernel := range kernels() {
		scenarios[kernel] = scenario{kernel, func(*tree) {}}
	}
	for name, s := range scenarios {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t, s.kernel)
			s.change(tr)
			golden(t, filepath.Join(testdata, "golden", name+".prom"), tr.render())
		})
	}
}
