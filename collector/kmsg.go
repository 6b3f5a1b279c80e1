package collector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/kmsg"
	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// LogLine describes a line that the kernel logs.
type LogLine struct {
	// Message is the label value of kernel_messages_total. Lines that differ only in
	// wording have the same Message.
	Message string
	// Pattern is a regular expression for the start of the line. The rest of a line may
	// contain the name of a process or a file, which anybody can choose, so a match there
	// proves nothing. The groups process and pid name the victim of the OOM killer.
	Pattern string
	// Constraint is a regular expression for the constraint that the OOM killer's report
	// before the line must name; empty if it does not matter.
	Constraint string
	// Before is the first Linux version that no longer logs the line, empty if the newest
	// one still does.
	Before string
}

// check panics if the line is not valid.
func (l LogLine) check(spec *Spec) {
	if l.Message == "" || l.Pattern == "" {
		wrong(spec, "log line %+v is not described", l)
	}
	for _, pattern := range []string{l.Pattern, l.Constraint} {
		if _, err := regexp.Compile(pattern); err != nil {
			wrong(spec, "message %s: %v", l.Message, err)
		}
	}
}

// Matches reports whether a text of the log matches Pattern. It ignores Constraint.
func (l LogLine) Matches(text string) bool { return l.expression().MatchString(text) }

func (l LogLine) expression() *regexp.Regexp { return regexp.MustCompile("^(?:" + l.Pattern + ")") }

// kernelLog is one reading of what the kernel has logged.
type kernelLog struct {
	messages         []kernelMessage
	suppressed, lost Number
}

// kernelMessage is a message that the reader counts.
type kernelMessage struct {
	name      string
	resources []string
	count     uint64    // since the exporter started
	last      time.Time // zero if the log has none
	text      string
}

func kmsgSpec(specs []Spec) Spec {
	return define(Definition[kernelLog]{
		Name:      "kmsg",
		Help:      "Kernel messages about limits reached and memory exhausted, from /dev/kmsg.",
		Privilege: "While kernel.dmesg_restrict is 1, reading the log needs CAP_SYSLOG, or /dev/kmsg passed in open, by systemd (OpenFile=) or as standard input.",
		Open:      func(k *Scope) func(context.Context, *kernelLog) error { return openKmsg(k, specs) },
		Metrics: []Metric[kernelLog]{
			{
				Name:   "kernel_messages_total",
				Help:   "Lines logged by the kernel since the exporter started, by message; lines written by programs are not counted. From /dev/kmsg.",
				Labels: []string{"message"},
				Values: func(s *kernelLog, emit Emit) {
					for _, m := range s.messages {
						emit(number(m.count), m.name)
					}
				},
			},
			{
				Name:   "kernel_message_last_timestamp_seconds",
				Help:   "Unix time at which the kernel last logged the message; for messages from before the exporter started it is as inexact as dmesg -T. From /dev/kmsg.",
				Labels: []string{"message"},
				Values: func(s *kernelLog, emit Emit) {
					for _, m := range s.messages {
						if !m.last.IsZero() {
							emit(number(float64(m.last.UnixMilli())/1e3), m.name)
						}
					}
				},
			},
			{
				Name:  "kernel_messages_suppressed_total",
				Help:  "Lines of any kind suppressed by the kernel's rate limits, as far as the kernel reports them (\"callbacks suppressed\"). From /dev/kmsg.",
				Value: func(s *kernelLog) Number { return s.suppressed },
			},
			{
				Name:  "kernel_messages_lost_total",
				Help:  "Lines of any kind overwritten before the exporter read them. From gaps in the sequence numbers of /dev/kmsg.",
				Value: func(s *kernelLog) Number { return s.lost },
			},
		},
		Notes: func(s *kernelLog) []Note {
			var notes []Note
			for _, m := range s.messages {
				if !m.last.IsZero() {
					notes = append(notes, Note{m.name, m.resources, parse.Printable(m.text), m.last})
				}
			}
			return notes
		},
	})
}

// awaited is a line to look for.
type awaited struct {
	*regexp.Regexp
	constraint *regexp.Regexp // nil if it does not matter
	message    int            // index into messages
}

// await adds a line to look for, of a limit if resource is not empty.
func (l *logReader) await(line LogLine, resource string) {
	at := slices.IndexFunc(l.messages, func(m kernelMessage) bool { return m.name == line.Message })
	if at < 0 {
		at = len(l.messages)
		l.messages = append(l.messages, kernelMessage{name: line.Message})
	}
	if m := &l.messages[at]; resource != "" {
		m.resources = append(m.resources, resource)
	}
	a := awaited{line.expression(), nil, at}
	switch {
	case slices.ContainsFunc(l.lines, func(o awaited) bool { return o.message == at && o.String() == a.String() }):
	case line.Constraint != "":
		a.constraint = regexp.MustCompile("^(?:" + line.Constraint + ")$")
		l.lines = slices.Insert(l.lines, 0, a) // before the line without a constraint
	default:
		l.lines = append(l.lines, a)
	}
}

// reopenPause is how long after a failure the log is opened again.
const reopenPause = 10 * time.Second

func openKmsg(k *Scope, specs []Spec) func(context.Context, *kernelLog) error {
	l := &logReader{known: make(chan struct{})}
	for _, spec := range specs {
		for _, limit := range spec.Limits {
			for _, line := range limit.LogLines {
				l.await(line, limit.Resource)
			}
		}
		for _, line := range spec.LogLines {
			l.await(line, "")
		}
	}
	f := kmsg.Follower{Open: k.OpenLog, Visit: l.visit, Lost: l.lose, Ready: func() { l.set(nil) }}
	k.Go(func(ctx context.Context) {
		for ctx.Err() == nil {
			if err := f.Run(ctx); err != nil {
				l.set(err)
			}
			select {
			case <-time.After(reopenPause):
			case <-ctx.Done():
			}
		}
	})
	return l.read
}

// logReader counts messages as they arrive.
type logReader struct {
	lines []awaited
	known chan struct{} // closed when it is known whether the log can be read

	mu         sync.Mutex
	isKnown    bool
	err        error
	messages   []kernelMessage
	suppressed uint64
	lost       uint64
	report     parse.OOMReport // the last one
}

// set records whether the log can be read: err is the reason why not, or nil.
func (l *logReader) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil && (errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE)) {
		return // it could not be read before either; keep that reason
	}
	l.err = err
	if !l.isKnown {
		l.isKnown = true
		close(l.known)
	}
}

func (l *logReader) lose(n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost += n
}

// ttyPrintk is the start of a record that a program wrote to /dev/ttyprintk, which has
// the kernel's facility (drivers/char/ttyprintk.c, Linux 2.6.37).
const ttyPrintk = "[U] "

// visit counts a record.
func (l *logReader) visit(r parse.Record, old bool) {
	if r.Facility != 0 || bytes.HasPrefix(r.Text, []byte(ttyPrintk)) {
		return // a program wrote it
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n, ok := parse.Suppressed(r.Text); ok {
		if !old {
			l.suppressed += n
		}
		return
	}
	if report, ok := parse.OOM(r.Text); ok {
		l.report = report
		return
	}
	for _, line := range l.lines {
		at := line.FindSubmatch(r.Text)
		if at == nil {
			continue
		}
		groups := map[string]string{}
		for i, name := range line.SubexpNames() {
			if name != "" {
				groups[name] = string(at[i])
			}
		}
		var report parse.OOMReport
		if groups["pid"] == strconv.Itoa(l.report.PID) {
			report = l.report
		}
		if line.constraint != nil && !line.constraint.MatchString(report.Constraint) {
			continue
		}
		l.messages[line.message].add(r, old, said(r.Text, groups, report))
		return
	}
}

// add counts a record of the message. An old one, logged before the exporter started,
// only sets its text and time.
func (m *kernelMessage) add(r parse.Record, old bool, text string) {
	m.text = text
	if !old {
		m.count++
		m.last = time.Now()
		return
	}
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) == nil {
		m.last = time.Now().Add(r.Time - time.Duration(now.Nano()))
	}
}

// maxText bounds how much of a line is kept.
const maxText = 160

// said returns the text of a line for people.
func said(text []byte, groups map[string]string, report parse.OOMReport) string {
	if report.Cgroup != "" {
		what, _, _ := strings.Cut(string(text), ": ")
		return fmt.Sprintf("%s: killed %s (process %s) of cgroup %s", what, groups["process"], groups["pid"], report.Cgroup)
	}
	return string(text[:min(len(text), maxText)])
}

// read fills a snapshot.
func (l *logReader) read(ctx context.Context, s *kernelLog) error {
	select {
	case <-l.known:
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case errors.Is(l.err, fs.ErrNotExist), errors.Is(l.err, unix.ENXIO), errors.Is(l.err, unix.ENODEV):
		return &NotSupportedError{Feature: kmsg.Path + " (a container needs CAP_SYSLOG or the device)", Err: l.err}
	case errors.Is(l.err, fs.ErrPermission):
		return &NotSupportedError{Feature: kmsg.Path + " without CAP_SYSLOG while kernel.dmesg_restrict is 1", Err: l.err}
	case l.err != nil:
		return l.err
	}
	s.messages = slices.Clone(l.messages)
	s.suppressed, s.lost = number(l.suppressed), number(l.lost)
	return nil
}
