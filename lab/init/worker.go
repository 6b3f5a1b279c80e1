package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A worker is a process that puts a load on the kernel where a separate process is
// needed: because of its user, its limits, or because it is to be killed. It is this
// program with arguments. It does a step for each line that it reads, and answers with a
// line, which is empty unless something was refused.
const (
	// workerMark is the environment variable that distinguishes a worker from the first
	// process, which may have arguments too.
	workerMark = "LAB_WORKER"

	workOpen    = "open"    // opens files, a number per step
	workMap     = "map"     // allocates memory, a number of KiB per step
	workTouch   = "touch"   // allocates memory and uses it
	workConnect = "connect" // makes connections with unread data, a number per step
	workHold    = "hold"    // holds connections: one stage of heldLoad per step
	workStuff   = "stuff"   // makes connections with all the unread data that they accept
	workAccept  = "accept"  // accepts connections at a port and does not read
	workMount   = "mount"   // mounts procfs, in the first step
	workFork    = "fork"    // creates idle processes, a number per step
	workLog     = "log"     // writes into the kernel's log, for a number of milliseconds per step
	workSysrq   = "sysrq"   // makes the kernel write into it
)

// work is the main function of a worker.
func work(words []string) int {
	step, err := workerStep(words)
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		refused, err := step()
		if err != nil {
			refused = "error: " + err.Error()
		}
		if _, err := fmt.Println(refused); err != nil {
			return 1
		}
	}
	return 0
}

func workerStep(words []string) (func() (string, error), error) {
	if len(words) != 2 {
		return nil, fmt.Errorf("%q are not two words", words)
	}
	if words[0] == workHold {
		return newHeld(words[1])
	}
	if words[0] == workMount {
		// It is the procfs of this process's namespace.
		return func() (string, error) { return "", unix.Mount("proc", words[1], "proc", 0, "") }, nil
	}
	each, err := strconv.Atoi(words[1])
	if err != nil {
		return nil, err
	}
	switch words[0] {
	case workOpen:
		return func() (string, error) {
			for range each {
				if _, err := unix.Open("/dev/null", unix.O_RDONLY, 0); err != nil {
					return fmt.Sprintf("open: %v", err), nil
				}
			}
			return "", nil
		}, nil
	case workMap, workTouch:
		return func() (string, error) {
			b, err := unix.Mmap(-1, 0, each<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
			if err != nil {
				return fmt.Sprintf("mmap: %v", err), nil
			}
			for i := 0; words[0] == workTouch && i < len(b); i += os.Getpagesize() {
				b[i] = 1
			}
			return "", nil
		}, nil
	case workConnect:
		return connections(each, 4096)
	case workStuff:
		return connections(each, 64<<20)
	case workFork:
		return func() (string, error) {
			for range each {
				if refused := forkIdle(); refused != 0 {
					return fmt.Sprintf("fork: %v", refused), nil
				}
			}
			return "", nil
		}, nil
	case workLog, workSysrq:
		return flooder(words[0], each)
	case workAccept:
		return acceptAll(uint16(each))
	}
	return nil, fmt.Errorf("no work %q", words[0])
}

// connections makes connections over loopback that hold the given amount of unread data
// each, or as much as they accept.
func connections(each, unread int) (func() (string, error), error) {
	const port, perAddress = 8000, 10000
	at := netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	listener, err := listen(at, everybody)
	if err != nil {
		return nil, err
	}
	made := 0
	return func() (string, error) {
		for range each {
			to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + made/perAddress)}), port)
			client, _, err := pair(listener, to)
			if err != nil {
				return err.Error(), nil
			}
			fill(client, unread)
			made++
		}
		return "", nil
	}, nil
}

// acceptAll listens, and then accepts all waiting connections.
func acceptAll(port uint16) (func() (string, error), error) {
	listener := -1
	return func() (string, error) {
		if listener < 0 {
			var err error
			listener, err = listen(loopback(port), everybody)
			return "", err
		}
		for {
			if _, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC); err != nil {
				return "", nil
			}
		}
	}, nil
}

// worker is a worker, as seen by the guest.
type worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	end string // how it ended
}

// newWorker starts a worker that the OOM killer takes first, with a limit of descriptors
// if files is not 0, as another user if user is not 0.
func newWorker(kind string, each int, files uint64, user uint32) (*worker, error) {
	cmd := exec.Command("/proc/self/exe", kind, strconv.Itoa(each))
	if user != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	}
	w, err := startWorker(cmd)
	if err != nil {
		return nil, err
	}
	pid := cmd.Process.Pid
	if files != 0 {
		limit := &unix.Rlimit{Cur: files, Max: files}
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, limit, nil); err != nil {
			return nil, err
		}
	}
	return w, writeFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), "1000")
}

func startWorker(cmd *exec.Cmd) (*worker, error) {
	w := &worker{cmd: cmd}
	cmd.Env = append(os.Environ(), workerMark+"=1")
	var err error
	if w.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.out = bufio.NewReader(out)
	return w, cmd.Start()
}

// step makes the worker do a step. If it was killed, every later step is refused.
func (w *worker) step() (refused string, err error) {
	if w.end != "" {
		return w.end, nil
	}
	answer := ""
	if _, err = io.WriteString(w.in, "\n"); err == nil {
		answer, err = w.out.ReadString('\n')
	}
	if err != nil {
		var exit *exec.ExitError
		if !errors.As(w.cmd.Wait(), &exit) {
			return "", fmt.Errorf("a worker ended: %w", err)
		}
		w.end = "the process ended: " + exit.Error()
		return w.end, nil
	}
	if text, failed := strings.CutPrefix(answer, "error: "); failed {
		return "", errors.New(strings.TrimSpace(text))
	}
	return strings.TrimSpace(answer), nil
}

// stop ends the worker and releases what it holds.
func (w *worker) stop() error {
	if w.end != "" {
		return nil
	}
	w.end = "stopped"
	if err := w.in.Close(); err != nil {
		return err
	}
	_, err := w.out.ReadString('\n')
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("a worker does not end: %w", err)
	}
	return w.cmd.Wait()
}

// load returns a load that consists of a worker's steps.
func (w *worker) load() *load {
	return &load{step: func(int) (string, error) { return w.step() }, release: w.stop}
}

// fileDescriptors opens files as a user for whom fs.file-max is enforced.
func fileDescriptors(*guest) (*load, error) {
	const limit = 1200
	b, err := os.ReadFile("/proc/sys/fs/file-nr")
	if err != nil {
		return nil, err
	}
	open, err := strconv.Atoi(strings.Fields(string(b))[0])
	if err != nil {
		return nil, err
	}
	w, err := newWorker(workOpen, share(1, limit), 1<<20, nobody)
	if err != nil {
		return nil, err
	}
	return w.load(), sysctl("fs/file-max", strconv.Itoa(limit+open))
}

// processFileDescriptors opens files in a process with a low limit.
func processFileDescriptors(*guest) (*load, error) {
	const limit = 400
	w, err := newWorker(workOpen, share(1, limit), limit, 0)
	if err != nil {
		return nil, err
	}
	return w.load(), nil
}

// threads creates processes until there can be no more of them, or of threads.
func threads(*guest) (*load, error) {
	const limit = 1000
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil, err
	}
	_, all, _ := strings.Cut(strings.Fields(string(b))[3], "/")
	now, err := strconv.Atoi(all)
	if err != nil {
		return nil, err
	}
	makeThreads(8) // this process may need them when none can be created
	w, err := newWorker(workFork, share(1, limit-now), 0, 0)
	if err != nil {
		return nil, err
	}
	return w.load(), sysctl("kernel/threads-max", strconv.Itoa(limit))
}

// makeThreads makes Go's runtime create threads, which it keeps.
func makeThreads(n int) {
	var all, there sync.WaitGroup
	there.Add(n)
	for range n {
		all.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			there.Done()
			there.Wait()
		})
	}
	all.Wait()
}

// forkIdle creates a process that waits until its parent has ended. The process is a copy
// of this one with a single thread, so it may only make system calls and use nothing else
// of Go.
func forkIdle() syscall.Errno {
	flags := uintptr(unix.SIGCHLD)
	parent := uintptr(os.Getpid())
	first, second := flags, uintptr(0)
	if runtime.GOARCH == "s390x" { // its stack comes first
		first, second = second, first
	}
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, first, second, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return errno
	}
	_, _, _ = unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0)
	for {
		if now, _, _ := unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0); now != parent {
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
		}
		_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}

// committedMemory makes a process allocate memory that counts as committed.
func committedMemory(*guest) (*load, error) {
	const limit = 400 << 10 // KiB
	committed, err := meminfo("Committed_AS:")
	if err != nil {
		return nil, err
	}
	w, err := newWorker(workMap, share(1, limit), 0, nobody)
	if err != nil {
		return nil, err
	}
	// In addition to what the exporter and the worker have.
	return w.load(), setAll("vm/overcommit_kbytes", strconv.Itoa(committed+limit+(150<<10)), "vm/overcommit_memory", "2")
}

// memory makes a process use memory until it is killed.
func memory(*guest) (*load, error) {
	available, err := meminfo("MemAvailable:")
	if err != nil {
		return nil, err
	}
	w, err := newWorker(workTouch, share(1, available), 0, 0)
	if err != nil {
		return nil, err
	}
	return w.load(), nil
}

// unit is the cgroup of a unit, named as by systemd.
const unit = "/sys/fs/cgroup/system.slice/web.service"

// intoUnit moves a worker into a unit with the given memory limit, in KiB.
func (w *worker) intoUnit(limit int) error {
	if err := os.MkdirAll(unit, 0o755); err != nil {
		return err
	}
	return errors.Join(
		writeFile(filepath.Dir(unit)+"/cgroup.subtree_control", "+memory"),
		writeFile(unit+"/cgroup.procs", strconv.Itoa(w.cmd.Process.Pid)),
		writeFile(unit+"/memory.max", strconv.Itoa(limit<<10)),
	)
}

// cgroupMemory makes a process of a unit use memory until it is killed at the unit's
// limit.
func cgroupMemory(*guest) (*load, error) {
	const limit = 64 << 10 // KiB
	w, err := newWorker(workTouch, share(1, limit), 0, 0)
	if err != nil {
		return nil, err
	}
	return w.load(), w.intoUnit(limit)
}

// cgroupSockets makes a process of a unit not read what clients outside of the unit send,
// until the unit has no memory for more.
func cgroupSockets(*guest) (*load, error) {
	const limit, each = 48 << 10, 48 // KiB
	w, err := newWorker(workAccept, portUnread, 1<<20, 0)
	if err != nil {
		return nil, err
	}
	if err := w.intoUnit(limit); err != nil {
		return nil, err
	}
	// The machine's own limit is far away.
	if err := setAll("net/core/somaxconn", "4096", "net/ipv4/tcp_mem", "1000000 1000000 1000000"); err != nil {
		return nil, err
	}
	if _, err := w.step(); err != nil { // it listens
		return nil, err
	}
	var open sockets
	return &load{
		step: func(int) (string, error) {
			for range share(1, limit) / each {
				client, err := connect(loopback(portUnread))
				if err != nil {
					return err.Error(), nil
				}
				fill(open.keep(client), each<<10)
			}
			if refused, err := w.step(); refused != "" || err != nil {
				return refused, err
			}
			return unsent(open[len(open)-1])
		},
		release: func() error { return errors.Join(open.close(), w.stop()) },
	}, nil
}

// unsent returns a description of a connection's data that the peer does not accept.
func unsent(fd int) (string, error) {
	for end := time.Now().Add(answer); ; time.Sleep(answer / 20) {
		left, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if err != nil {
			return "", fmt.Errorf("SIOCOUTQ: %w", err)
		}
		if left == 0 {
			return "", nil
		}
		if time.Now().After(end) {
			return fmt.Sprintf("%d bytes of a connection are not taken in %v", left, answer), nil
		}
	}
}

// lowMemory makes connections until the kernel has no memory for another one.
func lowMemory(*guest) (*load, error) {
	if err := setAll("net/ipv4/ip_local_port_range", "10000 65000", "net/core/somaxconn", strconv.Itoa(everybody)); err != nil {
		return nil, err
	}
	w, err := newWorker(workConnect, 320, 1<<20, 0)
	if err != nil {
		return nil, err
	}
	return w.load(), nil
}

// meminfo reads a number of /proc/meminfo, in KiB.
func meminfo(name string) (int, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == name {
			return strconv.Atoi(f[1])
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no %s", name)
}
