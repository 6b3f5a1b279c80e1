package plan

import (
	"slices"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// TestRemedy checks the commands for a limit that is full: the new value is high enough to
// avoid a warning and is in the unit of the sysctl.
func TestRemedy(t *testing.T) {
	f := host(nil, nil)
	for _, c := range []struct {
		resource     string
		usage, limit float64
		want         []string
	}{
		{"conntrack_entries", 65536, 65536, []string{
			`sysctl -w net.netfilter.nf_conntrack_max=110000 # now 65536`,
			"/etc/modprobe.d, and /etc/modules-load.d so that the sysctl exists at boot: options nf_conntrack hashsize=110000",
			"kube-proxy, which sets it whenever it starts: --conntrack-min=110000",
		}},
		{"tcp_memory", 3000 * 4096, 3000 * 4096, []string{`sysctl -w net.ipv4.tcp_mem="3223 4297 5372" # now 1000 2000 3000`}},
		// The usage exceeds only the soft threshold, not the limit.
		{"tcp_memory", 2100 * 4096, 3000 * 4096, []string{`sysctl -w net.ipv4.tcp_mem="2256 3008 3760" # now 1000 2000 3000`}},
		{"ephemeral_ports", 28232, 28232, []string{`sysctl -w net.ipv4.ip_local_port_range="15036 65535" # now 32768 60999`}},
		{"memory", 60 << 30, 64 << 30, nil},
	} {
		at := slices.IndexFunc(f.Infos, func(l collector.LimitInfo) bool { return l.Resource == c.resource })
		got := f.remedy(&collector.LimitReading{LimitInfo: &f.Infos[at], Usage: c.usage, Limit: c.limit})
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.resource, got, c.want)
		}
	}
}
