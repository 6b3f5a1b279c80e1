package collector

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// slabCaches returns the names of the kernel's caches of sockets, of objects that belong
// to them, and of connection tracking.
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

// largerSlab reports whether a comes before b: the largest first.
func largerSlab(a, b parse.Slab) bool {
	return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Cache, b.Cache)) < 0
}

// slabReader reads the size of the caches, from /sys/kernel/slab if the kernel has it.
// That costs a few counters for each cache asked for, whereas a read of /proc/slabinfo
// makes the kernel go through the lists of all caches.
type slabReader struct {
	caches   []slabCache
	slabinfo kernel.File
	pageSize int
}

type slabCache struct {
	name         string
	slabs, order kernel.File
}

func newSlabReader(k *Scope) *slabReader {
	r := &slabReader{slabinfo: k.Proc("slabinfo"), pageSize: k.PageSize}
	for _, name := range slabCaches() {
		dir := filepath.Join("kernel/slab", name)
		// A cache that was merged with others of its size is a symbolic link to the
		// shared one, whose memory is not this cache's alone.
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

// read returns the caches that this kernel has. For users other than root, who may not
// see them, it returns neither caches nor an error. If only some could be read, it
// returns these and an error.
func (r *slabReader) read() ([]parse.Slab, error) {
	slabs, err := r.readSysfs()
	if err == nil && len(slabs) == 0 {
		slabs, err = r.readSlabinfo()
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	return slabs, err
}

func (r *slabReader) readSysfs() ([]parse.Slab, error) {
	var p parse.Problems
	var slabs []parse.Slab
	for _, c := range r.caches {
		// "2 N0=2": the sum, then each node's share.
		n, err := sysctlNumber(c.slabs)
		if errors.Is(err, fs.ErrPermission) {
			return nil, err // the same holds for all others
		}
		p.Add(err)
		order, err := sysctlNumber(c.order)
		p.Add(err)
		if n.Present && order.Present {
			slabs = append(slabs, parse.Slab{Cache: c.name, Size: n.Value * float64(r.pageSize) * float64(uint64(1)<<min(uint64(order.Value), 20))})
		}
	}
	return slabs, p.Err()
}

func (r *slabReader) readSlabinfo() ([]parse.Slab, error) {
	var p parse.Problems
	b, err := optional(r.slabinfo)
	p.Add(err)
	if b == nil {
		return nil, p.Err()
	}
	slabs, err := parse.Slabinfo(b, r.slabinfo.Path(), slabCaches(), r.pageSize)
	p.Add(err)
	return slabs, p.Err()
}
