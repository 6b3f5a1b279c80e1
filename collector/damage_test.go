package collector

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// The tests of this file damage each file of each recorded kernel in many ways. They check
// that the values that remain are right, that an error names the file of those that are lost,
// and that no other values are lost.

// damage is a file of a tree that is damaged repeatedly.
type damage struct {
	*tree
	name, content string
	// readers are the collectors that read the file.
	readers []string
	whole   map[string]float64
}

// eachFile calls test for every file of every recorded kernel that some collector reads.
func eachFile(t *testing.T, test func(t *testing.T, d *damage)) {
	all := kernels()
	if !needs.InCI() || testing.Short() {
		all = []string{"linux-6.1-686-pae"} // the one with the most numbers; each takes seconds
	}
	for _, kernel := range all {
		t.Run(kernel, func(t *testing.T) {
			t.Parallel()
			tr := newTree(t, kernel)
			tr.top = 100 // whole lists, so that no other series replaces a lost one
			want, errs := tr.series(nil)
			for c, err := range errs {
				if err != nil {
					t.Fatalf("%s: %v", c, err)
				}
			}
			for _, name := range append(tr.files(), "proc/1/limits") {
				d := &damage{tree: tr, name: name, content: tr.read(name), whole: map[string]float64{}}
				tr.write(name, "")
				_, errs := tr.series(nil)
				for c, err := range errs {
					if err != nil {
						d.readers = append(d.readers, c)
						maps.Copy(d.whole, want[c])
					}
				}
				if len(d.readers) == 0 {
					tr.write(name, d.content)
					continue
				}
				t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) { test(t, d) })
				tr.write(name, d.content)
			}
		})
	}
}

// with returns the series and the error of the readers if the file has other content.
func (d *damage) with(content string) (series map[string]float64, err error) {
	d.write(d.name, content)
	all, errs := d.series(func(c string) bool { return slices.Contains(d.readers, c) })
	series = map[string]float64{}
	var p parse.Problems
	for c := range all {
		maps.Copy(series, all[c])
		p.Add(errs[c])
	}
	return series, p.Err()
}

// changed lists the series that differ from those of the intact file.
func (d *damage) changed(series map[string]float64) []string {
	var names []string
	for s, v := range d.whole {
		if got, ok := series[s]; !ok || got != v {
			names = append(names, s)
		}
	}
	for s := range series {
		if _, ok := d.whole[s]; !ok {
			names = append(names, s)
		}
	}
	slices.Sort(names)
	return names
}

func (d *damage) is(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return strings.HasSuffix(d.name, n) })
}

// hex reports whether the numbers of the file are hexadecimal.
func (d *damage) hex() bool { return strings.Contains(d.name, "net/stat/") || d.is("softnet_stat") }

// named fails the test if the error does not name the file.
func (d *damage) named(t *testing.T, err error) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), filepath.Base(d.name)) {
		t.Errorf("the error does not name the file: %v", err)
	}
}

// TestNumbers checks that -1, too large a number or text in place of a number affects only the
// series that depend on that number. Which ones depend on it is found by adding 1.
func TestNumbers(t *testing.T) {
	eachFile(t, func(t *testing.T, d *damage) {
		numbers := regexp.MustCompile(`(?m)(?:^|[ \t=])([0-9]+)(?:[ \t]|$)`)
		if d.hex() {
			numbers = regexp.MustCompile(`(?m)(?:^|[ \t])([0-9a-f]{8})(?:[ \t]|$)`)
		}
		at := 0
		for {
			m := numbers.FindStringSubmatchIndex(d.content[at:])
			if m == nil {
				return
			}
			from, to := at+m[2], at+m[3]
			at = to
			put := func(number string) string { return d.content[:from] + number + d.content[to:] }
			place := fmt.Sprintf("offset %d, %q", from, d.content[from:to])

			lost, err := d.with(put("text"))
			if err == nil {
				if c := d.changed(lost); c != nil {
					t.Fatalf("%s: text in its place changes %v without an error", place, c)
				}
				continue // not read
			}
			d.named(t, err)
			base := 10
			if d.hex() {
				base = 16
			}
			n, err := strconv.ParseUint(d.content[from:to], base, 64)
			if err != nil {
				t.Fatal(err)
			}
			more := strconv.FormatUint(n+1, base)
			if d.hex() {
				more = fmt.Sprintf("%08x", n+1)
			}
			depends, err := d.with(put(more))
			if err != nil && !d.is("ip_local_port_range", "file-nr") {
				t.Fatalf("%s: one more: %v", place, err)
			}
			needs := d.changed(depends)
			switch {
			case d.is("ip_local_port_range", "ip_local_reserved_ports", "overcommit_memory", "1/limits", "softnet_stat", "pid_max", "tcp_syncookies"):
				needs = slices.Collect(maps.Keys(d.whole)) // every series of the collector depends on it
			case d.is("slabinfo"):
				line := d.content[strings.LastIndexByte(d.content[:from], '\n')+1 : from]
				needs = append(needs, "memory_slab_bytes "+strings.Fields(line)[0])
			}
			for _, number := range []string{"text", "-1", "18446744073709551615"} {
				got, err := d.with(put(number))
				for _, s := range d.changed(got) {
					if !slices.Contains(needs, s) {
						t.Fatalf("%s: %s in its place affects %s, which does not depend on it (%v)", place, number, s, err)
					}
					if v, ok := got[s]; ok && (number[0] != '1' || err != nil) {
						t.Fatalf("%s: %s in its place changes %s to %v (%v)", place, number, s, v, err)
					}
				}
				if err != nil {
					d.named(t, err)
				} else if number != "18446744073709551615" {
					t.Fatalf("%s: %s in its place gives no error", place, number)
				}
			}
		}
	})
}

// TestUnknown checks that additional lines, columns and words, as a later kernel may add,
// change nothing.
func TestUnknown(t *testing.T) {
	eachFile(t, func(t *testing.T, d *damage) {
		lines := strings.SplitAfter(strings.TrimSuffix(d.content, "\n"), "\n")
		lines[len(lines)-1] += "\n"
		each := func(change func(i int, line string) string) string {
			var b strings.Builder
			for i, line := range lines {
				b.WriteString(change(i, strings.TrimSuffix(line, "\n")) + "\n")
			}
			return b.String()
		}
		column := func(i int, name, value string) string {
			head := i == 0
			switch {
			case d.is("snmp", "netstat"):
				head = i%2 == 0
			case d.is("slabinfo"):
				head = i == 1
			}
			if head {
				return name
			}
			return value
		}
		cases := map[string]string{}
		table := d.is("snmp", "netstat", "slabinfo") || strings.Contains(d.name, "net/stat/")
		switch {
		case strings.Contains(d.name, "proc/sys/"):
			if !d.is("ip_local_reserved_ports") {
				cases["a word"] = each(func(_ int, l string) string { return l + "\t77" })
			}
			cases["a line"] = d.content + "unknown 1\n"
		case d.is("softnet_stat"):
			// The fourteenth column is known, and a kernel that has it has all those before
			// it.
			cases["a column"] = each(func(_ int, l string) string {
				return l + strings.Repeat(" 00000000", max(0, 15-len(strings.Fields(l)))) + " 0000002a"
			})
		case table:
			cases["a column at the end"] = each(func(i int, l string) string {
				if d.is("slabinfo") && i == 0 {
					return l
				}
				return l + " " + column(i, "<new>", "0000002a")
			})
			cases["a column in front"] = each(func(i int, l string) string {
				if d.is("slabinfo") && i == 0 {
					return l
				}
				if strings.Contains(d.name, "net/stat/") {
					return column(i, "new", "0000002a") + " " + l
				}
				head, rest, _ := strings.Cut(strings.TrimPrefix(l, "# "), " ")
				if l != head+" "+rest {
					head = "# " + head
				}
				return head + " " + column(i, "<new>", "42") + " " + rest
			})
		default:
			cases["a word"] = each(func(_ int, l string) string { return l + " new" })
			cases["a word and a number"] = each(func(_ int, l string) string { return l + " new 77" })
			cases["a setting"] = each(func(_ int, l string) string { return l + " new=77" })
		}
		if !strings.Contains(d.name, "proc/sys/") {
			for _, line := range []string{"unknown 1 2 3\n", "Unknown: 77 kB\n", "new avg10=0.00 total=3\n"} {
				cases["a line at the end: "+line] = d.content + line
				if !strings.Contains(d.name, "net/stat/") && !d.is("slabinfo") {
					cases["a line in front: "+line] = line + d.content
				}
				cases["a line after the second: "+line] = strings.Join(slices.Insert(slices.Clone(lines), min(2, len(lines)), line), "")
			}
		}
		for name, content := range cases {
			got, err := d.with(content)
			if c := d.changed(got); c != nil || err != nil {
				t.Errorf("%s: %v changed, %v", name, c, err)
			}
		}
	})
}

// TestRemoved checks that the remaining values are unchanged if a line, a column or a pair of
// words is removed.
func TestRemoved(t *testing.T) {
	eachFile(t, func(t *testing.T, d *damage) {
		lines := slices.Collect(strings.Lines(d.content))
		var cases []string
		perCPU := d.hex()
		for i := range lines {
			// A missing line of a file with a line per CPU cannot be detected. The head of a
			// zone is skipped because the lines below it would belong to the previous zone.
			if !perCPU && !strings.HasPrefix(lines[i], "Node ") {
				cases = append(cases, strings.Join(slices.Delete(slices.Clone(lines), i, i+1), ""))
			}
			fields := strings.Fields(lines[i])
			if d.is("sockstat", "sockstat6") {
				for f := 1; f+1 < len(fields); f += 2 {
					changed := slices.Clone(lines)
					changed[i] = strings.Join(slices.Delete(slices.Clone(fields), f, f+2), " ") + "\n"
					cases = append(cases, strings.Join(changed, ""))
				}
			}
			if d.is("snmp", "netstat") && i%2 == 0 {
				values := strings.Fields(lines[i+1])
				for f := 1; f < len(fields); f++ {
					changed := slices.Clone(lines)
					changed[i] = strings.Join(slices.Delete(slices.Clone(fields), f, f+1), " ") + "\n"
					changed[i+1] = strings.Join(slices.Delete(slices.Clone(values), f, f+1), " ") + "\n"
					cases = append(cases, strings.Join(changed, ""))
				}
			}
		}
		if strings.Contains(d.name, "net/stat/") {
			for f := range strings.Fields(lines[0]) {
				changed := slices.Clone(lines)
				for i := range changed {
					changed[i] = strings.Join(slices.Delete(strings.Fields(changed[i]), f, f+1), " ") + "\n"
				}
				cases = append(cases, strings.Join(changed, ""))
			}
		}
		for _, content := range cases {
			got, err := d.with(content)
			for s, v := range got {
				if want, ok := d.whole[s]; !ok || v != want {
					// A later line of the same zone, cache or section may replace a removed
					// one.
					t.Errorf("%s is %v, want %v as with the intact file (%v)", s, v, want, err)
				}
			}
			if err != nil {
				d.named(t, err)
			}
		}
	})
}

// TestCutShort checks that no wrong value is exported if a file is cut off after or in the
// middle of a line.
func TestCutShort(t *testing.T) {
	eachFile(t, func(t *testing.T, d *damage) {
		var cuts []int
		at := 0
		for line := range strings.Lines(d.content) {
			cuts = append(cuts, at, at+len(line)/2)
			at += len(line)
		}
		// Long files have hundreds of lines that are not read, so test only some of the cuts.
		for len(cuts) > 120 {
			for i := range len(cuts) / 2 {
				cuts[i] = cuts[2*i]
			}
			cuts = cuts[:len(cuts)/2]
		}
		for _, cut := range cuts {
			got, err := d.with(d.content[:cut])
			if err != nil {
				d.named(t, err)
			}
			for s, v := range got {
				// A missing line of a file with a line per CPU cannot be detected.
				if w, ok := d.whole[s]; !ok || w != v && !d.hex() {
					t.Fatalf("cut at %d: %s is %v, want %v as with the intact file (%v)", cut, s, v, w, err)
				}
			}
		}
	})
}
