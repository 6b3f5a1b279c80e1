package collector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/sockdiag"
)

// TestCases checks files that are in no recording: of older kernels, other kernels, containers
// and unusual settings. want lists series and their values; absent is one that must be
// missing. failed is part of the error of the collector, if it must fail.
func TestCases(t *testing.T) {
	const absent = -1
	zoneBefore48 := func(tr *tree) {
		z := tr.read("proc/zoneinfo")
		z = strings.ReplaceAll(z, "nr_zone_active_file", "nr_active_file")
		z = strings.ReplaceAll(z, "nr_zone_inactive_file", "nr_inactive_file")
		// Remove the per-node counters, which only later kernels have.
		var lines []string
		node := false
		for line := range strings.Lines(z) {
			if strings.Contains(line, "per-node stats") {
				node = true
				continue
			}
			node = node && !strings.Contains(line, "pages free")
			if !node {
				lines = append(lines, line)
			}
		}
		tr.write("proc/zoneinfo", strings.Join(lines, ""))
	}
	for name, c := range map[string]struct {
		kernel    string
		change    func(*tree)
		collector string
		want      map[string]float64
		failed    string
	}{
		"reserved huge pages are neither used nor there": {
			change: func(tr *tree) {
				tr.write("proc/meminfo", "MemTotal: 1056000000 kB\nMemAvailable: 37933000 kB\nHugePages_Total: 458752\nHugepagesize: 2048 kB\nHugetlb: 939524096 kB\n")
			},
			collector: "memory",
			want: map[string]float64{
				"memory_hugetlb_bytes ": 939524096 * 1024,
				"limit memory":          1024 * ((1056000000 - 939524096) + (1056000000-939524096-37933000)/3.),
			},
		},
		"huge pages before Linux 4.19": {
			change: func(tr *tree) {
				tr.write("proc/meminfo", "MemTotal: 10000 kB\nMemAvailable: 3000 kB\nHugePages_Total: 2\nHugepagesize: 2048 kB\n")
			},
			collector: "memory",
			want:      map[string]float64{"memory_hugetlb_bytes ": 4096 * 1024, "limit memory": 1024 * (5904 + 2904/3.)},
		},
		"more huge pages than memory": {
			change: func(tr *tree) {
				tr.write("proc/meminfo", "MemTotal: 10000 kB\nMemAvailable: 3000 kB\nHugetlb: 10001 kB\n")
			},
			collector: "memory",
			want:      map[string]float64{"memory_hugetlb_bytes ": absent, "limit memory": absent, "memory_total_bytes ": 10000 * 1024},
			failed:    "meminfo: Hugetlb: 10001 kB is more than MemTotal",
		},
		"the cache of ZFS is given back": {
			change: func(tr *tree) {
				tr.write("proc/meminfo", "MemTotal: 10000 kB\nMemAvailable: 1000 kB\n")
				tr.write("proc/spl/kstat/zfs/arcstats", "9 1 0x01 147 39984 4177344 105\nname type data\nhits 4 7\nsize 4 6144000\nc_min 4 1024000\n")
			},
			collector: "memory",
			want:      map[string]float64{"memory_zfs_arc_bytes ": 6144000, "limit memory": 1024 * (10000 + 4000/3.)},
		},
		"a cache of ZFS of unknown size": {
			change: func(tr *tree) {
				tr.write("proc/spl/kstat/zfs/arcstats", "9 1 0x01 147 39984 4177344 105\nname type data\nsize 4 many\nc_min 4 1024000\n")
			},
			collector: "memory",
			want:      map[string]float64{"memory_zfs_arc_bytes ": absent, "limit memory": absent},
			failed:    "arcstats: size",
		},
		"more available than there is": {
			change: func(tr *tree) {
				tr.write("proc/meminfo", "MemTotal: 2020000 kB\nMemAvailable: 99999999 kB\nSUnreclaim: 7 kB\n")
			},
			collector: "memory",
			want: map[string]float64{
				"memory_available_bytes ": absent, "limit memory": absent,
				"memory_total_bytes ": 2020000 * 1024, "memory_kernel_bytes slab_unreclaimable": 7 * 1024,
			},
			failed: "meminfo: MemAvailable: 99999999 kB is more than MemTotal",
		},
		"no MemAvailable, as on WSL1 and before Linux 3.14": {
			change: func(tr *tree) {
				tr.write("proc/meminfo", "MemTotal: 16718684 kB\nMemFree: 8463308 kB\nSReclaimable: 6744 kB\n")
			},
			collector: "memory",
			want: map[string]float64{
				"memory_available_bytes ": absent, "limit memory": absent,
				"memory_total_bytes ": 16718684 * 1024, "memory_kernel_bytes slab_reclaimable": 6744 * 1024,
			},
		},
		"no SReclaimable and CommitLimit, as in gVisor": {
			change: func(tr *tree) {
				tr.write("proc/meminfo", "MemTotal: 2097152 kB\nMemFree: 1900000 kB\nMemAvailable: 1950000 kB\n")
			},
			collector: "memory",
			want:      map[string]float64{"limit memory": 1024 * (2097152 + 147152/3.), "memory_commit_limit_bytes ": absent},
		},
		"zones of before Linux 4.8": {
			kernel: "linux-6.1-686-pae", change: zoneBefore48, collector: "memory",
			want: map[string]float64{"memory_zone_free_bytes 0,DMA": 15728640, "limit low_memory": 846566508},
		},
		"a zone without its page cache": {
			kernel: "linux-6.1-686-pae", collector: "memory",
			change: func(tr *tree) {
				z := tr.read("proc/zoneinfo")
				tr.write("proc/zoneinfo", strings.ReplaceAll(z, "nr_zone_inactive_file", "nr_other"))
			},
			want:   map[string]float64{"limit low_memory": absent, "memory_zone_free_bytes 0,DMA": 15728640},
			failed: "zone DMA of node 0: page cache: missing",
		},
		"the same on a kernel without high memory": {
			change: func(tr *tree) {
				z := tr.read("proc/zoneinfo")
				tr.write("proc/zoneinfo", strings.ReplaceAll(z, "nr_zone_inactive_file", "nr_other"))
			},
			collector: "memory",
		},
		"a zone twice": {
			change:    func(tr *tree) { tr.write("proc/zoneinfo", strings.Repeat(tr.read("proc/zoneinfo"), 2)) },
			collector: "memory",
			failed:    "the kernel lists",
		},
		"a cache twice": {
			change: func(tr *tree) {
				info := tr.read("proc/slabinfo")
				i := strings.Index(info, "\ndentry ")
				line, _, _ := strings.Cut(info[i+1:], "\n")
				tr.write("proc/slabinfo", info+line+"\n")
			},
			collector: "memory",
			want:      map[string]float64{"memory_slab_bytes dentry": 2 * 114688},
		},
		"another kind of pressure": {
			change: func(tr *tree) {
				tr.write("proc/pressure/memory", "some avg10=0.00 total=2000000 new=1\nidle avg10=0.00 total=7\nfull avg10=0.00 total=1000000\n")
			},
			collector: "memory",
			want:      map[string]float64{"memory_pressure_seconds_total some": 2, "memory_pressure_seconds_total full": 1},
		},
		"a sysctl of -1": {
			change:    func(tr *tree) { tr.write("proc/sys/net/ipv4/tcp_max_tw_buckets", "-1\n") },
			collector: "sockstat",
			want:      map[string]float64{"tcp_time_wait_limit ": absent, "limit tcp_time_wait": absent, "tcp_orphans_limit ": 8192},
			failed:    "tcp_max_tw_buckets: value 1: -1 is not a count",
		},
		"a negative count of sockets": {
			change:    func(tr *tree) { tr.edit("proc/net/sockstat", "UDP: inuse ", "UDP: inuse -3 old ") },
			collector: "sockstat",
			want:      map[string]float64{"sockets_inuse ipv4,udp": absent, "sockets_inuse ipv4,raw": 0},
			failed:    "sockstat: UDP inuse: -3 is not a count",
		},
		"more memory than any machine has": {
			change:    func(tr *tree) { tr.edit("proc/net/sockstat", "mem ", "mem 9223372036854775807 old ") },
			collector: "sockstat",
			want:      map[string]float64{"limit tcp_memory": absent},
			failed:    "bytes is out of range",
		},
		"more files free than allocated": {
			change:    func(tr *tree) { tr.write("proc/sys/fs/file-nr", "3\t4\t100\n") },
			collector: "filefd",
			want:      map[string]float64{"file_descriptors_allocated ": absent, "limit file_descriptors": absent, "file_descriptors_limit ": 100},
			failed:    "file-nr: value 2: 4 free of 3 allocated",
		},
		"a reserved list of more than a page": {
			change: func(tr *tree) {
				var ports []string
				for port := 33000; port < 35600; port += 2 {
					ports = append(ports, strconv.Itoa(port))
				}
				tr.write("proc/sys/net/ipv4/ip_local_reserved_ports", strings.Join(ports, ",")+"\n")
			},
			collector: "ports",
			want:      map[string]float64{"ephemeral_ports_limit ": 28232 - 1300},
		},
		"a name of any bytes": {
			change:    func(tr *tree) { tr.write("proc/1/comm", "a\x1b[2J\u202eb\u0085\xff\n") },
			collector: "process",
			want:      map[string]float64{"process_open_file_descriptors a?[2J?b??": 5},
		},
		"no version": {
			change:    func(tr *tree) { tr.remove("proc/version") },
			collector: "sockstat",
			want:      map[string]float64{"tcp_orphans_limit ": 8192},
		},
	} {
		t.Run(name, func(t *testing.T) {
			kernel := c.kernel
			if kernel == "" {
				kernel = "linux-6.12"
			}
			tr := newTree(t, kernel)
			before, _ := tr.series(nil)
			c.change(tr)
			series, errs := tr.series(nil)
			for s, want := range c.want {
				got, ok := series[c.collector][s]
				switch {
				case want == absent && ok:
					t.Errorf("%s is %v, want none", s, got)
				case want != absent && (!ok || got < want*(1-1e-12) || got > want*(1+1e-12)):
					t.Errorf("%s is %v, %t, want %v", s, got, ok, want)
				}
			}
			if err := errs[c.collector]; (err == nil) != (c.failed == "") || err != nil && !strings.Contains(err.Error(), c.failed) {
				t.Errorf("error %v, want %q in it", err, c.failed)
			}
			// A limit must not disappear without an error.
			for s := range before[c.collector] {
				if _, ok := series[c.collector][s]; !ok && errs[c.collector] == nil && strings.HasPrefix(s, "limit ") && c.want[s] != absent {
					t.Errorf("%s is gone without an error", s)
				}
			}
		})
	}
}

// TestOfflineCPU checks that counters do not jump when a CPU goes offline and comes back, if
// softnet_stat names the CPUs (since Linux 5.10), if it does not, and if it is also unknown
// which CPUs are online.
func TestOfflineCPU(t *testing.T) {
	line := func(columns, cpu int, drops uint32) string {
		var b strings.Builder
		for i := range columns {
			v := uint32(0)
			switch i {
			case 1: // dropped
				v = drops
			case 12: // the CPU
				v = uint32(cpu)
			}
			fmt.Fprintf(&b, "%08x ", v)
		}
		return b.String() + "\n"
	}
	for name, c := range map[string]struct {
		columns int
		online  bool
	}{"CPUs named": {13, false}, "CPUs by sysfs": {10, true}, "CPUs not known": {10, false}} {
		t.Run(name, func(t *testing.T) {
			tr := newTree(t, "linux-6.12")
			state := func(drops map[int]uint32) {
				var content strings.Builder
				var online []string
				for cpu := range 4 {
					if d, ok := drops[cpu]; ok {
						content.WriteString(line(c.columns, cpu, d))
						online = append(online, strconv.Itoa(cpu))
					}
				}
				tr.write("proc/net/softnet_stat", content.String())
				if c.online {
					tr.write("sys/devices/system/cpu/online", strings.Join(online, ",")+"\n")
				}
			}
			state(map[int]uint32{0: 10, 1: 1000, 2: 5})
			set := tr.set()
			defer closeSet(t, set)
			read := func() float64 {
				for _, r := range set.Read(context.Background(), Query{}).Results {
					for _, v := range r.Samples("netdev_backlog_drops_total") {
						return v
					}
				}
				t.Fatal("no drops")
				return 0
			}
			if got := read(); got != 1015 {
				t.Fatalf("%v at first", got)
			}
			total := 1015.0
			for i, step := range []struct {
				drops map[int]uint32
				grown float64
			}{
				{map[int]uint32{0: 11, 1: 1000, 2: 6}, 2},
				{map[int]uint32{0: 11, 2: 6}, 0},                 // CPU 1 goes offline
				{map[int]uint32{0: 12, 2: 6}, 1},                 // the others keep counting
				{map[int]uint32{0: 12, 1: 1000, 2: 6}, 0},        // CPU 1 comes back
				{map[int]uint32{0: 12, 1: 1000, 2: 6, 3: 70}, 0}, // a CPU appears that was offline at first
				{map[int]uint32{0: 12, 1: 1001, 2: 6, 3: 72}, 3},
			} {
				state(step.drops)
				got := read()
				total += step.grown
				if got != total {
					t.Errorf("step %d: %v, want %v", i, got, total)
				}
			}
		})
	}
}

// TestCrowds checks that the walks keep a bounded amount of memory for a million listeners,
// connections and processes, which any user can create.
func TestCrowds(t *testing.T) {
	const n, most = 1_000_000, 8 << 20
	listeners, connections := newTCPVisitor(10), &portsVisitor{
		outbound:  new(portSet),
		listening: &listenVisitor{wildcard: new(portSet), addresses: map[localAddr]bool{}},
		tuples:    newFrequent[tuple](maxTuples),
	}
	connections.outbound.add(0, 65535)
	worst := nearestProcesses{n: candidates}
	before := heapInUse()
	listeners.Reset()
	for i := range uint32(n) {
		s := sockdiag.Socket{Family: unix.AF_INET, State: sockdiag.Listen, SourcePort: uint16(40000 + i%20000), SendQueue: 100}
		s.SourceAddr = [16]byte{127, byte(i >> 16), byte(i >> 8), byte(i)}
		if i == n-1 {
			s.RecvQueue = 101 // only the last one is full
		}
		listeners.Visit(&s)
		connections.listening.Visit(&s)
		s.State, s.DestinationAddr = sockdiag.Established, s.SourceAddr
		connections.Visit(&s)
		worst.offer(processFiles{pid: int(i), open: float64(i), limit: n})
	}
	if grown := heapInUse() - before; grown > most {
		t.Errorf("a million of each took %d bytes", grown)
	}
	var snapshot tcp
	listeners.fill(&snapshot, number(0), number(0))
	fullest := top[acceptQueue]{n: 1, before: acceptQueue.before}
	for q := range snapshot.queues {
		fullest.offer(q)
	}
	if got := fullest.items[0].saturation(); got != 1.01 || snapshot.listeners.Value != n || snapshot.crowded.Value != n-maxListeners {
		t.Errorf("the fullest queue is %v, %v listeners, %v of them crowded", got, snapshot.listeners, snapshot.crowded)
	}
	if first := slices.MinFunc(worst.heap, func(a, b processFiles) int { return cmp.Compare(b.ratio(), a.ratio()) }); first.pid != n-1 {
		t.Errorf("the worst process is %+v", first)
	}
	runtime.KeepAlive(listeners)
	runtime.KeepAlive(connections)
}

func heapInUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestCrowdedPorts checks that connections of a port count as accepted if its listener was
// dropped because there were too many.
func TestCrowdedPorts(t *testing.T) {
	v := &listenVisitor{wildcard: new(portSet), addresses: map[localAddr]bool{}}
	at := func(i, port int) *sockdiag.Socket {
		return &sockdiag.Socket{Family: unix.AF_INET, SourcePort: uint16(port), SourceAddr: [16]byte{127, 0, byte(i >> 8), byte(i)}}
	}
	v.Reset()
	for i := range maxListeners {
		v.Visit(at(i+1, 40000))
	}
	v.Visit(at(7, 40001))
	for _, c := range []struct {
		socket *sockdiag.Socket
		want   bool
	}{{at(1, 40000), true}, {at(maxListeners+1, 40000), false}, {at(7, 40001), true}, {at(8, 40001), true}, {at(7, 40002), false}} {
		if got := v.at(c.socket); got != c.want {
			t.Errorf("%s: %t", c.socket.Source(), got)
		}
	}
}

// TestManyProcesses checks a reading of more processes than are kept, and that it fails if
// processes are hidden.
func TestManyProcesses(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "proc/net"), 0o755); err != nil {
		t.Fatal(err)
	}
	for pid := 2; pid < 2000; pid++ {
		process := filepath.Join(dir, "proc", strconv.Itoa(pid))
		for name, content := range map[string]string{
			"comm":   fmt.Sprintf("worker-%d\n", pid%300),
			"limits": "Limit\nMax open files            1000                 524288               files\n",
		} {
			if err := os.MkdirAll(filepath.Join(process, "fd"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(process, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for fd := range pid % 7 {
			if err := os.WriteFile(filepath.Join(process, "fd", strconv.Itoa(fd)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	o := kernel.Options{ProcPath: filepath.Join(dir, "proc"), SysPath: filepath.Join(dir, "sys")}
	var s processes
	if err := newProcessReader(scope(t, o)).read(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	if len(s.worst) != 10 || s.worst[0].open != 6 || s.unreadable != number(0) {
		t.Errorf("%+v", s)
	}
	o.View = &kernel.View{Processes: errors.New("hidden")}
	if r := NewSet(machine(t, o), []Spec{processSpec()}, Config{Logger: slog.New(slog.DiscardHandler)}).Read(t.Context(), Query{}).Results[0]; r.Err == nil || len(r.samples) != 0 {
		t.Errorf("hidden: %+v", r)
	}
}
