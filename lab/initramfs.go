package main

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
)

// portModules returns the modules that a guest needs to report.
func portModules() []string { return []string{"virtio_pci", "virtio_console"} }

// wantedModules returns the modules of the scenarios: sock_diag for TCP, UDP and unix sockets, connection
// tracking with a rule that switches it on, a pair of network interfaces, a disk, a network card, a terminal for
// the kernel's log.
func wantedModules() []string {
	return []string{"crc32c_generic", "tcp_diag", "udp_diag", "unix_diag", "nf_conntrack_netlink", "nf_tables", "nft_ct", "veth", "virtio_blk", "virtio_net", "ttyprintk"}
}

// module is one kernel module, unpacked.
type module struct {
	name  string
	image []byte
}

// loadOrder reads the wanted modules and their dependencies, in the order in which they
// can be loaded. Modules that this kernel does not have are left out: they are built in,
// or the exporter will report that they are missing.
func loadOrder(dir string, wanted []string) ([]module, error) {
	paths := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok {
			paths[moduleName(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var order []module
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		name = moduleName(name)
		if seen[name] || paths[name] == "" {
			return nil
		}
		seen[name] = true
		image, err := decompress(paths[name])
		if err != nil {
			return err
		}
		needs, err := dependencies(image)
		if err != nil {
			return fmt.Errorf("%s: %w", paths[name], err)
		}
		for _, other := range needs {
			if err := visit(other); err != nil {
				return err
			}
		}
		order = append(order, module{name, image})
		return nil
	}
	for _, name := range wanted {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName returns the kernel's spelling of a module's name.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// dependencies reads the dependencies in the section .modinfo of a module: words
// "key=value", each terminated by a zero byte.
func dependencies(image []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var names []string
	for word := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(word), "=")
		switch key {
		case "depends":
			names = append(names, strings.FieldsFunc(value, func(r rune) bool { return r == ',' })...)
		case "softdep":
			// "pre: a b post: c"
			pre, _, _ := strings.Cut(strings.TrimPrefix(value, "pre:"), "post:")
			names = append(names, strings.Fields(pre)...)
		}
	}
	return names, nil
}

// decompress reads a file and decompresses it if it is compressed.
func decompress(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	switch filepath.Ext(path) {
	case ".xz":
		b, err = unxz(b)
	case ".zst":
		b, err = unzstd(b)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

func unxz(b []byte) ([]byte, error) {
	r, err := xz.NewReader(bytes.NewReader(b), 0)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func unzstd(b []byte) ([]byte, error) {
	r, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.DecodeAll(b, nil)
}

// bootable returns what QEMU boots from a kernel image. For a bzImage (x86) that is the
// kernel proper, which QEMU starts by its PVH entry, so that the guest need not
// decompress it; the header is described in the kernel's Documentation/arch/x86/boot.rst.
// Images of other architectures are returned unchanged.
func bootable(kernel []byte) ([]byte, error) {
	const sectors, offset, length = 0x1f1, 0x248, 0x24c
	if len(kernel) < 0x250 || string(kernel[0x202:0x206]) != "HdrS" {
		return kernel, nil
	}
	at := (uint64(kernel[sectors])+1)*512 + uint64(le32(kernel[offset:]))
	size := uint64(le32(kernel[length:]))
	// The last four bytes are the uncompressed size.
	if size < 4 || at+size > uint64(len(kernel)) {
		return nil, errors.New("the payload is outside of the image")
	}
	payload := kernel[at : at+size-4]
	switch {
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		return unxz(payload)
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return unzstd(payload)
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	}
	return nil, fmt.Errorf("packed in a way that is not known, % x", payload[:min(6, len(payload))])
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// initramfs writes a cpio archive ("newc"): the guest's folders, its /init, the exporter,
// and the modules by folder, named so that they sort in load order.
func initramfs(w io.Writer, initPath, exporterPath string, modules map[string][]module) error {
	c := &cpio{w: w}
	for _, dir := range []string{"dev", "proc", "sys", "tmp"} {
		c.add(dir, fs.ModeDir|0o755, nil)
	}
	// The kernel opens it before /init mounts anything.
	c.add("dev/console", fs.ModeCharDevice|0o600, nil)
	for name, path := range map[string]string{"init": initPath, "exporter": exporterPath} {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		c.add(name, 0o755, b)
	}
	for dir, list := range modules {
		c.add(dir, fs.ModeDir|0o755, nil)
		for i, m := range list {
			c.add(fmt.Sprintf("%s/%03d-%s.ko", dir, i, m.name), 0o644, m.image)
		}
	}
	c.add("TRAILER!!!", 0, nil)
	return c.err
}

type cpio struct {
	w     io.Writer
	inode int
	err   error
}

func (c *cpio) add(name string, mode fs.FileMode, content []byte) {
	c.inode++
	kind, major, minor, links := uint32(0o100000), 0, 0, 1
	switch {
	case mode.IsDir():
		kind, links = 0o040000, 2
	case mode&fs.ModeCharDevice != 0:
		kind, major, minor = 0o020000, 5, 1
	}
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.inode, kind|uint32(mode.Perm()), 0, 0, links, 0, len(content), 0, 0, major, minor, len(name)+1, 0)
	c.write([]byte(header + name + "\x00"))
	c.pad(len(header) + len(name) + 1)
	c.write(content)
	c.pad(len(content))
}

func (c *cpio) pad(written int) { c.write(slices.Repeat([]byte{0}, (4-written%4)%4)) }

func (c *cpio) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
}
