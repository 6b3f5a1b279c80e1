package cli

import (
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// logWithoutReader lets the program continue if its log is not read: the reader may end,
// or hang, as a journal does on a failing host. A line that cannot be written at once is
// lost then.
func logWithoutReader(w io.Writer) {
	signal.Ignore(syscall.SIGPIPE)
	f, ok := w.(*os.File)
	if !ok {
		return
	}
	// Terminals and files are not changed, because other processes share them.
	if info, err := f.Stat(); err != nil || info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return
	}
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetNonblock(int(fd), true) })
	}
}
