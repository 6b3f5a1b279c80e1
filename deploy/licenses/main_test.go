package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestProgram checks the licences that are printed for the exporter.
func TestProgram(t *testing.T) {
	packages, err := dependencies("../..")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := write(&out, packages); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, match := range regexp.MustCompile(`(?m)^==== (\S+) \S+: (\S+)$`).FindAllStringSubmatch(out.String(), -1) {
		seen[match[1]+" "+match[2]]++
	}
	for file, times := range seen {
		if times != 1 {
			t.Errorf("%s is there %d times", file, times)
		}
	}
	for _, file := range []string{
		"Go LICENSE",
		"Go PATENTS",
		"github.com/prometheus/client_golang LICENSE",
		"github.com/prometheus/client_golang NOTICE",
		"github.com/prometheus/client_golang internal/github.com/golang/gddo/LICENSE",
		"go.yaml.in/yaml/v2 LICENSE.libyaml",
	} {
		if seen[file] == 0 {
			t.Errorf("%s is missing", file)
		}
	}
	// The text of gddo's licence, not only its name.
	if !strings.Contains(out.String(), "Copyright (c) 2013 The Go Authors") {
		t.Error("gddo's licence has no text")
	}
}

func TestLook(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{
		"LICENSE", "license.go", "main.go", "other/LICENSE",
		"a/COPYING.txt", "a/b/Licence.md", "a/b/LICENSES/MIT", "a/b/c/NOTICE", "bare/main.go", "bare/sub/LICENSE",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("text of "+name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := &module{Path: "example.com/m", Version: "v1.0.0", Dir: root}
	at := func(folder string) linked { return linked{Dir: filepath.Join(root, folder), Module: m} }

	var out strings.Builder
	if err := write(&out, []linked{at("a/b"), at("."), at("a/b")}); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, name := range []string{"LICENSE", "a/COPYING.txt", "a/b/Licence.md"} {
		fmt.Fprintf(&want, "==== example.com/m v1.0.0: %s\n\ntext of %[1]s\n\n", name)
	}
	if out.String() != want.String() {
		t.Errorf("got\n%swant\n%s", out.String(), want.String())
	}

	bare := &module{Path: "example.com/bare", Version: "v1.0.0", Dir: filepath.Join(root, "bare")}
	if err := write(io.Discard, []linked{{Dir: filepath.Join(bare.Dir, "sub"), Module: bare}}); err != nil {
		t.Error(err)
	}
	for name, p := range map[string]linked{
		"under no licence":   {Dir: bare.Dir, Module: bare},
		"outside its module": {Dir: root, Module: bare},
		"of no module":       {Dir: root},
	} {
		if err := write(io.Discard, []linked{p}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
