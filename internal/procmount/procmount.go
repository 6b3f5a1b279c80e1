// Package procmount determines whose numbers a procfs shows: the machine's or a
// container's.
//
// A procfs belongs to the PID namespace of the process that mounted it, and shows no
// processes outside of that. Its mount options can hide processes (hidepid) or everything
// that is not a process (subset=pid), and single files can have something else mounted
// over them, as lxcfs does with meminfo. A program that reads it gets no error for any of
// these.
package procmount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is a procfs, or a copy of one as tests use.
type Mount struct {
	path string
	// copied is set if path is not a procfs but a folder with files like those of one,
	// whose numbers are taken as they are.
	copied bool
	dev    uint64
	// hidepid is the value of that mount option, subsetPID whether subset=pid is set.
	// Both are zero if the options cannot be read.
	hidepid   string
	subsetPID bool
}

// Find examines the procfs mounted at path. It returns an error if path cannot be read.
func Find(path string) (*Mount, error) {
	// Without permission or procfs, reading the folder fails.
	dir, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("procfs: %w", err)
	}
	_, err = dir.Readdirnames(1)
	_ = dir.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("procfs: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return nil, fmt.Errorf("procfs: %w", &os.PathError{Op: "statfs", Path: path, Err: err})
	}
	if fs.Type != unix.PROC_SUPER_MAGIC {
		// A copy has what nearly every collector reads.
		for _, name := range []string{"sys", "net", "1/net"} {
			if _, err := os.Stat(filepath.Join(path, name)); err == nil {
				return &Mount{path: path, copied: true}, nil
			}
		}
		return nil, fmt.Errorf("%s is not a procfs, and not a copy of one", path)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("procfs: %w", &os.PathError{Op: "stat", Path: path, Err: err})
	}
	m := &Mount{path: path, dev: uint64(st.Dev)} //nolint:unconvert // 32 bits on some machines
	for _, info := range []string{filepath.Join(path, "self/mountinfo"), "/proc/self/mountinfo"} {
		if b, err := os.ReadFile(info); err == nil {
			m.setOptions(b)
			break
		}
	}
	return m, nil
}

// Copied reports whether the path is not a procfs but a copy of one.
func (m *Mount) Copied() bool { return m.copied }

// setOptions finds the mount in /proc/<pid>/mountinfo (fs/proc_namespace.c, Linux 2.6.26)
// by its device.
func (m *Mount) setOptions(mountinfo []byte) {
	device := fmt.Sprintf("%d:%d", unix.Major(m.dev), unix.Minor(m.dev))
	for line := range bytes.Lines(mountinfo) {
		mount, super, ok := strings.Cut(string(line), " - ")
		fields, superFields := strings.Fields(mount), strings.Fields(super)
		if !ok || len(fields) < 6 || fields[2] != device || len(superFields) < 3 {
			continue
		}
		for option := range strings.SplitSeq(superFields[2], ",") {
			switch name, value, _ := strings.Cut(option, "="); name {
			case "hidepid":
				m.hidepid = value
			case "subset":
				m.subsetPID = value == "pid"
			}
		}
		return
	}
}

// Absent explains the error of a file that does not exist: it returns ErrHidden if
// subset=pid hides the file, and err otherwise.
func (m *Mount) Absent(err error) error {
	if m.subsetPID && errors.Is(err, fs.ErrNotExist) {
		return ErrHidden
	}
	return err
}

// ErrHidden is the error for a file that a mount option hides.
var ErrHidden = errors.New("hidden by the mount option subset=pid")

// Check returns an error if the open file fd is not the procfs's own: something is
// mounted over it, and shows a container's numbers instead.
func (m *Mount) Check(fd int) error {
	if m.copied {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	return m.own(&st)
}

var errMountedOver = errors.New("something else is mounted over it, as lxcfs does in a container")

func (m *Mount) own(st *unix.Stat_t) error {
	if uint64(st.Dev) != m.dev { //nolint:unconvert // 32 bits on some machines
		return errMountedOver
	}
	return nil
}

// Memory returns nil if meminfo is the machine's, and otherwise the reason why it is not.
func (m *Mount) Memory() error {
	if m.copied {
		return nil
	}
	path := filepath.Join(m.path, "meminfo")
	var st unix.Stat_t
	err := m.Absent(unix.Stat(path, &st))
	if err == nil {
		err = m.own(&st)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// initPID is the link ns/pid of the machine's initial PID namespace: its inode number is
// 0xEFFFFFFC (PROC_PID_INIT_INO of include/linux/proc_ns.h, Linux 3.8).
const initPID = "pid:[4026531836]"

// FirstPIDs reports whether this process is in the machine's initial PID namespace.
func (m *Mount) FirstPIDs() bool {
	if m.copied {
		return true
	}
	own, err := os.Readlink(filepath.Join(m.path, "self/ns/pid"))
	return err == nil && own == initPID
}

// Processes returns nil if the procfs shows the processes of the whole machine, and
// otherwise the reason why it does not.
//
// Kernel threads exist only in the machine's initial PID namespace, and kthreadd is its
// process 2, so a procfs that shows kthreadd is the machine's. If there is no process 2
// (WSL1), an exporter in the initial namespace that sees itself has the machine's procfs
// too, because only that namespace's procfs shows it.
func (m *Mount) Processes() error {
	if m.copied {
		return nil
	}
	path := filepath.Join(m.path, "2/stat")
	b, err := os.ReadFile(path)
	if err == nil && isKernelThread(b) {
		return nil
	}
	if err != nil && m.hidepid != "" && m.hidepid != "0" && m.hidepid != "off" {
		return fmt.Errorf("processes are hidden (mount option hidepid=%s of %s), and only CAP_SYS_PTRACE or the group of the option gid may see them", m.hidepid, m.path)
	}
	own, ownErr := os.Readlink(filepath.Join(m.path, "self/ns/pid"))
	if ownErr == nil && own == initPID {
		return nil
	}
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s belongs to a PID namespace that is not the machine's initial one: in a container, mount the host's /proc and pass it with --path.procfs", m.path)
	default:
		return fmt.Errorf("cannot tell whether %s shows the processes of the machine: %w", m.path, err)
	}
}

// kernelThread is the flag PF_KTHREAD of include/linux/sched.h.
const kernelThread = 0x00200000

// isKernelThread reports whether a process is a kernel thread, by the flags, the ninth
// field, of /proc/<pid>/stat (fs/proc/array.c). The second field, the name, is in
// parentheses and may contain any bytes.
func isKernelThread(stat []byte) bool {
	_, after, _ := bytes.Cut(stat, []byte(" ("))
	end := bytes.LastIndexByte(after, ')')
	fields := bytes.Fields(after[end+1:])
	if end < 0 || len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(string(fields[6]), 10, 32)
	return err == nil && flags&kernelThread != 0
}
