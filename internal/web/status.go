package web

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/plan"
)

//go:embed status.html runbooks.html status.css
var files embed.FS

const (
	// project is the location of the documentation.
	project = "https://github.com/sockpressure/sockpressure_exporter"
	// refresh is the number of seconds until the page reloads.
	refresh = 10
)

// view is the data of status.html.
type view struct {
	Config
	Style   template.CSS
	Project string
	// Refresh is 0 for a page that does not reload.
	Refresh int
	Now     time.Time
	*collector.Reading
	Levels []count
	Limits []bar
	States []state
	// TCP is the result of the collector that has the states.
	TCP   *collector.Result
	Lists []list
	// Log is what the kernel has logged, latest first, and LogResult the result of the
	// collector that has it.
	Log       []collector.Note
	LogResult *collector.Result
}

// count is the number of limits at a level.
type count struct {
	collector.Level
	N int
}

// bar is a limit, or an item of a list.
type bar struct {
	collector.LimitReading
	Name string
	Used string // the usage and the limit in words
	Age  time.Duration
	// Remedy is what to set.
	Remedy []string
	// Said is the latest kernel message about the limit, nil if there is no recent one.
	Said *collector.Note
}

// state is the number of TCP sockets in a state.
type state struct {
	Name    string
	Sockets float64
}

// list is a list of items that have a limit each.
type list struct {
	*collector.ListInfo
	Note string // ListInfo's, or about what the list lacks
	Bars []bar
	From collector.Result
}

// status serves a page for people: every limit, the worst first, and
// their details. It has no scripts and loads nothing from other hosts.
func status(set *collector.Set, c Config) http.Handler {
	tmpl, style := parse(), newStyle()
	pages := newPages(c)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked := time.Now()
		ctx, cancel := context.WithTimeout(r.Context(), defaultTimeout+maxMargin)
		defer cancel()
		reading := read(r.Context(), set, collector.Query{}, defaultTimeout)
		still := r.URL.Query().Has("still")
		pages.serve(w, r, pageRequest{
			ctx:     ctx,
			asked:   asked,
			name:    strconv.FormatBool(still),
			reading: reading,
			render: func(w http.ResponseWriter, _ *http.Request) {
				p := newView(reading)
				p.Config, p.Style, p.Project = c, style.css, project
				p.Now = time.Now()
				if !still {
					p.Refresh = refresh
				}
				var b bytes.Buffer
				if err := tmpl.Execute(&b, p); err != nil {
					http.Error(w, err.Error(), http.StatusInternalServerError)
					return
				}
				style.header(w.Header())
				_, _ = w.Write(b.Bytes())
			},
		})
	})
}

func parse() *template.Template {
	functions := template.FuncMap{"seconds": seconds, "since": since, "minutes": minutes, "sinceThen": time.Since, "breakable": breakable}
	return template.Must(template.New("status.html").Funcs(functions).ParseFS(files, "*.html"))
}

// style is the style of all pages.
type style struct {
	css    template.CSS
	policy string
}

func newStyle() style {
	css, err := files.ReadFile("status.css")
	if err != nil {
		panic(err) // it is embedded in the binary
	}
	// The browser accepts only the page's own style.
	hash := sha256.Sum256(css)
	return style{template.CSS(css), "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) +
		"'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}
}

// header sets the headers of a page.
func (s style) header(h http.Header) {
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", s.policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
}

// newView prepares a reading for the page.
func newView(reading *collector.Reading) *view {
	p := &view{Reading: reading, Log: reading.Notes()}
	ages := map[string]time.Duration{}
	for _, r := range reading.Results {
		for _, l := range r.Limits {
			ages[l.Resource] = r.Age
		}
		if r.Collector == "tcp" {
			p.TCP = &r
			for labels, n := range r.Samples("tcp_sockets") {
				p.States = append(p.States, state{strings.Join(labels, ""), n})
			}
		}
		if r.Collector == "kmsg" {
			p.LogResult = &r
		}
		p.Lists = append(p.Lists, lists(r)...)
	}
	levels := [collector.Critical + 1]int{}
	limits := reading.Limits()
	remedies := plan.Remedies(reading, limits)
	for _, l := range limits {
		b := bar{LimitReading: l, Name: l.Resource, Used: used(l), Age: ages[l.Resource], Remedy: remedies[l.Resource]}
		if at := slices.IndexFunc(p.Log, func(n collector.Note) bool { return slices.Contains(n.Resources, l.Resource) }); at >= 0 && time.Since(p.Log[at].At) < recently {
			b.Said = &p.Log[at]
		}
		p.Limits = append(p.Limits, b)
		levels[l.Level()]++
	}
	for level, n := range slices.Backward(levels[:]) {
		p.Levels = append(p.Levels, count{collector.Level(level), n})
	}
	return p
}

// lists returns the lists of items that have a limit each.
func lists(r collector.Result) []list {
	var all []list
	for _, info := range r.Infos {
		if info.List == nil {
			continue
		}
		l := list{ListInfo: info.List, Note: info.List.Note, From: r}
		for _, n := range r.Samples(info.List.Hidden.Metric) {
			if n > 0 {
				l.Note = strconv.FormatFloat(n, 'f', -1, 64) + " " + info.List.HiddenNote
			}
		}
		for _, reading := range r.Limits {
			if reading.Resource == info.Resource {
				l.Bars = bars(reading)
			}
		}
		all = append(all, l)
	}
	return all
}

// bars returns the bars of items that have a limit each, with what is exported for them.
func bars(l collector.LimitReading) []bar {
	var all []bar
	l.Netns = nil // it has no bar here
	for _, item := range l.Items {
		b := bar{LimitReading: l, Name: item.Name()}
		b.Holder = item.Holder
		// If the limit is 0, as the backlog of a listener may be, one is still admitted.
		b.Usage, b.Limit = item.Usage, max(item.Limit, 1)
		b.Used = l.Amount(b.Usage, b.Limit)
		b.Usage, b.Limit = item.Saturation(), 1
		all = append(all, b)
	}
	return all
}

// Item returns the name of the first item. It is empty if the limit is ok, and for a
// process, which is its own holder.
func (b bar) Item() string {
	if len(b.Items) == 0 || b.OwnLevel() == collector.OK || slices.Contains(b.List.Labels, "process") {
		return ""
	}
	return b.Items[0].Name()
}

// used is what is used of a limit, in words: by the network namespace that is closer to its
// limit than the host.
func used(l collector.LimitReading) string {
	if l.Elsewhere() {
		return l.NetnsAmount()
	}
	return l.Amount(l.Usage, l.Limit)
}

// Runbook is the section of the runbooks for the limit, or for namespaces where one of these
// is closer.
func (b bar) Runbook() string {
	if b.Elsewhere() && b.Level() > b.OwnLevel() {
		return netnsRunbook
	}
	return runbook(b.Resource)
}

// Drawn returns how much of the bar is filled: a limit can be exceeded, but its bar
// cannot.
func (b bar) Drawn() float64 { return min(b.Worst(), 1) }

// Headroom describes how far the present load can grow; empty if that is not known, or a limit
// is close already.
func (p *view) Headroom() string {
	if len(p.Limits) > 0 && p.Limits[0].Level() != collector.OK {
		return "" // a limit is close already
	}
	facts := plan.FactsOf(p.Reading)
	if !facts.Counted {
		return ""
	}
	return plan.Grow(facts).String()
}

// Headline returns the state of the host in a few words, for the title of the page.
func (p *view) Headline() string {
	var said []string
	for _, c := range p.Levels {
		if c.N > 0 && c.Level != collector.OK {
			said = append(said, strconv.Itoa(c.N)+" "+c.String())
		}
	}
	if len(p.Failed()) > 0 || !p.View.Whole() {
		said = append(said, "limits missing")
	}
	return cmp.Or(strings.Join(said, ", "), "ok")
}

// Failed returns the collectors that failed.
func (p *view) Failed() []string {
	var names []string
	for _, r := range p.Results {
		if r.Err != nil {
			names = append(names, r.Collector)
		}
	}
	return names
}

// old is the age from which the page points out that values are old.
const old = 2 * time.Minute

// Old returns the collectors whose values are old.
func (p *view) Old() []collector.Result {
	return slices.DeleteFunc(slices.Clone(p.Results), func(r collector.Result) bool { return r.Age < old })
}

// recently is how long a kernel message is shown with its limit.
const recently = 24 * time.Hour

// since formats how long ago a time is, for people.
func since(at time.Time) string {
	d := max(time.Since(at), 0)
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		if n := int(d / unit.size); n > 0 {
			if n > 1 {
				unit.name += "s"
			}
			return strconv.Itoa(n) + " " + unit.name + " ago"
		}
	}
	return strconv.Itoa(int(d/time.Second)) + " s ago"
}

// breakable returns a name with places where a narrow page may break it.
func breakable(name string) template.HTML {
	return template.HTML(strings.ReplaceAll(template.HTMLEscapeString(name), "_", "_<wbr>"))
}

// minutes formats how long something takes, for people.
func minutes(d time.Duration) string {
	if d < time.Minute {
		return strconv.Itoa(int(d/time.Second)) + " s"
	}
	return strconv.Itoa(int((d+time.Minute/2)/time.Minute)) + " min"
}

// seconds formats a duration for people.
func seconds(d time.Duration) string {
	switch {
	case d < 100*time.Millisecond:
		return strconv.FormatFloat(d.Seconds()*1000, 'f', 2, 64) + " ms"
	case d < time.Minute:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	default:
		return d.Round(time.Second).String()
	}
}
