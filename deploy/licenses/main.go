// Command licenses prints the licences of everything that is linked into the program of
// the working directory, including Go's library. A package may have come from elsewhere
// and have its own licence in addition to that of its module, so licences are looked for
// from the package's folder up to the root of its module.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

var legal = regexp.MustCompile(`(?i)^(licen[cs]e|unlicense|copying|notice|patents)`)

// module is a module as listed by go list. Go itself is represented as one.
type module struct {
	Path, Version, Dir string
	Main               bool
}

type linked struct {
	Dir      string
	Module   *module
	Standard bool
}

func main() {
	packages, err := dependencies(".")
	if err == nil {
		err = write(os.Stdout, packages)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// dependencies returns the packages that are linked into the program in dir.
func dependencies(dir string) ([]linked, error) {
	env, err := golang(dir, "", "env", "-json", "GOROOT", "GOVERSION")
	if err != nil {
		return nil, err
	}
	var library struct{ GOROOT, GOVERSION string }
	if err := json.Unmarshal(env, &library); err != nil {
		return nil, err
	}
	std := &module{Path: "Go", Version: library.GOVERSION, Dir: library.GOROOT}

	var packages []linked
	// What is linked depends slightly on the platform. The licences are those of all
	// platforms of a release, so they are the same for each and on every machine.
	for _, arch := range []string{"386", "amd64", "arm", "arm64", "ppc64le", "riscv64", "s390x"} {
		out, err := golang(dir, arch, "list", "-deps", "-json=Dir,Module,Standard", ".")
		if err != nil {
			return nil, err
		}
		for d := json.NewDecoder(bytes.NewReader(out)); ; {
			var p linked
			if err := d.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, err
			}
			if p.Standard {
				p.Module = std
			}
			packages = append(packages, p)
		}
	}
	return packages, nil
}

func golang(dir, arch string, arguments ...string) ([]byte, error) {
	cmd := exec.Command("go", arguments...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w", cmd, err)
	}
	return out, err
}

// write prints each file once, below the name of its module.
func write(w io.Writer, packages []linked) error {
	files := map[module]map[string]bool{}
	for _, p := range packages {
		if p.Module == nil {
			return fmt.Errorf("%s: of no module", p.Dir)
		}
		if p.Module.Main {
			continue
		}
		if files[*p.Module] == nil {
			files[*p.Module] = map[string]bool{}
		}
		if err := look(p, files[*p.Module]); err != nil {
			return err
		}
	}
	modules := slices.SortedFunc(maps.Keys(files), func(a, b module) int {
		return strings.Compare(a.Path, b.Path)
	})
	for _, m := range modules {
		for _, name := range slices.Sorted(maps.Keys(files[m])) {
			text, err := os.ReadFile(filepath.Join(m.Dir, name))
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(w, "==== %s %s: %s\n\n%s\n\n", m.Path, m.Version, name, bytes.TrimSpace(text)); err != nil {
				return err
			}
		}
	}
	return nil
}

// look adds the licence files that apply to p, by their path in the module. It returns an
// error if there are none, because then p may not be redistributed.
func look(p linked, files map[string]bool) error {
	below, err := filepath.Rel(p.Module.Dir, p.Dir)
	if err != nil || !filepath.IsLocal(below) {
		return fmt.Errorf("%s is not in its module's folder %q", p.Dir, p.Module.Dir)
	}
	found := false
	for ; ; below = filepath.Dir(below) {
		entries, err := os.ReadDir(filepath.Join(p.Module.Dir, below))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Type().IsRegular() && legal.MatchString(e.Name()) && filepath.Ext(e.Name()) != ".go" {
				files[filepath.Join(below, e.Name())] = true
				found = true
			}
		}
		if below == "." {
			break
		}
	}
	if !found {
		return fmt.Errorf("%s is under no licence of %s %s", p.Dir, p.Module.Path, p.Module.Version)
	}
	return nil
}
