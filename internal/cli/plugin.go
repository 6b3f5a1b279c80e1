package cli

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// threshold is a saturation on the command line, such as 0.8 or 80%; 0 if none is given.
type threshold float64

// Set parses a ratio or a percentage.
func (t *threshold) Set(text string) error {
	digits, percent := strings.CutSuffix(text, "%")
	v, err := strconv.ParseFloat(digits, 64)
	if percent {
		v /= 100
	}
	if err != nil || !(v > 0 && v <= mostThreshold) {
		return errors.New("not a saturation such as 0.8 or 80%")
	}
	*t = threshold(v)
	return nil
}

func (t *threshold) String() string { return strconv.FormatFloat(float64(*t), 'f', -1, 64) }

// mostThreshold is the highest threshold: an accept queue admits one connection more than
// its limit, which may be 1.
const mostThreshold = 2

// thresholds apply to all limits, instead of the limits' own; 0 keeps those.
type thresholds struct{ warning, critical threshold }

func (t *thresholds) validate() error {
	if t.critical > 0 && t.warning >= t.critical {
		return fmt.Errorf("--warning=%v is not below --critical=%v", t.warning.String(), t.critical.String())
	}
	return nil
}

// writePlugin writes the report in the format of monitoring plugins
// (https://www.monitoring-plugins.org/doc/guidelines.html): a line with the state, its
// reason and, after a bar, the saturation of every limit in percent; then details.
func (r report) writePlugin(out io.Writer) error {
	state := "UNKNOWN"
	status := r.status()
	if status != unknown {
		state = strings.ToUpper(collector.Level(status).String())
	}
	var said, data []string
	for _, l := range r.limits {
		if l.Level() != collector.OK {
			usage, limit := l.Shown()
			text := fmt.Sprintf("%s %s%% (%s)", l.Resource, l.WorstShare(), l.Amount(usage, limit))
			if l.Elsewhere() {
				text += " in " + l.Netns.Title()
			}
			said = append(said, text)
		}
		data = append(data, fmt.Sprintf("%s=%s%%;%s;%s;0", l.Resource, inPercent(l.Worst()), inPercent(l.Warning()), inPercent(l.CriticalRatio)))
	}
	if len(said) == 0 && len(r.limits) > 0 && status != unknown {
		first := r.limits[0]
		said = append(said, fmt.Sprintf("%d limits, the nearest is %s with %s%%", len(r.limits), first.Resource, first.WorstShare()))
	}
	for part, err := range r.view.All() {
		if err != nil {
			said = append(said, fmt.Sprintf("cannot see the host's %s", part))
		}
	}
	for _, f := range r.failed {
		said = append(said, fmt.Sprintf("collector %s failed", f.Collector))
	}
	// Text after a bar is data.
	line := strings.ReplaceAll(strings.Join(said, ", "), "|", "/")
	fmt.Fprintf(out, "SOCKPRESSURE %s: %s | %s\n", state, line, strings.Join(data, " "))
	var details strings.Builder
	if err := r.writeDetails(&details); err != nil {
		return err
	}
	_, err := io.WriteString(out, strings.ReplaceAll(details.String(), "|", "/"))
	return err
}

// inPercent formats a ratio in percent, for programs.
func inPercent(ratio float64) string { return strconv.FormatFloat(100*ratio, 'f', 1, 64) }
