package procfile

import (
	"errors"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

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
	return Entries(int(dir.Fd()), procPath, make([]byte, 16<<10), func(e Entry) error {
		pid, err := strconv.Atoi(string(e.Name))
		if err != nil {
			return nil
		}
		return visit(pid, e.Inode)
	})
}

// IsGone reports whether the error of a file of a process means that it has ended.
func IsGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
