package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

// image is what QEMU starts: a kernel and the guest's files.
type image struct {
	kernel
	release         string
	vmlinux, initrd string // paths
}

// programs are the paths of the programs that run in a guest.
type programs struct{ init, exporter string }

// compile builds the guest's programs for an architecture into dir.
func compile(ctx context.Context, goarch, dir string) (programs, error) {
	p := programs{filepath.Join(dir, "init-"+goarch), filepath.Join(dir, "exporter-"+goarch)}
	for path, pkg := range map[string]string{p.init: "./lab/init", p.exporter: "."} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+goarch)
		if out, err := cmd.CombinedOutput(); err != nil {
			return p, fmt.Errorf("building %s for %s: %w: %s", pkg, goarch, err, out)
		}
	}
	return p, nil
}

// accelerator returns kvm if the processor can run guests of this architecture, and tcg
// otherwise. On some machines /dev/kvm is software, which is slower than QEMU's own
// emulation.
func (a architecture) accelerator() string {
	if a.goarch != runtime.GOARCH && (a.goarch != "386" || runtime.GOARCH != "amd64") {
		return "tcg"
	}
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !regexp.MustCompile(`(?m)^flags\b.* (vmx|svm)\b`).Match(cpu) {
		return "tcg"
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg"
	}
	_ = f.Close()
	return "kvm"
}

// build makes the image of a kernel in its own folder.
func (k kernel) build(ctx context.Context, cache, dir string, p programs) (image, error) {
	f, err := k.fetch(ctx, cache)
	if err != nil {
		return image{}, err
	}
	i := image{kernel: k, release: f.release, vmlinux: filepath.Join(dir, "vmlinux"), initrd: filepath.Join(dir, "initrd")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return image{}, err
	}
	packed, err := os.ReadFile(f.vmlinuz)
	if err != nil {
		return image{}, err
	}
	plain, err := bootable(packed)
	if err != nil {
		return image{}, fmt.Errorf("%s: %w", f.vmlinuz, err)
	}
	if err := os.WriteFile(i.vmlinux, plain, 0o644); err != nil {
		return image{}, err
	}
	modules := map[string][]module{}
	for folder, wanted := range map[string][]string{scenario.PortModules: portModules(), scenario.Modules: wantedModules()} {
		if modules[folder], err = loadOrder(f.modules, wanted); err != nil {
			return image{}, err
		}
	}
	archive, err := os.Create(i.initrd)
	if err != nil {
		return image{}, err
	}
	w := bufio.NewWriter(archive)
	return i, errors.Join(initramfs(w, p.init, p.exporter, modules), w.Flush(), archive.Close())
}

// outcome is what a guest reported.
type outcome struct {
	image    image
	scenario scenario.Scenario
	seconds  float64 // of the whole boot
	steps    []scenario.Step
	planned  *scenario.Planned
	tried    []scenario.Tried
	done     *scenario.Done
	notes    []string // what a Prometheus saw
	hung     bool     // it had to be stopped
	// bigEndian reports the guest's byte order.
	bigEndian bool
}

// boot runs a scenario in a guest, in software emulation if necessary. It returns an
// error if the guest does not end in time or does not report that it is done.
func (i image) boot(ctx context.Context, s scenario.Scenario, l lab) (_ *outcome, err error) {
	l.timeout += s.Longer
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	dir := filepath.Join(l.dir, i.name(), s.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	reportPath := filepath.Join(dir, "report")
	memory := 512
	parameters := []string{"console=" + i.console, "panic=-1", "loglevel=1", "mitigations=off", i.parameters, "lab.scenario=" + s.Name}
	if s.HighMemory {
		memory = 880
		parameters = append(parameters, i.lowMemory)
	}
	if l.pages != "" {
		parameters = append(parameters, scenario.WantStatus)
	}
	args := append(slices.Clone(i.machine),
		"-accel", i.accelerator(), "-smp", strconv.Itoa(max(s.Processors, 1)), "-m", strconv.Itoa(memory), "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-chardev", "file,id=report,path="+reportPath, "-device", "virtio-serial", "-device", "virtserialport,chardev=report",
		"-kernel", i.vmlinux, "-initrd", i.initrd, "-append", strings.Join(parameters, " "),
	)
	if s.Disk > 0 {
		disk := filepath.Join(dir, "disk")
		if err := os.WriteFile(disk, nil, 0o644); err != nil {
			return nil, err
		}
		if err := os.Truncate(disk, int64(s.Disk)<<20); err != nil {
			return nil, err
		}
		args = append(args, "-drive", "if=virtio,format=raw,file="+disk)
	}
	var w *watch
	if s.Prometheus {
		if w, err = newWatch(ctx, dir); err != nil {
			return nil, err
		}
		args = append(args, w.card()...)
	}
	began := time.Now()
	console, err := command(ctx, "", i.emulator, args...)
	o := &outcome{image: i, scenario: s, seconds: time.Since(began).Seconds()}
	if w != nil {
		var watched error
		o.notes, watched = w.end()
		err = errors.Join(err, watched)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		o.hung = true
		err = fmt.Errorf("the guest did not end in %v", l.timeout)
	}
	reported := o.read(reportPath)
	if err = errors.Join(err, reported); err != nil {
		return o, fmt.Errorf("%w; the console's last line: %q", err, lastLine(console))
	}
	return o, nil
}

// read reads all messages of the guest.
func (o *outcome) read(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	zip, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return fmt.Errorf("the guest reported nothing: %w", err)
	}
	for messages := json.NewDecoder(zip); ; {
		var m scenario.Message
		switch err := messages.Decode(&m); {
		case err != nil && o.done != nil:
			return nil
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("the guest ended in the middle of the scenario, after step %d", len(o.steps)-1)
		case err != nil:
			return err
		}
		switch {
		case m.Machine != nil && (m.Machine.Release != o.image.release || m.Machine.PageSize != o.image.page<<10):
			return fmt.Errorf("the guest runs Linux %s with pages of %d bytes, not %s with %d KiB", m.Machine.Release, m.Machine.PageSize, o.image.release, o.image.page)
		case m.Machine != nil:
			o.bigEndian = m.Machine.BigEndian
		case m.Error != "":
			return fmt.Errorf("the guest failed after step %d: %s", len(o.steps)-1, strings.TrimSpace(m.Error))
		case m.Step != nil:
			o.steps = append(o.steps, *m.Step)
		case m.Planned != nil:
			o.planned = m.Planned
		case m.Tried != nil:
			o.tried = append(o.tried, *m.Tried)
		case m.Done != nil:
			o.done = m.Done
		}
	}
}

// savePages writes the status pages that the guest reported into a folder, each named by
// the number of its step.
func (o *outcome) savePages(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for n, s := range o.steps {
		if s.Status == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.html", n)), []byte(s.Status), 0o644); err != nil {
			return err
		}
	}
	return nil
}
