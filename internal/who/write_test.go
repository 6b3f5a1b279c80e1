package who

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

func answer() *Answer {
	a := &Answer{
		Resource: "tcp_memory", By: ByUnit, Things: "sockets", ByMemory: true, HasMemory: true,
		Count: 2_059_200, Memory: 3 << 30, Namespaces: 3, TooLow: 1 << 20, Notes: []string{"The descriptors of 2 processes are hidden."},
	}
	for _, g := range []Group{
		{Who: "unit/nginx.service", Count: 59_200, Memory: 1 << 30, Processes: []string{"nginx[812]", "nginx[813]"}, MoreProcesses: 6, Mostly: "at *:443"},
		{Who: "pod/shop/cart-0", Namespace: "shop", Pod: "cart-0", Count: 1_999_999, Memory: 2 << 30, Processes: []string{"java[30]"}, Estimated: true},
		{Who: "in no unit, user web", Count: 1},
	} {
		g.score = g.Memory
		a.add(g)
	}
	a.finish(2)
	return a
}

func limit() Limit {
	return Limit{Reading: &collector.LimitReading{
		LimitInfo: &collector.LimitInfo{Resource: "tcp_memory", Unit: collector.Bytes, Effect: "Connections are reset.", WarningRatio: 0.7, CriticalRatio: 0.9},
		Usage:     3 << 30, Limit: 3435973837,
	}}
}

func TestText(t *testing.T) {
	var out bytes.Buffer
	if err := answer().WriteText(&out, limit()); err != nil {
		t.Fatal(err)
	}
	const want = `tcp_memory: critical, 93.7% of its limit (3.0 GiB of 3.2 GiB)
When the limit is reached: Connections are reset.
2,059,200 sockets with 3.0 GiB in 3 network namespaces, by unit; the limit counts 3.0 GiB:
SHARE  CUMULATIVE  MEMORY    SOCKETS     UNIT, CONTAINER OR POD  PROCESS                         MOSTLY
66.7%  66.7%       ~2.0 GiB  ~1,999,999  pod/shop/cart-0         java[30]                        -
33.3%  100.0%      1.0 GiB   59,200      unit/nginx.service      nginx[812], nginx[813], 6 more  at *:443
0.0% is in very many more (see --top).
~ marks estimates, from a sample of the descriptors of processes with more than 1,024.
The numbers of a group may be too low by up to 1.0 MiB because there are very many groups.
The descriptors of 2 processes are hidden.
`
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}
	for text, l := range map[string]Limit{
		"tcp_memory: this limit is not enforced on this machine, or nothing has it\n": {},
		"tcp_memory: the limit could not be read: nothing\n":                          {Err: errors.New("nothing")},
	} {
		out.Reset()
		if err := (&Answer{Resource: "tcp_memory", Things: "sockets", Stopped: true}).WriteText(&out, l); err != nil || out.String() != text+"Stopped early. No sockets were found.\n" {
			t.Errorf("%q, %v", out.String(), err)
		}
	}
}

// TestJSON checks that the output always has all fields that README.md documents.
func TestJSON(t *testing.T) {
	var out bytes.Buffer
	if err := answer().WriteJSON(&out, limit()); err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	g := doc["groups"].([]any)[0].(map[string]any)
	if doc["state"] != "critical" || doc["by"] != "unit" || doc["count"] != 2_059_200.0 || doc["more_groups"] != 1.0 || g["pod"] != "cart-0" ||
		g["memory_bytes"] != float64(2<<30) || g["estimated"] != true || g["pid"] != nil {
		t.Error(out.String())
	}
	full := keys(doc) + keys(g)
	out.Reset()
	a := &Answer{Resource: "netdev_backlog", Nobody: "Nobody.", Groups: []Group{{}}}
	if err := a.WriteJSON(&out, Limit{}); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if got := keys(doc) + keys(doc["groups"].([]any)[0].(map[string]any)); got != full || doc["state"] != nil || !strings.Contains(out.String(), `"Nobody."`) {
		t.Errorf("%s, want %s", got, full)
	}
}

func keys(of map[string]any) string { return strings.Join(slices.Sorted(maps.Keys(of)), " ") }
