package collector

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// slabCaches names the kernel's caches of sockets, of what belongs to them, and
// of connection tracking.
func slabCaches() []string {
	return []string{
		"TCP", "TCPv6", "MPTCP", "MPTCPv6", "UDP", "UDPv6",
		"tw_sock_TCP", "tw_sock_TCPv6", "request_sock_TCP", "request_sock_TCPv6",
		"tcp_bind_bucket", "tcp_bind2_bucket",
		"sock_inode_cache", "filp", "dentry", "eventpoll_epi",
		"skbuff_head_cache", "skbuff_fclone_cache", "skbuff_small_head",
		"nf_conntrack", "nf_conntrack_expect",
	}
}

// slab is the memory that a cache has taken, in bytes.
type slab struct {
	cache string
	size  float64
}

// before puts the largest first.
func (c slab) before(o slab) bool {
	return cmp.Or(cmp.Compare(o.size, c.size), cmp.Compare(c.cache, o.cache)) < 0
}

// slabReader reads the size of the caches, from /sys/kernel/slab where the
// kernel has it: that costs a few counters for each cache asked for, while a
// read of /proc/slabinfo makes the kernel go through the lists of all of them.
type slabReader struct {
	caches   []slabCache
	slabinfo kernel.File
	pageSize float64
}

type slabCache struct {
	name         string
	slabs, order kernel.File
}

func newSlabReader(k *Scope) *slabReader {
	r := &slabReader{slabinfo: k.Proc("slabinfo"), pageSize: float64(k.PageSize)}
	for _, name := range slabCaches() {
		dir := filepath.Join("kernel/slab", name)
		// A cache that was merged with others of its size is a link to what they
		// share, which would show their memory as this one's.
		r.caches = append(r.caches, slabCache{
			name:  name,
			slabs: k.Sys(filepath.Join(dir, "slabs"), openUnmerged),
			order: k.Sys(filepath.Join(dir, "order"), openUnmerged),
		})
	}
	return r
}

func openUnmerged(path string) (int, error) {
	if st, err := os.Lstat(filepath.Dir(path)); err == nil && st.Mode()&fs.ModeSymlink != 0 {
		return -1, unix.ENOENT
	}
	return procfile.Open(path)
}

// read returns the caches that this kernel has, and none without an error for a
// user that may not see them: only root may. Beside an error it returns those
// that could be read.
func (r *slabReader) read() ([]slab, error) {
	slabs, err := r.readSysfs()
	if err == nil && len(slabs) == 0 {
		slabs, err = r.readSlabinfo()
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	return slabs, err
}

func (r *slabReader) readSysfs() ([]slab, error) {
	var p problems
	var slabs []slab
	for _, c := range r.caches {
		// "2 N0=2": the sum, then each node's share.
		n, err := sysctlNumber(c.slabs)
		if errors.Is(err, fs.ErrPermission) {
			return nil, err // as of all the others
		}
		p.add(err)
		order, err := sysctlNumber(c.order)
		p.add(err)
		if n.Present && order.Present {
			slabs = append(slabs, slab{c.name, n.Value * r.pageSize * float64(uint64(1)<<min(uint64(order.Value), 20))})
		}
	}
	return slabs, p.err()
}

func (r *slabReader) readSlabinfo() ([]slab, error) {
	var p problems
	b, err := optional(r.slabinfo)
	p.add(err)
	if b == nil {
		return nil, p.err()
	}
	slabs, err := parseSlabinfo(b, r.slabinfo.Path(), slabCaches(), r.pageSize)
	p.add(err)
	return slabs, p.err()
}

// parseSlabinfo reads the wanted lines of /proc/slabinfo, version 2 (Linux 2.6.10,
// mm/slab_common.c). Its columns go by the names in its second line. A cache that
// is there twice, as one of each memory cgroup was before Linux 5.9, is added up.
func parseSlabinfo(b []byte, path string, wanted []string, pageSize float64) ([]slab, error) {
	if !bytes.HasPrefix(b, []byte("slabinfo - version: 2.")) {
		return nil, fieldError(path, "version", errMissing)
	}
	var p problems
	var slabs []slab
	var broken []string    // caches of which a part could not be read
	pages, count := -1, -1 // the columns, counted from the name
	for line, b, ok := procfile.NextLine(b); ok; line, b, ok = procfile.NextLine(b) {
		name, line, _ := procfile.NextField(line)
		if string(name) == "#" {
			// Columns stand in angle brackets; the words between them in both lines.
			for i := 0; ; i++ {
				var column []byte
				if column, line, ok = procfile.NextField(line); !ok {
					break
				}
				switch string(column) {
				case "<pagesperslab>":
					pages = i
				case "<num_slabs>":
					count = i
				}
			}
			continue
		}
		if !slices.Contains(wanted, string(name)) {
			continue
		}
		if pages < 0 || count < 0 {
			return nil, fieldError(path, "names of columns", errMissing)
		}
		var pagesOf, slabsOf Number
		for i := 1; ; i++ {
			var value []byte
			if value, line, ok = procfile.NextField(line); !ok {
				break
			}
			switch i {
			case pages:
				if err := pagesOf.parse(value); err != nil {
					p.add(fieldError(path, string(name)+" pagesperslab", err))
				}
			case count:
				if err := slabsOf.parse(value); err != nil {
					p.add(fieldError(path, string(name)+" num_slabs", err))
				}
			}
		}
		p.add(complete(path, []field{{string(name) + " pagesperslab", pagesOf}, {string(name) + " num_slabs", slabsOf}}))
		if !pagesOf.Present || !slabsOf.Present {
			broken = append(broken, string(name))
			continue
		}
		size := pagesOf.Value * slabsOf.Value * pageSize
		if i := slices.IndexFunc(slabs, func(s slab) bool { return s.cache == string(name) }); i >= 0 {
			slabs[i].size += size
		} else {
			slabs = append(slabs, slab{string(name), size})
		}
	}
	slabs = slices.DeleteFunc(slabs, func(s slab) bool { return slices.Contains(broken, s.cache) })
	return slabs, p.err()
}
