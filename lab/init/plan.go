package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
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

// The load that a guest is asked to hold, except for the connections, which are as many
// as its memory allows.
const (
	planMost      = 6000 // connections: an emulator takes a millisecond for each
	planLeast     = 500
	planProcesses = 2
	planPairs     = 4
	planUnread    = 8192
	planCloses    = 4  // per second
	planOpens     = 5  // per second
	planPause     = 40 // seconds
)

// tighten sets limits that the load exceeds, and enables connection tracking.
func tighten() error {
	if err := track(); err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/sys/fs/file-nr")
	if err != nil {
		return err
	}
	open, err := strconv.Atoi(strings.Fields(string(b))[0])
	if err != nil {
		return err
	}
	return setAll(
		"fs/file-max", strconv.Itoa(open+500), "fs/nr_open", "1024", "net/core/somaxconn", "32",
		"net/ipv4/tcp_mem", fmt.Sprintf("%d %d %d", pages(512<<10), pages(1<<20), pages(2<<20)),
		"net/ipv4/tcp_max_orphans", "8", "net/ipv4/tcp_max_tw_buckets", "16", "net/netfilter/nf_conntrack_max", "256",
		"net/ipv4/ip_local_port_range", "40000 40099",
	)
}

// planDocument is the part of plan's JSON document that is compared with the kernel.
type planDocument struct {
	Limits      []planLimit
	MemoryBytes struct{ Kernel float64 } `json:"memory_bytes"`
}

type planLimit struct {
	Resource, Verdict string
	Sysctls           []struct{ Name string }
}

// ask runs the exporter's command plan for a number of connections.
func ask(connections int, format string) (status int, out []byte, err error) {
	// An emulator that waits for a processor is late.
	for range tries {
		if status, out, err = askOnce(connections, format); err == nil {
			break
		}
	}
	return status, out, err
}

func askOnce(connections int, format string) (status int, out []byte, err error) {
	cmd := exec.Command("/exporter", "plan", fmt.Sprintf("--connections=%d", connections), "--loopback",
		fmt.Sprintf("--destinations=%d", planPairs), fmt.Sprintf("--opens-per-second=%d", planOpens), fmt.Sprintf("--closes-per-second=%d", planCloses),
		fmt.Sprintf("--listen-pause=%ds", planPause), fmt.Sprintf("--unread=%d", planUnread), fmt.Sprintf("--processes=%d", planProcesses), "--format="+format)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err = cmd.Output()
	status = cmd.ProcessState.ExitCode()
	if said.Len() > 0 || status < 0 || status > 2 {
		return status, out, fmt.Errorf("plan: %w: %s", errors.Join(err, errors.New("it failed")), said.String())
	}
	return status, out, nil
}

// plan is the scenario of that name: the guest is asked to hold connections, applies the
// settings of the plan, and holds them; then each value that had to be set is reduced by
// a third.
func (g *guest) plan() error {
	if err := tighten(); err != nil {
		return err
	}
	result := &scenario.Planned{Connections: planMost}
	for {
		status, _, err := ask(result.Connections, "json")
		if err != nil {
			return err
		}
		if status == 1 {
			break
		}
		if result.Connections = result.Connections * 3 / 4; result.Connections < planLeast {
			return fmt.Errorf("plan exits with %d for %d connections", status, result.Connections)
		}
	}
	_, file, err := ask(result.Connections, "sysctl")
	if err != nil {
		return err
	}
	_, text, err := ask(result.Connections, "json")
	if err != nil {
		return err
	}
	var doc planDocument
	if err := json.Unmarshal(text, &doc); err != nil {
		return err
	}
	result.File, result.Predicted = string(file), doc.MemoryBytes.Kernel
	settings, descriptors, backlog, err := readPlan(string(file))
	if err != nil {
		return err
	}
	if status, _, err := ask(result.Connections, "sysctl"); status != 1 || err != nil {
		return fmt.Errorf("status %d before anything was set (%w)", status, err)
	}
	if err := apply(settings); err != nil {
		return err
	}
	if err := g.startExporter("--collector.max-cpu=0", "--collector.sample-interval=0s"); err != nil {
		return err
	}
	held := planned{connections: result.Connections, descriptors: descriptors, backlog: backlog}
	run, err := g.hold(held)
	if err != nil {
		return err
	}
	result.Refused, result.Moved, result.Measured, result.Saturation = run.refused, run.moved, run.memory, run.usage
	// The limit whose load remains for a minute comes last, when that of the first load
	// is over.
	lasts := func(l planLimit) bool { return l.Resource == "tcp_time_wait" }
	limits := slices.DeleteFunc(slices.Clone(doc.Limits), lasts)
	for _, l := range append(limits, doc.Limits[slices.IndexFunc(doc.Limits, lasts)]) {
		if l.Verdict != "set" {
			continue
		}
		if lasts(l) {
			if err := forget(true); err != nil {
				return err
			}
		}
		cut := scenario.Cut{Resource: l.Resource}
		with := held
		var changed map[string]string
		for _, s := range l.Sysctls {
			if now, ok := settings[s.Name]; ok && s.Name != "fs.nr_open" {
				changed = map[string]string{s.Name: third(s.Name, now)}
				cut.Setting, cut.From, cut.To = s.Name, now, changed[s.Name]
			}
		}
		switch {
		case l.Resource == "process_file_descriptors":
			with.descriptors = descriptors * 2 / 3
			cut.Setting, cut.From, cut.To = "LimitNOFILE=", strconv.Itoa(descriptors), strconv.Itoa(with.descriptors)
		case changed == nil:
			return fmt.Errorf("plan says that %s has to be set, and not to what:\n%s", l.Resource, file)
		}
		if err := apply(changed); err != nil {
			return err
		}
		run, err := g.hold(with)
		if err != nil {
			return fmt.Errorf("%s = %s: %w", cut.Setting, cut.To, err)
		}
		cut.Refused, cut.Moved = run.refused, run.moved
		cut.Named = names(l.Resource, run)
		result.Cuts = append(result.Cuts, cut)
		if err := apply(settings); err != nil {
			return err
		}
	}
	g.report.send(scenario.Message{Planned: result})
	g.report.send(scenario.Message{Done: &scenario.Done{}})
	return nil
}

// readPlan parses a file printed by plan: its settings, LimitNOFILE and the backlog.
func readPlan(file string) (settings map[string]string, descriptors, backlog int, err error) {
	settings = map[string]string{}
	for line := range strings.Lines(file) {
		line = strings.TrimSpace(line)
		comment, isComment := strings.CutPrefix(line, "#")
		if name, value, ok := strings.Cut(line, " = "); ok && !isComment {
			settings[name] = value
		}
		comment = strings.TrimSpace(comment)
		if n, ok := strings.CutPrefix(comment, "LimitNOFILE="); ok {
			descriptors, err = strconv.Atoi(n)
		}
		if words, ok := strings.CutPrefix(comment, "listen(fd, "); ok {
			n, _, _ := strings.Cut(words, ")")
			backlog, err = strconv.Atoi(n)
		}
		if err != nil {
			return nil, 0, 0, fmt.Errorf("%q: %w", line, err)
		}
	}
	if len(settings) == 0 || descriptors == 0 || backlog == 0 {
		return nil, 0, 0, fmt.Errorf("%d settings, LimitNOFILE=%d and backlog %d in\n%s", len(settings), descriptors, backlog, file)
	}
	return settings, descriptors, backlog, nil
}

func apply(settings map[string]string) error {
	for name, value := range settings {
		if err := sysctl(strings.ReplaceAll(name, ".", "/"), value); err != nil {
			return err
		}
	}
	return nil
}

// third returns a setting reduced by a third.
func third(name, value string) string {
	var numbers []string
	fields := strings.Fields(value)
	if name == "net.ipv4.ip_local_port_range" {
		low, _ := strconv.Atoi(fields[0])
		high, _ := strconv.Atoi(fields[1])
		return fmt.Sprintf("%d %d", low, low+(high-low+1)*2/3-1)
	}
	for _, f := range fields {
		n, _ := strconv.Atoi(f)
		numbers = append(numbers, strconv.Itoa(n*2/3))
	}
	return strings.Join(numbers, " ")
}

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

// heldLoad is the part of a load that one process holds.
type heldLoad struct {
	Port               int
	Connections, Pairs int
	// Queue is how many connections are opened before the first is accepted.
	Queue, Backlog int
	Unread         int
	// Orphans and TimeWait are additional connections that are closed.
	Orphans, TimeWait int
}

// The stages of a load. A worker does one per step, after the step in which it listens.
const (
	heldConnected = iota
	heldOrphans
	heldTimeWait
	heldStages
)

// held is a load that is held.
type held struct {
	heldLoad
	listener, narrow, epoll int
	clients, servers        []int
	next                    int
}

// newHeld returns a function that does one step of a load.
func newHeld(words string) (func() (string, error), error) {
	var h held
	if err := json.Unmarshal([]byte(words), &h.heldLoad); err != nil {
		return nil, err
	}
	stages := []func() (string, error){h.listen, h.connect, h.orphan, h.close}
	return func() (string, error) {
		if h.next == len(stages) {
			return "", errors.New("there is no further stage")
		}
		h.next++
		return stages[h.next-1]()
	}, nil
}

func (h *held) listen() (string, error) {
	var err error
	if h.listener, err = listen(netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(h.Port)), h.Backlog); err != nil {
		return "", err
	}
	if h.narrow, err = listenNarrow(h.stuckAt()); err != nil {
		return "", err
	}
	h.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return "", err
}

// stuckAt returns the destination of connections whose data is not accepted.
func (h *held) stuckAt() netip.AddrPort { return loopback(uint16(h.Port + planProcesses)) }

// to returns the destination of the n'th connection.
func (h *held) to(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + n%h.Pairs)}), uint16(h.Port))
}

// connect makes the connections, with data that is not read.
func (h *held) connect() (string, error) {
	for n := range h.Connections {
		client, err := connect(h.to(n))
		if client >= 0 {
			h.clients = append(h.clients, client)
			if err := resets(client); err != nil {
				return "", err
			}
		}
		if err != nil {
			return fmt.Sprintf("connection %d: %v", n, err), nil
		}
		if n < h.Queue-1 {
			continue
		}
		for len(h.servers) < len(h.clients) {
			server, err := accept(h.listener)
			if err != nil {
				return fmt.Sprintf("connection %d: %v", n, err), nil
			}
			h.servers = append(h.servers, server)
			if err := resets(server); err != nil {
				return "", err
			}
		}
	}
	for _, fd := range slices.Concat(h.clients, h.servers) {
		if err := unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Fd: int32(fd)}); err != nil {
			return "", err
		}
	}
	// In two parts: the kernel accepts the first data of a connection in any case.
	part := make([]byte, h.Unread/2)
	for parts := range 2 {
		for n, fd := range h.clients {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
				return "", err
			}
			if sent, err := unix.Write(fd, part); err != nil || sent < len(part) {
				return fmt.Sprintf("connection %d takes %d bytes of %d: %v", n, max(sent, 0), len(part), err), nil
			}
			// Before Linux 6.0 a sender keeps TCP memory until its timer has expired.
			if n%400 == 399 {
				time.Sleep(300 * time.Millisecond)
			}
			// Few at once, because the backlog of received packets is another limit.
			if n%32 == 0 {
				if refused, err := h.arrived(n, (parts+1)*len(part)); refused != "" || err != nil {
					return refused, err
				}
			}
		}
	}
	for n := range h.servers {
		if refused, err := h.arrived(n, h.Unread); refused != "" || err != nil {
			return refused, err
		}
	}
	return "", nil
}

// arrived waits until the given number of bytes wait in a connection. What is lost on the
// way is sent again.
func (h *held) arrived(n, bytes int) (string, error) {
	for end := time.Now().Add(5 * answer); ; time.Sleep(time.Millisecond) {
		arrived, err := unix.IoctlGetInt(h.servers[n], unix.TIOCINQ)
		if err != nil || arrived >= bytes {
			return "", err
		}
		if time.Now().After(end) {
			return fmt.Sprintf("of %d bytes in connection %d, %d arrived", bytes, n, arrived), nil
		}
	}
}

// orphan closes connections whose data the peer does not accept.
func (h *held) orphan() (string, error) {
	at := h.stuckAt()
	var servers []int
	for range h.Orphans {
		client, server, err := stuck(h.narrow, at)
		if err != nil {
			return err.Error(), nil
		}
		servers = append(servers, server)
		if err := unix.Close(client); err != nil {
			return "", err
		}
		// The kernel counts orphans ten times per second.
		time.Sleep(120 * time.Millisecond)
	}
	for end := time.Now().Add(2 * answer); h.Orphans > 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, server := range servers {
			if lost, err := reset(server); lost != "" || err != nil {
				return lost, err
			}
		}
	}
	for _, server := range servers {
		if err := unix.Close(server); err != nil {
			return "", err
		}
	}
	return "", nil
}

// close closes connections at the end that keeps TIME_WAIT.
func (h *held) close() (string, error) {
	for n := range h.TimeWait {
		client, server, err := pair(h.listener, h.to(n))
		if err != nil {
			return fmt.Sprintf("connection %d that is closed: %v", n, err), nil
		}
		if err := unix.Close(client); err != nil {
			return "", err
		}
		if _, err := poll(server, unix.POLLRDHUP, answer); err != nil {
			return "", err
		}
		if err := unix.Close(server); err != nil {
			return "", err
		}
	}
	return "", nil
}
