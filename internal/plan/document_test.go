package plan

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

var update = flag.Bool("update", false, "write docs/sizing.md")

// TestDocument checks that docs/sizing.md matches the definitions of the limits.
func TestDocument(t *testing.T) {
	var b strings.Builder
	page := template.Must(template.New("sizing.md.tmpl").Funcs(template.FuncMap{
		"settings": func(l collector.LimitInfo) string {
			var names []string
			for _, s := range l.Sysctls {
				name := "`" + s.Name + "`"
				if s.Unit != l.Unit {
					name += ", in " + string(s.Unit)
				}
				names = append(names, name)
			}
			return cmp.Or(strings.Join(names, "; "), l.SetBy())
		},
		"owner": func(l collector.LimitInfo) string {
			switch {
			case slices.ContainsFunc(l.Sysctls, func(s collector.Sysctl) bool { return s.PerNetns }):
				return "network namespace"
			case l.List != nil:
				return l.List.Column
			}
			return "-"
		},
		"example": func(line string) string {
			line, _, _ = strings.Cut(line, ";")
			return strings.NewReplacer("%.0[1]f", "N", "%.0f", "N").Replace(line)
		},
		"objects": func(objects []collector.Object) string {
			var words []string
			for _, o := range objects {
				if o.Bytes == 0 {
					continue
				}
				words = append(words, fmt.Sprintf("%s %.0f", o.Cache, o.Bytes))
			}
			return strings.Join(words, ", ")
		},
		"sum": func(objects []collector.Object) string {
			s := collector.Sizing{Objects: objects}
			return Group(s.UnitBytes())
		},
	}).ParseFiles("sizing.md.tmpl"))
	f := stock()
	if err := page.Execute(&b, map[string]any{
		"Limits":   slices.DeleteFunc(slices.Clone(f.Infos), func(l collector.LimitInfo) bool { return l.Rule == "" }),
		"Socket":   collector.Socket(),
		"TLS":      tls >> 10,
		"Memory":   bytesOf(stockMemory),
		"Examples": examples(t, f),
	}); err != nil {
		t.Fatal(err)
	}
	const path = "../../docs/sizing.md"
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(path); err != nil || string(have) != b.String() {
		t.Errorf("docs/sizing.md is stale (%v): go test ./internal/plan -update", err)
	}
}

// TestSized checks that each limit that depends on connections has a rule.
func TestSized(t *testing.T) {
	for _, s := range collector.Specs() {
		for _, l := range s.Limits {
			if l.Needs != nil && l.Rule == "" {
				t.Errorf("%s has Needs and no Rule", l.Resource)
			}
			for _, setting := range l.Settings {
				if text := fmt.Sprintf(setting.Line, 77.0); !strings.Contains(text, "77") || strings.Contains(text, "%!") {
					t.Errorf("%s: %q becomes %q", l.Resource, setting.Line, text)
				}
			}
		}
	}
}

// stockMemory is the memory of the host in the document.
const stockMemory = 64 << 30

// stock returns the facts of a host with 64 GiB and the defaults of Linux 6.12 and systemd
// 257.
func stock() Facts {
	f := host(map[string]float64{
		"tcp_memory": 1548288 * 4096, "file_descriptors": 9223372036854775807, "conntrack_entries": 262144, "ephemeral_ports": 28232,
		"tcp_time_wait": 262144, "tcp_orphans": 262144, "memory": stockMemory,
	}, nil)
	f.Sysctls["net.ipv4.tcp_mem"] = []float64{774144, 1032192, 1548288}
	f.Sysctls["fs.nr_open"] = []float64{1 << 20}
	return f
}

type example struct{ Flags, Verdict, Memory, Set string }

func examples(t *testing.T, f Facts) []example {
	var all []example
	for _, e := range []struct {
		flags string
		Demand
	}{
		{"--connections=10000", Demand{Connections: 10_000}},
		{"--connections=100000 --opens-per-second=1000 --listen-pause=2s --unread=4KiB", Demand{Connections: 100_000, Opens: 1000, Pause: 2 * time.Second, Unread: 4096}},
		{"--connections=1000000", Demand{Connections: 1_000_000}},
		{"--connections=1000000 --opens-per-second=5000 --closes-per-second=5000 --listen-pause=1s --unread=4KiB", Demand{Connections: 1_000_000, Opens: 5000, Closes: 5000, Pause: time.Second, Unread: 4096}},
		{"--connections=500000 --proxy --destinations=20 --tls", Demand{Connections: 500_000, Proxy: true, Destinations: 20, TLS: true}},
		{"--connections=500000 --proxy --destinations=4", Demand{Connections: 500_000, Proxy: true, Destinations: 4}},
		{"--connections=10000000 --unread=4KiB", Demand{Connections: 10_000_000, Unread: 4096}},
	} {
		e.Processes = 1
		if err := e.Validate(); err != nil {
			t.Fatal(err)
		}
		p := Make(e.Demand, f)
		var set []string
		for _, r := range p.Rows {
			switch {
			case r.Verdict == Cannot:
				set = append(set, r.Resource+" does not fit")
			case r.Verdict == Set && p.Verdict == Set:
				for _, w := range r.Writes {
					set = append(set, "`"+w.Name+" = "+strings.Trim(fmt.Sprintf("%.0f", w.Value), "[]")+"`")
				}
				for _, s := range r.Settings[:min(len(r.Settings), 1)] {
					line, _, _ := strings.Cut(fmt.Sprintf(s.Line, r.Needed), ";")
					set = append(set, "`"+line+"`")
				}
			}
		}
		all = append(all, example{e.flags, p.Verdict.String(), bytesOf(p.Kernel), cmp.Or(strings.Join(set, "<br>"), "-")})
	}
	return all
}

func bytesOf(v float64) string {
	return collector.LimitReading{LimitInfo: &collector.LimitInfo{Unit: collector.Bytes}}.Format(v)
}
