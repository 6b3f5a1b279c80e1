// Package kmsg follows the kernel's log through /dev/kmsg.
package kmsg

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// Path is the path of the device.
const Path = "/dev/kmsg"

// maxRecord is somewhat more than the size of the largest record (CONSOLE_EXT_LOG_MAX).
const maxRecord = 16 << 10

// Log is the kernel's log, open at its oldest record.
type Log interface {
	// Next reads one record into b. It returns EAGAIN if there is none yet, and EPIPE if
	// some were overwritten before they were read; the next one is then the oldest that
	// is left.
	Next(b []byte) (int, error)
	// Wait waits until there is a record, or ctx ends.
	Wait(ctx context.Context) error
	Close() error
}

// device is /dev/kmsg. It bypasses Go's poller, which would wake up for each record. In a
// flood of records that costs more than reading them.
type device struct {
	fd   int
	wake int // an eventfd that ends Wait
}

func newDevice(fd int) (Log, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	return device{fd, wake}, nil
}

// Open opens the device at its oldest record.
func Open(path string) (Log, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if !isDevice(fd) {
		// Containers may have another kind of file in its place.
		_ = unix.Close(fd)
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	return newDevice(fd)
}

// Given returns the log for an open file of it. Closing the log does not close the file.
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
	return newDevice(own)
}

// Is reports whether f is the device of the kernel's log. It reports false for nil.
func Is(f *os.File) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	is := false
	return conn.Control(func(fd uintptr) { is = isDevice(int(fd)) }) == nil && is
}

func isDevice(fd int) bool {
	const major, minor = 1, 11
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(major, minor)
}

func (d device) Next(b []byte) (int, error) { return unix.Read(d.fd, b) }

func (d device) Wait(ctx context.Context) error {
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(d.wake, []byte{7: 1}) // not 0 in any byte order
	})
	defer func() {
		if !stop() {
			<-woken
		}
	}()
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}, {Fd: int32(d.wake), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
	}
}

func (d device) Close() error { return errors.Join(unix.Close(d.fd), unix.Close(d.wake)) }

const (
	// A flood of records must not cost more than 5 % of a core, including the wakeups.
	// After each burst the reader rests for 32 times the CPU time that the process used
	// in the meantime, and at least for pause, and then waits for the next record.
	burst = 10 * time.Millisecond
	rest  = 32
	pause = 250 * time.Millisecond
	// history bounds how many old records are read, in case new ones are logged as fast
	// as they are read.
	history = 1 << 18
)

// Follower follows the kernel's log.
type Follower struct {
	// Open opens the log.
	Open func() (Log, error)
	// Visit is called for each record. old is set for records that existed when the
	// follower started. The text is valid only during the call.
	Visit func(r parse.Record, old bool)
	// Lost is called with the number of records that were overwritten before they could
	// be read.
	Lost func(n uint64)
	// Ready is called when all old records have been visited.
	Ready func()

	// clock returns the CPU time of this process, except in tests.
	clock func() time.Duration

	buf [maxRecord]byte
	// next is the sequence number of the next record, 0 if that is not known.
	next uint64
}

// Run follows the log until ctx ends, and then returns nil, or until the log can no
// longer be read.
func (f *Follower) Run(ctx context.Context) error {
	log, err := f.Open()
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	for seen := 0; seen < history && ctx.Err() == nil; {
		n, more, err := f.read(log, true)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		seen += n
	}
	f.Ready()
	clock := f.clock
	if clock == nil {
		clock = processTime
	}
	for sleep(ctx, pause); ctx.Err() == nil; {
		if err := log.Wait(ctx); err != nil {
			return err
		}
		began := clock()
		if _, _, err := f.read(log, false); err != nil {
			return err
		}
		sleep(ctx, max(rest*(clock()-began), pause))
	}
	return nil
}

// processTime returns the CPU time of this process. If system calls are slow, Go's other
// threads use as much in a flood as the one that reads.
func processTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) // never fails for the calling process
	return time.Duration(t.Nano())
}

// read visits the available records, for at most the time of a burst. It returns how many
// it visited and whether there may be more.
func (f *Follower) read(log Log, old bool) (seen int, more bool, err error) {
	for end := time.Now().Add(burst); time.Now().Before(end); seen++ {
		n, err := log.Next(f.buf[:])
		switch {
		case errors.Is(err, unix.EAGAIN):
			return seen, false, nil
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR), errors.Is(err, unix.EINVAL):
			continue // the sequence numbers show what was lost
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

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
