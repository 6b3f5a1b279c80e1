package collector

import (
	"encoding/binary"
	"errors"
	"iter"
	"maps"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/ctnetlink"
)

// netfilter is a netfilter socket of a kernel that has counted drops on each CPU.
type netfilter struct {
	drops []uint32 // by CPU
	err   error
}

func (n *netfilter) Send(m netlink.Message) (netlink.Message, error) { return m, nil }

func (n *netfilter) ReceiveIter() iter.Seq2[netlink.Message, error] {
	return func(yield func(netlink.Message, error) bool) {
		if n.err != nil {
			yield(netlink.Message{}, n.err)
			return
		}
		for cpu, v := range n.drops {
			attribute, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: 10, Data: binary.BigEndian.AppendUint32(nil, v)}})
			m := netlink.Message{
				Header: netlink.Header{Type: 0x104, Flags: netlink.Multi},
				Data:   append([]byte{0, 0, 0, byte(cpu)}, attribute...),
			}
			if !yield(m, err) {
				return
			}
		}
	}
}

func (n *netfilter) SetDeadline(time.Time) error { return nil }

func (n *netfilter) Close() error { return nil }

// TestConntrackWithoutFile checks that the counters of a kernel without
// CONFIG_NF_CONNTRACK_PROCFS are read over netlink.
func TestConntrackWithoutFile(t *testing.T) {
	tr := newTree(t, "linux-6.12")
	tr.remove("proc/net/stat/nf_conntrack")
	kernel := &netfilter{}
	tr.ctnetlink = func() (ctnetlink.Conn, error) { return kernel, nil }
	set := tr.set()
	defer closeSet(t, set)
	broken := errors.New("broken")
	for _, step := range []struct {
		name   string
		drops  []uint32
		err    error
		want   map[string]float64
		failed bool
	}{
		{name: "first", drops: []uint32{1<<32 - 2, 5}, want: map[string]float64{"conntrack_drops_total": 1<<32 + 3}},
		{name: "one wraps", drops: []uint32{1, 5}, want: map[string]float64{"conntrack_drops_total": 1<<32 + 6}},
		{name: "not permitted", err: unix.EPERM},
		{name: "not supported", err: unix.EOPNOTSUPP},
		{name: "broken", err: broken, failed: true},
		{name: "works again", drops: []uint32{2, 6}, want: map[string]float64{"conntrack_drops_total": 1<<32 + 8}},
	} {
		kernel.drops, kernel.err = step.drops, step.err
		for _, r := range set.Read(t.Context(), Query{Choose: func(name string) bool { return name == "conntrack" }}).Results {
			got := map[string]float64{}
			for _, s := range r.samples {
				got[s.metric.Name] = s.value
			}
			for _, always := range []string{"conntrack_entries", "conntrack_entries_limit", "conntrack_buckets"} {
				if _, ok := got[always]; !ok {
					t.Errorf("%s: no %s", step.name, always)
				}
				delete(got, always)
			}
			if !maps.Equal(got, step.want) || (r.Err != nil) != step.failed || errors.Is(r.Err, broken) != step.failed {
				t.Errorf("%s: %v, want %v; %v", step.name, got, step.want, r.Err)
			}
		}
	}
}
