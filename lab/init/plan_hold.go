package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// planned is a load that the guest holds.
type planned struct{ connections, descriptors, backlog int }

// ran is the result of holding a load.
type ran struct {
	refused string             // what a program saw
	moved   []string           // resources whose counter rose, or whose line was logged
	memory  float64            // bytes that the connections and their data took
	usage   map[string]float64 // saturation
}

// names reports whether a limit refused in the way that its row names.
func names(resource string, r ran) bool {
	for _, spec := range collector.Specs() {
		for _, l := range spec.Limits {
			if l.Resource != resource {
				continue
			}
			for _, e := range []unix.Errno{unix.ENFILE, unix.EMFILE, unix.EADDRNOTAVAIL, unix.EAGAIN} {
				if strings.Contains(l.Effect, unix.ErrnoName(e)) {
					return strings.Contains(r.refused, e.Error())
				}
			}
			if len(l.Proofs) == 0 && r.refused != "" && r.usage[resource] >= l.WarningRatio {
				return true
			}
		}
	}
	return slices.Contains(r.moved, resource)
}

// hold makes workers hold a load, and returns what was refused.
func (g *guest) hold(p planned) (ran, error) {
	var r ran
	before, err := g.page()
	if err != nil {
		return r, err
	}
	if err := g.log.read(); err != nil {
		return r, err
	}
	g.log.reset()
	var workers []*worker
	defer func() {
		for _, w := range workers {
			_ = w.stop()
		}
	}()
	for i := range planProcesses {
		load := heldLoad{
			Port: portPlan + i, Connections: p.connections / planProcesses, Pairs: planPairs / planProcesses,
			Unread: planUnread, Backlog: p.backlog, TimeWait: planCloses * 60 / planProcesses,
		}
		if i == 0 {
			load.Queue, load.Orphans = planOpens*planPause, planCloses*4
		}
		words, err := json.Marshal(load)
		if err != nil {
			return r, err
		}
		cmd := exec.Command("/proc/self/exe", workHold, string(words))
		// Root may exceed fs.file-max.
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		w, err := startWorker(cmd)
		if err != nil {
			return r, err
		}
		workers = append(workers, w)
		limit := &unix.Rlimit{Cur: uint64(p.descriptors), Max: uint64(p.descriptors)}
		if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_NOFILE, limit, nil); err != nil {
			return r, err
		}
		if _, err := w.step(); err != nil { // listens
			return r, err
		}
	}
	used, err := usedMemory()
	if err != nil {
		return r, err
	}
	for stage := range heldStages {
		for _, w := range workers {
			if r.refused == "" {
				if r.refused, err = w.step(); err != nil {
					return r, err
				}
			}
		}
		if stage == heldConnected {
			now, err := usedMemory()
			if err != nil {
				return r, err
			}
			r.memory = now - used
		}
	}
	after, err := g.page()
	if err != nil {
		return r, err
	}
	r.usage = map[string]float64{}
	if err := g.log.read(); err != nil {
		return r, err
	}
	for _, spec := range collector.Specs() {
		for _, l := range spec.Limits {
			r.usage[l.Resource] = after[saturation(l.Resource)]
			moved := slices.ContainsFunc(l.LogLines, func(line collector.LogLine) bool { return g.log.counts[line.Message] > 0 })
			for _, proof := range l.Proofs {
				rose := after[proof.Counter.String()] - before[proof.Counter.String()]
				if proof.Less.Metric != "" {
					rose -= after[proof.Less.String()] - before[proof.Less.String()]
				}
				moved = moved || rose > 0
			}
			if moved {
				r.moved = append(r.moved, l.Resource)
			}
		}
	}
	for _, w := range workers {
		if err := w.stop(); err != nil {
			return r, err
		}
	}
	workers = nil
	return r, forget(false)
}

func saturation(resource string) string {
	return fmt.Sprintf("sockpressure_saturation_ratio{resource=%q}", resource)
}

// page returns the samples of a scrape.
func (g *guest) page() (map[string]float64, error) {
	var s scenario.Step
	if err := g.scrape(&s, nil); err != nil {
		return nil, err
	}
	if s.Silent != "" {
		return nil, errors.New(s.Silent)
	}
	return parsePage(s.Page)
}

// usedMemory returns the memory that is neither free nor page cache nor a program's, in
// bytes: the kernel's. Pages on a processor's free list are free too: MemFree leaves them
// out, and since Linux 6.7 there may be tens of MiB of them after a program has ended.
func usedMemory() (float64, error) {
	time.Sleep(200 * time.Millisecond) // for memory that the kernel frees a moment later
	used := 0
	for name, sign := range map[string]int{"MemTotal:": 1, "MemFree:": -1, "Buffers:": -1, "Cached:": -1, "AnonPages:": -1} {
		n, err := meminfo(name)
		if err != nil {
			return 0, err
		}
		used += sign * n
	}
	listed, err := listedPages()
	if err != nil {
		return 0, err
	}
	return float64(used)*1024 - float64(listed*os.Getpagesize()), nil
}

// listedPages returns the number of free pages on the lists of the processors.
func listedPages() (int, error) {
	b, err := os.ReadFile("/proc/zoneinfo")
	if err != nil {
		return 0, err
	}
	sum := 0
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "count:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				return 0, fmt.Errorf("/proc/zoneinfo: %w", err)
			}
			sum += n
		}
	}
	return sum, nil
}

// forget makes the kernel forget the tracked connections, and waits until the sockets of
// a load are gone, including those in TIME_WAIT if timeWait is set.
func forget(timeWait bool) error {
	ours := func(port uint16) bool { return port >= portPlan && port < portPlan+2*planProcesses }
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		sockets, err := netlink.SocketDiagTCP(unix.AF_INET)
		if err != nil {
			return err
		}
		left := 0
		for _, s := range sockets {
			if (ours(s.ID.SourcePort) || ours(s.ID.DestinationPort)) && (timeWait || s.State != netlink.TCP_TIME_WAIT) {
				left++
			}
		}
		if left == 0 {
			return netlink.ConntrackTableFlush(netlink.ConntrackTable)
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d sockets of a load are left", left)
		}
	}
}
