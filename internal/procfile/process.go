package procfile

import (
	"errors"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// EachProcess calls visit for every process of a procfs, in ascending order if it is a
// real one. inode is the inode number of the process's folder, which costs nothing beyond
// reading the name. If it is the same as before, so is the process, while a process that
// reuses a PID has a new one. (It is the number of an object in the kernel's cache of
// names, which is released at the end of the process at the latest.) A few hundred names
// are held at a time: there can be four million.
func EachProcess(procPath string, visit func(pid int, inode uint64) error) error {
	dir, err := os.Open(procPath)
	if err != nil {
		return err
	}
	defer dir.Close()
	return Entries(int(dir.Fd()), procPath, make([]byte, 16<<10), func(e Entry) error {
		pid, err := strconv.Atoi(string(e.Name))
		if err != nil {
			return nil
		}
		return visit(pid, e.Inode)
	})
}

// IsGone reports whether the error of a file of a process means that the process has
// ended.
func IsGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
