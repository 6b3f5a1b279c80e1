package collector

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/kmsg"
)

// fakeLog is a kernel log that a test writes to.
type fakeLog struct {
	mu      sync.Mutex
	records []string
	err     error // of opening
}

func newLog() *fakeLog { return &fakeLog{} }

// write adds a record of a facility; that of the kernel is 0.
func (l *fakeLog) write(facility int, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, fmt.Sprintf("%d,%d,%d,-;%s\n", facility<<3|4, len(l.records)+1, 1000*len(l.records), text))
}

func (l *fakeLog) open() (kmsg.Log, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &openLog{fakeLog: l}, l.err
}

type openLog struct {
	*fakeLog
	next int
}

func (o *openLog) Next(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.next == len(o.records) {
		return 0, unix.EAGAIN
	}
	o.next++
	return copy(b, o.records[o.next-1]), nil
}

func (o *openLog) Wait(ctx context.Context) error {
	for there := false; !there && ctx.Err() == nil; {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
		o.mu.Lock()
		there = o.next < len(o.records)
		o.mu.Unlock()
	}
	return nil
}

func (*openLog) Close() error { return nil }

// kmsgSet returns a set of only the collector of the kernel log.
func kmsgSet(l *fakeLog) *Set {
	specs := Specs()
	m := &kernel.Machine{Options: kernel.Options{OpenLog: l.open}}
	return NewSet(m, specs[len(specs)-1:], Config{Top: 10, Logger: slog.New(slog.DiscardHandler)})
}

// counts returns the messages that were logged and how often.
func counts(r Result) map[string]float64 {
	found := map[string]float64{}
	for labels, n := range r.Samples("kernel_messages_total") {
		if n > 0 {
			found[labels[0]] = n
		}
	}
	return found
}

// TestKernelMessages checks that every known wording of a message is recognised, and no other
// line.
func TestKernelMessages(t *testing.T) {
	for text, want := range map[string]string{
		// As logged by the virtual machines of the lab, Linux 5.10 to 7.2.
		"nf_conntrack: nf_conntrack: table full, dropping packet":                                                                                 "conntrack_table_full",
		"nf_conntrack: nf_conntrack: table full in netns 4026532265, dropping packet":                                                             "conntrack_table_full_in_netns",
		"nf_conntrack: expectation table full":                                                                                                    "conntrack_expectation_table_full",
		"TCP: out of memory -- consider tuning tcp_mem":                                                                                           "tcp_out_of_memory",
		"TCP: too many orphaned sockets":                                                                                                          "tcp_too_many_orphans",
		"TCP: request_sock_TCP: Possible SYN flooding on port 8080. Sending cookies.  Check SNMP counters.":                                       "tcp_syn_flooding",
		"TCP: request_sock_TCP: Possible SYN flooding on port 127.0.0.1:23456. Sending cookies.":                                                  "tcp_syn_flooding",
		"TCP: request_sock_subflow_v4: Possible SYN flooding on port [::]:20002. Dropping request.":                                               "tcp_syn_flooding",
		"VFS: file-max limit 1024 reached":                                                                                                        "file_max_reached",
		"neighbour: arp_cache: neighbor table overflow!":                                                                                          "neighbour_ipv4_table_overflow",
		"neighbour: ndisc_cache: neighbor table overflow!":                                                                                        "neighbour_ipv6_table_overflow",
		"Out of memory: Killed process 123 (hog) total-vm:1024kB, anon-rss:1kB, file-rss:0kB, shmem-rss:0kB, UID:0 pgtables:44kB oom_score_adj:0": "oom_kill",
		"Memory cgroup out of memory: Killed process 9 (a) b) total-vm:1024kB, anon-rss:1kB":                                                      "oom_kill_cgroup",
		"kworker/u8:1: page allocation failure: order:4, mode:0x40cc0(GFP_KERNEL|__GFP_COMP), nodemask=(null)":                                    "page_allocation_failure",
		"SLUB: Unable to allocate memory on CPU 0 (of node 0) on node -1, gfp=0x820(GFP_ATOMIC)":                                                  "slab_allocation_failure",
		"vmap allocation for size 4198400 failed: use vmalloc=<size> to increase size":                                                            "vmap_allocation_failure",
		"modprobe: vmalloc error: size 8192, page order 0, failed to allocate pages, mode:0xcc2":                                                  "vmap_allocation_failure",
		"INFO: task kworker/0:1:14 blocked for more than 120 seconds.":                                                                            "hung_task",
		// Older kernels.
		"nf_conntrack: table full, dropping packet":                                           "conntrack_table_full",
		"TCP: time wait bucket table overflow":                                                "tcp_time_wait_overflow",
		"TCP: TCP: Possible SYN flooding on port 80. Dropping request.  Check SNMP counters.": "tcp_syn_flooding",
		"Out of memory: Kill process 1234 (java) score 900 or sacrifice child":                "oom_kill",
		"Memory cgroup out of memory: Kill process 77 (x) score 1 or sacrifice child":         "oom_kill_cgroup",
		// Lines of the kernel that include text chosen by programs, and similar lines.
		"a[12]: segfault at 0 ip 0000000000000000 sp 00007ffd5a9b2f38 error 14 in nf_conntrack: table full, dropping packet[400000+1000]": "",
		"audit: type=1112 audit(1.1:1): msg='TCP: too many orphaned sockets'":                                                             "",
		"a-name-of-more-than-15: page allocation failure: order:0":                                                                        "",
		"oom_reaper: reaped process 123 (hog), now anon-rss:0kB, file-rss:0kB, shmem-rss:0kB":                                             "",
		"hog invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0":                                                    "",
		"TCP: request_sock_TCP: Possible SYN flooding on port . Sending cookies.":                                                         "",
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLog()
			set := kmsgSet(l)
			defer closeSet(t, set)
			set.Read(t.Context(), Query{})
			l.write(0, text)
			l.write(1, text) // by a program
			l.write(0, ttyPrintk+text)
			time.Sleep(time.Second)
			r := set.Read(t.Context(), Query{}).Results[0]
			got := counts(r)
			switch {
			case r.Err != nil || r.Unsupported != nil:
				t.Errorf("%v, %v", r.Err, r.Unsupported)
			case want == "" && len(got) > 0, want != "" && (len(got) != 1 || got[want] != 1):
				t.Errorf("%q is %v, want %q", text, got, want)
			case want != "" && (len(r.Notes) != 1 || r.Notes[0].Message != want || !strings.HasPrefix(text, r.Notes[0].Text)):
				t.Errorf("the notes of %q are %+v", text, r.Notes)
			}
		})
	}
}

// TestKernelLog checks that messages logged before the start have a time but no count, that
// later ones have both, and that every message has a series from the start.
func TestKernelLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		l.write(0, "TCP: too many orphaned sockets")
		l.write(0, "net_ratelimit: 5 callbacks suppressed")
		set := kmsgSet(l)
		defer closeSet(t, set)
		r := set.Read(t.Context(), Query{}).Results[0]
		series, found := 0, false
		for _, n := range r.Samples("kernel_messages_total") {
			series++
			if n != 0 {
				t.Errorf("%v before anything came", n)
			}
		}
		for labels := range r.Samples("kernel_message_last_timestamp_seconds") {
			found = slices.Equal(labels, []string{"tcp_too_many_orphans"})
		}
		if series != 17 || !found {
			t.Errorf("%d series, its time: %v", series, found)
		}
		for range 3 {
			l.write(0, "TCP: too many orphaned sockets")
		}
		l.write(0, "net_ratelimit: 12 callbacks suppressed")
		time.Sleep(time.Second)
		r = set.Read(t.Context(), Query{}).Results[0]
		if got := counts(r); got["tcp_too_many_orphans"] != 3 {
			t.Errorf("%v", got)
		}
		for _, n := range r.Samples("kernel_messages_suppressed_total") {
			if n != 12 {
				t.Errorf("%v suppressed", n)
			}
		}
		if len(r.Notes) != 1 || time.Since(r.Notes[0].At) > 2*time.Second || !slices.Equal(r.Notes[0].Resources, []string{"tcp_orphans"}) {
			t.Errorf("%+v", r.Notes)
		}
	})
}

// TestOOMReport checks that the kind of a kill is taken from the report that precedes it, and
// that its victim is named.
func TestOOMReport(t *testing.T) {
	const kill = "Out of memory: Killed process %d (hog) total-vm:1kB"
	report := func(constraint string, pid int) string {
		return fmt.Sprintf("oom-kill:constraint=CONSTRAINT_%s,nodemask=(null),cpuset=/,mems_allowed=0,task_memcg=/kubepods/pod1/x,task=hog,pid=%d,uid=0", constraint, pid)
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		set := kmsgSet(l)
		defer closeSet(t, set)
		set.Read(t.Context(), Query{})
		for _, text := range []string{
			report("NONE", 11), fmt.Sprintf(kill, 11),
			report("CPUSET", 12), fmt.Sprintf(kill, 12),
			fmt.Sprintf(kill, 13), // its report was suppressed
			report("MEMCG", 14), "Memory cgroup out of memory: Killed process 14 (hog) total-vm:1kB",
		} {
			l.write(0, text)
		}
		time.Sleep(time.Second)
		r := set.Read(t.Context(), Query{}).Results[0]
		if got := counts(r); got["oom_kill"] != 2 || got["oom_kill_cpuset"] != 1 || got["oom_kill_cgroup"] != 1 || len(got) != 3 {
			t.Errorf("%v", got)
		}
		if want := "Memory cgroup out of memory: killed hog (process 14) of cgroup /kubepods/pod1/x"; !slices.ContainsFunc(r.Notes, func(n Note) bool { return n.Text == want }) {
			t.Errorf("%+v", r.Notes)
		}
	})
}

// TestKernelLogRefused checks that a log that may not be read is unsupported rather than an
// error, and is read as soon as it can be.
func TestKernelLogRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLog()
		l.err = &fs.PathError{Op: "open", Path: kmsg.Path, Err: unix.EPERM}
		set := kmsgSet(l)
		defer closeSet(t, set)
		r := set.Read(t.Context(), Query{}).Results[0]
		if r.Err != nil || r.Unsupported == nil || !strings.Contains(r.Unsupported.Error(), "CAP_SYSLOG") {
			t.Errorf("%v, %v", r.Err, r.Unsupported)
		}
		l.mu.Lock()
		l.err = nil
		l.mu.Unlock()
		time.Sleep(reopenPause + time.Second)
		if r := set.Read(t.Context(), Query{}).Results[0]; r.Err != nil || r.Unsupported != nil {
			t.Errorf("%v, %v", r.Err, r.Unsupported)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		set.Read(ctx, Query{})
	})
}
