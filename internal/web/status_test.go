package web

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
)

// recorded returns a handler for a recorded kernel, some of whose files are replaced.
func recorded(t *testing.T, files map[string]string) http.Handler {
	t.Helper()
	c := Config{TelemetryPath: "/metrics", MaxRequests: 1, Host: "<node>", Version: "1.2.3", Logger: slog.New(slog.DiscardHandler)}
	return handler(recordedSet(t, files), c)
}

func recordedSet(t testing.TB, files map[string]string) *collector.Set {
	t.Helper()
	proc := t.TempDir()
	if err := os.CopyFS(proc, os.DirFS("../../testdata/linux-6.12/proc")); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		name = filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m, err := kernel.Open(kernel.Options{ProcPath: proc, SysPath: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	return collector.NewSet(m, collector.Specs(), collector.Config{Top: 10, Logger: slog.New(slog.DiscardHandler)})
}

// get returns the header and the body of a page.
func get(t *testing.T, h http.Handler, path string) (header http.Header, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody))
	if w.Code != http.StatusOK {
		t.Fatalf("%s: %d %s", path, w.Code, w.Body)
	}
	return w.Header(), strings.ReplaceAll(w.Body.String(), "<wbr>", "")
}

// found returns what the first group of the pattern matches in each match.
func found(text, pattern string) []string {
	var all []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		all = append(all, html.UnescapeString(m[1]))
	}
	return all
}

// TestStatus checks that the page shows the limits of /metrics in order, and explains what is
// missing.
func TestStatus(t *testing.T) {
	h := recorded(t, map[string]string{
		"sys/net/netfilter/nf_conntrack_count": "49152\n",
		"sys/fs/file-nr":                       "1\t0\t9223372036854775807\n",
	})
	_, page := get(t, h, "/")
	_, metrics := get(t, h, "/metrics")
	got := map[string]string{}
	names, values := found(page, `(?s)<li class="limit.*?<h3><a[^>]*>(\w+)</a>`), found(page, `(?s)<li class="limit.*?aria-valuenow="([^"]*)"`)
	for i, name := range names {
		got[name] = values[i]
	}
	for _, m := range regexp.MustCompile(`(?m)^sockpressure_saturation_ratio\{resource="(\w+)"\} (.*)$`).FindAllStringSubmatch(metrics, -1) {
		if got[m[1]] != m[2] {
			t.Errorf("%s is %q on the page, %s in /metrics", m[1], got[m[1]], m[2])
		}
		delete(got, m[1])
	}
	if len(got) > 0 {
		t.Errorf("not in /metrics: %v", got)
	}
	if len(names) == 0 || names[0] != "conntrack_entries" {
		t.Errorf("the order is %v", names)
	}
	for _, want := range []string{
		"<title>1 warning, limits missing · &lt;node&gt; · sockpressure_exporter</title>",
		"49152 of 65536 entries",
		"1 descriptor, no limit",
		"nf_conntrack: table full, dropping packet",
		"net.netfilter.nf_conntrack_max",
		"to raise it: <code>sysctl -w net.netfilter.nf_conntrack_max=82000 # now 65536</code>",
		`href="./metrics"`,
		"/docs/metrics.md#conntrack_entries",
		`Failed: <a href="#collector-tcp">tcp</a>, <a href="#collector-ports">ports</a>`,
		"1.2.3",
	} {
		if !strings.Contains(page, want) && !strings.Contains(html.UnescapeString(page), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// TestRunbooks checks that every limit has a section, and that the contents link to it.
func TestRunbooks(t *testing.T) {
	_, page := get(t, recorded(t, nil), runbooksPath)
	for _, s := range collector.Specs() {
		for _, l := range s.Limits {
			id := runbook(l.Resource)
			if !strings.Contains(page, `id="`+id+`"`) || !strings.Contains(page, `<a class="level3" href="#`+id+`">`) {
				t.Errorf("%s: no section %q, or no way to it", l.Resource, id)
			}
		}
	}
	if !strings.Contains(page, `id="`+netnsRunbook+`"`) {
		t.Errorf("no section %q", netnsRunbook)
	}
}

// TestStatusHeadroom checks that the page shows how far the load can grow if all limits are
// ok, and only then.
func TestStatusHeadroom(t *testing.T) {
	for entries, want := range map[string]bool{"100\n": true, "65000\n": false} {
		_, page := get(t, recorded(t, map[string]string{"sys/net/netfilter/nf_conntrack_count": entries}), "/")
		if strings.Contains(page, "connections now. The first limit reached would be ") != want {
			t.Errorf("%s entries: headroom is not %v", entries, want)
		}
	}
}

// TestStatusPolicy checks that the content security policy of the page forbids loading
// anything, and that the page does not try to.
func TestStatusPolicy(t *testing.T) {
	h := recorded(t, nil)
	header, page := get(t, h, "/")
	style := found(page, `(?s)<style>(.*?)</style>`)
	if len(style) != 1 {
		t.Fatalf("%d styles", len(style))
	}
	hash := sha256.Sum256([]byte(style[0]))
	want := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) +
		"'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	if got := header.Get("Content-Security-Policy"); got != want {
		t.Errorf("the policy is %q, not %q", got, want)
	}
	if strings.Contains(page, "<script") || strings.Contains(page, " style=") || strings.Contains(page, "<link rel=\"stylesheet") ||
		regexp.MustCompile(`(src|srcset)=|url\(|@import`).MatchString(page) {
		t.Error("the page loads something")
	}
	_, still := get(t, h, "/?still")
	if !strings.Contains(page, `http-equiv="refresh"`) || strings.Contains(still, `http-equiv="refresh"`) {
		t.Error("the page is not refreshed, or refreshing cannot be turned off")
	}
}

// TestStatusWords checks that the page explains why something is missing.
func TestStatusWords(t *testing.T) {
	foreign := errors.New(`<b>may not enter</b>`)
	p := newView(&collector.Reading{Results: []collector.Result{
		{Collector: "tcp", Infos: limitsOf(t, "tcp"), Err: errors.New("no <result>")},
		{Collector: "conntrack", Unsupported: &collector.NotSupportedError{Feature: "the module nf_conntrack"}},
		{Collector: "process", Infos: limitsOf(t, "process"), Age: 3200 * time.Millisecond},
	}})
	p.View = kernel.View{Network: foreign, Processes: errors.New("of another PID namespace")}
	var b strings.Builder
	if err := parse().Execute(&b, p); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, want := range []string{
		"Not read: no &lt;result&gt;",
		"not supported: the module nf_conntrack",
		"read 3.2 s ago",
		"<title>limits missing ·",
		"This is not the whole host.",
		"Cannot see its network: &lt;b&gt;may not enter&lt;/b&gt;.",
		"Cannot see its processes: of another PID namespace.",
		"No limit could be read.",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	const note = "The bar and the percentage are those of its fullest socket"
	b.Reset()
	if err := parse().Execute(&b, newView(&collector.Reading{Results: []collector.Result{{Collector: "tcp", Infos: limitsOf(t, "tcp")}}})); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(page, note) || !strings.Contains(b.String(), note) {
		t.Error("the note on lists is shown without a list, or missing with one")
	}
}

// TestStatusLog checks that a kernel message is shown next to its limit for a day and longer
// in the list of messages, and that a peak is shown if it is above the current value.
func TestStatusLog(t *testing.T) {
	conntrack := limitsOf(t, "conntrack")[0]
	at := func(d time.Duration, text string, resources ...string) collector.Note {
		return collector.Note{Message: "conntrack_table_full", Resources: resources, Text: text, At: time.Now().Add(-d)}
	}
	show := func(peak float64, notes ...collector.Note) string {
		var b strings.Builder
		if err := parse().Execute(&b, newView(&collector.Reading{Results: []collector.Result{
			{Collector: "conntrack", Limits: []collector.LimitReading{{LimitInfo: &conntrack, Usage: 50, Limit: 100, Peak: collector.Number{Value: peak, Present: true}}}},
			{Collector: "kmsg", Notes: notes},
		}})); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	page := show(0.993, at(3*time.Minute, "<b>table full", "conntrack_entries"), at(25*time.Hour, "of something else"))
	for _, want := range []string{
		"Kernel message 3 minutes ago: <q>&lt;b&gt;table full</q>", "peak in the last minute 99.3 %", "Kernel messages", "1 day ago</time>: <q>of something else</q>",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if page := show(0.5, at(25*time.Hour, "table full", "conntrack_entries")); strings.Contains(page, "Kernel message ") || strings.Contains(page, "peak in") {
		t.Error("an old message or a lower peak is shown next to the limit")
	}
}

// limitsOf returns the limits of a collector.
func limitsOf(t *testing.T, name string) []collector.LimitInfo {
	t.Helper()
	for _, s := range collector.Specs() {
		if s.Name == name {
			return s.Limits
		}
	}
	t.Fatalf("there is no collector %s", name)
	return nil
}

func TestBarAmount(t *testing.T) {
	for _, c := range []struct {
		unit         collector.Unit
		usage, limit float64
		want         string
	}{
		{collector.Ports, 0, 1, "0 of 1 port"},
		{collector.Ports, 1, 2, "1 of 2 ports"},
		{collector.Entries, 1, 1 << 63, "1 entry, no limit"},
		{collector.Bytes, 1, 4 << 20, "1 byte of 4.0 MiB"},
	} {
		l := collector.LimitReading{LimitInfo: &collector.LimitInfo{Unit: c.unit}, Usage: c.usage, Limit: c.limit}
		if got := l.Amount(c.usage, c.limit); got != c.want {
			t.Errorf("%v of %v %s: %q, want %q", c.usage, c.limit, c.unit, got, c.want)
		}
	}
}

// TestHeadline checks that the headline and the limits start with the worst.
func TestHeadline(t *testing.T) {
	limit := func(usage float64) collector.LimitReading {
		return collector.LimitReading{LimitInfo: &collector.LimitInfo{WarningRatio: 0.5, CriticalRatio: 0.9}, Usage: usage, Limit: 1}
	}
	for want, usages := range map[string][]float64{
		"ok":                    {0.1},
		"1 warning":             {0.1, 0.5},
		"2 critical, 1 warning": {0.9, 0.6, 1.2, 0},
	} {
		var r collector.Result
		for _, u := range usages {
			r.Limits = append(r.Limits, limit(u))
		}
		p := newView(&collector.Reading{Machine: new(kernel.Machine), Results: []collector.Result{r}})
		if got := p.Headline(); got != want {
			t.Errorf("%v: %q, want %q", usages, got, want)
		}
		if !slices.IsSortedFunc(p.Limits, func(a, b bar) int { return int(b.Usage*10) - int(a.Usage*10) }) {
			t.Errorf("%v: not in order", usages)
		}
	}
}
