package collector

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/kmsg"
)

// BenchmarkKernelLogFlood reports the CPU usage of the collector while 100,000 records per
// second are logged for 20 s. A socket replaces /dev/kmsg: reading it also takes a system
// call per record, and what is written while it is full is lost. This program writes to it in
// another process.
func BenchmarkKernelLogFlood(b *testing.B) {
	const writer = "KERNEL_LOG_WRITER" // the facility of its records
	if facility, err := strconv.Atoi(os.Getenv(writer)); err == nil {
		if err := floodLog(3, facility); err != nil {
			b.Fatal(err)
		}
		return
	}
	for name, facility := range map[string]string{"by a program": "1", "by the kernel": "0"} {
		b.Run(name, func(b *testing.B) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				b.Fatal(err)
			}
			log, other := os.NewFile(uintptr(pair[0]), "log"), os.NewFile(uintptr(pair[1]), "writer")
			defer func() { _ = errors.Join(log.Close(), other.Close()) }()
			// If root runs this, the socket holds as many records as the usual log of 128 KiB.
			_ = unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<20)

			m := &kernel.Machine{Options: kernel.Options{OpenLog: func() (kmsg.Log, error) { return kmsg.Given(log) }}}
			specs := Specs()
			set := NewSet(m, specs[len(specs)-1:], Config{Top: 10, Logger: slog.New(slog.DiscardHandler)})
			defer closeSet(b, set)
			set.Read(b.Context(), Query{})
			for b.Loop() {
				before, began := usage(b), time.Now()
				cmd := exec.CommandContext(b.Context(), "/proc/self/exe", "-test.run=^$", "-test.bench=^BenchmarkKernelLogFlood$", "-test.benchtime=1x")
				cmd.Env, cmd.ExtraFiles = append(os.Environ(), writer+"="+facility), []*os.File{other}
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				b.ReportMetric(100*float64(usage(b)-before)/float64(time.Since(began)), "%_of_a_processor")
			}
			for _, lost := range set.Read(b.Context(), Query{}).Results[0].Samples("kernel_messages_lost_total") {
				b.ReportMetric(lost/float64(b.N), "records_lost")
			}
		})
	}
}

// floodLog writes records to a non-blocking socket for 20 s.
func floodLog(fd, facility int) error {
	const rate, lasts = 100_000, 20 * time.Second
	began, sent := time.Now(), 0
	for passed := time.Duration(0); passed < lasts; passed = time.Since(began) {
		for ; sent < int(passed.Seconds()*rate); sent++ {
			record := fmt.Appendf(nil, "%d,%d,%d,-;usb 1-1: a device has a lot to say, and says it again and again\n", facility<<3|6, sent+1, sent)
			if _, err := unix.Write(fd, record); err != nil && !errors.Is(err, unix.EAGAIN) {
				return os.NewSyscallError("write", err)
			}
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// usage returns the CPU time of this process.
func usage(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
