// Package exporter builds, runs and scrapes exporters for the benchmarks, and measures
// what their scrapes cost.
package exporter

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
)

// The packages of the exporters that are compared.
const (
	Ours   = "github.com/sockpressure/sockpressure_exporter"
	Theirs = "github.com/prometheus/node_exporter"
)

// patience bounds the start and the end of an exporter, and one scrape.
const patience = time.Minute

// GoTool builds a program like a release: static and stripped. Installed programs go to
// dir.
func GoTool(ctx context.Context, dir, verb string, args ...string) error {
	fmt.Fprintln(os.Stderr, "go", verb, args[len(args)-1])
	cmd := exec.CommandContext(ctx, "go", append([]string{verb, "-trimpath", "-ldflags=-s -w"}, args...)...)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOBIN="+dir)
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// Exporter is a running exporter.
type Exporter struct {
	Path string
	URL  string // of its pages, without the path

	cmd    *exec.Cmd
	log    chan struct{} // closed at the end of the log
	client *http.Client
}

// Start runs an exporter on a free loopback port and returns when it listens.
func Start(ctx context.Context, path string, args ...string) (*Exporter, error) {
	e := &Exporter{
		Path: path,
		cmd:  exec.CommandContext(ctx, path, append([]string{"--web.listen-address=127.0.0.1:0"}, args...)...),
		log:  make(chan struct{}),
		// Prometheus, too, asks for gzip and decompresses the page itself.
		client: &http.Client{Transport: &http.Transport{DisableCompression: true}, Timeout: patience},
	}
	e.cmd.Cancel = func() error { return e.cmd.Process.Signal(syscall.SIGTERM) }
	e.cmd.WaitDelay = patience
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := e.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	listening := make(chan string, 1)
	var last string
	go func() {
		defer close(e.log)
		address := regexp.MustCompile(`msg="Listening on" address=(\S+)`)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			last = lines.Text()
			if m := address.FindStringSubmatch(last); m != nil {
				listening <- m[1]
			}
		}
	}()
	select {
	case a := <-listening:
		e.URL = "http://" + a
		return e, nil
	case <-e.log:
		return nil, errors.Join(fmt.Errorf("%s ended: %s", path, last), e.cmd.Wait())
	case <-time.After(patience):
		return nil, errors.Join(fmt.Errorf("%s does not listen", path), e.Stop())
	}
}

// PID returns the number of the exporter's process.
func (e *Exporter) PID() int { return e.cmd.Process.Pid }

// Stop stops the exporter. Ending by a signal is not an error.
func (e *Exporter) Stop() error {
	e.client.CloseIdleConnections()
	if err := e.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-e.log
	err := e.cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); ok || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Scrape fetches the page as Prometheus 3 does, over a persistent connection. It returns
// the page compressed by gzip, and how long that took.
func (e *Exporter) Scrape(ctx context.Context, query string) (page []byte, took time.Duration, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, e.URL+"/metrics"+query, http.NoBody)
	if err != nil {
		return nil, 0, err
	}
	r.Header.Set("Accept", "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"+
		"application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"+
		"text/plain;version=0.0.4;q=0.3,*/*;q=0.2")
	r.Header.Set("Accept-Encoding", "gzip")
	r.Header.Set("User-Agent", "Prometheus/3")
	r.Header.Set("X-Prometheus-Scrape-Timeout-Seconds", fmt.Sprint(patience.Seconds()))

	began := time.Now()
	resp, err := e.client.Do(r)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	page, err = io.ReadAll(resp.Body)
	took = time.Since(began)
	if err == nil && (resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Encoding") != "gzip") {
		err = fmt.Errorf("%s: not a page in gzip but %s", e.Path, resp.Status)
	}
	return page, took, err
}

// Unpack decompresses a page.
func Unpack(page io.Reader) ([]byte, error) {
	r, err := gzip.NewReader(page)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// CPU is the CPU time that a process has used, in steps of 10 ms.
type CPU struct{ User, System time.Duration }

// Sum returns user and system time together.
func (c CPU) Sum() time.Duration { return c.User + c.System }

// Since returns what has been used since an earlier time.
func (c CPU) Since(o CPU) CPU { return CPU{c.User - o.User, c.System - o.System} }

// CPU returns the CPU time that the exporter has used since it was started.
func (e *Exporter) CPU() (CPU, error) {
	p, err := procfs.NewProc(e.cmd.Process.Pid)
	if err != nil {
		return CPU{}, err
	}
	s, err := p.Stat()
	const tick = 10 * time.Millisecond
	return CPU{time.Duration(s.UTime) * tick, time.Duration(s.STime) * tick}, err
}

// Ran returns how long the threads of the exporter have run since it was started, in
// nanoseconds (/proc/<pid>/task/<tid>/schedstat). Threads that have ended are not
// included.
func (e *Exporter) Ran() (sum time.Duration, err error) {
	p, err := procfs.NewProc(e.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	threads, err := procfs.AllThreads(p.PID)
	if err != nil {
		return 0, err
	}
	for _, t := range threads {
		s, err := t.Schedstat()
		if err != nil {
			return 0, err
		}
		sum += time.Duration(s.RunningNanoseconds)
	}
	return sum, nil
}

// PeakMemory returns the peak resident memory of the exporter, in bytes.
func (e *Exporter) PeakMemory() (uint64, error) {
	p, err := procfs.NewProc(e.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	status, err := p.NewStatus()
	return status.VmHWM, err
}

// Held is what a process holds.
type Held struct {
	Memory      int // resident, in bytes
	Descriptors int
	Threads     int
}

// Held returns what the exporter holds now.
func (e *Exporter) Held() (Held, error) {
	p, err := procfs.NewProc(e.cmd.Process.Pid)
	if err != nil {
		return Held{}, err
	}
	stat, err := p.Stat()
	if err != nil {
		return Held{}, err
	}
	descriptors, err := p.FileDescriptorsLen()
	return Held{stat.ResidentMemory(), descriptors, stat.NumThreads}, err
}
