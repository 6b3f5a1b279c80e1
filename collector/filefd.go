package collector

import (
	"context"
	"fmt"

	"github.com/sockpressure/sockpressure_exporter/internal/parse"
)

// filefd is one reading of fs.file-nr.
type filefd struct {
	allocated, limit Number
}

func filefdSpec() Spec {
	return define(Definition[filefd]{
		Name: "filefd",
		Help: "Open files of the whole machine and fs.file-max, from /proc/sys/fs/file-nr.",
		Open: func(k *Scope) func(context.Context, *filefd) error {
			file := k.Proc("sys/fs/file-nr")
			return func(_ context.Context, s *filefd) error {
				// Allocated, free (always 0 since Linux 2.6), maximum. The maximum is
				// often 2^63-1.
				var n [3]Number
				b, err := required(file, "fs.file-nr")
				if b == nil {
					return err
				}
				var p parse.Problems
				p.Add(err)
				p.Add(parse.Numbers(b, file.Path(), n[:]))
				s.allocated, s.limit = n[0].Minus(n[1]), n[2]
				if s.allocated.Present && s.allocated.Value < 0 {
					s.allocated = Number{}
					p.Add(parse.FieldError(file.Path(), "value 2", fmt.Errorf("%.0f free of %.0f allocated", n[1].Value, n[0].Value)))
				}
				return p.Err()
			}
		},
		Metrics: []Metric[filefd]{
			{
				Name:  "file_descriptors_allocated",
				Help:  "Open files of the whole machine; older kernels count in steps of up to 32 per CPU. From /proc/sys/fs/file-nr.",
				Value: func(s *filefd) Number { return s.allocated },
			},
			{
				Name:  "file_descriptors_limit",
				Help:  "Number of open files above which only a process with CAP_SYS_ADMIN may open another. From /proc/sys/fs/file-nr.",
				Value: func(s *filefd) Number { return s.limit },
			},
		},
		Limits: []Limit[filefd]{{
			LimitInfo: LimitInfo{
				Resource: "file_descriptors", Unit: Descriptors, WarningRatio: 0.8, CriticalRatio: 0.95,
				Effect: "open, socket and accept fail with ENFILE for every unprivileged process: \"VFS: file-max limit reached\".",
				Usage:  series("file_descriptors_allocated"), Max: series("file_descriptors_limit"),
				Sysctls:  []Sysctl{{"fs.file-max", Descriptors, false}},
				LogLines: []LogLine{{Message: "file_max_reached", Pattern: `VFS: file-max limit \d+ reached`}},
				Sizing: Sizing{
					Needs:   Load.Ends,
					Rule:    "connections, plus the files of all other programs",
					Initial: "none if systemd removes it, otherwise by memory: 200,000 for 2 GiB",
					Objects: []Object{{"filp", 192}}, OfSocket: true,
				},
			},
		}},
	})
}
