package parse

import "bytes"

// SoftLimit reads the soft limit of descriptors in /proc/<pid>/limits (fs/proc/base.c,
// Linux 2.6.24). It is 0 if there is none.
func SoftLimit(b []byte, path string) (uint64, error) {
	_, rest, _ := bytes.Cut(b, []byte("\nMax open files "))
	soft, _, _ := NextField(rest)
	if string(soft) == "unlimited" {
		return 0, nil
	}
	v, err := Uint(soft, 10)
	if err != nil {
		return 0, FieldError(path, "Max open files", err)
	}
	return v, nil
}
