package collector

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestCutShort cuts every file at every line and in the middle of every line.
// The collectors that read it either give the numbers of the whole file, or
// fewer of them, or fail with an error that names it: never other numbers. All
// other collectors stay as they are.
func TestCutShort(t *testing.T) {
	whole := newTree(t, "linux-6.1-686-pae")
	whole.top = 100 // whole lists: what is missing does not let another series in
	want, _ := whole.series()
	for _, name := range whole.files() {
		t.Run(strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
			tr := newTree(t, "linux-6.1-686-pae")
			tr.top = 100
			content := tr.read(name)
			var cuts []int
			at := 0
			for line := range strings.Lines(content) {
				cuts = append(cuts, at, at+len(line)/2)
				at += len(line)
			}
			// The long files have hundreds of lines that nobody reads.
			for len(cuts) > 120 {
				for i := range len(cuts) / 2 {
					cuts[i] = cuts[2*i]
				}
				cuts = cuts[:len(cuts)/2]
			}
			for _, cut := range cuts {
				tr.write(name, content[:cut])
				got, errs := tr.series()
				for c, series := range got {
					if err := errs[c]; err != nil {
						if len(series) != 0 {
							t.Fatalf("cut at %d: %s failed and gave %d series", cut, c, len(series))
						}
						if !strings.Contains(err.Error(), filepath.Base(name)) {
							t.Fatalf("cut at %d: the error of %s names another file: %v", cut, c, err)
						}
						continue
					}
					for s, v := range series {
						// A file with a line for each CPU says nothing of those whose
						// lines are gone.
						perCPU := strings.HasSuffix(name, "softnet_stat") || strings.Contains(name, "net/stat/")
						if w, ok := want[c][s]; !ok || w != v && !perCPU {
							t.Fatalf("cut at %d: %s: %s is %v, of the whole file %v", cut, c, s, v, w)
						}
					}
				}
			}
		})
	}
}
