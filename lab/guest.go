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

// build makes the image of a kernel in a folder of its own.
func (k kernel) build(ctx context.Context, cache, dir string) (image, error) {
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
	plain, err := vmlinux(packed)
	if err != nil {
		return image{}, fmt.Errorf("%s: %w", f.vmlinuz, err)
	}
	if err := os.WriteFile(i.vmlinux, plain, 0o644); err != nil {
		return image{}, err
	}
	modules, err := loadOrder(f.modules, wantedModules())
	if err != nil {
		return image{}, err
	}
	initPath, exporter := filepath.Join(dir, "init"), filepath.Join(dir, "exporter")
	for path, pkg := range map[string]string{initPath: "./lab/init", exporter: "."} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+k.goarch)
		if out, err := cmd.CombinedOutput(); err != nil {
			return image{}, fmt.Errorf("building %s: %w: %s", pkg, err, out)
		}
	}
	archive, err := os.Create(i.initrd)
	if err != nil {
		return image{}, err
	}
	w := bufio.NewWriter(archive)
	return i, errors.Join(initramfs(w, initPath, exporter, modules), w.Flush(), archive.Close())
}

// outcome is what a guest reported.
type outcome struct {
	image    image
	scenario scenario.Scenario
	seconds  float64 // of the whole boot
	steps    []scenario.Step
	done     *scenario.Done
	hung     bool // it had to be stopped
}

// boot runs a scenario in a guest, software emulation and all. A guest that does
// not end in time is an error, as is one that does not report that it is done.
func (i image) boot(ctx context.Context, s scenario.Scenario, l lab) (*outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	dir := filepath.Join(l.dir, i.name, s.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	reportPath := filepath.Join(dir, "report")
	memory := s.Memory
	if memory == 0 {
		memory = 512
	}
	// The time stamp counter spares a switch to the emulator for each look at the time.
	line := "console=ttyS0 panic=-1 loglevel=1 mitigations=off tsc=reliable clocksource=tsc lab.scenario=" + s.Name
	if s.CommandLine != "" {
		line += " " + s.CommandLine
	}
	if l.pages != "" {
		line += " " + scenario.WantStatus
	}
	args := []string{
		"-accel", "tcg", "-cpu", "Nehalem", "-M", "q35", "-smp", "1", "-m", strconv.Itoa(memory),
		"-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-serial", "file:" + reportPath,
		"-kernel", i.vmlinux, "-initrd", i.initrd, "-append", line,
	}
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
	began := time.Now()
	// The 64-bit one starts 32-bit kernels too.
	console, err := command(ctx, "", "qemu-system-x86_64", args...)
	o := &outcome{image: i, scenario: s, seconds: time.Since(began).Seconds()}
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

// read reads the guest's messages, as many as there are.
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
		case m.Release != "" && m.Release != o.image.release:
			return fmt.Errorf("the guest runs Linux %s, not %s", m.Release, o.image.release)
		case m.Error != "":
			return fmt.Errorf("the guest failed after step %d: %s", len(o.steps)-1, strings.TrimSpace(m.Error))
		case m.Step != nil:
			o.steps = append(o.steps, *m.Step)
		case m.Done != nil:
			o.done = m.Done
		}
	}
}

// savePages writes the status pages that the guest reported into a folder, each
// under the number of its step.
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
