package byhand

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Reader reads the files of /proc.
type Reader struct {
	root, proc string
	fileNR     *os.File
}

// Open prepares to read, with the processes below proc: /proc, or the path of another
// procfs.
func Open(proc string) (*Reader, error) { return open("", proc) }

// OpenRecorded prepares to read the recorded files below root, in proc and sys.
func OpenRecorded(root string) (*Reader, error) { return open(root, "/proc") }

func open(root, proc string) (*Reader, error) {
	// Kept open, so that reading it does not count as another file.
	fileNR, err := os.Open(root + "/proc/sys/fs/file-nr")
	if err != nil {
		return nil, err
	}
	return &Reader{root, proc, fileNR}, nil
}

// Close closes the reader.
func (r *Reader) Close() error { return r.fileNR.Close() }

// Read reads the files of the network namespace of the calling thread, those of
// the machine, and the processes.
func (r *Reader) Read() (Readings, error) {
	p := newPass()
	p.root = r.root
	p.conntrack()
	p.memory()
	p.slabs()
	p.processes(r.proc)
	p.devices()
	p.openFiles(r.fileNR)
	if r.root == "" {
		p.hostView(r.proc)
	}
	return p.result()
}

// hostView looks for what only the machine's initial namespaces have: a limit, and kernel
// threads, which have no program.
func (p *pass) hostView(proc string) {
	seen := func(path string) float64 {
		if _, err := os.Stat(path); err != nil {
			return 0
		}
		return 1
	}
	network, processes := seen("/proc/sys/net/ipv4/tcp_mem"), 0.0
	if strings.TrimSpace(p.text(proc+"/2/comm")) == "kthreadd" {
		processes = 1
	}
	p.Set(network, "host_network_namespace")
	p.Set(network, "host_view", "view", "network")
	p.Set(processes, "host_view", "view", "processes")
	p.Set(1, "host_view", "view", "memory")
}

// conntrack reads the counters of connection tracking, with its tool if the kernel has no
// file of them.
func (p *pass) conntrack() {
	const path = "/proc/net/stat/nf_conntrack"
	if p.text("/proc/sys/net/netfilter/nf_conntrack_max") == "" {
		return
	}
	tool := ""
	if p.text(path) == "" && p.root == "" {
		tool = p.command("conntrack", "-S")
	}
	for name, counter := range map[string]string{
		"conntrack_drops_total": "drop", "conntrack_early_drops_total": "early_drop", "conntrack_invalid_total": "invalid",
		"conntrack_insert_failures_total": "insert_failed", "conntrack_search_restarts_total": "search_restart",
	} {
		v, ok := p.column(path, counter, false)
		for field := range strings.FieldsSeq(tool) {
			if n, found := strings.CutPrefix(field, counter+"="); found {
				v, ok = v+p.decimal(n), true
			}
		}
		if ok {
			p.Set(v, name)
		}
	}
}

// command runs a program in the network namespace of this thread and returns its output.
func (p *pass) command(name string, args ...string) string {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		p.file = strings.Join(cmd.Args, " ")
		p.fail(fmt.Errorf("%w: %s", err, stderr.String()))
	}
	return string(out)
}

// devices reads the queues of received packets and the neighbour tables.
func (p *pass) devices() {
	var drops, squeezes, length, input float64
	lengths := false // since Linux 5.10
	for _, f := range p.lines("/proc/net/softnet_stat") {
		drops += float64(p.hexadecimal(f.at(1)))
		squeezes += float64(p.hexadecimal(f.at(2)))
		if len(f) > 11 {
			lengths = true
			length = max(length, float64(p.hexadecimal(f[11])))
			queue := 11 // includes what is being processed, before Linux 6.6
			if len(f) > 13 {
				queue = 13
			}
			input = max(input, float64(p.hexadecimal(f[queue])))
		}
	}
	p.Set(drops, "netdev_backlog_drops_total")
	p.Set(squeezes, "netdev_time_squeezes_total")
	if lengths {
		p.Set(length, "netdev_backlog_length")
	}
	if limit := p.numbers("/proc/sys/net/core/netdev_max_backlog"); lengths && len(limit) == 1 {
		p.Set(input/limit[0], "saturation_ratio", "resource", "netdev_backlog")
	}
	for family, file := range map[string]string{"ipv4": "/proc/net/stat/arp_cache", "ipv6": "/proc/net/stat/ndisc_cache"} {
		if v, ok := p.column(file, "entries", true); ok {
			p.Set(v, "neighbour_entries", "family", family)
		}
		if v, ok := p.column(file, "table_fulls", false); ok {
			p.Set(v, "neighbour_table_full_total", "family", family)
		}
	}
}

// openFiles reads how many files the machine has open.
func (p *pass) openFiles(fileNR *os.File) {
	p.file = fileNR.Name()
	b := make([]byte, 100)
	size, err := fileNR.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		p.fail(err)
	}
	f := fields(strings.Fields(string(b[:size])))
	p.Set(p.decimal(f.at(0))-p.decimal(f.at(1)), "file_descriptors_allocated")
}
