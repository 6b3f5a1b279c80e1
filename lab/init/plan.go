package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

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
