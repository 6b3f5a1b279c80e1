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

// Log is the kernel's log, open at its oldest record.
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

// Open opens the device at its oldest record.
func Open(path string) (Log, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if !Is(f) {
		// Containers have all kinds of things in its place.
		_ = f.Close()
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return newDevice(f)
}

// Given returns the log that an open file is, which stays open when the log is closed.
func Given(f *os.File) (Log, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	own := -1
	if e := conn.Control(func(fd uintptr) {
		if own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); err == nil {
			err = unix.SetNonblock(own, true)
		}
	}); e != nil || err != nil {
		return nil, errors.Join(e, err)
	}
	return newDevice(os.NewFile(uintptr(own), Path))
}

// Is reports whether a file is the device of the kernel's log. nil is not.
func Is(f *os.File) bool {
	st, err := f.Stat()
	if err != nil {
		return false
	}
	const major, minor = 1, 11
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && st.Mode()&fs.ModeCharDevice != 0 && sys.Rdev == unix.Mkdev(major, minor)
}

func newDevice(f *os.File) (Log, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &device{f, conn}, nil
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
	// Open opens the log.
	Open func() (Log, error)
	// Visit is called for each record. old is set for those that were there already when
	// the follower began. The text is valid during the call.
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
	log, err := f.Open()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = log.Close() })()
	defer func() { _ = log.Close() }()
	for seen := 0; seen < history; {
		n, more, err := f.read(log, true)
		if err != nil {
			return ended(ctx, err)
		}
		if !more {
			break
		}
		seen += n
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
