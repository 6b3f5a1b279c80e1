package byhand

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// memory reads what of memory is one number.
func (p *pass) memory() {
	info := map[string]float64{}
	for _, f := range p.lines("/proc/meminfo") {
		info[f.at(0)] = p.decimal(f.at(1)) * 1024
	}
	for name, field := range map[string]string{
		"total": "MemTotal", "available": "MemAvailable", "committed": "Committed_AS", "commit_limit": "CommitLimit",
		"hugetlb": "Hugetlb", "low_total": "LowTotal", "low_free": "LowFree", "high_total": "HighTotal", "high_free": "HighFree",
	} {
		if v, ok := info[field+":"]; ok {
			p.Set(v, "memory_"+name+"_bytes")
		}
	}
	for kind, field := range map[string]string{
		"slab_reclaimable": "SReclaimable", "slab_unreclaimable": "SUnreclaim", "kernel_stack": "KernelStack",
		"page_tables": "PageTables", "secondary_page_tables": "SecPageTables", "percpu": "Percpu", "vmalloc": "VmallocUsed",
	} {
		if v, ok := info[field+":"]; ok {
			p.Set(v, "memory_kernel_bytes", "kind", kind)
		}
	}
	if total := info["MemTotal:"] - info["Hugetlb:"]; total > 0 {
		p.Set((total-info["MemAvailable:"])/total, "saturation_ratio", "resource", "memory")
	}
	if limit := info["CommitLimit:"]; limit > 0 && slices.Equal(p.numbers("/proc/sys/vm/overcommit_memory"), []float64{2}) {
		p.Set(info["Committed_AS:"]/limit, "saturation_ratio", "resource", "committed_memory")
	}

	for _, f := range p.lines("/proc/vmstat") {
		if f.at(0) == "oom_kill" {
			p.Set(p.decimal(f.at(1)), "oom_kills_total")
		}
	}
	for _, f := range p.lines("/proc/pressure/memory") {
		seconds := p.decimal(strings.TrimPrefix(f.at(len(f)-1), "total=")) / 1e6
		p.Set(seconds, "memory_pressure_seconds_total", "kind", f.at(0))
	}
}

// slabs reads slabinfo. A cache that shares its memory with others is a link in
// /sys/kernel/slab, and is not the exporter's to show. A kernel without that
// folder lets none share.
func (p *pass) slabs() {
	const shared = "/sys/kernel/slab"
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

// zones reads the zones that have memory.
func (p *pass) zones() {
	zones := map[[2]string]map[string]float64{}
	var zone map[string]float64
	for _, f := range p.lines("/proc/zoneinfo") {
		if len(f) == 4 && f[0] == "Node" {
			zone = map[string]float64{}
			zones[[2]string{strings.TrimSuffix(f[1], ","), f[3]}] = zone
		}
		if f.at(0) == "pages" {
			f = f[1:]
		}
		// The first is the zone's, what follows is of its nodes and CPUs.
		if _, ok := zone[f.at(0)]; zone != nil && len(f) == 2 && !ok && f[0] != "per-node" {
			zone[f[0]] = p.decimal(f[1]) * float64(os.Getpagesize())
		}
	}
	for id, z := range zones {
		if z["managed"] == 0 {
			continue
		}
		p.Set(z["free"], "memory_zone_free_bytes", "node", id[0], "zone", id[1])
		for _, watermark := range []string{"min", "low", "high"} {
			p.Set(z[watermark], "memory_zone_watermark_bytes", "node", id[0], "zone", id[1], "watermark", watermark)
		}
	}
	if total, ok := p.Readings["sockpressure_memory_low_total_bytes"]; ok {
		// A TCP socket pins 860 bytes of its inode and dentry.
		slab := p.Readings[`sockpressure_memory_kernel_bytes{kind="slab_reclaimable"}`] - 860*p.Readings["sockpressure_tcp_sockets_allocated"]
		usage := total - p.Readings["sockpressure_memory_low_free_bytes"] - max(slab, 0)
		limit := total
		for id, z := range zones {
			if id[1] != "HighMem" && id[1] != "Movable" && z["managed"] > 0 {
				usage -= z["nr_zone_active_file"] + z["nr_zone_inactive_file"]
				limit -= z["min"]
			}
		}
		p.Set(max(usage, 0)/limit, "saturation_ratio", "resource", "low_memory")
	}
}
