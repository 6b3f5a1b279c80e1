package collector

import "context"

// filefd is one reading of fs.file-nr.
type filefd struct {
	allocated, limit Number
}

func filefdSpec() Spec {
	return define(Definition[filefd]{
		Name: "filefd",
		Help: "Open files of the whole machine against fs.file-max, from /proc/sys/fs/file-nr.",
		Open: func(k *Kernel) func(context.Context, *filefd) error {
			file := k.proc("sys/fs/file-nr")
			return func(_ context.Context, s *filefd) error {
				// Allocated, free (always 0 since Linux 2.6), maximum. The maximum is
				// often 2^63-1.
				var n [3]Number
				if err := sysctlNumbers(file, n[:]); err != nil {
					return err
				}
				s.allocated, s.limit = n[0].minus(n[1]), n[2]
				if !s.limit.Present {
					return &NotSupportedError{Feature: "fs.file-nr"}
				}
				return nil
			}
		},
		Metrics: []Metric[filefd]{
			{
				Name:  "file_descriptors_allocated",
				Help:  "Open files of the whole machine; older kernels count in steps of up to 32 a CPU. From /proc/sys/fs/file-nr.",
				Value: func(s *filefd) Number { return s.allocated },
			},
			{
				Name:  "file_descriptors_limit",
				Help:  "Open files above which only a process with CAP_SYS_ADMIN may open another. From /proc/sys/fs/file-nr.",
				Value: func(s *filefd) Number { return s.limit },
			},
		},
		Limits: []Limit[filefd]{{
			LimitInfo: LimitInfo{
				Resource: "file_descriptors", Unit: Descriptors, Sysctl: "fs.file-max", Warning: 0.8, Critical: 0.95,
				Effect: "open, socket and accept fail with ENFILE for every unprivileged process: \"VFS: file-max limit reached\".",
			},
			Usage: func(s *filefd) Number { return s.allocated },
			Limit: func(s *filefd) Number { return s.limit },
		}},
	})
}
