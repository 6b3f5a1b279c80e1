package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
	"github.com/sockpressure/sockpressure_exporter/internal/byhand"
	"github.com/sockpressure/sockpressure_exporter/internal/kmsg"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// ttyPrintk is the prefix that the kernel adds to what programs write to /dev/ttyprintk.
const ttyPrintk = "[U] "

// kernelLog is the kernel's log, as the guest itself reads it.
type kernelLog struct {
	fd    int
	lines []collector.LogLine // that the exporter looks for
	// wanted are those that some scenario looks for.
	wanted []collector.LogLine
	// texts are the kernel's wanted lines since they were last taken, without duplicates.
	texts []string
	// counts is how often the kernel logged each message, lost whether some records were
	// overwritten before they were read.
	counts map[string]float64
	lost   bool
}

func openLog() (*kernelLog, error) {
	l := &kernelLog{lines: logLines(), counts: map[string]float64{}}
	for _, s := range scenario.All() {
		l.wanted = append(l.wanted, s.LogLines()...)
	}
	var err error
	l.fd, err = unix.Open(kmsg.Path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: kmsg.Path, Err: err}
	}
	return l, nil
}

// logLines returns every line that the exporter looks for, except those that only an
// earlier line distinguishes from others: no guest has them.
func logLines() []collector.LogLine {
	var lines []collector.LogLine
	for _, spec := range collector.Specs() {
		lines = append(lines, spec.LogLines...)
		for _, limit := range spec.Limits {
			lines = append(lines, limit.LogLines...)
		}
	}
	return slices.DeleteFunc(lines, func(l collector.LogLine) bool { return l.Constraint != "" })
}

// read reads what was logged since the last time.
func (l *kernelLog) read() error {
	for b := make([]byte, 8192); ; {
		r, err := nextRecord(l.fd, b)
		switch {
		case errors.Is(err, unix.EPIPE):
			l.lost = true
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil:
			return err
		case r.Facility != 0, bytes.HasPrefix(r.Text, []byte(ttyPrintk)):
			continue // a program wrote it
		}
		text := string(r.Text)
		matches := func(line collector.LogLine) bool { return line.Matches(text) }
		if i := slices.IndexFunc(l.lines, matches); i >= 0 {
			l.counts[l.lines[i].Message]++
		}
		if !slices.Contains(l.texts, text) && slices.ContainsFunc(l.wanted, matches) {
			l.texts = append(l.texts, text)
		}
	}
}

// skip skips what was logged since the last time.
func (l *kernelLog) skip() error {
	l.lost = true
	_, err := unix.Seek(l.fd, 0, unix.SEEK_END)
	return os.NewSyscallError("seek", err)
}

func (l *kernelLog) take() []string {
	texts := l.texts
	l.texts = nil
	return texts
}

// reset starts counting again.
func (l *kernelLog) reset() { l.counts, l.lost = map[string]float64{}, false }

// nextRecord reads a record of /dev/kmsg into b.
func nextRecord(fd int, b []byte) (parse.Record, error) {
	n, err := unix.Read(fd, b)
	if err != nil {
		return parse.Record{}, &os.PathError{Op: "read", Path: kmsg.Path, Err: err}
	}
	return parse.Kmsg(b[:n], kmsg.Path)
}

func messagesSeries(message string) string {
	return byhand.Series("kernel_messages_total", "message", message)
}

// miscounted returns the messages that the exporter, given time to read them, has not
// counted as often as the kernel logged them.
func (g *guest) miscounted() ([]string, error) {
	for end := time.Now().Add(fresh); ; time.Sleep(again) {
		if err := g.log.read(); err != nil {
			return nil, err
		}
		if g.log.lost {
			return nil, nil // the guest does not know
		}
		text, err := g.metrics()
		if err != nil {
			return nil, err
		}
		page, err := parsePage(text)
		if err != nil {
			return nil, err
		}
		wrong := map[string]bool{}
		for _, line := range g.log.lines {
			want := g.log.counts[line.Message]
			if got, ok := page[messagesSeries(line.Message)]; got != want || !ok {
				wrong[fmt.Sprintf("%s: %v, the exporter %v", line.Message, want, got)] = true
			}
		}
		if len(wrong) == 0 || time.Now().After(end) {
			return slices.Sorted(maps.Keys(wrong)), nil
		}
	}
}

// sampled opens files between two scrapes and closes them again, until the peak shows
// that a sample was taken in the meantime and the kernel messages have been counted.
func (g *guest) sampled() error {
	const files = 400
	// Slow samples are taken less often, and those of an emulator are slow on a busy
	// machine.
	for wait := 2 * time.Second; ; wait *= 2 {
		var open sockets
		for range files {
			fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return &os.PathError{Op: "open", Path: "/dev/null", Err: err}
			}
			open.keep(fd)
		}
		time.Sleep(wait)
		if err := open.close(); err != nil {
			return err
		}
		text, err := g.metrics()
		if err != nil {
			return err
		}
		page, err := parsePage(text)
		if err != nil {
			return err
		}
		peak := page[byhand.Series("saturation_peak_ratio", "resource", "file_descriptors")] * page["sockpressure_file_descriptors_limit"]
		seen := peak > page["sockpressure_file_descriptors_allocated"]+files*0.8
		counted := slices.ContainsFunc(g.LogLines(), func(l collector.LogLine) bool { return page[messagesSeries(l.Message)] > 0 })
		if seen && counted {
			return nil
		}
		if wait > fresh {
			return fmt.Errorf("after the refusal: %d files more for %v were seen by a sample: %v; the kernel's line was counted: %v", files, wait, seen, counted)
		}
	}
}
