package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// files are the files of an unpacked kernel.
type files struct {
	release string // uname -r
	vmlinuz string
	modules string // the folder of its modules
}

// fetch unpacks a kernel into the cache, unless it is already there. It uses its own apt
// state, and the archive that this machine's apt uses.
func (k kernel) fetch(ctx context.Context, cache string) (files, error) {
	dir := filepath.Join(cache, k.name())
	root := filepath.Join(dir, "root")
	if f, err := k.unpacked(root); err == nil {
		return f, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return files{}, err
	}
	state := filepath.Join(dir, "apt")
	for _, d := range []string{"lists/partial", "cache/archives/partial", "packages"} {
		if err := os.MkdirAll(filepath.Join(state, d), 0o755); err != nil {
			return files{}, err
		}
	}
	// apt downloads as its own user if it can.
	if err := os.Chmod(filepath.Join(state, "packages"), 0o777); err != nil {
		return files{}, err
	}
	debian, err := archive(ctx)
	if err != nil {
		return files{}, err
	}
	sources := fmt.Sprintf("deb [arch=%s signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", k.debian, debian, k.suite)
	for name, content := range map[string]string{"sources.list": sources, "status": ""} {
		if err := os.WriteFile(filepath.Join(state, name), []byte(content), 0o644); err != nil {
			return files{}, err
		}
	}
	apt := func(args ...string) (string, error) {
		options := []string{
			"-q", "-o", "Dir::State=" + state, "-o", "Dir::State::Lists=" + filepath.Join(state, "lists"),
			"-o", "Dir::State::status=" + filepath.Join(state, "status"), "-o", "Dir::Cache=" + filepath.Join(state, "cache"),
			"-o", "Dir::Etc::SourceList=" + filepath.Join(state, "sources.list"), "-o", "Dir::Etc::SourceParts=/dev/null",
			"-o", "APT::Architecture=" + k.debian, "-o", "APT::Architectures=" + k.debian, "-o", "Acquire::Languages=none",
			"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false", "-o", "Acquire::Retries=3",
		}
		return command(ctx, filepath.Join(state, "packages"), args[0], append(options, args[1:]...)...)
	}
	if _, err := apt("apt-get", "update", "--error-on=any"); err != nil {
		return files{}, fmt.Errorf("no lists of packages from %s, the archive that apt of this machine is set up with: %w", debian, err)
	}
	known, err := apt("apt-cache", "pkgnames", "linux-image-"+k.version)
	if err != nil {
		return files{}, err
	}
	name := k.newest(strings.Fields(known))
	if name == "" {
		return files{}, fmt.Errorf("%s of %s has no linux-image-%s*-%s", debian, k.suite, k.version, k.flavour)
	}
	names := []string{name}
	// Since Debian 14 the modules are in a separate package.
	show, err := apt("apt-cache", "show", name)
	if err != nil {
		return files{}, err
	}
	for _, prefix := range []string{"linux-modules-", "linux-binary-"} {
		if more := dependency(show, prefix); more != "" {
			names = append(names, more)
		}
	}
	if _, err := apt(append([]string{"apt-get", "download"}, names...)...); err != nil {
		return files{}, err
	}
	packages, err := filepath.Glob(filepath.Join(state, "packages", "*.deb"))
	if err != nil {
		return files{}, err
	}
	unpacking := root + ".part"
	for _, p := range packages {
		if _, err := command(ctx, "", "dpkg-deb", "-x", p, unpacking); err != nil {
			return files{}, err
		}
	}
	f, err := k.unpacked(unpacking)
	if err != nil {
		return files{}, err
	}
	if err := os.Rename(unpacking, root); err != nil {
		return files{}, err
	}
	f.vmlinuz = strings.Replace(f.vmlinuz, unpacking, root, 1)
	f.modules = strings.Replace(f.modules, unpacking, root, 1)
	return f, os.RemoveAll(state)
}

// unpacked finds the kernel below root.
func (k kernel) unpacked(root string) (files, error) {
	modules, err := filepath.Glob(filepath.Join(root, "*", "modules", "*", "kernel"))
	if err != nil {
		return files{}, err
	}
	// Since Debian 13 they are where /lib points to.
	merged, err := filepath.Glob(filepath.Join(root, "usr", "lib", "modules", "*", "kernel"))
	if err != nil {
		return files{}, err
	}
	if modules = append(modules, merged...); len(modules) != 1 {
		return files{}, fmt.Errorf("%d kernels below %s", len(modules), root)
	}
	f := files{modules: modules[0], release: filepath.Base(filepath.Dir(modules[0]))}
	for _, f.vmlinuz = range []string{
		filepath.Join(root, "boot", "vmlinuz-"+f.release),
		filepath.Join(root, "boot", "vmlinux-"+f.release), // ppc64el
		filepath.Join(filepath.Dir(f.modules), "vmlinuz"), // since Debian 14
		filepath.Join(filepath.Dir(f.modules), "vmlinux"),
	} {
		if _, err := os.Stat(f.vmlinuz); err == nil {
			return f, nil
		}
	}
	return files{}, fmt.Errorf("no kernel image of %s below %s", f.release, root)
}

// archive returns the URL of the Debian archive that this machine uses.
func archive(ctx context.Context) (string, error) {
	out, err := command(ctx, "", "apt-get", "indextargets", "--format", "$(SITE) $(COMPONENT) $(ORIGIN) $(LABEL)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); slices.Equal(f[1:], []string{"main", "Debian", "Debian"}) {
			return f[0], nil
		}
	}
	return "", errors.New("apt of this machine knows no archive of Debian: add one to its sources, and run apt-get update")
}

// newest returns the package of the newest kernel of this version and flavour, such as
// linux-image-6.12.107+deb13-arm64-16k or linux-image-5.10.0-32-amd64, or "".
func (k kernel) newest(packages []string) string {
	ours := regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(k.version) + `(?:[^0-9-][^-]*)?(?:-[0-9][^-]*)?-` + regexp.QuoteMeta(k.flavour) + `$`)
	newest := ""
	for _, name := range packages {
		if ours.MatchString(name) && (newest == "" || compareVersions(name, newest) > 0) {
			newest = name
		}
	}
	return newest
}

// compareVersions compares the numbers in two versions: 6.12 is newer than 6.2.
func compareVersions(a, b string) int {
	numbers := func(version string) []int {
		var all []int
		for _, digits := range regexp.MustCompile(`[0-9]+`).FindAllString(version, -1) {
			n, _ := strconv.Atoi(digits)
			all = append(all, n)
		}
		return all
	}
	return slices.Compare(numbers(a), numbers(b))
}

// dependency returns the package with the given prefix in the field Depends of the first
// paragraph.
func dependency(paragraphs, prefix string) string {
	lines := bufio.NewScanner(strings.NewReader(paragraphs))
	for lines.Scan() {
		depends, ok := strings.CutPrefix(lines.Text(), "Depends: ")
		if !ok {
			continue
		}
		for item := range strings.SplitSeq(depends, ",") {
			if name := strings.Fields(item)[0]; strings.HasPrefix(name, prefix) {
				return name
			}
		}
		return ""
	}
	return ""
}

// command runs a program and returns its output. The error includes what the program
// printed on stderr.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%s is not installed: apt-get install %s", name, debianPackage(name))
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(append([]string{name}, short(args)...), " "), err, lastLine(complaint.String()))
	}
	return string(out), nil
}

func debianPackage(program string) string {
	switch program {
	case "apt-get", "apt-cache":
		return "apt"
	case "dpkg-deb":
		return "dpkg"
	case "qemu-system-x86_64":
		return "qemu-system-x86" // the packages of other emulators have the same name
	}
	return program
}

// short returns args without the options of apt.
func short(args []string) []string {
	var words []string
	for i, a := range args {
		if a != "-o" && (i == 0 || args[i-1] != "-o") {
			words = append(words, a)
		}
	}
	return words
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
