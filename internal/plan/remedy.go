package plan

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// Remedies returns, for each of the given limits that is not ok, what to set so that its
// present usage is not a warning: lines such as `sysctl -w net.core.somaxconn=117 # now 64`,
// by resource. There are none for a limit of another network namespace, or for one that no
// setting raises.
func Remedies(r *collector.Reading, limits []collector.LimitReading) map[string][]string {
	var near []collector.LimitReading
	for _, l := range limits {
		if l.OwnLevel() != collector.OK {
			near = append(near, l)
		}
	}
	if len(near) == 0 {
		return nil
	}
	var infos []collector.LimitInfo
	for _, l := range near {
		infos = append(infos, *l.LimitInfo)
	}
	f := FactsOf(r)
	f.PageSize = r.Machine.PageSize
	files, done := open(r.Machine)
	defer done()
	f.Sysctls = settings(files, infos)
	lines := map[string][]string{}
	for i := range near {
		lines[near[i].Resource] = f.remedy(&near[i])
	}
	return lines
}

// growth is the factor by which a limit has to exceed the present usage, because usage
// does not include what was refused at the limit.
const growth = 1.25

// remedy returns what to set for a limit, empty if no setting raises it.
func (f *Facts) remedy(l *collector.LimitReading) []string {
	if l.Fixed {
		return nil
	}
	row := Row{LimitInfo: l.LimitInfo, Now: l.Limit, Needed: roundUp(l.Usage * room(l.LimitInfo) * growth)}
	if l.Most > 0 {
		row.Needed = min(row.Needed, l.Most)
	}
	if row.Needed <= row.Now {
		return nil
	}
	var lines []string
	for _, w := range f.writes(l.LimitInfo, row) {
		lines = append(lines, fmt.Sprintf("sysctl -w %s=%s # now %s", w.Name, quoted(Numbers(w.Value)), Numbers(w.Now)))
	}
	for _, s := range l.Settings {
		line, _, _ := strings.Cut(fmt.Sprintf(s.Line, row.Needed), ";")
		lines = append(lines, fmt.Sprintf("%s: %s", s.Where, line))
	}
	return lines
}

// quoted quotes what a shell would take for several words.
func quoted(text string) string {
	if strings.Contains(text, " ") {
		return `"` + text + `"`
	}
	return text
}

// Numbers formats the numbers of a sysctl as in its file.
func Numbers(v []float64) string {
	words := make([]string, len(v))
	for i, n := range v {
		words[i] = strconv.FormatFloat(n, 'f', -1, 64)
	}
	return strings.Join(words, " ")
}
