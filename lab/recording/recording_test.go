package recording_test

import (
	"bytes"
	"math"
	"reflect"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

func TestWriteAndParse(t *testing.T) {
	nan := math.NaN()
	for notation, values := range map[string][]float64{
		"1+0x4":               {1, 1, 1, 1, 1},
		"_x2 5+2x2":           {nan, nan, 5, 7, 9},
		"9-3x2 1 _":           {9, 6, 3, 1, nan},
		"0.1 0.2 0.4 0.8 1.6": {0.1, 0.2, 0.4, 0.8, 1.6},
		"9007199254740992 9007199254740994 1 1 2": {1 << 53, 1<<53 + 2, 1, 1, 2},
		"-5+10x2 0 -0.5": {-5, 5, 15, 0, -0.5},
	} {
		if got := recording.Notation(values); got != notation {
			t.Errorf("%v is written %q, not %q", values, got, notation)
		}
		want := &recording.Recording{
			Kernel: "6.1", Release: "6.1.0-1-amd64", Scenario: "s", Resource: "r", Steps: 5, Refusal: 3, Refused: "connect: timed out",
			Log:    []recording.Line{{Step: 3, Text: "nf_conntrack: table full, dropping packet"}},
			Series: []recording.Series{{Name: `sockpressure_a{process="a } b"}`, Values: values}},
		}
		var b bytes.Buffer
		if err := want.Write(&b); err != nil {
			t.Fatal(err)
		}
		got, err := recording.Parse(b.Bytes())
		if err != nil {
			t.Fatalf("%v in\n%s", err, b.String())
		}
		for i, v := range got.Series[0].Values {
			if math.IsNaN(v) && math.IsNaN(values[i]) {
				got.Series[0].Values[i], want.Series[0].Values[i] = 0, 0
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("read %+v, written %+v", got, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"", "steps: 1\n", "steps: x\n", "steps: 1\nwhat\n", "steps: 1\nkey: value\n", "log: x y\n",
		"steps: 2\nsockpressure_a 1\n", "steps: 1\nsockpressure_a\n", "steps: 1\nsockpressure_a b\n",
		"steps: 3\nsockpressure_a 1x2\n", "steps: 3\nsockpressure_a 1+1x\n", "steps: 3\nsockpressure_a 1+x2\n",
	} {
		if r, err := recording.Parse([]byte(text)); err == nil {
			t.Errorf("%q is read as %+v", text, r)
		}
	}
}
