// Command init is the first process of a guest of the lab, and the only one except for
// the exporter and the workers that put a load on the kernel. It runs the scenario that
// the kernel's command line names ("lab.scenario=...") and writes its messages (see
// lab/scenario) to a virtio port.
package main

import (
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

func main() {
	if os.Getenv(workerMark) != "" {
		os.Exit(work(os.Args[1:]))
	}
	if err := boot(); err != nil {
		// There is only the console.
		fmt.Println("init:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// boot sets up the system, and reports on a scenario.
func boot() error {
	for dir, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		if err := unix.Mount(kind, dir, kind, 0, ""); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	// As systemd mounts it.
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("cgroup2 on /sys/fs/cgroup: %w", err)
	}
	if err := writeFile("/sys/fs/cgroup/cgroup.subtree_control", "+memory"); err != nil {
		return err
	}
	if err := loadModules(scenario.PortModules); err != nil {
		return err
	}
	r, err := newReport()
	if err != nil {
		return err
	}
	if err := drive(r); err != nil {
		r.send(scenario.Message{Error: err.Error()})
	}
	return r.close()
}

func drive(r *report) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	r.send(scenario.Message{Machine: &scenario.Machine{
		Release: unix.ByteSliceToString(name.Release[:]), PageSize: os.Getpagesize(), BigEndian: binary.NativeEndian.Uint16([]byte{0, 1}) == 1,
	}})
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	words := strings.Fields(string(line))
	s, err := chosen(words)
	if err != nil {
		return err
	}
	// A process may have many sockets here.
	if err := writeFile("/proc/sys/fs/nr_open", "4000000"); err != nil {
		return err
	}
	many := unix.Rlimit{Cur: 4000000, Max: 4000000}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &many); err != nil {
		return err
	}
	// The title of the status page.
	if err := unix.Sethostname([]byte("node-7")); err != nil {
		return err
	}
	if err := linkUp("lo", 0); err != nil {
		return err
	}
	g := &guest{Scenario: s, status: slices.Contains(words, scenario.WantStatus), report: r, collectors: collectorOf(), agreed: map[string]bool{}, seen: map[string]bool{}}
	if g.log, err = openLog(); err != nil {
		return err
	}
	if s.Name == "idle" {
		if err := g.bare(); err != nil {
			return fmt.Errorf("without modules: %w", err)
		}
	}
	if err := loadModules(scenario.Modules); err != nil {
		return err
	}
	if s.Tuned {
		return g.tune()
	}
	if s.Planned {
		return g.plan()
	}
	return g.run()
}

// chosen returns the scenario on the kernel's command line.
func chosen(words []string) (scenario.Scenario, error) {
	for _, word := range words {
		name, ok := strings.CutPrefix(word, "lab.scenario=")
		if !ok {
			continue
		}
		for _, s := range scenario.All() {
			if s.Name == name {
				return s, nil
			}
		}
		return scenario.Scenario{}, fmt.Errorf("no scenario %q", name)
	}
	return scenario.Scenario{}, errors.New("the kernel was told of no scenario")
}

// loadModules loads the modules in a folder of the archive, in the order of their names.
func loadModules(dir string) error {
	paths, err := filepath.Glob("/" + dir + "/*.ko")
	if err != nil {
		return err
	}
	slices.Sort(paths)
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("module %s: %w", path, err)
		}
		// The archive is in the guest's memory.
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// linkUp brings a network interface up, with the given MTU unless that is 0.
func linkUp(name string, mtu int) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if mtu > 0 {
		if err := netlink.LinkSetMTU(link, mtu); err != nil {
			return fmt.Errorf("MTU of %s: %w", name, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	return nil
}

func writeFile(path, value string) error {
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("%s = %q: %w", path, value, err)
	}
	return nil
}

// sysctl sets a sysctl, its name with slashes.
func sysctl(name, value string) error { return writeFile("/proc/sys/"+name, value) }

// report writes compressed messages to a virtio port.
type report struct {
	port *os.File
	zip  *gzip.Writer
	err  error
}

// newReport opens the port, which appears a moment after its driver is loaded.
func newReport() (*report, error) {
	const path = "/dev/vport0p1"
	for end := time.Now().Add(fresh); ; time.Sleep(10 * time.Millisecond) {
		port, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			return &report{port: port, zip: gzip.NewWriter(port)}, nil
		}
		if time.Now().After(end) {
			return nil, err
		}
	}
}

// send writes a message through to the port, because the guest may not survive to finish
// the stream.
func (r *report) send(m scenario.Message) {
	if r.err == nil {
		r.err = json.NewEncoder(r.zip).Encode(m)
	}
	if r.err == nil {
		r.err = r.zip.Flush()
	}
}

func (r *report) close() error { return errors.Join(r.err, r.zip.Close(), r.port.Close()) }
