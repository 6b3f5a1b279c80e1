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

// slabReader reads the size of the caches, from /sys/kernel/slab where the
// kernel has it: that costs a few counters for each cache asked for, while a
// read of /proc/slabinfo makes the kernel go through the lists of all of them.
type slabReader struct {
	caches   []slabCache
	slabinfo *procfile.File
	pageSize float64
}

type slabCache struct {
	name         string
	slabs, order *procfile.File
}

func newSlabReader(k *Kernel) *slabReader {
	r := &slabReader{slabinfo: k.proc("slabinfo"), pageSize: k.pageSize}
	for _, name := range slabCaches() {
		dir := filepath.Join("kernel/slab", name)
		// A cache that was merged with others of its size is a link to what they
		// share, which would show their memory as this one's.
		r.caches = append(r.caches, slabCache{
			name:  name,
			slabs: k.sys(filepath.Join(dir, "slabs"), openUnmerged),
			order: k.sys(filepath.Join(dir, "order"), openUnmerged),
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
// user that may not see them: only root may.
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
	var slabs []slab
	for _, c := range r.caches {
		// "2 N0=2": the sum, then each node's share.
		n, err := sysctlNumber(c.slabs)
		if err != nil {
			return nil, err
		}
		order, err := sysctlNumber(c.order)
		if err != nil {
			return nil, err
		}
		if n.Present && order.Present {
			slabs = append(slabs, slab{c.name, n.Value * r.pageSize * float64(uint64(1)<<min(uint64(order.Value), 20))})
		}
	}
	return slabs, nil
}

func (r *slabReader) readSlabinfo() ([]slab, error) {
	b, err := optional(r.slabinfo)
	if b == nil || err != nil {
		return nil, err
	}
	return parseSlabinfo(b, r.slabinfo.Path(), slabCaches(), r.pageSize)
}

// Fields of a line of /proc/slabinfo, version 2.1 (Linux 2.6.10).
const (
	slabinfoPages = 5
	slabinfoSlabs = 14
)

// parseSlabinfo reads the wanted lines of /proc/slabinfo (mm/slab_common.c).
func parseSlabinfo(b []byte, path string, wanted []string, pageSize float64) ([]slab, error) {
	if !bytes.HasPrefix(b, []byte("slabinfo - version: 2.")) {
		return nil, fieldError(path, "version", errMissing)
	}
	var slabs []slab
	for line, b, ok := procfile.NextLine(b); ok; line, b, ok = procfile.NextLine(b) {
		name, line, _ := procfile.NextField(line)
		if !slices.Contains(wanted, string(name)) {
			continue
		}
		size := pageSize
		for i := 1; i <= slabinfoSlabs; i++ {
			var f []byte
			f, line, _ = procfile.NextField(line)
			if i != slabinfoPages && i != slabinfoSlabs {
				continue
			}
			v, err := procfile.Uint(f, 10)
			if err != nil {
				return nil, fieldError(path, string(name), err)
			}
			size *= float64(v)
		}
		slabs = append(slabs, slab{string(name), size})
	}
	return slabs, nil
}

// largestSlabs returns at most n caches, the largest first.
func largestSlabs(slabs []slab, n int) []slab {
	slices.SortFunc(slabs, func(a, b slab) int {
		return cmp.Or(cmp.Compare(b.size, a.size), cmp.Compare(a.cache, b.cache))
	})
	return slabs[:min(n, len(slabs))]
}
