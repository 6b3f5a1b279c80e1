package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/kmsg"
)

// startExporter runs the exporter with its default flags and, as its service does, so
// that the OOM killer takes it last.
func (g *guest) startExporter(args ...string) error {
	g.exporter = exec.Command("/exporter", args...)
	g.exporter.Stderr = &g.said
	// With the kernel's log as standard input, for the exporter without capabilities.
	log, err := os.Open(kmsg.Path)
	if err != nil {
		return err
	}
	defer log.Close()
	g.exporter.Stdin = log
	if g.Unprivileged {
		g.exporter.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if err := g.exporter.Start(); err != nil {
		return err
	}
	if err := writeFile(fmt.Sprintf("/proc/%d/oom_score_adj", g.exporter.Process.Pid), "-900"); err != nil {
		return err
	}
	// One persistent connection, as Prometheus has.
	g.client = &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: deadline}
	for end := time.Now().Add(fresh); ; time.Sleep(20 * time.Millisecond) {
		if _, err := g.get("/-/ready"); err == nil {
			return nil
		} else if time.Now().After(end) {
			return fmt.Errorf("the exporter does not start: %w; it said: %s", err, lastLines(g.said.String()))
		}
	}
}

// metrics returns the exporter's own metrics from a scrape.
func (g *guest) metrics() (string, error) {
	text, err := g.get("/metrics")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "sockpressure_") {
			b.WriteString(line)
		}
	}
	return b.String(), nil
}

func (g *guest) get(path string) (string, error) {
	// If there is no room for IPv4 neighbours, loopback does not work either, because
	// 127.0.0.1 is one.
	host := "127.0.0.1"
	if g.Name == "neighbours_ipv4" {
		host = "::1"
	}
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+net.JoinHostPort(host, port)+path, nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", strconv.FormatFloat(deadline.Seconds(), 'f', -1, 64))
	answer, err := g.client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return "", errors.New(answer.Status)
	}
	text, err := io.ReadAll(answer.Body)
	return string(text), err
}

// parsePage parses the samples of a page.
func parsePage(page string) (map[string]float64, error) {
	values := map[string]float64{}
	for line := range strings.Lines(page) {
		at := strings.LastIndexByte(line, ' ')
		if at < 0 {
			return nil, fmt.Errorf("%q is no sample", line)
		}
		v, err := strconv.ParseFloat(strings.TrimSpace(line[at+1:]), 64)
		if err != nil {
			return nil, fmt.Errorf("%q is no sample: %w", line, err)
		}
		values[line[:at]] = v
	}
	return values, nil
}

func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(len(lines)-3, 0):], " | ")
}
