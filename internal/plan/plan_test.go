package plan

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// host returns the facts of a host with the given limits of the exporter. A usage that is not
// given is 0.
func host(limits, usages map[string]float64) Facts {
	f := Facts{
		PageSize: 4096, Unit: 4096,
		Sysctls: map[string][]float64{
			"net.ipv4.tcp_mem": {1000, 2000, 3000}, "fs.file-max": {10000}, "fs.nr_open": {1 << 20}, "net.core.somaxconn": {4096},
			"net.ipv4.ip_local_port_range": {32768, 60999}, "net.netfilter.nf_conntrack_max": {65536},
			"net.ipv4.tcp_max_tw_buckets": {8192}, "net.ipv4.tcp_max_orphans": {8192}, "vm.min_free_kbytes": {5000},
		},
	}
	for _, s := range collector.Specs() {
		f.Infos = append(f.Infos, s.Limits...)
	}
	for i := range f.Infos {
		l := &f.Infos[i]
		if limit, ok := limits[l.Resource]; ok {
			f.Limits = append(f.Limits, collector.LimitReading{LimitInfo: l, Limit: limit, Usage: usages[l.Resource]})
		}
	}
	return f
}

// tight returns limits that the demands of these tests exceed.
func tight() map[string]float64 {
	return map[string]float64{
		"tcp_memory": 3000 * 4096, "file_descriptors": 10000, "conntrack_entries": 65536, "ephemeral_ports": 28230,
		"tcp_time_wait": 8192, "tcp_orphans": 8192, "memory": 64 << 30,
	}
}

func (p Plan) of(resource string) *Row {
	at := slices.IndexFunc(p.Rows, func(r Row) bool { return r.Resource == resource })
	if at < 0 {
		return nil
	}
	return &p.Rows[at]
}

// TestMake checks how much of each limit the connections take, and that the new limit is high
// enough to avoid a warning, but not so high that two thirds of it would suffice.
func TestMake(t *testing.T) {
	d := Demand{
		Connections: 1_000_000, Outbound: 400_000, Destinations: 10, Opens: 5000, Closes: 1000, Unread: 4096,
		Processes: 4, Pause: time.Second,
	}
	if err := d.Validate(); err != nil {
		t.Fatal(err)
	}
	p := Make(d, host(tight(), map[string]float64{"file_descriptors": 2000, "memory": 1 << 30}))
	if p.Verdict != Set {
		t.Errorf("the verdict is %v", p.Verdict)
	}
	for resource, takes := range map[string]float64{
		"file_descriptors":         1_000_000,
		"process_file_descriptors": 250_000,
		"conntrack_entries":        1_000_000 + 120*5000,
		"tcp_time_wait":            60_000,
		"tcp_orphans":              4000,
		"ephemeral_ports":          (400_000 + 1000*60*0.4) / 10,
		"accept_queue":             5000 * 0.6,
		"tcp_memory":               1_000_000 * 8192,
	} {
		r := p.of(resource)
		if r == nil {
			t.Errorf("%s is not in the plan", resource)
			continue
		}
		if math.Abs(r.Takes-takes) > 1e-6*takes {
			t.Errorf("%s takes %v, want %v", resource, r.Takes, takes)
		}
		exact := r.Takes + r.Used
		switch {
		case r.Needed < exact/r.WarningRatio && r.WarningRatio >= 0.7:
			t.Errorf("%s: %v of %v would be a warning", resource, exact, r.Needed)
		case r.Verdict == Set && r.Needed*2/3 >= exact:
			t.Errorf("%s: a third less than %v is enough for %v", resource, r.Needed, exact)
		case (r.Verdict == Set) != (r.Needed > r.Now):
			t.Errorf("%s: %v where %v is needed: %v", resource, r.Now, r.Needed, r.Verdict)
		}
	}
	if r := p.of("file_descriptors"); r.Used != 2000 {
		t.Errorf("%v descriptors are in use for other things, want 2000", r.Used)
	}
	for resource, want := range map[string][]float64{
		"ephemeral_ports":   {4934, 65535}, // 60,600 ports, and the 2 that are reserved
		"conntrack_entries": {2_140_000},
		"file_descriptors":  {1_260_000},
		"accept_queue":      {4290},
	} {
		writes := p.of(resource).Writes
		if len(writes) != 1 || !slices.Equal(writes[0].Value, want) {
			t.Errorf("%s: %+v, want %v", resource, writes, want)
		}
	}
	if r := p.of("process_file_descriptors"); r.Now != 1024 || len(r.Writes) != 0 || r.Verdict != Set {
		t.Errorf("descriptors of a process that does not run yet: %+v", r)
	}
	if first := p.First(); first == nil || first.Resource != "tcp_memory" {
		t.Errorf("the first is %+v", first)
	}
	if !slices.Contains(p.Other, "udp_memory") || p.of("udp_memory") != nil {
		t.Errorf("the plan changes UDP memory: %v", p.Other)
	}
	if p.of("low_memory") != nil {
		t.Error("the plan has low memory, which this host does not have")
	}
}

// TestRaises checks that no number of a sysctl is lowered.
func TestRaises(t *testing.T) {
	f := host(tight(), nil)
	f.Sysctls["net.ipv4.tcp_mem"] = []float64{1 << 30, 2000, 3000}
	f.Sysctls["net.ipv4.ip_local_port_range"] = []float64{20000, 20999}
	for i := range f.Limits {
		if f.Limits[i].Resource == "ephemeral_ports" {
			f.Limits[i].Limit = 990 // ten are reserved
		}
	}
	p := Make(Demand{Connections: 30_000, Outbound: 30_000, Destinations: 1, Unread: 8000, Processes: 1}, f)
	want := map[string][]float64{"net.ipv4.ip_local_port_range": {20000, 62909}} // 42,900 and the ten
	for _, r := range p.Rows {
		for _, w := range r.Writes {
			if n, ok := want[w.Name]; ok && !slices.Equal(n, w.Value) {
				t.Errorf("%s = %v, want %v", w.Name, w.Value, n)
			}
			delete(want, w.Name)
			if w.Name == "net.ipv4.ip_local_port_range" {
				continue
			}
			for i := range w.Now {
				if w.Value[i] < w.Now[i] {
					t.Errorf("%s is lowered from %v to %v", w.Name, w.Now, w.Value)
				}
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("not written: %v", want)
	}
	if n := f.Sysctls["net.ipv4.tcp_mem"]; !slices.Equal(n, []float64{1 << 30, 2000, 3000}) {
		t.Errorf("the facts were changed: %v", n)
	}
}

// TestCannot checks demands that exceed the memory of the host or the highest value of a
// limit.
func TestCannot(t *testing.T) {
	for _, c := range []struct {
		d       Demand
		memory  float64
		want    string
		verdict Verdict
	}{
		{Demand{Connections: 1_000_000, Processes: 4}, 2 << 30, "memory", Cannot},
		{Demand{Connections: 1_000_000, Processes: 4, Memory: 64 << 30}, 2 << 30, "", Set},
		{Demand{Connections: 10_000, Processes: 4, ApplicationMemory: 3 << 30}, 2 << 30, "memory", Cannot},
		{Demand{Connections: 70_000, Outbound: 70_000, Processes: 4}, 64 << 30, "ephemeral_ports", Cannot},
		{Demand{Connections: 60_000, Outbound: 60_000, Processes: 4}, 64 << 30, "", Set},
		{Demand{Connections: 1 << 32, Processes: 1}, 1 << 50, "conntrack_entries", Cannot},
		{Demand{Connections: 100, Processes: 1}, 64 << 30, "", Holds},
	} {
		limits := tight()
		limits["memory"] = c.memory
		p := Make(c.d, host(limits, nil))
		if p.Verdict != c.verdict {
			t.Errorf("%+v: %v, want %v", c.d, p.Verdict, c.verdict)
		}
		if c.want != "" && p.of(c.want).Verdict != Cannot {
			t.Errorf("%+v: the verdict of %s is not Cannot", c.d, c.want)
		}
	}
	// At most the whole range can be used, which leaves less room.
	if r := Make(Demand{Connections: 60_000, Outbound: 60_000, Processes: 1}, host(tight(), nil)).of("ephemeral_ports"); r.Needed != 64512 {
		t.Errorf("%v ports, want the whole range", r.Needed)
	}
}

// TestLowMemory checks that memory of a 32-bit kernel counts as low memory, and that of
// programs does not.
func TestLowMemory(t *testing.T) {
	limits := tight()
	limits["low_memory"] = 800 << 20
	p := Make(Demand{Connections: 300_000, Processes: 4}, host(limits, nil))
	if r := p.of("low_memory"); p.Verdict != Cannot || r.Verdict != Cannot || p.of("memory").Verdict != Holds {
		t.Errorf("%v, %+v", p.Verdict, r)
	}
	p = Make(Demand{Connections: 10_000, Processes: 4, ApplicationMemory: 2 << 30}, host(limits, nil))
	if r := p.of("low_memory"); r.Verdict != Holds || r.Takes != p.Kernel || p.Programs != 2<<30 {
		t.Errorf("%+v", r)
	}
}

// TestBill checks that the bill lists each kind of object of the running kernel once.
func TestBill(t *testing.T) {
	f := host(tight(), nil)
	f.Objects = map[string]float64{"TCP": 3000, "filp": 192, "nf_conntrack": 256}
	p := Make(Demand{Connections: 1000, Loopback: true, Unread: 1000, Processes: 1, TLS: true, ApplicationMemory: 77}, f)
	seen, kernel := map[string]Item{}, 0.0
	for _, i := range p.Bill {
		if _, twice := seen[i.What]; twice {
			t.Errorf("%s is listed twice", i.What)
		}
		seen[i.What] = i
	}
	for what, want := range map[string]Item{
		"TCP":                            {Count: 2000, Each: 3000, Read: true},
		"filp":                           {Count: 2000, Each: 192, Read: true},
		"nf_conntrack":                   {Count: 1000, Each: 256, Read: true},
		"unread data, with its headers":  {Count: 1000, Each: 2216},
		"TLS in programs, approximately": {Count: 2000, Each: tls},
		"programs":                       {Count: 1, Each: 77},
	} {
		want.What = what
		if got := seen[what]; got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if _, ok := seen["dentry"]; ok {
		t.Error("the bill has what this kernel does not have")
	}
	for _, i := range p.Bill {
		kernel += i.Bytes()
	}
	if got := p.Kernel + p.Programs; math.Abs(got-kernel) > 1 || p.Programs != 2000*tls+77 {
		t.Errorf("together %v, want %v", got, kernel)
	}
	// The plan of a host without connection tracking does not mention it.
	limits := tight()
	delete(limits, "conntrack_entries")
	p = Make(Demand{Connections: 1000, Processes: 1}, host(limits, nil))
	if p.of("conntrack_entries") != nil || slices.ContainsFunc(p.Bill, func(i Item) bool { return i.What == "nf_conntrack" }) {
		t.Error("the plan has connection tracking, which this host does not have")
	}
}

// TestProxy checks that each client of a proxy counts for two connections.
func TestProxy(t *testing.T) {
	p := Make(Demand{Connections: 1000, Proxy: true, Opens: 10, Closes: 10, Destinations: 2, Processes: 1}, host(tight(), nil))
	for resource, want := range map[string]float64{
		"process_file_descriptors": 2000, "conntrack_entries": 2000 + 2*10*120, "tcp_time_wait": 2 * 10 * 60, "ephemeral_ports": (1000 + 2*10*60/2.0) / 2,
	} {
		if got := p.of(resource).Takes; got != want {
			t.Errorf("%s: %v, want %v", resource, got, want)
		}
	}
}

// TestValidate checks that an error names the flag.
func TestValidate(t *testing.T) {
	for want, d := range map[string]Demand{
		"":                         {Connections: 1, Processes: 1},
		"--connections=-1":         {Connections: -1, Processes: 1},
		"--connections=0":          {Processes: 1},
		"--connections=4294967297": {Connections: 1<<32 + 1, Processes: 1},
		"--outbound=2":             {Connections: 1, Outbound: 2, Processes: 1},
		"--proxy and --loopback imply --outbound": {Connections: 1, Outbound: 1, Proxy: true, Processes: 1},
		"--proxy and":                       {Connections: 1, Proxy: true, Loopback: true, Processes: 1},
		"--destinations needs":              {Connections: 1, Destinations: 1, Processes: 1},
		"--destinations=3":                  {Connections: 2, Loopback: true, Destinations: 3, Processes: 1},
		"--closes-per-second=3":             {Connections: 1, Opens: 2, Closes: 3, Processes: 1},
		"--listen-pause=-1s":                {Connections: 1, Opens: 2, Pause: -time.Second, Processes: 1},
		"--listen-pause=2h":                 {Connections: 1, Opens: 2, Pause: 2 * time.Hour, Processes: 1},
		"--listen-pause needs":              {Connections: 1, Pause: time.Second, Processes: 1},
		"--listen-pause cannot be combined": {Connections: 1, Outbound: 1, Opens: 1, Pause: time.Second, Processes: 1},
		"--processes=0":                     {Connections: 1},
		"--processes=2":                     {Connections: 1, Processes: 2},
		"--unread=-4":                       {Connections: 1, Unread: -4, Processes: 1},
		"--application-memory=2":            {Connections: 1, Memory: 1, ApplicationMemory: 2, Processes: 1},
		"--memory=-1":                       {Connections: 1, Memory: -1, Processes: 1},
	} {
		err := d.Validate()
		if (err == nil) != (want == "") || err != nil && (!strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%+v: %v, want %s", d, err, want)
		}
	}
}

// TestGrow checks which limit is reached first, and the number of connections at which each is
// reached.
func TestGrow(t *testing.T) {
	limits := tight()
	f := host(limits, map[string]float64{
		"file_descriptors": 9500, "tcp_time_wait": 4710, "conntrack_entries": 20000, "tcp_memory": 1 << 20, "memory": 1 << 30, "ephemeral_ports": 1,
	})
	f.Connections = 9420
	info := slices.IndexFunc(f.Infos, func(l collector.LimitInfo) bool { return l.Resource == "process_file_descriptors" })
	f.Limits = append(f.Limits, collector.LimitReading{LimitInfo: &f.Infos[info], Usage: 300, Limit: 400, Items: []collector.Item{
		{Key: []string{"journald"}, Usage: 300, Limit: 400}, // too few to hold connections
		{Key: []string{"haproxy"}, Usage: 9420, Limit: 10240},
	}})
	g := Grow(f)
	if got, want := g.String(), "This host holds 9,420 connections now. The first limit reached would be file_descriptors, at 9,920."; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for resource, want := range map[string]float64{
		"process_file_descriptors": 10240,
		"file_descriptors":         9420 + 500,
		"tcp_time_wait":            16384,
		"conntrack_entries":        9420 + 45536,
	} {
		at := slices.IndexFunc(g.Steps, func(s Step) bool { return s.Resource == resource })
		if at < 0 {
			t.Errorf("%s is not among the steps", resource)
		} else if s := g.Steps[at]; s.Connections != want || resource == "process_file_descriptors" && s.Item != "haproxy" {
			t.Errorf("%s of %q at %v, want %v", resource, s.Item, s.Connections, want)
		}
	}
	if !slices.IsSortedFunc(g.Steps, func(a, b Step) int { return int(a.Connections - b.Connections) }) {
		t.Errorf("not in order: %v", g.Steps)
	}
	for connections, want := range map[float64]string{0: "This host holds no connections now. The first", 1: "This host holds 1 connection now. The first"} {
		f.Connections = connections
		if got := Grow(f).String(); !strings.HasPrefix(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := Grow(Facts{}).String(); got != "This host holds no connections now. No limit on further connections is known." {
		t.Error(got)
	}
}

// TestNewLimit checks that a limit that is added to a collector appears in the plan.
func TestNewLimit(t *testing.T) {
	f := host(tight(), nil)
	f.Sysctls["net.things"] = []float64{5}
	f.Infos = append(f.Infos, collector.LimitInfo{
		Resource: "things", Unit: collector.Entries, WarningRatio: 0.8, CriticalRatio: 0.9, Effect: "They end.",
		Sysctls: []collector.Sysctl{{Name: "net.things", Unit: collector.Entries}},
		Sizing: collector.Sizing{
			Needs: func(l collector.Load) float64 { return l.Ends() / 10 }, Rule: "a tenth",
			Objects: []collector.Object{{Cache: "thing", Bytes: 100}},
		},
	})
	f.Limits = append(f.Limits, collector.LimitReading{LimitInfo: &f.Infos[len(f.Infos)-1], Limit: 5})
	p := Make(Demand{Connections: 1000, Processes: 1}, f)
	r := p.of("things")
	if r == nil || r.Takes != 100 || r.Verdict != Set || len(r.Writes) != 1 || !slices.Equal(r.Writes[0].Value, []float64{125}) {
		t.Errorf("%+v", r)
	}
	if !slices.Contains(p.Bill, Item{What: "thing", Count: 100, Each: 100}) {
		t.Errorf("the bill is %v", p.Bill)
	}
}

// TestUnite checks that a sysctl that sets two limits is written once, with the higher of the
// values they need.
func TestUnite(t *testing.T) {
	f := host(tight(), nil)
	f.Infos = append(f.Infos, collector.LimitInfo{
		Resource: "things", Unit: collector.Connections, WarningRatio: 0.8, CriticalRatio: 0.9, Effect: "They end.",
		Sysctls: []collector.Sysctl{{Name: "net.core.somaxconn", Unit: collector.Connections}},
		Sizing:  collector.Sizing{Needs: func(collector.Load) float64 { return 8000 }, Rule: "many"},
	})
	f.Limits = append(f.Limits, collector.LimitReading{LimitInfo: &f.Infos[len(f.Infos)-1], Limit: 4096})
	p := Make(Demand{Connections: 9000, Opens: 5000, Pause: time.Second, Processes: 1}, f)
	if w := p.of("accept_queue").Writes; len(w) != 1 || !slices.Equal(w[0].Value, []float64{10000}) {
		t.Errorf("accept_queue writes %v", w)
	}
	if w := p.of("things").Writes; len(w) != 0 || p.of("things").Verdict != Set {
		t.Errorf("things writes %v", w)
	}
}

func TestGroup(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 7: "7", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1234: "-1,234"} {
		if got := Group(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}
