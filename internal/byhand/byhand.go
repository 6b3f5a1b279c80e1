// Package byhand computes what the exporter computes, in another way and without
// any of its code, to compare the two: the slow and plain way. It is for the tests
// and the lab; nothing of it is in the exporter.
//
// It has what comes of more than one number: TCP states, accept queues, connection requests
// and ephemeral ports, counted from /proc/net/tcp where the exporter asks sock_diag; counters of
// connection tracking, softnet and neighbours, which are of all CPUs; descriptors of
// processes and the worst of a name; slabs, and which of them share their memory;
// open files; the saturation of memory; and whether this is the host.
//
// It has nothing that is a field of a file, in bytes or seconds: that is compared in
// testdata/golden/numbered.prom, where each field has a number of its own, and what
// becomes of a damaged field in the tests of the collector. Nor has it a saturation
// that divides two such numbers, or that of low memory, whose inode of a socket could
// only be repeated.
package byhand

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Readings is values by series, named as Series does.
type Readings map[string]float64

// Or returns the readings with what only others have.
func (r Readings) Or(others Readings) Readings {
	all := maps.Clone(others)
	if all == nil {
		all = Readings{}
	}
	maps.Copy(all, r)
	return all
}

// Set adds a value, its labels given as names and values.
func (r Readings) Set(value float64, name string, labels ...string) {
	r[Series(name, labels...)] = value
}

// Series names a series of the exporter, its labels in order:
// sockpressure_name{a="b",c="d"}.
func Series(name string, labels ...string) string {
	var pairs []string
	for l := range slices.Chunk(labels, 2) {
		pairs = append(pairs, fmt.Sprintf("%s=%q", l[0], l[1]))
	}
	slices.Sort(pairs)
	if len(pairs) == 0 {
		return "sockpressure_" + name
	}
	return "sockpressure_" + name + "{" + strings.Join(pairs, ",") + "}"
}

// Covers reports whether a page may have the series only if the readings do: they have
// the series, or others of its metric. Of saturation_ratio they have some limits only.
func (r Readings) Covers(series string) bool {
	if _, ok := r[series]; ok {
		return true
	}
	metric, _, _ := strings.Cut(series, "{")
	if metric == Series("saturation_ratio") {
		return false
	}
	for s := range r {
		if strings.HasPrefix(s, metric+"{") {
			return true
		}
	}
	return false
}

// Difference is how a value of a page lies outside of two readings.
type Difference struct {
	What string
	Hard bool // the readings are the same, so the value changed for the page only
}

// Compare returns the series whose values on a page lie outside of the readings
// before and after it. A series that is in one of them only came or went
// meanwhile. The page may lack series of a list that is of the longest length, the
// exporter's --collector.top, and the hundreds of caches that it does not choose.
func Compare(page map[string]float64, longest int, before, after Readings) map[string]Difference {
	length := map[string]int{}
	for series := range page {
		if name, _, ok := strings.Cut(series, "{"); ok {
			length[name]++
		}
	}
	differences := map[string]Difference{}
	for series := range before.Or(after) {
		name, _, _ := strings.Cut(series, "{")
		mayLack := name == "sockpressure_memory_slab_bytes" || length[name] == longest
		b, had := before[series]
		a, has := after[series]
		v, shown := page[series]
		switch {
		case !shown && (!had || !has || mayLack),
			had && shown && near(v, b),
			has && shown && near(v, a),
			had && has && shown && v > min(a, b) && v < max(a, b):
			continue
		}
		got := fmt.Sprint(v)
		if !shown {
			got = "nothing"
		}
		differences[series] = Difference{
			What: fmt.Sprintf("before %v (%t), after %v (%t), but the exporter says %s", b, had, a, has, got),
			Hard: had && has && a == b,
		}
	}
	return differences
}

// near allows for the rounding of a fraction.
func near(a, b float64) bool { return a == b || math.Abs(a-b) < 1e-9*math.Abs(b) }

// pass is one reading of files, and what was the first to go wrong in it.
type pass struct {
	Readings
	root string // of recorded files, empty for the kernel's own
	file string // the one that was read last
	err  error
}

func newPass() *pass { return &pass{Readings: Readings{}} }

func (p *pass) result() (Readings, error) {
	if p.err != nil {
		return nil, p.err
	}
	return p.Readings, nil
}

// fail keeps the first error. The reading goes on, with zeros, to be thrown away.
func (p *pass) fail(err error) {
	if p.err == nil {
		p.err = fmt.Errorf("reading %s by hand: %w", p.file, err)
	}
}

// text reads a file, and is empty where there is none: the kernel may lack it, the
// process may have ended, pressure may not be measured. /proc/net is that of this
// thread's namespace.
func (p *pass) text(path string) string {
	p.file = p.root + path
	if p.root == "" {
		p.file = strings.Replace(path, "/proc/net/", "/proc/thread-self/net/", 1)
	}
	b, err := os.ReadFile(p.file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EOPNOTSUPP) {
		p.fail(err)
	}
	return string(b)
}

// fields is a line of a file.
type fields []string

// at returns a field, or none, which is not a number.
func (f fields) at(i int) string {
	if i < 0 || i >= len(f) {
		return ""
	}
	return f[i]
}

// lines splits a file into the fields of its lines.
func (p *pass) lines(path string) []fields {
	var all []fields
	for line := range strings.Lines(p.text(path)) {
		all = append(all, strings.Fields(line))
	}
	return all
}

func (p *pass) decimal(s string) float64 {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		p.fail(err)
	}
	return v
}

func (p *pass) hexadecimal(s string) uint64 {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		p.fail(err)
	}
	return v
}

// numbers reads a file of numbers, such as a sysctl, and is nil where there is none.
func (p *pass) numbers(path string) []float64 {
	var v []float64
	for f := range strings.FieldsSeq(p.text(path)) {
		v = append(v, p.decimal(f))
	}
	return v
}

// column adds up a column of hexadecimal numbers over the CPUs, or, for one that
// is the same for all, takes it once.
func (p *pass) column(path, name string, once bool) (sum float64, ok bool) {
	at := -1
	for i, f := range p.lines(path) {
		switch {
		case i == 0:
			at = slices.Index(f, name)
		case at >= 0 && (!once || i == 1):
			sum += float64(p.hexadecimal(f.at(at)))
		}
	}
	return sum, at >= 0
}
