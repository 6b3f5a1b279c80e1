package cli

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// collectors returns the names of the collectors that c enables.
func (c *config) collectors() []string {
	var names []string
	for _, s := range c.specs {
		names = append(names, s.Name)
	}
	return names
}

// TestBooleanFlags checks that each boolean flag of --help accepts a boolean value and no
// other.
func TestBooleanFlags(t *testing.T) {
	var help bytes.Buffer
	if status := Run(t.Context(), []string{"--help"}, nil, &help, t.Output()); status != 0 {
		t.Fatalf("status %d", status)
	}
	var flags []string
	for _, m := range regexp.MustCompile(`(?m)--\[no-\](\S+)`).FindAllStringSubmatch(help.String(), -1) {
		flags = append(flags, m[1])
	}
	if want := len(collector.Specs()) + 5; len(flags) != want {
		t.Fatalf("%d boolean flags, want %d: %q", len(flags), want, flags)
	}
	for _, flag := range flags {
		for _, value := range []string{"true", "false", "1", "0", "TRUE", "False"} {
			for _, prefix := range []string{"--", "--no-"} {
				arg := prefix + flag + "=" + value
				// Another collector is enabled, whatever the flag does.
				other := "--collector.memory"
				if flag == "collector.memory" {
					other = "--collector.tcp"
				}
				c, exit, err := parseFlags(commands(), []string{"check", other, arg}, io.Discard)
				if err != nil {
					t.Errorf("%s: %v", arg, err)
					continue
				}
				on := slices.Contains([]string{"true", "1", "TRUE"}, value) == (prefix == "--")
				var got bool
				switch name, isCollector := strings.CutPrefix(flag, "collector."); {
				case flag == "help" || flag == "version":
					got = exit
				case flag == "web.systemd-socket":
					got = *c.web.WebSystemdSocket
				case flag == "web.disable-exporter-metrics":
					got = c.disableExporterMetrics
				case flag == "collector.disable-defaults":
					got = len(c.specs) == 1
				case isCollector:
					got = slices.Contains(c.collectors(), name)
				}
				if got != on {
					t.Errorf("%s: on is %t", arg, got)
				}
			}
		}
		for _, value := range []string{"maybe", "", "yes", "2", "true\nfalse", "true=true"} {
			for command, want := range map[string]int{"serve": 1, "check": unknown} {
				for _, prefix := range []string{"--", "--no-"} {
					var stderr bytes.Buffer
					arg := prefix + flag + "=" + value
					got := Run(t.Context(), []string{arg, command}, nil, io.Discard, &stderr)
					if got != want || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), prefix+flag+"=\"") ||
						!strings.Contains(stderr.String(), "must be true or false") {
						t.Errorf("%s %q: status %d, %q", command, arg, got, stderr.String())
					}
				}
			}
		}
	}
}

// TestFlagValues checks the values of flags that are not boolean, and of combinations of
// flags.
func TestFlagValues(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return "@" + path
	}
	only := file("only", "# a comment\n--collector.disable-defaults=true\n--collector.tcp\n--collector.memory=false\n")
	nested := file("nested", "check\n"+only+"\n")
	endless := file("endless", "@"+filepath.Join(dir, "endless")+"\n")
	for _, c := range []struct {
		args       string
		collectors string // space separated
		err        string
	}{
		{"--collector.disable-defaults --collector.tcp=true --collector.ports=false", "tcp", ""},
		{"--collector.disable-defaults=false --collector.tcp", "all", ""},
		{only, "tcp", ""},
		{nested, "tcp", ""},
		{endless, "", "more than 100 files"},
		{"@/nowhere", "", "/nowhere"},
		{"--web.telemetry-path=/a=true", "all", ""},
		{"--no-collector.tcp=true --collector.tcp", "", "cannot be repeated"},
		{"--collector.tcp=false --collector.tcp=true", "", "cannot be repeated"},
		{"--collector.tcp false", "", "unexpected false"},
		{"--no-path.procfs=true", "", "unknown long flag '--no-path.procfs'"},
		{"--no-nonsense=true", "", "unknown long flag '--no-nonsense'"},
		{"--collector=false", "", "unknown long flag '--collector'"},
		{"-- --collector.tcp=false", "", "unexpected --collector.tcp=false"},
		{"check --format=xml", "", "--format=xml: enum value must be one of text,json"},
		{"--collector.top=ten", "", "--collector.top=ten: not a valid number"},
		{"--collector.max-cpu 1e999", "", "--collector.max-cpu=1e999: value out of range"},
		{"--log.level=loud", "", "--log.level=loud: unrecognized log level loud"},
		{"--format=json", "", "unknown long flag '--format'"},
	} {
		got, exit, err := parseFlags(commands(), strings.Fields(c.args), io.Discard)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: error %v", c.args, err)
			}
			continue
		}
		want := strings.Fields(c.collectors)
		if c.collectors == "all" {
			want = want[:0]
			for _, s := range collector.Specs() {
				want = append(want, s.Name)
			}
		}
		if err != nil || exit || !slices.Equal(got.collectors(), want) {
			t.Errorf("%s: %v, %t, %v", c.args, got.collectors(), exit, err)
		}
	}
}

// TestSysfsPath checks that a path on the command line must be a sysfs or a copy of one, and
// that the default path may be absent.
func TestSysfsPath(t *testing.T) {
	dir := t.TempDir()
	join := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"copy/kernel/slab", "empty", "odd"} {
		if err := os.MkdirAll(join(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"file", "odd/kernel"} {
		if err := os.WriteFile(join(f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/nowhere", join("dangling")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/sys", join("link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(join("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/sys":           "",
		"/sys/":          "",
		join("link"):     "",
		join("copy"):     "",
		"":               "no such file or directory",
		"/nowhere":       "no such file or directory",
		join("dangling"): "no such file or directory",
		join("file"):     "not a directory",
		join("pipe"):     "not a directory",
		join("empty"):    "no directory kernel",
		join("odd"):      "no directory kernel",
		"/":              "no directory kernel",
		"/sys/kernel":    "no directory kernel",
		"/sys/module":    "no directory devices",
		"/proc":          "a procfs, not a sysfs",
		"/proc/sys":      "a procfs, not a sysfs",
	} {
		for command, status := range map[string]int{"serve": 1, "check": unknown} {
			args := []string{command, "--path.sysfs=" + path}
			_, _, err := parseFlags(commands(), args, io.Discard)
			if want == "" {
				if err != nil {
					t.Errorf("%s: %v", path, err)
				}
				continue
			}
			if err == nil || !strings.HasPrefix(err.Error(), "--path.sysfs="+path+": ") || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want %q", path, err, want)
			}
			var stderr bytes.Buffer
			if got := Run(t.Context(), args, nil, io.Discard, &stderr); got != status || strings.Count(stderr.String(), "\n") != 1 {
				t.Errorf("%s %s: status %d, %q", command, path, got, stderr.String())
			}
		}
	}
	c := config{sysPath: "/nowhere", specs: collector.Specs(), telemetryPath: "/metrics", maxRequests: 1, top: 1}
	c.web = defaults(t).web
	if err := c.validate(); err != nil {
		t.Errorf("by default: %v", err)
	}
}

// defaults returns the configuration of an empty command line.
func defaults(t *testing.T) *config {
	t.Helper()
	c, _, err := parseFlags(commands(), nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestErrorOfManyLines checks that an error of several lines is printed as one.
func TestErrorOfManyLines(t *testing.T) {
	config := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(config, []byte("nonsense: 1\nmore: 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	status := Run(t.Context(), []string{"--web.config.file=" + config}, nil, io.Discard, &stderr)
	if status != 1 || strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), "nonsense") || !strings.Contains(stderr.String(), "more") {
		t.Errorf("status %d, %q", status, stderr.String())
	}
}
