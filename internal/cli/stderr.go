package cli

import (
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// logWithoutReader has the program go on when nobody reads its log: the reader may go
// away, or hang, as a journal does on a host that is dying. A line that cannot be
// written at once is lost then.
func logWithoutReader(w io.Writer) {
	signal.Ignore(syscall.SIGPIPE)
	f, ok := w.(*os.File)
	if !ok {
		return
	}
	// Terminals and files are left as they are: others have the same.
	if info, err := f.Stat(); err != nil || info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return
	}
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetNonblock(int(fd), true) })
	}
}
