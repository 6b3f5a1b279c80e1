package parse

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

const testdata = "../../testdata"

// seed adds a file of every recorded kernel, complete and cut in half.
func seed(f *testing.F, name string) {
	f.Helper()
	files, err := filepath.Glob(filepath.Join(testdata, "linux-*", "proc", name))
	if err != nil || len(files) == 0 {
		f.Fatalf("no recorded %s: %v", name, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
}

// sane reports an error for a number that no kernel can return.
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
		s, err := Sockstat(b, "sockstat", 4096)
		if err != nil {
			return
		}
		if !s.Used.Present || !s.TCPMemory.Present || !s.Orphans.Present {
			t.Error("no error, and a field that every kernel has is missing")
		}
		sane(t, "sockstat", s.Used, s.Allocated, s.Orphans, s.TimeWait, s.TCPMemory, s.UDPMemory)
	})
}

func FuzzSockstat6(f *testing.F) {
	seed(f, "net/sockstat6")
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := Sockstat6(b, "sockstat6"); err == nil && !s.TCP.Present {
			t.Error("no error, and TCP6 is missing")
		}
	})
}

func FuzzSNMP(f *testing.F) {
	seed(f, "net/snmp")
	seed(f, "net/netstat")
	f.Fuzz(func(t *testing.T, b []byte) {
		type index = map[string]map[string]int
		into := make([]Number, 3)
		_ = SNMP(b, "snmp", index{"Tcp:": {"CurrEstab": 0}}, into)
		_ = SNMP(b, "netstat", index{"TcpExt:": {"ListenDrops": 1, "TCPBacklogDrop": 2}}, into)
		sane(t, "snmp", into...)
	})
}

func FuzzSNMP6(f *testing.F) {
	seed(f, "net/snmp6")
	f.Fuzz(func(t *testing.T, b []byte) {
		into := make([]Number, 1)
		_ = SNMP6(b, "snmp6", map[string]int{"Ip6ReasmFails": 0}, into)
		sane(t, "snmp6", into...)
	})
}

func FuzzCPUTable(f *testing.F) {
	seed(f, "net/stat/nf_conntrack")
	seed(f, "net/stat/arp_cache")
	f.Fuzz(func(t *testing.T, b []byte) {
		wanted := []string{"drop", "early_drop", "insert_failed", "invalid", "search_restart", "entries", "table_fulls"}
		lost, err := CPUTable(b, "stat", wanted, func(cpu, column int, _ uint64) {
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
		lines, err := Softnet(b, "softnet_stat")
		if err == nil && len(lines) == 0 {
			t.Error("no error, and no lines")
		}
		for _, l := range lines {
			if err == nil && (!l.Dropped.Present || !l.Squeezed.Present) {
				t.Errorf("no error, and a line without counters: %+v", l)
			}
			sane(t, "softnet", l.CPU, l.Dropped, l.Squeezed, l.Backlog, l.Input)
		}
	})
}

func FuzzMeminfo(f *testing.F) {
	seed(f, "meminfo")
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Meminfo(b, "meminfo")
		if err == nil && (!m.Total.Present || m.LowTotal.Present && !m.LowFree.Present) {
			t.Error("no error, and a field is missing")
		}
		sane(t, "meminfo", m.Total, m.Available, m.LowTotal, m.LowFree, m.Committed, m.CommitLimit)
	})
}

func FuzzZoneinfo(f *testing.F) {
	seed(f, "zoneinfo")
	f.Fuzz(func(t *testing.T, b []byte) {
		zones, err := Zoneinfo(b, "zoneinfo", 4096)
		for _, z := range zones {
			if z.Name == "" || err == nil && !z.Min.Present {
				t.Errorf("zone %+v", z)
			}
		}
		for _, z := range zones {
			sane(t, "zone", z.Free, z.Min, z.Low, z.High, Of(z.Need()))
		}
	})
}

func FuzzVmstat(f *testing.F) {
	seed(f, "vmstat")
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := OOMKills(b, "vmstat")
		if err != nil && n.Present {
			t.Error("an error and a value")
		}
		sane(t, "vmstat", n)
	})
}

func FuzzPressure(f *testing.F) {
	seed(f, "pressure/memory")
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _ := Pressure(b, "pressure")
		sane(t, "pressure", s.Some, s.Full)
	})
}

func FuzzSlabinfo(f *testing.F) {
	seed(f, "slabinfo")
	f.Fuzz(func(t *testing.T, b []byte) {
		slabs, _ := Slabinfo(b, "slabinfo", caches(), 4096)
		for _, s := range slabs {
			sane(t, s.Cache, Of(s.Size))
		}
	})
}

func FuzzPorts(f *testing.F) {
	f.Add([]byte("32768\t60999\n"))
	f.Add([]byte("8080,9000-9010,50051\n"))
	f.Add([]byte("\n"))
	f.Add([]byte("65535-1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if low, high, err := PortRange(b, "range"); err == nil && low > high {
			t.Errorf("%d to %d", low, high)
		}
		_ = List(b, "list", func(low, high uint16) {
			if low > high {
				t.Errorf("%d to %d", low, high)
			}
		})
	})
}

func FuzzArcstats(f *testing.F) {
	f.Add([]byte("9 1 0x01 147 39984 8 1\nname type data\nc_min 4 100\nsize 4 3000\n"))
	f.Add([]byte("name type data\nsize 4"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Arcstats(b, "arcstats")
		if err == nil && (!s.Size.Present || !s.Min.Present) {
			t.Error("no error, and a field is missing")
		}
		if s.Size.IsMissing() {
			t.Error("the file exists but its size counts as missing, as on a kernel without ZFS")
		}
		sane(t, "arcstats", s.Size, s.Min)
	})
}

func FuzzSysctl(f *testing.F) {
	seed(f, "sys/net/ipv4/tcp_mem")
	seed(f, "sys/fs/file-nr")
	f.Add([]byte("0\t0\t9223372036854775807\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var n [3]Number
		if err := Numbers(b, "sysctl", n[:]); err == nil && !n[2].Present {
			t.Error("no error, and a number is missing")
		}
		sane(t, "sysctl", n[:]...)
	})
}

func FuzzSoftLimit(f *testing.F) {
	seed(f, "1/limits")
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := SoftLimit(b, "limits"); err != nil && v != 0 {
			t.Errorf("an error and %d", v)
		}
	})
}

func FuzzFields(f *testing.F) {
	f.Add([]byte("a  b\tc \n d"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		for line, rest, ok := NextLine(b); ok; line, rest, ok = NextLine(rest) {
			n += CountFields(line) + 1
		}
		if n > 2*len(b)+1 {
			t.Errorf("%d fields in %d bytes", n, len(b))
		}
	})
}

// caches returns some caches that are in the slabinfo of every recorded kernel.
func caches() []string { return []string{"TCP", "UDP", "filp", "dentry", "sock_inode_cache"} }

// FuzzUnknown checks that inserting an unknown line into a recorded file does not change the
// numbers.
func FuzzUnknown(f *testing.F) {
	files := []struct {
		name  string
		parse func(b []byte) any
	}{
		{"net/sockstat", func(b []byte) any {
			s, err := Sockstat(b, "", 4096)
			return []any{s, err}
		}},
		{"meminfo", func(b []byte) any {
			m, err := Meminfo(b, "")
			return []any{m, err}
		}},
		{"vmstat", func(b []byte) any {
			n, err := OOMKills(b, "")
			return []any{n, err}
		}},
		{"pressure/memory", func(b []byte) any {
			s, err := Pressure(b, "")
			return []any{s, err}
		}},
		{"net/netstat", func(b []byte) any {
			into := make([]Number, 2)
			err := SNMP(b, "", map[string]map[string]int{"TcpExt:": {"ListenDrops": 0, "TCPBacklogDrop": 1}}, into)
			return []any{into, err}
		}},
		{"zoneinfo", func(b []byte) any {
			zones, err := Zoneinfo(b, "", 4096)
			return []any{zones, err}
		}},
		{"slabinfo", func(b []byte) any {
			slabs, err := Slabinfo(b, "", caches(), 4096)
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
		for line, rest, ok := NextLine(b); ok; line, rest, ok = NextLine(rest) {
			for word, line, ok := NextField(line); ok; word, line, ok = NextField(line) {
				known[string(word)] = true
			}
		}
		f.Add(uint8(i), uint16(2), []byte("unknown 1 2 3"))
		f.Add(uint8(i), uint16(7), []byte("Unknown:  77 kB"))
	}
	for _, word := range slices.Concat(caches(), []string{"UDPLITE:", "nr_active_file", "nr_inactive_file", "managed", "present", "spanned"}) {
		known[word] = true
	}
	f.Fuzz(func(t *testing.T, which uint8, at uint16, line []byte) {
		file, content := files[int(which)%len(files)], contents[int(which)%len(files)]
		var m Memory
		name, _, _ := bytes.Cut(line, []byte(":"))
		if bytes.ContainsAny(line, "\r\n") || m.field(name) != nil {
			return
		}
		for word, rest, ok := NextField(line); ok; word, rest, ok = NextField(rest) {
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

func FuzzKmsg(f *testing.F) {
	for _, record := range []string{
		"6,339,5140900,-;NET: Registered protocol family 10\n SUBSYSTEM=net\n DEVICE=+net:lo\n",
		"4,1,0,c,caller=T1;net_ratelimit: 12 callbacks suppressed",
		"3,1,0,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=hog,pid=12,uid=0",
	} {
		f.Add([]byte(record))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Kmsg(b, "/dev/kmsg")
		if err != nil {
			return
		}
		if r.Facility < 0 || r.Time < 0 || bytes.IndexByte(r.Text, '\n') >= 0 {
			t.Errorf("%+v", r)
		}
		Suppressed(r.Text)
		if o, ok := OOM(r.Text); ok && bytes.IndexByte([]byte(o.Constraint), ',') >= 0 {
			t.Errorf("%+v", o)
		}
	})
}

func FuzzMemoryStat(f *testing.F) {
	f.Add([]byte("anon 1\nsock 4096\ninactive_file 5\nactive_file 6\nslab_reclaimable 7\n"))
	f.Add([]byte("total_inactive_file 5\ntotal_active_file 18446744073709551615\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v1, _ := MemoryStatV1(b, "memory.stat")
		v2, _ := MemoryStatV2(b, "memory.stat")
		sane(t, "memory.stat", v1.Files, v2.Files, v2.Sockets, v2.Slab)
	})
}

func FuzzCgroupLimit(f *testing.F) {
	for _, s := range []string{"max\n", "1048576\n", "9223372036854771712\n", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		limit, err := CgroupLimit(b, "memory.max")
		if err != nil && limit.Present {
			t.Errorf("%v together with error %v", limit, err)
		}
		sane(t, "memory.max", limit)
	})
}

func FuzzThreads(f *testing.F) {
	seed(f, "loadavg")
	f.Fuzz(func(t *testing.T, b []byte) {
		threads, err := Threads(b, "loadavg")
		if (err == nil) != threads.Present {
			t.Errorf("%v, %v", threads, err)
		}
		sane(t, "loadavg", threads)
	})
}
