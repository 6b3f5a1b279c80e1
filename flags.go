package main

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/alecthomas/kingpin/v2"
	"github.com/prometheus/common/promslog"
	promslogflag "github.com/prometheus/common/promslog/flag"
	"github.com/prometheus/common/version"
	toolkit "github.com/prometheus/exporter-toolkit/web"
	"github.com/prometheus/exporter-toolkit/web/kingpinflag"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// The commands.
const (
	commandServe = "serve"
	commandCheck = "check"
)

// config is what the command line says, checked.
type config struct {
	command string
	specs   []collector.Spec

	procPath, sysPath string
	top               int
	maxCPU            float64

	web                    *toolkit.FlagConfig
	telemetryPath          string
	maxRequests            int
	disableExporterMetrics bool

	log *promslog.Config
}

// parseFlags reads the command line. exit is true where that was all there is to
// do: --help and --version write to stdout.
func parseFlags(args []string, stdout io.Writer) (c *config, exit bool, err error) {
	c = &config{log: &promslog.Config{}}
	app := kingpin.New(name, "Prometheus exporter that tells how near a Linux host is to the kernel's limits on sockets and memory, before it refuses, drops or kills.")
	app.Version(version.Print(name))
	app.HelpFlag.Short('h')
	app.UsageWriter(stdout)
	app.UsageFuncs(manFuncs())
	app.Terminate(func(int) { exit = true })
	app.Command(commandServe, "Serve metrics over HTTP (the default).").Default()
	app.Command(commandCheck, "Print every limit once, the most saturated first. Exits with 0 if all is well, 1 for a warning, 2 for a critical limit, 3 if none is near and a collector failed, or the host is out of reach.")

	c.web = kingpinflag.AddFlags(app, ":10058")
	app.Flag("web.telemetry-path", "Path under which metrics are served.").Default("/metrics").StringVar(&c.telemetryPath)
	app.Flag("web.max-requests", "Scrapes that may be served at once.").Default("40").IntVar(&c.maxRequests)
	app.Flag("web.disable-exporter-metrics", "Leave out metrics of the exporter itself (go_*, process_*, promhttp_*).").BoolVar(&c.disableExporterMetrics)
	app.Flag("path.procfs", "Mount point of the procfs whose process 1 is the host's.").Default("/proc").StringVar(&c.procPath)
	app.Flag("path.sysfs", "Mount point of sysfs.").Default("/sys").StringVar(&c.sysPath)
	app.Flag("collector.top", "Series of each list of listeners, ports, processes, caches and zones.").Default("10").IntVar(&c.top)
	app.Flag("collector.max-cpu", "Share of one core that walks over all sockets and processes may take together: when they took t, they are repeated after t / max-cpu at the earliest. 0 repeats them at every scrape.").Default("0.02").Float64Var(&c.maxCPU)
	var disableDefaults bool
	app.Flag("collector.disable-defaults", "Disable all collectors but those that are enabled by a flag.").BoolVar(&disableDefaults)
	specs := collector.Specs()
	enabled := make([]struct{ on, set bool }, len(specs))
	for i, s := range specs {
		app.Flag("collector."+s.Name, s.Help).Default("true").IsSetByUser(&enabled[i].set).BoolVar(&enabled[i].on)
	}
	promslogflag.AddFlags(app, c.log)

	c.command, err = app.Parse(args)
	if exit {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("%w (try --help)", err)
	}
	for i, s := range specs {
		if enabled[i].on && (enabled[i].set || !disableDefaults) {
			c.specs = append(c.specs, s)
		}
	}
	return c, false, c.validate()
}

func (c *config) validate() error {
	switch {
	case len(c.specs) == 0:
		return errors.New("no collector is enabled")
	case !strings.HasPrefix(c.telemetryPath, "/") || c.telemetryPath == "/" || path.Clean(c.telemetryPath) != c.telemetryPath ||
		strings.HasPrefix(c.telemetryPath, "/-") || strings.ContainsAny(c.telemetryPath, "{} ?#%"):
		return fmt.Errorf("--web.telemetry-path=%q is no path below /", c.telemetryPath)
	case c.maxRequests < 1:
		return fmt.Errorf("--web.max-requests=%d is below 1", c.maxRequests)
	case c.top < 1 || c.top > 100:
		return fmt.Errorf("--collector.top=%d is not between 1 and 100", c.top)
	case !(c.maxCPU >= 0 && c.maxCPU <= 1):
		return fmt.Errorf("--collector.max-cpu=%v is not between 0 and 1", c.maxCPU)
	}
	if file := *c.web.WebConfigFile; file != "" {
		if err := toolkit.Validate(file); err != nil {
			return fmt.Errorf("--web.config.file=%s: %w", file, err)
		}
	}
	return nil
}
