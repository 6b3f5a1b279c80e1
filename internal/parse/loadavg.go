package parse

import "bytes"

// Threads reads the second half of the fourth field of /proc/loadavg (fs/proc/loadavg.c,
// Linux 2.0): the threads of the whole machine, including the kernel's own.
func Threads(b []byte, path string) (threads Number, err error) {
	rest, _, _ := NextLine(b)
	var field []byte
	for range 4 {
		var ok bool
		if field, rest, ok = NextField(rest); !ok {
			return Unreadable(), FieldError(path, "threads", ErrMissing)
		}
	}
	_, all, _ := bytes.Cut(field, []byte("/"))
	if err := threads.parse(all); err != nil {
		return threads, FieldError(path, "threads", err)
	}
	return threads, nil
}
