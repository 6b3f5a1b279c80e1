package kmsg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// The actions of syslog(2).
const (
	syslogReadAll    = 3
	syslogSizeBuffer = 10
)

const (
	// syslogInterval is how often the log is read by syslog(2), which returns the whole
	// log each time.
	syslogInterval = time.Second
	// maxSyslog bounds how much of the end of the log is read.
	maxSyslog = 1 << 20
)

// syslog is the log as syslog(2) returns it: as text, without sequence numbers.
type syslog struct {
	read    func(b []byte) (int, error)
	buf     []byte
	pending []byte // the part of buf that is still to be visited
	filled  time.Time
	last    []byte // the last line that was visited
	number  uint64 // of the last record
}

// OpenSyslog opens the log through syslog(2). It needs CAP_SYSLOG while
// kernel.dmesg_restrict is 1, but no device. Kernels that do not record the time of
// records (printk.time=0) are not supported.
func OpenSyslog() (Log, error) {
	size, err := unix.Klogctl(syslogSizeBuffer, nil)
	if err != nil {
		return nil, &fs.PathError{Op: "syslog", Path: "the kernel's log", Err: err}
	}
	return newSyslog(min(size, maxSyslog), func(b []byte) (int, error) { return unix.Klogctl(syslogReadAll, b) })
}

func newSyslog(size int, read func([]byte) (int, error)) (Log, error) {
	s := &syslog{read: read, buf: make([]byte, size)}
	if err := s.fill(); err != nil {
		return nil, err
	}
	for line := range bytes.Lines(s.pending) {
		if _, ok := record(line, 0); ok {
			return s, nil
		}
	}
	return nil, fmt.Errorf("the log has no line with a time: %w", errors.ErrUnsupported)
}

// fill reads the log and sets pending to its new part.
func (s *syslog) fill() error {
	n, err := s.read(s.buf)
	if err != nil {
		return &fs.PathError{Op: "syslog", Path: "the kernel's log", Err: err}
	}
	s.filled = time.Now()
	s.pending = s.buf[:n]
	if len(s.last) == 0 {
		return nil
	}
	if at := bytes.LastIndex(s.pending, s.last); at >= 0 {
		s.pending = s.pending[at+len(s.last):]
	} else {
		s.number++ // at least one was overwritten
	}
	return nil
}

// Wait waits until the log may be read again, because records cannot be noticed earlier.
func (s *syslog) Wait(ctx context.Context) error {
	if len(s.pending) == 0 {
		sleep(ctx, syslogInterval-time.Since(s.filled))
	}
	return nil
}

func (s *syslog) Next(b []byte) (int, error) {
	for {
		if len(s.pending) == 0 && time.Since(s.filled) >= syslogInterval {
			if err := s.fill(); err != nil {
				return 0, err
			}
		}
		if len(s.pending) == 0 {
			return 0, unix.EAGAIN
		}
		end := bytes.IndexByte(s.pending, '\n') + 1
		if end == 0 {
			end = len(s.pending)
		}
		line := s.pending[:end]
		s.pending = s.pending[end:]
		s.last = append(s.last[:0], line...)
		if r, ok := record(line, s.number+1); ok {
			s.number++
			return copy(b, r), nil
		}
	}
}

// record converts a line, "<4>[   12.345678] text", to the format of /dev/kmsg. The task
// or CPU may follow the time.
func record(line []byte, number uint64) (r []byte, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte{'<'})
	if !ok {
		return nil, false
	}
	priority, rest, _ := bytes.Cut(rest, []byte(">["))
	at, text, ok := bytes.Cut(rest, []byte{']'})
	if !ok {
		return nil, false
	}
	seconds, fraction, _ := bytes.Cut(bytes.TrimLeft(at, " "), []byte{'.'})
	sec, err := strconv.ParseUint(string(seconds), 10, 32)
	usec, err2 := strconv.ParseUint(string(fraction), 10, 63)
	level, err3 := strconv.ParseUint(string(priority), 10, 31)
	if errors.Join(err, err2, err3) != nil || len(fraction) != 6 {
		return nil, false
	}
	if caller, after, ok := bytes.Cut(text, []byte("] ")); ok && bytes.HasPrefix(caller, []byte{'['}) && isCaller(caller[1:]) {
		text = after
	} else {
		text = bytes.TrimPrefix(text, []byte{' '})
	}
	return fmt.Appendf(nil, "%d,%d,%d,-;%s", level, number, sec*1_000_000+usec, text), true
}

// isCaller reports whether a text is a task or a CPU: "  T12", " C0".
func isCaller(b []byte) bool {
	b = bytes.TrimLeft(b, " ")
	if len(b) < 2 || b[0] != 'T' && b[0] != 'C' {
		return false
	}
	_, err := strconv.ParseUint(string(b[1:]), 10, 31)
	return err == nil
}

func (*syslog) Close() error { return nil }
