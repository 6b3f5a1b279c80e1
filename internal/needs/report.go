package needs

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// last is the package that runs after all others of go test ./...
const last = "github.com/sockpressure/sockpressure_exporter/skipped"

// skip is a test that was skipped.
type skip struct {
	Binary  string // of its package
	Missing []string
}

// Run runs the tests of a package, for TestMain. Afterwards it reports what they skipped,
// unless the package skipped does that for all.
func Run(m *testing.M) int {
	code := m.Run()
	if !lastFollows() {
		tell(recorded(binary()))
	}
	return code
}

// RunLast runs the tests of the package skipped, and reports what was skipped in all
// packages of this go test.
func RunLast(m *testing.M) int {
	code := m.Run()
	// All others were started before, in the order of their names.
	var limit time.Duration // set by go test, or 0
	if f, ok := flag.Lookup("test.timeout").Value.(flag.Getter); ok {
		limit, _ = f.Get().(time.Duration)
	}
	const quiet = 300 * time.Millisecond // between the start of a test and its process
	for began, free := time.Now(), time.Now(); time.Since(free) < quiet && (limit == 0 || time.Since(began) < limit); {
		time.Sleep(quiet / 10)
		if othersRun() {
			free = time.Now()
		}
	}
	uncache()
	tell(recorded("*"))
	return code
}

// workDir returns the folder in which a go test builds its binaries, which it removes at
// its end. It is "" for a binary that go test did not start.
func workDir() string {
	dir := filepath.Dir(filepath.Dir(os.Args[0]))
	if !strings.HasPrefix(filepath.Base(dir), "go-build") {
		return ""
	}
	return dir
}

// binary returns the name of the folder in workDir with this test's binary.
func binary() string { return filepath.Base(filepath.Dir(os.Args[0])) }

// record records what a skipped test needs.
func record(missing []string) error {
	dir := workDir()
	if dir == "" {
		return nil
	}
	uncache()
	line, err := json.Marshal(skip{strings.TrimSuffix(filepath.Base(os.Args[0]), ".test"), missing})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, binary()+".skipped"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// recorded returns the skipped tests of some binaries.
func recorded(binaries string) ([]skip, error) {
	dir := workDir()
	if dir == "" {
		return nil, nil
	}
	files, err := filepath.Glob(filepath.Join(dir, binaries+".skipped"))
	if err != nil {
		return nil, err
	}
	var all []skip
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(b) {
			var s skip
			if err := json.Unmarshal(line, &s); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			all = append(all, s)
		}
	}
	return all, nil
}

// uncache keeps go test from caching this package's result, which would hide that
// something was skipped, even once nothing is missing any more. go test caches nothing
// without the log of the files that the tests used.
func uncache() {
	if f := flag.Lookup("test.testlogfile"); f != nil && f.Value.String() != "" {
		_ = os.Remove(f.Value.String())
	}
}

// lastFollows reports whether this go test also runs the package skipped, and has not
// done so yet. The main function of each of its test binaries is beside the binary until
// that has run.
func lastFollows() bool {
	mains, err := filepath.Glob(filepath.Join(workDir(), "b*", "_testmain.go"))
	return err == nil && slices.ContainsFunc(mains, func(file string) bool {
		b, err := os.ReadFile(file)
		return err == nil && bytes.Contains(b, []byte(strconv.Quote(last)))
	})
}

// othersRun reports whether the parent of this process has other children.
func othersRun() bool {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return false
	}
	parent, self := strconv.Itoa(os.Getppid()), strconv.Itoa(os.Getpid())
	return slices.ContainsFunc(files, func(file string) bool {
		b, err := os.ReadFile(file) // it may have ended
		if err != nil || filepath.Base(filepath.Dir(file)) == self {
			return false
		}
		// pid (name) state parent ...
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		return len(f) > 1 && f[1] == parent
	})
}

// tell writes the line about skipped tests where it is seen. go test discards the output
// of a package that passes, so the line goes to the standard error of go test itself;
// with -v go test prints everything.
func tell(skipped []skip, err error) {
	line := summarize(skipped)
	if err != nil {
		line = fmt.Sprintf("skipped: %v\n", err)
	}
	if line == "" {
		return
	}
	out := os.Stdout
	if !testing.Verbose() {
		if out, err = shareStderr(os.Getppid()); err != nil {
			if out, err = reopenStderr(os.Getppid()); err != nil {
				return // nobody can be told
			}
		}
		defer out.Close()
	}
	_, _ = out.WriteString(line)
}

// shareStderr returns the standard error of another process, as the same open file: in a
// regular file, what that process writes next follows. It fails if Yama or a seccomp
// filter forbids it.
func shareStderr(pid int) (*os.File, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, 2, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "stderr"), nil
}

// reopenStderr opens the standard error of another process again. In a regular file that
// has a separate offset, so the two would overwrite each other unless both append.
func reopenStderr(pid int) (*os.File, error) {
	path := fmt.Sprintf("/proc/%d/fd/2", pid)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().IsRegular() && !appends(pid) {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrPermission)
	}
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
}

// appends reports whether a process has opened its standard error for appending.
func appends(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/2", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if flags, ok := strings.CutPrefix(line, "flags:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(flags), 8, 64)
			return err == nil && n&unix.O_APPEND != 0
		}
	}
	return false
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
