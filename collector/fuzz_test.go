package collector

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// seed adds a file of every recorded kernel, whole and cut.
func seed(f *testing.F, name string) {
	f.Helper()
	for _, kernel := range kernels() {
		b, err := os.ReadFile(filepath.Join(testdata, kernel, "proc", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
}

// sane fails for a number that no kernel counts.
func sane(t *testing.T, name string, numbers ...Number) {
	t.Helper()
	for i, n := range numbers {
		if math.IsNaN(n.Value) || math.IsInf(n.Value, 0) || n.Present && n.Value < 0 {
			t.Errorf("%s: number %d is %v", name, i, n.Value)
		}
	}
}

func FuzzSockstat(f *testing.F) {
	seed(f, "net/sockstat")
	f.Fuzz(func(t *testing.T, b []byte) {
		var s sockstat
		if err := parseSockstat(b, "sockstat", 4096, &s); err != nil {
			return
		}
		if !s.used.Present || !s.tcpMemory.Present || !s.orphans.Present {
			t.Error("no error, and a field that every kernel has is missing")
		}
		sane(t, "sockstat", s.used, s.alloc, s.orphans, s.timeWait, s.tcpMemory, s.udpMemory)
	})
}

func FuzzSockstat6(f *testing.F) {
	seed(f, "net/sockstat6")
	f.Fuzz(func(t *testing.T, b []byte) {
		var s sockstat
		if err := parseSockstat6(b, "sockstat6", &s); err == nil && !s.family[1].tcp.Present {
			t.Error("no error, and TCP6 is missing")
		}
	})
}

func FuzzSNMP(f *testing.F) {
	seed(f, "net/snmp")
	seed(f, "net/netstat")
	f.Fuzz(func(t *testing.T, b []byte) {
		index := netstatIndex{"Tcp:": {"CurrEstab": 0}, "TcpExt:": {"ListenDrops": 1, "TCPBacklogDrop": 2}}
		into := make([]Number, 3)
		_ = parseSNMP(b, "snmp", index.sections("Tcp:"), into)
		_ = parseSNMP(b, "netstat", index.sections("TcpExt:"), into)
		sane(t, "snmp", into...)
	})
}

func FuzzSNMP6(f *testing.F) {
	seed(f, "net/snmp6")
	f.Fuzz(func(t *testing.T, b []byte) {
		into := make([]Number, 1)
		_ = parseSNMP6(b, "snmp6", map[string]int{"Ip6ReasmFails": 0}, into)
		sane(t, "snmp6", into...)
	})
}

func FuzzCPUTable(f *testing.F) {
	seed(f, "net/stat/nf_conntrack")
	seed(f, "net/stat/arp_cache")
	f.Fuzz(func(t *testing.T, b []byte) {
		wanted := append(conntrackColumns(), "table_fulls")
		lost, err := parseCPUTable(b, "stat", wanted, func(cpu, column int, _ uint64) {
			if cpu < 0 || column < 0 || column >= len(wanted) {
				t.Errorf("column %d of CPU %d", column, cpu)
			}
		})
		if err == nil && slices.Contains(lost, true) {
			t.Error("a column is lost without an error")
		}
	})
}

func FuzzSoftnet(f *testing.F) {
	seed(f, "net/softnet_stat")
	f.Fuzz(func(t *testing.T, b []byte) {
		var s softnet
		rows := &softnetRows{counters: newPerCPU(2)}
		if err := rows.parse(b, "softnet_stat", func() []int { return []int{0, 1} }, &s); err == nil && !s.drops.Present {
			t.Error("no error, and no drops")
		}
		sane(t, "softnet", s.drops, s.squeezes, s.length, s.input)
	})
}

func FuzzMeminfo(f *testing.F) {
	seed(f, "meminfo")
	f.Fuzz(func(t *testing.T, b []byte) {
		var m meminfo
		if err := parseMeminfo(b, "meminfo", &m); err == nil && (!m.total.Present || m.lowTotal.Present && !m.lowFree.Present) {
			t.Error("no error, and a field is missing")
		}
		sane(t, "meminfo", m.total, m.available, m.lowTotal, m.lowFree, m.committed, m.commitLimit)
	})
}

func FuzzZoneinfo(f *testing.F) {
	seed(f, "zoneinfo")
	f.Fuzz(func(t *testing.T, b []byte) {
		zones, err := parseZoneinfo(b, "zoneinfo")
		for _, z := range zones {
			if z.name == "" || err == nil && !z.min.Present {
				t.Errorf("zone %+v", z)
			}
		}
		for _, z := range zones {
			sane(t, "zone", z.free, z.min, z.low, z.high, number(z.need()))
		}
	})
}

func FuzzVmstat(f *testing.F) {
	seed(f, "vmstat")
	f.Fuzz(func(t *testing.T, b []byte) {
		var n Number
		if err := parseOOMKills(b, "vmstat", &n); err != nil && n.Present {
			t.Error("an error and a value")
		}
		sane(t, "vmstat", n)
	})
}

func FuzzPressure(f *testing.F) {
	seed(f, "pressure/memory")
	f.Fuzz(func(t *testing.T, b []byte) {
		var s memory
		_ = parsePressure(b, "pressure", &s)
		sane(t, "pressure", s.pressureSome, s.pressureFull)
	})
}

func FuzzSlabinfo(f *testing.F) {
	seed(f, "slabinfo")
	f.Fuzz(func(t *testing.T, b []byte) {
		slabs, _ := parseSlabinfo(b, "slabinfo", slabCaches(), 4096)
		for _, s := range slabs {
			sane(t, s.cache, number(s.size))
		}
	})
}

func FuzzPorts(f *testing.F) {
	f.Add([]byte("32768\t60999\n"))
	f.Add([]byte("8080,9000-9010,50051\n"))
	f.Add([]byte("\n"))
	f.Add([]byte("65535-1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if low, high, err := parsePortRange(b, "range"); err == nil && low > high {
			t.Errorf("%d to %d", low, high)
		}
		set := new(portSet)
		set.add(0, 65535)
		_ = parseList(b, "list", func(low, high uint16) {
			if low > high {
				t.Errorf("%d to %d", low, high)
			}
			set.remove(low, high)
		})
		if n := set.countWithout(new(portSet)); n > 65536 {
			t.Errorf("%d ports", n)
		}
	})
}

func FuzzSysctl(f *testing.F) {
	seed(f, "sys/net/ipv4/tcp_mem")
	seed(f, "sys/fs/file-nr")
	f.Add([]byte("0\t0\t9223372036854775807\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n [3]Number
		if err := parseNumbers(b, "sysctl", n[:]); err == nil && !n[2].Present {
			t.Error("no error, and a number is missing")
		}
		sane(t, "sysctl", n[:]...)
	})
}

func FuzzSoftLimit(f *testing.F) {
	seed(f, "1/limits")
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := parseSoftLimit(b, "limits"); err != nil && v != 0 {
			t.Errorf("an error and %d", v)
		}
	})
}

func FuzzFields(f *testing.F) {
	f.Add([]byte("a  b\tc \n d"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		for line, rest, ok := procfile.NextLine(b); ok; line, rest, ok = procfile.NextLine(rest) {
			n += procfile.CountFields(line) + 1
		}
		if n > 2*len(b)+1 {
			t.Errorf("%d fields in %d bytes", n, len(b))
		}
	})
}

// FuzzUnknown puts a line that is not known anywhere into a recorded file. The
// numbers are those of the file without it.
func FuzzUnknown(f *testing.F) {
	files := []struct {
		name  string
		parse func(b []byte) any
	}{
		{"net/sockstat", func(b []byte) any {
			var s sockstat
			err := parseSockstat(b, "", 4096, &s)
			return []any{s, err}
		}},
		{"meminfo", func(b []byte) any {
			var m meminfo
			err := parseMeminfo(b, "", &m)
			return []any{m, err}
		}},
		{"vmstat", func(b []byte) any {
			var n Number
			err := parseOOMKills(b, "", &n)
			return []any{n, err}
		}},
		{"pressure/memory", func(b []byte) any {
			var s memory
			err := parsePressure(b, "", &s)
			return []any{s, err}
		}},
		{"net/netstat", func(b []byte) any {
			into := make([]Number, 2)
			err := parseSNMP(b, "", netstatIndex{"TcpExt:": {"ListenDrops": 0, "TCPBacklogDrop": 1}}, into)
			return []any{into, err}
		}},
		{"zoneinfo", func(b []byte) any {
			zones, err := parseZoneinfo(b, "")
			return []any{zones, err}
		}},
		{"slabinfo", func(b []byte) any {
			slabs, err := parseSlabinfo(b, "", slabCaches(), 4096)
			return []any{slabs, err}
		}},
	}
	contents := make([][]byte, len(files))
	known := map[string]bool{}
	for i, file := range files {
		b, err := os.ReadFile(filepath.Join(testdata, "linux-6.1-686-pae", "proc", file.name))
		if err != nil {
			f.Fatal(err)
		}
		contents[i] = b
		for line, rest, ok := procfile.NextLine(b); ok; line, rest, ok = procfile.NextLine(rest) {
			for word, line, ok := procfile.NextField(line); ok; word, line, ok = procfile.NextField(line) {
				known[string(word)] = true
			}
		}
		f.Add(uint8(i), uint16(2), []byte("unknown 1 2 3"))
		f.Add(uint8(i), uint16(7), []byte("Unknown:  77 kB"))
	}
	for _, word := range slices.Concat(slabCaches(), []string{"UDPLITE:", "nr_active_file", "nr_inactive_file", "managed", "present", "spanned"}) {
		known[word] = true
	}
	f.Fuzz(func(t *testing.T, which uint8, at uint16, line []byte) {
		file, content := files[int(which)%len(files)], contents[int(which)%len(files)]
		var m meminfo
		name, _, _ := bytes.Cut(line, []byte(":"))
		if bytes.ContainsAny(line, "\r\n") || m.field(name) != nil {
			return
		}
		for word, rest, ok := procfile.NextField(line); ok; word, rest, ok = procfile.NextField(rest) {
			if known[string(word)] {
				return
			}
		}
		lines := bytes.SplitAfter(content, []byte("\n"))
		i := 1 + int(at)%(len(lines)-1) // the first line of slabinfo is its version
		changed := bytes.Join(slices.Insert(slices.Clone(lines), i, append(line, '\n')), nil)
		if want, got := fmt.Sprintf("%+v", file.parse(content)), fmt.Sprintf("%+v", file.parse(changed)); got != want {
			t.Errorf("%s with %q:\n%s\nwithout:\n%s", file.name, line, got, want)
		}
	})
}
