package procfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// The layout of struct linux_dirent64 (include/linux/dirent.h): the inode number, an
// offset, the size of the entry, its type, and its name, terminated by a zero byte.
const (
	entrySize = 16
	entryType = 18
	entryName = 19
)

var errEntry = errors.New("a directory entry is truncated")

// An Entry is an entry of a folder.
type Entry struct {
	Inode uint64
	Type  uint8  // unix.DT_DIR and its like
	Name  []byte // valid until the next entry
}

// Entries calls visit for each entry of the folder that is open as fd, in the kernel's
// order, until there is an error. buf holds several entries at a time. path is for
// errors.
func Entries(fd int, path string, buf []byte, visit func(Entry) error) error {
	for {
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "getdents", Path: path, Err: err}
		}
		if n == 0 {
			return nil
		}
		for entries := buf[:n]; len(entries) > 0; {
			size := 0
			if len(entries) >= entryName {
				size = int(binary.NativeEndian.Uint16(entries[entrySize:]))
			}
			if size < entryName || size > len(entries) {
				return &fs.PathError{Op: "getdents", Path: path, Err: errEntry}
			}
			name, _, _ := bytes.Cut(entries[entryName:size], []byte{0})
			if err := visit(Entry{binary.NativeEndian.Uint64(entries), entries[entryType], name}); err != nil {
				return err
			}
			entries = entries[size:]
		}
	}
}
