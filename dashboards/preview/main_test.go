package main

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// TestDraw draws the dashboards as they are, with a Prometheus that has the same
// answer to everything: half of it for the one series, all for the other.
func TestDraw(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		if q := r.FormValue("query"); strings.Contains(q, "$") {
			t.Errorf("a variable is left: %s", q)
		}
		const one = `{"metric":{"resource":"tcp_memory","instance":"<a>","job":"j","alertname":"SockPressureX","severity":"critical"},%q:%s},{"metric":{"resource":"udp_memory","instance":"b"},%[1]q:%[3]s}`
		name, a, b := "value", `[60,"0.5"]`, `[60,"1"]`
		if strings.HasSuffix(r.URL.Path, "_range") {
			name, a, b = "values", `[[0,"0.5"],[30,"0.5"],[60,"0.5"]]`, `[[0,"1"],[60,"NaN"]]`
		}
		fmt.Fprintf(w, `{"data":{"result":[`+one+`]}}`, name, a, b)
	}))
	defer server.Close()

	for _, name := range []string{"fleet", "node"} {
		asked = 0
		var page strings.Builder
		args := []string{"-prometheus=" + server.URL, "-at=1970-01-01T00:01:00Z", "-last=1m", "-step=30s", "-note=a <note>", "../sockpressure-" + name + ".json"}
		if err := run(args, &page, io.Discard); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Sockpressure / ", "00:00 to 00:01 UTC", "Preview", "a &lt;note&gt;", "&lt;a&gt;", "tcp_memory", `width: 50.0%`, "50%", "<polyline"} {
			if !strings.Contains(page.String(), want) {
				t.Errorf("%s: %q is not there", name, want)
			}
		}
		for _, never := range []string{"<a>", "ZgotmplZ", "NaN", "No data"} {
			if strings.Contains(page.String(), never) {
				t.Errorf("%s: %q is there", name, never)
			}
		}
		if name == "node" && !strings.Contains(page.String(), `<path class="alert"`) {
			t.Error("no alert is marked")
		}
		if asked < 13 {
			t.Errorf("%s: %d queries were asked", name, asked)
		}
	}

	var page strings.Builder
	if err := run([]string{"-prometheus=" + server.URL, "-rows=1", "../sockpressure-node.json"}, &page, io.Discard); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(page.String(), "<section"); got != 3 {
		t.Errorf("%d panels before the first heading, want 3", got)
	}
	page.Reset()
	if err := run([]string{"-prometheus=" + server.URL, "-row=Pods", "../sockpressure-fleet.json"}, &page, io.Discard); err != nil {
		t.Fatal(err)
	}
	if got := page.String(); !strings.Contains(got, "Worst pods") || strings.Count(got, "<section") != 3 || !strings.Contains(got, "grid-row: 1 /") {
		t.Errorf("the row of pods is %s", got)
	}
}

// TestErrors expects every mistake to be told, and a query that Prometheus
// refuses to be named.
func TestErrors(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "parse error", http.StatusBadRequest)
	}))
	defer server.Close()
	quiet := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"status": "success", "data": {"resultType": "matrix", "result": []}}`)
	}))
	defer quiet.Close()
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "one dashboard"},
		{[]string{"none.json"}, "none.json"},
		{[]string{"-at=noon", "../sockpressure-node.json"}, "-at"},
		{[]string{"-last=0s", "../sockpressure-node.json"}, "above 0"},
		{[]string{"-prometheus=" + server.URL, "../sockpressure-fleet.json"}, "Nodes: sum(("},
		{[]string{"-prometheus=" + quiet.URL, "-row=None", "../sockpressure-fleet.json"}, `no row "None"`},
	} {
		if err := run(test.args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %v, want %q in it", test.args, err, test.want)
		}
	}
}

func TestPieces(t *testing.T) {
	none := math.NaN()
	got := pieces([]float64{none, 1, 2, none, none, 3})
	if want := [][2]int{{1, 3}, {5, 6}}; !slices.Equal(got, want) {
		t.Errorf("pieces %v, want %v", got, want)
	}
}

func TestScale(t *testing.T) {
	for _, test := range []struct {
		top  float64
		unit string
		want []float64
	}{
		{0, "short", []float64{0, 0.2, 0.4, 0.6000000000000001, 0.8, 1}},
		{9, "short", []float64{0, 2, 4, 6, 8}},
		{4096, "short", []float64{0, 1000, 2000, 3000, 4000}},
		{64 << 20, "bytes", []float64{0, 16 << 20, 32 << 20, 48 << 20, 64 << 20}},
	} {
		if got := scale(test.top, test.unit); !slices.Equal(got, test.want) {
			t.Errorf("scale(%v, %s) = %v, want %v", test.top, test.unit, got, test.want)
		}
	}
}

func TestText(t *testing.T) {
	for _, test := range []struct {
		value float64
		unit  string
		want  string
	}{
		{0.931, "percentunit", "93.1%"},
		{1, "percentunit", "100%"},
		{13 << 20, "bytes", "13 MiB"},
		{28232, "short", "28.2 K"},
		{2.2, "cps", "2.2 c/s"},
		{0.0021, "s", "2.1 ms"},
		{90, "s", "90 s"},
		{0, "short", "0"},
		{math.NaN(), "short", ""},
	} {
		if got := (field{Unit: test.unit}).text(test.value); got != test.want {
			t.Errorf("%v in %s: %q, want %q", test.value, test.unit, got, test.want)
		}
	}
}
