package cli

import (
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/sockpressure/sockpressure_exporter/internal/kmsg"
)

// openLog returns a function that opens the kernel's log from a file that this process
// inherited: standard input, or a file passed by systemd. Reading it needs no privilege.
// It returns nil if there is none.
func openLog(stdin io.Reader) func() (kmsg.Log, error) {
	f, _ := stdin.(*os.File)
	if !kmsg.Is(f) {
		f = fromSystemd(os.Getpid(), os.Getenv)
	}
	if !kmsg.Is(f) {
		return nil
	}
	return func() (kmsg.Log, error) { return kmsg.Given(f) }
}

// fromSystemd returns the file that systemd opened for this process under the name kmsg
// (OpenFile=, systemd 253), nil if there is none: see sd_listen_fds(3).
func fromSystemd(pid int, getenv func(string) string) *os.File {
	const first = 3
	if getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return nil
	}
	at := slices.Index(strings.Split(getenv("LISTEN_FDNAMES"), ":"), "kmsg")
	if n, err := strconv.Atoi(getenv("LISTEN_FDS")); err != nil || at < 0 || at >= n {
		return nil
	}
	return os.NewFile(uintptr(first+at), "kmsg")
}
