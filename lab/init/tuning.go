package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// tune tries settings of tuning lists that apply to the whole machine.
func (g *guest) tune() error {
	try := func(setting, result string, wrong bool) {
		g.report.send(scenario.Message{Tried: &scenario.Tried{Setting: setting, Result: result, Wrong: wrong}})
	}
	if err := setAll("net/core/somaxconn", strconv.Itoa(everybody)); err != nil {
		return err
	}
	own, err := os.ReadFile("/proc/sys/net/ipv4/tcp_mem")
	if err != nil {
		return err
	}
	for _, tcpMem := range []string{strings.Join(strings.Fields(string(own)), " "), "30000000 30000000 30000000"} {
		if err := setAll("net/ipv4/tcp_mem", tcpMem); err != nil {
			return err
		}
		connections, killed, most, err := stuffAll()
		if err != nil {
			return fmt.Errorf("tcp_mem = %s: %w", tcpMem, err)
		}
		result := fmt.Sprintf("%d connections that nobody reads from, TCP memory %d MiB, no process killed", connections, most*os.Getpagesize()>>20)
		if killed != "" {
			result = fmt.Sprintf("at %d connections that nobody reads from, TCP memory %d MiB: %s", connections, most*os.Getpagesize()>>20, killed)
		}
		try("net.ipv4.tcp_mem = "+tcpMem, result, (killed != "") != strings.HasPrefix(tcpMem, "30000000"))
	}
	if err := setAll("net/ipv4/tcp_mem", string(own)); err != nil {
		return err
	}

	// Connections take memory of the kernel, which is not counted as promised to a
	// process.
	var taken []float64
	for _, mode := range []string{"0", "1", "2"} {
		if err := setAll("vm/overcommit_memory", mode); err != nil {
			return err
		}
		before, err := usedMemory()
		if err != nil {
			return err
		}
		const each, steps = 500, 4
		w, err := newWorker(workConnect, each, 1<<20, 0)
		if err != nil {
			return err
		}
		refused := ""
		for range steps {
			if refused == "" {
				if refused, err = w.step(); err != nil {
					return err
				}
			}
		}
		after, err := usedMemory()
		if err != nil {
			return err
		}
		if err := w.stop(); err != nil {
			return err
		}
		promised, limit, err := promise()
		if err != nil {
			return err
		}
		taken = append(taken, after-before)
		result := fmt.Sprintf("%d connections took %.1f MiB; a program was promised %d MiB and then %s", each*steps, (after-before)/(1<<20), promised, limit)
		wrong := refused != "" || taken[0] > 0 && (after-before > 1.2*taken[0] || after-before < taken[0]/1.2) || (mode == "2") != strings.Contains(limit, "cannot allocate")
		if refused != "" {
			result = refused
		}
		try("vm.overcommit_memory = "+mode, result, wrong)
	}
	if err := setAll("vm/overcommit_memory", "0"); err != nil {
		return err
	}
	g.report.send(scenario.Message{Done: &scenario.Done{}})
	return nil
}

// stuffAll makes connections that accept all the data they can, until a process is killed
// or there are many. most is the counted pages of TCP memory.
func stuffAll() (connections int, killed string, most int, err error) {
	const each, atMost = 20, 1200
	w, err := newWorker(workStuff, each, 1<<20, 0)
	if err != nil {
		return 0, "", 0, err
	}
	for connections = 0; connections < atMost && killed == ""; connections += each {
		said, err := w.step()
		if err != nil {
			return connections, "", most, err
		}
		if w.end != "" {
			killed = said
		}
		used, err := sockstat("sockstat", "TCP:", "mem")
		if err != nil {
			return connections, "", most, err
		}
		most = max(most, used)
	}
	return connections, killed, most, w.stop()
}

// promise makes a program allocate memory that it does not use, in MiB, and returns how
// it ended.
func promise() (mib int, end string, err error) {
	const each, atMost = 64, 2048
	w, err := newWorker(workMap, each<<10, 0, nobody)
	if err != nil {
		return 0, "", err
	}
	for mib < atMost && end == "" {
		if end, err = w.step(); err != nil {
			return mib, "", err
		}
		if end == "" {
			mib += each
		}
	}
	if end == "" {
		end = "had enough"
	}
	return mib, end, w.stop()
}
