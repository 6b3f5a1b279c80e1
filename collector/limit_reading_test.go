package collector

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
)

// TestLevel checks the levels at the ratios of the limit, and that the warning begins at the
// soft threshold of the kernel if that is lower.
func TestLevel(t *testing.T) {
	info := &LimitInfo{Resource: "r", WarningRatio: 0.7, CriticalRatio: 0.9}
	for _, c := range []struct {
		usage, soft float64 // of a limit of 1000; 0 is none
		want        Level
	}{
		{690, 0, OK},
		{700, 0, Warning},
		{900, 0, Critical},
		{690, 666, Warning},
		{660, 666, OK},
		{500, 500, Warning},
		{710, 800, Warning},
		{950, 980, Critical},
	} {
		l := LimitReading{LimitInfo: info, Usage: c.usage, Limit: 1000}
		if c.soft > 0 {
			l.soft = number(c.soft)
		}
		if got := l.Level(); got != c.want {
			t.Errorf("usage %v, soft %v: %v, want %v", c.usage, c.soft, got, c.want)
		}
	}
	for _, c := range []struct {
		host, netns float64
		most, want  Level
	}{
		{0.1, 0.1, Critical, OK},
		{0.1, 0.7, Warning, Warning},
		{0.1, 2, Warning, Warning},
		{0.1, 2, Critical, Critical},
		{0.9, 2, Warning, Critical},
		{0.9, 0.1, Warning, Critical},
	} {
		l := LimitReading{LimitInfo: info, Usage: c.host, Limit: 1, Netns: &NetnsLimit{Saturation: c.netns, Most: c.most}}
		if got := l.Level(); got != c.want {
			t.Errorf("%v on the host, %v in another network namespace, at most %v: %v, want %v", c.host, c.netns, c.most, got, c.want)
		}
	}
}

// TestOtherNamespaces checks that the limits are ordered by severity, that the values of
// another namespace are shown as its own, and that a limit that only another namespace has is
// listed once it is close to being reached.
func TestOtherNamespaces(t *testing.T) {
	infos := []LimitInfo{
		{Resource: "fine", Unit: Entries, WarningRatio: 0.7, CriticalRatio: 0.9},
		{Resource: "pod", Unit: Connections, WarningRatio: 0.7, CriticalRatio: 1},
		{Resource: "host", Unit: Ports, WarningRatio: 0.7, CriticalRatio: 0.9},
		{Resource: "absent", Unit: Connections, WarningRatio: 0.7, CriticalRatio: 1},
		{Resource: "absent and fine", Unit: Connections, WarningRatio: 0.7, CriticalRatio: 1},
	}
	r := &Reading{Results: []Result{
		{Infos: infos, Limits: []LimitReading{
			{LimitInfo: &infos[0], Usage: 1, Limit: 10},
			{LimitInfo: &infos[1], Usage: 0, Limit: 128},
			{LimitInfo: &infos[2], Usage: 19, Limit: 20},
		}},
		{netns: []NetnsLimit{
			{Resource: "fine", Name: "name/a", Usage: 1, Limit: 100, Saturation: 0.01, Most: Critical},
			{Resource: "pod", Name: "name/it's", Item: "[::]:80", Usage: 65, Limit: 64, Saturation: 65. / 64, Most: Warning},
			{Resource: "absent", Name: "name/b", Item: "/run/s", Usage: 6, Limit: 5, Saturation: 1.2, Most: Warning},
			{Resource: "absent and fine", Name: "name/b", Usage: 1, Limit: 5, Saturation: 0.2, Most: Warning},
		}},
	}}
	limits := r.Limits()
	for i, want := range []struct {
		resource     string
		level        Level
		usage, limit float64
		only         bool
		args         string
	}{
		{"host", Critical, 19, 20, false, "who host"},
		{"absent", Warning, 6, 5, true, "who absent --netns=name/b"},
		{"pod", Warning, 65, 64, false, `who pod --netns='name/it'\''s'`},
		{"fine", OK, 1, 10, false, "who fine"},
	} {
		if len(limits) != 4 {
			t.Fatalf("%d limits", len(limits))
		}
		l := limits[i]
		usage, limit := l.Shown()
		if l.Resource != want.resource || l.Level() != want.level || usage != want.usage || limit != want.limit || l.OnlyNetns != want.only || l.WhoArgs() != want.args {
			t.Errorf("%s: %v, %v of %v, only in a namespace: %v, %s; want %+v", l.Resource, l.Level(), usage, limit, l.OnlyNetns, l.WhoArgs(), want)
		}
	}
	if got := limits[2].NetnsAmount(); got != "65 of 64 connections, [::]:80" {
		t.Errorf("the pod uses %q", got)
	}
}

// TestPressure checks that TCP memory is at its warning level between the pressure threshold
// of this host, two thirds of the limit, and the warning ratio of all hosts.
func TestPressure(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../testdata/linux-6.12")); err != nil {
		t.Fatal(err)
	}
	const used = "TCP: inuse 5 orphan 0 tw 4 alloc 10 mem 31000\n" // of 45498 pages
	path := filepath.Join(dir, "proc/net/sockstat")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b = regexp.MustCompile(`(?m)^TCP: .*\n`).ReplaceAll(b, []byte(used))
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	m := machine(t, kernel.Options{ProcPath: filepath.Join(dir, "proc"), SysPath: filepath.Join(dir, "sys")})
	set := NewSet(m, []Spec{sockstatSpec()}, Config{Logger: slog.New(slog.DiscardHandler)})
	for _, l := range set.Read(t.Context(), Query{}).Limits() {
		if l.Resource != "tcp_memory" {
			continue
		}
		if s := l.Saturation(); s < 0.67 || s >= l.WarningRatio || l.Level() != Warning {
			t.Errorf("at %v of the limit: level %v", s, l.Level())
		}
		return
	}
	t.Error("there is no limit of TCP memory")
}
