package byhand

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// memory reads the saturation of memory.
func (p *pass) memory() {
	info := map[string]float64{}
	for _, f := range p.lines("/proc/meminfo") {
		info[f.at(0)] = p.decimal(f.at(1)) * 1024
	}
	// Huge pages are set aside: they count as neither used nor present.
	if total := info["MemTotal:"] - info["Hugetlb:"]; total > 0 {
		p.Set((total-info["MemAvailable:"])/total, "saturation_ratio", "resource", "memory")
	}
}

// slabs reads slabinfo. A cache that shares its memory with others is a symbolic link in
// /sys/kernel/slab, and the exporter does not export it. On a kernel without that folder
// no caches share memory.
func (p *pass) slabs() {
	shared := p.root + "/sys/kernel/slab"
	_, err := os.Stat(shared)
	all := errors.Is(err, fs.ErrNotExist)
	for _, f := range p.lines("/proc/slabinfo") {
		if len(f) < 16 || f[0] == "#" {
			continue
		}
		if st, err := os.Lstat(filepath.Join(shared, f[0])); all || err == nil && st.IsDir() {
			p.Set(p.decimal(f[14])*p.decimal(f[5])*float64(os.Getpagesize()), "memory_slab_bytes", "cache", f[0])
		}
	}
}
