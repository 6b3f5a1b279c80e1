package main

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/remotewrite"
	"github.com/sockpressure/sockpressure_exporter/lab/recording"
)

// scrape is the time between two scrapes, and between two steps of a recording.
const scrape = 15 * time.Second

// pods is the number of pods of a node in its lists: the default of --collector.top.
const pods = 10

// series is one series of a node.
type series struct {
	labels []label // the name first, without those of the node
	// values are those of the recording; the saturation of a healthy node is synthetic.
	values   []float64
	grown    float64 // of a counter, how much it grew in a recording
	resource string  // of a saturation
	spread   uint64  // distinguishes the series of a node
}

type label = remotewrite.Label

// template is a page that nodes are made from.
type template struct {
	name   string
	series []series
	steps  int
}

// fleet is a number of synthetic nodes. Some of every thousand nodes are in trouble and
// repeat the lab's recordings of kernels that were driven into a limit, each at another
// point. The others repeat the recordings of idle or busy hosts, each with its own
// saturations: three quarters of them below 10 percent, memory between 20 and 85.
type fleet struct {
	healthy, troubled []template
	nodes, trouble    int // trouble is per thousand
	clusters          int // 0 for nodes without such a label
	// recorded are recording rules with a series for each node and limit, or for each
	// node, that are written for the time before the rules run.
	recorded []recorded
}

type recorded struct {
	name    string
	from    float64 // lower values are not recorded
	perNode bool
	ill     bool // only of nodes in trouble
	// resources are the limits that are recorded, nil for all.
	resources []string
	counter   string // of which the growth within 5 minutes is recorded, if there is any
}

// value returns what is recorded for a series of the node, NaN if nothing is.
func (r recorded) value(n node, s *series, at time.Time) float64 {
	v := n.at(s, at)
	if r.counter != "" {
		v -= n.at(s, at.Add(-5*time.Minute))
		if v == 0 {
			return math.NaN()
		}
	}
	if v < r.from {
		return math.NaN()
	}
	return v
}

// labels returns the labels of what is recorded for a series of a node, without those of
// the node, and nil if nothing is.
func (r recorded) labels(n node, s *series) []label {
	own := []label{{Name: "__name__", Value: r.name}}
	switch metric := s.labels[0].Value; {
	case r.counter != "" && metric == r.counter && s.grown > 0:
		return append(own, s.labels[1:]...)
	case r.counter != "" || metric != "sockpressure_saturation_ratio" || r.ill && !n.ill:
		return nil
	case r.resources != nil && !slices.Contains(r.resources, s.resource):
		return nil
	case !r.perNode:
		return append(own, label{Name: "resource", Value: s.resource})
	case s.resource == "memory":
		return own
	}
	return nil
}

// readFleet reads the recordings.
func readFleet(dir string) (*fleet, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*", "*.txt"))
	if err != nil {
		return nil, err
	}
	var f fleet
	for _, file := range files {
		r, err := recording.Read(file)
		if err != nil {
			return nil, err
		}
		switch t := newTemplate(r); {
		case r.Refusal >= 0:
			f.troubled = append(f.troubled, t)
		case r.Scenario == "idle" || r.Scenario == "busy":
			f.healthy = append(f.healthy, t)
		}
	}
	if len(f.healthy) == 0 || len(f.troubled) == 0 {
		return nil, fmt.Errorf("%s has no recordings of healthy hosts, or none of hosts in trouble", dir)
	}
	return &f, nil
}

func newTemplate(r *recording.Recording) template {
	t := template{name: r.Kernel + "/" + r.Scenario, steps: r.Steps}
	add := func(name string, values []float64) {
		s := series{labels: parseSeries(name), values: values, spread: hash(name)}
		if strings.HasSuffix(s.labels[0].Value, "_total") {
			if grown := values[len(values)-1] - values[0]; grown > 0 {
				s.grown = grown
			}
		}
		if n := s.labels[0].Value; n == "sockpressure_saturation_ratio" || n == "sockpressure_saturation_peak_ratio" {
			s.resource = s.get("resource")
			s.spread = hash(s.resource)
		}
		t.series = append(t.series, s)
	}
	for _, s := range r.Series {
		add(s.Name, s.Values)
	}
	add("up", flat(1))
	add("scrape_duration_seconds", flat(0.004))
	add("scrape_samples_scraped", flat(float64(len(r.Series))))
	for pod := range pods {
		namespace, name := fmt.Sprintf("team-%d", pod%4), fmt.Sprintf("api-%d", pod)
		for i, resource := range []string{"accept_queue", "conntrack_entries", "unix_accept_queue", "ephemeral_ports"} {
			add(fmt.Sprintf("sockpressure_netns_saturation_ratio{resource=%q,netns=%q,namespace=%q,pod=%q}", resource, name, namespace, name),
				flat(0.02*float64(pod+i)))
		}
		add(fmt.Sprintf("sockpressure_cgroup_memory_saturation_ratio{cgroup=\"/kubepods/%s\",namespace=%q,pod=%q}", name, namespace, name), flat(0.05*float64(pod)))
	}
	return t
}

func flat(v float64) []float64 { return []float64{v} }

func (s series) get(name string) string {
	for _, l := range s.labels {
		if l.Name == name {
			return l.Value
		}
	}
	return ""
}

var oneLabel = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)

func parseSeries(name string) []label {
	metric, rest, _ := strings.Cut(name, "{")
	labels := []label{{Name: "__name__", Value: metric}}
	for _, m := range oneLabel.FindAllStringSubmatch(rest, -1) {
		value, err := strconv.Unquote(`"` + m[2] + `"`)
		if err != nil {
			value = m[2]
		}
		labels = append(labels, label{Name: m[1], Value: value})
	}
	return labels
}

// node is a node of a fleet.
type node struct {
	labels []label
	id     uint64
	page   *template
	ill    bool
}

func (f *fleet) node(i int) node {
	id := mix(uint64(i) + 1)
	n := node{id: id, labels: []label{{Name: "instance", Value: fmt.Sprintf("node-%05d:10058", i)}, {Name: "job", Value: "sockpressure"}}}
	if f.clusters > 0 {
		n.labels = append(n.labels, label{Name: "cluster", Value: fmt.Sprintf("cluster-%d", i%f.clusters)})
	}
	n.page = &f.healthy[int(id>>8)%len(f.healthy)]
	if int(id%1000) < f.trouble {
		n.ill, n.page = true, &f.troubled[int(id>>8)%len(f.troubled)]
	}
	return n
}

// labelsOf returns the labels of a series of the node.
func (n node) labelsOf(own []label) []label { return append(slices.Clone(own), n.labels...) }

// at returns the value of a series, NaN if it is absent.
func (n node) at(s *series, when time.Time) float64 {
	step := int(when.UnixMilli()/scrape.Milliseconds()) + int(n.id>>16&0xfff)
	if s.resource != "" && !n.ill {
		return n.saturation(s, step)
	}
	v := s.values[step%len(s.values)]
	if s.grown > 0 {
		return v + s.grown*float64(step/len(s.values)%4096)
	}
	if !n.ill && v > 1 && v != math.Trunc(v) { // not a count or a limit
		return v * (0.5 + unit(n.id^s.spread))
	}
	return v
}

// saturation returns what a healthy node uses of a limit: a level of its own, with waves
// of five percent.
func (n node) saturation(s *series, step int) float64 {
	u := unit(mix(n.id ^ s.spread))
	base := 0.6 * math.Pow(u, 6)
	if s.resource == "memory" {
		base = 0.2 + 0.65*u
	}
	return base * (1 + 0.05*math.Sin(float64(step)/7+6*u))
}

func unit(h uint64) float64 { return float64(h>>11) / (1 << 53) }

// mix is the finalizer of splitmix64.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range []byte(s) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return mix(h)
}
