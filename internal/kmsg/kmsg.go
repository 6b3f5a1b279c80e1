// Package kmsg follows the kernel's log through /dev/kmsg.
package kmsg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// Path is where the device is.
const Path = "/dev/kmsg"

// maxRecord is the size of the largest record (CONSOLE_EXT_LOG_MAX), and some more.
const maxRecord = 16 << 10

// Log is the kernel's log, open at some record.
type Log interface {
	// Next reads one record into b. It fails with EAGAIN where there is none yet, and
	// with EPIPE where some were overwritten before they were read: the next one is the
	// oldest that is left.
	Next(b []byte) (int, error)
	// Wait returns nil when there may be a record, and an error when the log is closed.
	Wait() error
	Close() error
}

// device is /dev/kmsg.
type device struct {
	file *os.File
	conn syscall.RawConn
}

// Open opens the device at its oldest record, or behind its newest one.
func Open(path string, atEnd bool) (Log, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	conn, err := f.SyscallConn()
	if err == nil {
		err = check(f, atEnd)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &device{f, conn}, nil
}

// check expects the device itself, for which containers have all kinds of things in
// its place, and moves to its end.
func check(f *os.File, atEnd bool) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	const major, minor = 1, 11
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || st.Mode()&fs.ModeCharDevice == 0 || sys.Rdev != unix.Mkdev(major, minor) {
		return &fs.PathError{Op: "open", Path: f.Name(), Err: fs.ErrNotExist}
	}
	if atEnd {
		_, err = f.Seek(0, unix.SEEK_END)
	}
	return err
}

func (d *device) Next(b []byte) (n int, err error) {
	if e := d.conn.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), b)
		return true
	}); e != nil {
		return 0, e
	}
	return n, err
}

func (d *device) Wait() error {
	return d.conn.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil
	})
}

func (d *device) Close() error { return d.file.Close() }

const (
	// A flood of records must not cost more than a twentieth of a core. After each
	// burst the reader rests for nineteen times as long, and pause at least.
	burst = 10 * time.Millisecond
	rest  = 19
	pause = 100 * time.Millisecond
	// history bounds how many of the records from before are read, should others come
	// as fast as they are.
	history = 1 << 18
)

// Follower reads the kernel's log.
type Follower struct {
	// Open opens the log at its oldest record, or behind its newest one.
	Open func(atEnd bool) (Log, error)
	// Visit is called for each record. old is set for those from before the follower
	// began. The text is valid during the call.
	Visit func(r parse.Record, old bool)
	// Lost is called with how many records were overwritten before they could be read.
	Lost func(n uint64)
	// Ready is called when all old records have been visited.
	Ready func()

	buf [maxRecord]byte
	// next is the sequence number of the next record, 0 if that is not known.
	next uint64
}

// Run follows the log until ctx ends, when it returns nil, or until it can no
// longer be read.
func (f *Follower) Run(ctx context.Context) error {
	// Opened first, so that no record is missed between the old ones and the new.
	log, err := f.Open(true)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = log.Close() })()
	defer func() { _ = log.Close() }()
	if err := f.visitOld(ctx); err != nil {
		return err
	}
	f.Ready()
	for {
		if err := log.Wait(); err != nil {
			return ended(ctx, err)
		}
		began := time.Now()
		if _, _, err := f.read(log, false); err != nil {
			return ended(ctx, err)
		}
		sleep(ctx, max(rest*time.Since(began), pause))
	}
}

// visitOld visits the records from before.
func (f *Follower) visitOld(ctx context.Context) error {
	log, err := f.Open(false)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	for seen := 0; seen < history && ctx.Err() == nil; {
		n, more, err := f.read(log, true)
		if err != nil || !more {
			return ended(ctx, err)
		}
		seen += n
	}
	return nil
}

// read visits the records that there are, for the time of a burst at most, and
// reports how many there were and whether more may be there.
func (f *Follower) read(log Log, old bool) (seen int, more bool, err error) {
	for end := time.Now().Add(burst); time.Now().Before(end); seen++ {
		n, err := log.Next(f.buf[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return seen, false, nil
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR), errors.Is(err, unix.EINVAL):
			continue // the sequence numbers tell what was lost
		case err != nil:
			return seen, false, fmt.Errorf("%s: %w", Path, err)
		}
		r, err := parse.Kmsg(f.buf[:n], Path)
		if err != nil {
			return seen, false, err
		}
		if !old && f.next != 0 && r.Sequence > f.next {
			f.Lost(r.Sequence - f.next)
		}
		f.next = r.Sequence + 1
		f.Visit(r, old)
	}
	return seen, true, nil
}

// ended is the error of a log, unless it was closed because ctx ended.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
