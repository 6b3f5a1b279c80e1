package exporter

import (
	"cmp"
	"fmt"
	"runtime"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Machine describes the machine, on which the cost of a scrape depends.
func Machine() (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", err
	}
	proc, err := procfs.NewDefaultFS()
	if err != nil {
		return "", err
	}
	cpus, err := proc.CPUInfo()
	if err != nil {
		return "", err
	}
	model := "unknown CPU"
	if len(cpus) > 0 {
		model = cmp.Or(cpus[0].ModelName, model)
	}
	return fmt.Sprintf("%d x %s, Linux %s, %s",
		runtime.NumCPU(), model, unix.ByteSliceToString(uts.Release[:]), runtime.Version()), nil
}
