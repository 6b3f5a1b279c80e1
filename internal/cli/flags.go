package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	promslogflag "github.com/prometheus/common/promslog/flag"
	"github.com/prometheus/common/version"
	toolkit "github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"
	"golang.org/x/sys/unix"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// config is the command line, checked.
type config struct {
	command command
	specs   []collector.Spec

	procPath, sysPath string
	sysPathSet        bool // by the user
	cgroupPath        string
	podLogs           string
	podLogsSet        bool // by the user
	top               int
	maxCPU            float64
	sampleInterval    time.Duration

	web                    *toolkit.FlagConfig
	telemetryPath          string
	maxRequests            int
	disableExporterMetrics bool

	log *promslog.Config
}

// errPrinted stops the parsing of a command line that asks for a page.
var errPrinted = errors.New("printed")

// parseFlags parses a command line of the given commands. exit is true if nothing remains
// to be done: --help and --version write to stdout. If err is not nil, c has the command
// that args probably name.
func parseFlags(table []command, args []string, stdout io.Writer) (c *config, exit bool, err error) {
	c = &config{command: meant(table, args), log: &promslog.Config{}}
	app := kingpin.New(name, "Prometheus exporter that shows how close a Linux host is to the kernel's limits on sockets and memory, before the kernel refuses, drops or kills.")
	app.Version(version.Print(name))
	app.HelpFlag.Short('h')
	app.UsageWriter(stdout)
	app.UsageFuncs(pageFuncs(table))
	app.Terminate(func(int) { exit = true })
	// kingpin keeps its page templates in global variables and writes pages to the
	// process's standard output. The application's action runs before those of its flags.
	app.PreAction(func(line *kingpin.ParseContext) error {
		for _, e := range line.Elements {
			flag, ok := e.Clause.(*kingpin.FlagClause)
			if !ok {
				continue
			}
			if page, ok := pages()[flag.Model().Name]; ok {
				return cmp.Or(app.UsageForContextWithTemplate(line, 2, page), errPrinted)
			}
		}
		return nil
	})
	builtin := app.Model().Flags // --help and the like
	for i, row := range table {
		cmd := app.Command(row.name, row.help)
		if i == 0 {
			cmd.Default()
		}
		if row.define != nil {
			row.define(cmd)
		}
	}

	c.web = kingpinflag.AddFlags(app, ":10058")
	app.Flag("web.telemetry-path", "Path under which to expose metrics.").Default("/metrics").StringVar(&c.telemetryPath)
	app.Flag("web.max-requests", "Maximum number of parallel scrape requests.").Default("40").IntVar(&c.maxRequests)
	app.Flag("web.disable-exporter-metrics", "Exclude metrics about the exporter itself (promhttp_*, process_*, go_*).").BoolVar(&c.disableExporterMetrics)
	app.Flag("path.procfs", "procfs mount point; its process 1 must be the host's.").Default("/proc").StringVar(&c.procPath)
	app.Flag("path.sysfs", "sysfs mount point. Only the default may be absent.").Default("/sys").IsSetByUser(&c.sysPathSet).StringVar(&c.sysPath)
	app.Flag("path.cgroup", "Mount point of the host's cgroups, by default fs/cgroup in --path.sysfs. Only the default may be absent.").StringVar(&c.cgroupPath)
	app.Flag("path.pod-logs", "Directory of the logs of the host's pods, used to name network namespaces after pods. Only the default may be absent.").Default("/var/log/pods").IsSetByUser(&c.podLogsSet).StringVar(&c.podLogs)
	app.Flag("collector.top", "Number of series per list of listeners, ports, processes, caches and zones.").Default("10").IntVar(&c.top)
	app.Flag("collector.max-cpu", "Fraction of one core that all walks over sockets and processes may use together: a walk that took t of CPU time is repeated after t / max-cpu at the earliest. 0 repeats them at every scrape.").Default("0.02").Float64Var(&c.maxCPU)
	app.Flag("collector.sample-interval", "How often limits are sampled between scrapes to find peaks; listeners are sampled four times as often during bursts. 0s disables sampling.").Default("1s").DurationVar(&c.sampleInterval)
	var disableDefaults bool
	app.Flag("collector.disable-defaults", "Disable all collectors except those enabled by a flag.").BoolVar(&disableDefaults)
	specs := collector.Specs()
	enabled := make([]struct{ on, set bool }, len(specs))
	for i, s := range specs {
		app.Flag("collector."+s.Name, s.Help).Default("true").IsSetByUser(&enabled[i].set).BoolVar(&enabled[i].on)
	}
	promslogflag.AddFlags(app, c.log)
	offer(app.GetFlag(promslogflag.LevelFlagName), promslog.LevelFlagOptions...)
	offer(app.GetFlag(promslogflag.FormatFlagName), promslog.FormatFlagOptions...)

	args, err = rewriteBooleans(app, table, builtin, args)
	if err != nil {
		return c, false, fmt.Errorf("%w (try --help)", err)
	}
	selected, err := app.Parse(args)
	if exit || errors.Is(err, errPrinted) {
		return c, true, nil
	}
	if err != nil {
		return c, false, fmt.Errorf("%w (try --help)", nameFlag(app, args, err))
	}
	c.command = table[slices.IndexFunc(table, func(row command) bool { return row.name == selected })]
	for i, s := range specs {
		if enabled[i].on && (enabled[i].set || !disableDefaults) {
			c.specs = append(c.specs, s)
		}
	}
	return c, false, c.validate()
}

// Between these, samples are cheap, and a minute has several.
const (
	minSampleInterval = 100 * time.Millisecond
	maxSampleInterval = 15 * time.Second
)

func (c *config) validate() error {
	switch {
	case len(c.specs) == 0:
		return errors.New("no collector is enabled")
	case !strings.HasPrefix(c.telemetryPath, "/") || c.telemetryPath == "/" || path.Clean(c.telemetryPath) != c.telemetryPath ||
		strings.HasPrefix(c.telemetryPath, "/-") || strings.ContainsAny(c.telemetryPath, "{} ?#%"):
		return fmt.Errorf("--web.telemetry-path=%q must be a path below /", c.telemetryPath)
	case c.maxRequests < 1:
		return fmt.Errorf("--web.max-requests=%d must be at least 1", c.maxRequests)
	case c.top < 1 || c.top > 100:
		return fmt.Errorf("--collector.top=%d must be between 1 and 100", c.top)
	case !(c.maxCPU >= 0 && c.maxCPU <= 1):
		return fmt.Errorf("--collector.max-cpu=%v must be between 0 and 1", c.maxCPU)
	}
	if c.sampleInterval != 0 && (c.sampleInterval < minSampleInterval || c.sampleInterval > maxSampleInterval) {
		return fmt.Errorf("--collector.sample-interval=%v must be 0s or between %v and %v", c.sampleInterval, minSampleInterval, maxSampleInterval)
	}
	// A container may have no /sys; then the exporter runs without it.
	if c.sysPathSet {
		if err := checkSysfs(c.sysPath); err != nil {
			return fmt.Errorf("--path.sysfs=%s: %w", c.sysPath, err)
		}
	}
	if c.cgroupPath != "" {
		if _, err := os.ReadDir(c.cgroupPath); err != nil {
			return fmt.Errorf("--path.cgroup=%s: %w", c.cgroupPath, err)
		}
	}
	if c.podLogsSet {
		dir, err := os.Open(c.podLogs)
		if err == nil {
			_, err = dir.Readdirnames(1)
			_ = dir.Close()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("--path.pod-logs=%s: %w", c.podLogs, err)
		}
	}
	if file := *c.web.WebConfigFile; file != "" {
		if err := toolkit.Validate(file); err != nil {
			return fmt.Errorf("--web.config.file=%s: %w", file, err)
		}
	}
	return nil
}

// checkSysfs returns an error if path is neither a sysfs nor a copy of one.
func checkSysfs(path string) error {
	var mount unix.Statfs_t
	if err := unix.Statfs(path, &mount); err != nil {
		return err
	}
	// All files that are read are below kernel, but /proc/sys and /sys/module have a
	// kernel folder too.
	has := []string{"kernel"}
	switch mount.Type {
	case unix.PROC_SUPER_MAGIC:
		return errors.New("a procfs, not a sysfs")
	case unix.SYSFS_MAGIC:
		has = append(has, "devices")
	}
	for _, dir := range has {
		var st unix.Stat_t
		err := unix.Stat(filepath.Join(path, dir), &st)
		if errors.Is(err, unix.ENOENT) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return fmt.Errorf("not a sysfs: it has no directory %s", dir)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// maxArgumentFiles bounds the number of argument files, which may name each other.
const maxArgumentFiles = 100

// rewriteBooleans returns args with --flag=true and --flag=false of boolean flags, which
// kingpin does not parse, replaced by --flag and --no-flag, and with argument files
// (@file) replaced by their lines. It omits a false flag of builtin, because kingpin
// shows help for --no-help too.
func rewriteBooleans(app *kingpin.Application, table []command, builtin []*kingpin.FlagModel, args []string) ([]string, error) {
	var rewritten []string
	for files := 0; len(args) > 0; {
		arg := args[0]
		args = args[1:]
		if arg == "--" {
			return append(append(rewritten, arg), args...), nil
		}
		if file, ok := strings.CutPrefix(arg, "@"); ok {
			if files++; files > maxArgumentFiles {
				return nil, fmt.Errorf("more than %d files of arguments", maxArgumentFiles)
			}
			lines, err := kingpin.ExpandArgsFromFile(file)
			if err != nil {
				return nil, err
			}
			args = append(lines, args...)
			continue
		}
		long, value, hasValue := strings.Cut(arg, "=")
		flag, inverted := booleanFlag(app, table, long)
		if flag == nil || !hasValue {
			rewritten = append(rewritten, arg)
			continue
		}
		on, err := strconv.ParseBool(value)
		if err != nil {
			return nil, fmt.Errorf("%s=%q must be true or false", long, value)
		}
		switch name := flag.Model().Name; {
		case on != inverted:
			rewritten = append(rewritten, "--"+name)
		case !slices.ContainsFunc(builtin, func(f *kingpin.FlagModel) bool { return f.Name == name }):
			rewritten = append(rewritten, "--no-"+name)
		}
	}
	return rewritten, nil
}

// nameFlag returns err with the name of the flag whose value caused it, which kingpin
// does not name, or err itself if no value did.
func nameFlag(app *kingpin.Application, args []string, err error) error {
	parsed, parseErr := app.ParseContext(args)
	if parseErr != nil {
		return err
	}
	for _, e := range parsed.Elements {
		clause, ok := e.Clause.(*kingpin.FlagClause)
		if !ok {
			continue
		}
		flag := clause.Model()
		if valueErr := flag.Value.Set(*e.Value); valueErr != nil {
			if number, ok := errors.AsType[*strconv.NumError](valueErr); ok {
				valueErr = number.Err
				if errors.Is(valueErr, strconv.ErrSyntax) {
					valueErr = errors.New("not a valid number")
				}
			}
			return fmt.Errorf("--%s=%s: %w", flag.Name, *e.Value, valueErr)
		}
	}
	return err
}

// booleanFlag returns the boolean flag for arg, which is --flag or --no-flag, and whether
// arg is the latter. It returns nil if neither the program nor a command has such a flag.
func booleanFlag(app *kingpin.Application, table []command, arg string) (flag *kingpin.FlagClause, inverted bool) {
	long, ok := strings.CutPrefix(arg, "--")
	if !ok {
		return nil, false
	}
	positive, inverted := strings.CutPrefix(long, "no-")
	get := []func(string) *kingpin.FlagClause{app.GetFlag}
	for _, row := range table {
		get = append(get, app.GetCommand(row.name).GetFlag)
	}
	for _, get := range get {
		if flag := get(long); flag != nil && flag.Model().IsBoolFlag() {
			return flag, false
		}
		if flag := get(positive); inverted && flag != nil && flag.Model().IsBoolFlag() {
			return flag, true
		}
	}
	return nil, false
}
