// Package byhand computes what the exporter computes in another way, slow and simple and
// without any of its code, to compare the two. It is for the tests and the lab; the
// exporter does not contain it.
//
// It has what is computed from more than one number: TCP states, accept queues,
// connection requests and ephemeral ports, counted from /proc/net/tcp where the exporter
// asks sock_diag; counters of connection tracking, softnet and neighbours, summed over
// all CPUs; descriptors of processes and the worst of a name; slabs, and which of them
// share their memory; open files; the saturation of memory; and whether this is the host.
//
// It does not have values that are a field of a file, in bytes or seconds: those are
// compared in testdata/golden/numbered.prom, where each field has a number of its own,
// and damaged fields in the tests of the collector. Nor does it have saturations that
// divide two such numbers, or that of low memory, whose inode of a socket could only be
// repeated.
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

// Readings is values by series, named as by Series.
type Readings map[string]float64

// Or returns the readings, with the series that only others have.
func (r Readings) Or(others Readings) Readings {
	all := maps.Clone(others)
	if all == nil {
		all = Readings{}
	}
	maps.Copy(all, r)
	return all
}

// Set adds a value. Labels are names and values in turn.
func (r Readings) Set(value float64, name string, labels ...string) {
	r[Series(name, labels...)] = value
}

// Series returns the name of a series of the exporter, its labels in order:
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

// Covers reports whether the readings have the series, or others of its metric, so that a
// page may have the series only if they do. Of saturation_ratio they have only some
// limits.
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

// Difference is how a value of a page is outside of two readings.
type Difference struct {
	What string
	Hard bool // the readings are the same, so only the page changed
}

// Compare returns the series whose values on a page are outside of the readings before
// and after it. A series that only one of them has appeared or disappeared in the
// meantime. The page may lack series of a list that has the longest length, the
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

// pass is one reading of files, and its first error.
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

// fail keeps the first error. The reading continues, with zeros, to be discarded.
func (p *pass) fail(err error) {
	if p.err == nil {
		p.err = fmt.Errorf("reading %s by hand: %w", p.file, err)
	}
}

// text reads a file. It returns "" if there is none: the kernel may lack it, the process
// may have ended, pressure may not be measured. /proc/net is that of this thread's
// namespace.
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

// fields are the fields of a line.
type fields []string

// at returns a field, or "", which is not a number.
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

// numbers reads a file of numbers, such as a sysctl. It returns nil if there is none.
func (p *pass) numbers(path string) []float64 {
	var v []float64
	for f := range strings.FieldsSeq(p.text(path)) {
		v = append(v, p.decimal(f))
	}
	return v
}

// column adds up a column of hexadecimal numbers over the CPUs or, if once is set because
// all have the same, returns one of them.
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
