package collector

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/needs"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

func TestMain(m *testing.M) { os.Exit(needs.Run(m)) }

// TestSlabFilesAgree checks that the sizes of the caches from /sys/kernel/slab agree with
// those from /proc/slabinfo, which is read before and after.
func TestSlabFilesAgree(t *testing.T) {
	needs.Check(t, needs.Root) // only root can read /proc/slabinfo
	r := newSlabReader(scope(t, running()))

	// The size of a cache may change between the readings, so each cache has several attempts.
	agreed := map[string]bool{}
	for end := time.Now().Add(20 * time.Second); ; {
		before := slabinfo(t)
		slabs, err := r.readSysfs()
		if err != nil {
			t.Fatal(err)
		}
		after := slabinfo(t)
		if len(slabs) == 0 {
			needs.Skip(t, "a kernel with CONFIG_SLUB_DEBUG")
		}
		var differ []parse.Slab
		for _, s := range slabs {
			a, b := before[s.Cache], after[s.Cache]
			if s.Size >= min(a, b) && s.Size <= max(a, b) {
				agreed[s.Cache] = true
			}
			if !agreed[s.Cache] {
				differ = append(differ, s)
			}
		}
		if len(differ) == 0 {
			t.Logf("%d caches agree", len(slabs))
			break
		}
		if time.Now().After(end) {
			for _, s := range differ {
				t.Errorf("%s: %v by /sys/kernel/slab, %v and %v by /proc/slabinfo", s.Cache, s.Size, before[s.Cache], after[s.Cache])
			}
			break
		}
	}
	for _, cache := range []string{"TCP", "dentry"} {
		if !agreed[cache] {
			t.Errorf("%s was not read", cache)
		}
	}
}

// slabinfo returns the size of every cache: pages per slab times slabs.
func slabinfo(t *testing.T) map[string]float64 {
	t.Helper()
	b, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 16 || f[0] == "#" {
			continue
		}
		pages, err := strconv.ParseFloat(f[5], 64)
		if err != nil {
			t.Fatal(err)
		}
		slabs, err := strconv.ParseFloat(f[14], 64)
		if err != nil {
			t.Fatal(err)
		}
		sizes[f[0]] = pages * slabs * float64(os.Getpagesize())
	}
	return sizes
}
