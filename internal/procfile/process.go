package procfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The layout of struct linux_dirent64 (include/linux/dirent.h): the number of the
// inode, an offset, the size of the entry, its type, and its name, which ends with a
// zero.
const (
	entrySize = 16
	entryName = 19
)

var errEntry = errors.New("an entry of the folder is cut short")

// EachProcess calls visit for every process of a procfs, those of a real one in
// ascending order. inode is the number of the process's folder, which comes for
// nothing with its name: where it is the same as before, the process is, while one
// that got the PID of another has a new one. (It is the number of an object in the
// kernel's cache of names, which lets go of it at the end of the process at the
// latest.) A few hundred names are held at a time: there can be four million.
func EachProcess(procPath string, visit func(pid int, inode uint64) error) error {
	dir, err := os.Open(procPath)
	if err != nil {
		return err
	}
	defer dir.Close()
	fd, buf := int(dir.Fd()), make([]byte, 16<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "getdents", Path: procPath, Err: err}
		}
		if n == 0 {
			return nil
		}
		for entries := buf[:n]; len(entries) > 0; {
			if len(entries) < entryName {
				return fmt.Errorf("%s: %w", procPath, errEntry)
			}
			size := int(binary.NativeEndian.Uint16(entries[entrySize:]))
			if size < entryName || size > len(entries) {
				return fmt.Errorf("%s: %w", procPath, errEntry)
			}
			name, _, _ := bytes.Cut(entries[entryName:size], []byte{0})
			if pid, err := strconv.Atoi(string(name)); err == nil {
				if err := visit(pid, binary.NativeEndian.Uint64(entries)); err != nil {
					return err
				}
			}
			entries = entries[size:]
		}
	}
}

// IsGone reports whether the error of a file of a process means that it has ended.
func IsGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
