// Command lab boots stock Debian kernels in QEMU, drives each of them into every failure
// that the exporter warns about, and compares what the exporter reported with what the
// guest read from the kernel itself:
//
//	go run ./lab
//
// With --record it also updates lab/recordings and docs/kernels.md.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sockpressure/sockpressure_exporter/lab/scenario"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	cacheHome, err := os.UserCacheDir()
	if err != nil {
		cacheHome = os.TempDir()
	}
	flags := flag.NewFlagSet("lab", flag.ExitOnError)
	kernelNames := flags.String("kernels", "", "kernels to boot, `names` or all: "+names(kernels(), kernel.name)+" (default: what CI runs)")
	scenarioNames := flags.String("scenarios", "", "scenarios to drive them through, `names` or all: "+names(scenario.All(), scenarioName))
	jobs := flags.Int("jobs", runtime.NumCPU()+1, "guests at the same time")
	timeout := flags.Duration("timeout", 3*time.Minute, "time that a guest may take")
	cache := flags.String("cache", filepath.Join(cacheHome, "sockpressure-lab"), "folder for Debian's kernels; remove it to have the newest")
	record := flags.Bool("record", false, "write lab/recordings and docs/kernels.md")
	pages := flags.String("pages", "", "write the status page of every step below this folder")
	_ = flags.Parse(args) // exits by itself
	if flags.NArg() > 0 || *jobs < 1 {
		return errors.New("there are arguments, or --jobs is below 1")
	}
	wanted, err := plan(*kernelNames, *scenarioNames)
	if err != nil {
		return err
	}
	if _, err := os.Stat("lab/init"); err != nil {
		return errors.New("run it from the top folder of the repository: there is no lab/init here")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Before anything is downloaded for it.
	for _, t := range wanted {
		if _, err := command(ctx, "", t.kernel.emulator, "--version"); err != nil {
			return err
		}
	}

	dir, err := os.MkdirTemp("", "lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	verdicts, err := experiment(ctx, out, wanted, lab{
		cache: *cache, dir: dir, jobs: *jobs, timeout: *timeout, record: *record, pages: *pages,
	})
	if err != nil {
		return err
	}
	printKernels(out, verdicts)
	fmt.Fprintf(out, "%d guests in %v\n", len(verdicts), time.Since(began).Round(time.Second))
	if *record {
		recorded := slices.DeleteFunc(slices.Clone(verdicts), func(v verdict) bool { return v.planned != nil || v.tried != nil })
		if err := writeKernels("docs/kernels.md", "lab/recordings", recorded); err != nil {
			return err
		}
	}
	failed := 0
	for _, v := range verdicts {
		if len(v.failures) > 0 {
			failed++
			v.print(out) // again: a log is often cut at its start
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d guests failed", failed, len(verdicts))
	}
	return nil
}

// lab is how the lab is run.
type lab struct {
	cache, dir string
	jobs       int
	timeout    time.Duration
	record     bool
	pages      string // folder, empty if not wanted
}

// trip is a kernel and the scenarios to drive it through.
type trip struct {
	kernel    kernel
	scenarios []scenario.Scenario
}

// plan returns what the flags --kernels and --scenarios select. Without the first it uses
// the kernels of CI, without both each of them with its own scenarios.
func plan(kernelNames, scenarioNames string) ([]trip, error) {
	all := kernels()
	if kernelNames == "" {
		all = slices.DeleteFunc(all, func(k kernel) bool { return k.ci == "" })
	}
	ks, err := choose(all, cmp.Or(kernelNames, everything), kernel.name)
	if err != nil {
		return nil, fmt.Errorf("--kernels: %w", err)
	}
	var trips []trip
	for _, k := range ks {
		wanted := scenarioNames
		if wanted == "" && kernelNames == "" {
			wanted = k.ci
		}
		ss, err := choose(scenario.All(), cmp.Or(wanted, everything), scenarioName)
		if err != nil {
			return nil, fmt.Errorf("--scenarios: %w", err)
		}
		named := cmp.Or(wanted, everything) != everything
		if ss = slices.DeleteFunc(ss, func(s scenario.Scenario) bool { return !k.runs(s) || s.Prometheus && !named }); len(ss) > 0 {
			trips = append(trips, trip{k, ss})
		}
	}
	if len(trips) == 0 {
		return nil, errors.New("--scenarios: none of them applies to these kernels")
	}
	return trips, nil
}

// experiment runs every kernel through its scenarios, and writes a line for each as it
// ends. The verdicts are in the order of the plan.
func experiment(ctx context.Context, out io.Writer, trips []trip, l lab) ([]verdict, error) {
	images, err := build(ctx, trips, l)
	if err != nil {
		return nil, err
	}
	type guest struct {
		image    image
		scenario scenario.Scenario
		at       int
	}
	var guests []guest
	for n, t := range trips {
		for _, s := range t.scenarios {
			guests = append(guests, guest{images[n], s, len(guests)})
		}
	}
	verdicts := make([]verdict, len(guests))
	queue := make(chan guest, len(guests))
	for _, g := range guests {
		queue <- g
	}
	close(queue)
	var working sync.WaitGroup
	var printing sync.Mutex
	for range l.jobs {
		working.Go(func() {
			for g := range queue {
				// A guest whose emulator had to wait too long for a processor gets a
				// second try, which is reported. A hang is a failure.
				for range 2 {
					v := drive(ctx, g.image, g.scenario, l)
					if ctx.Err() != nil {
						return
					}
					verdicts[g.at] = v
					printing.Lock()
					v.print(out)
					printing.Unlock()
					if len(v.failures) == 0 || v.hung {
						break
					}
				}
			}
		})
	}
	working.Wait()
	return verdicts, ctx.Err()
}

// build makes the image of each trip's kernel, l.jobs at a time.
func build(ctx context.Context, trips []trip, l lab) ([]image, error) {
	compiled := map[string]programs{}
	for _, t := range trips {
		arch := t.kernel.goarch
		if _, ok := compiled[arch]; ok {
			continue
		}
		var err error
		if compiled[arch], err = compile(ctx, arch, l.dir); err != nil {
			return nil, err
		}
	}
	images := make([]image, len(trips))
	failures := make([]error, len(trips))
	turns := make(chan struct{}, l.jobs)
	var building sync.WaitGroup
	for i, t := range trips {
		building.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			k := t.kernel
			if images[i], failures[i] = k.build(ctx, l.cache, filepath.Join(l.dir, k.name()), compiled[k.goarch]); failures[i] != nil {
				failures[i] = fmt.Errorf("kernel %s: %w", k.name(), failures[i])
			}
		})
	}
	building.Wait()
	return images, errors.Join(failures...)
}

// drive boots one guest and judges it.
func drive(ctx context.Context, i image, s scenario.Scenario, l lab) verdict {
	failed := verdict{image: i, scenario: s.Name, refusal: -1}
	o, err := i.boot(ctx, s, l)
	if err != nil {
		failed.failures = []string{err.Error()}
		if o != nil {
			failed.seconds, failed.steps, failed.hung = o.seconds, len(o.steps), o.hung
		}
		return failed
	}
	if s.Planned {
		return judgePlan(o)
	}
	if s.Tuned {
		return judgeTuning(o)
	}
	r, err := o.recording()
	if err != nil {
		failed.failures = []string{err.Error()}
		return failed
	}
	v := judge(o, r)
	if l.record && i.records(s) {
		if err := save(r); err != nil {
			v.failures = append(v.failures, err.Error())
		}
	}
	if l.pages != "" {
		if err := o.savePages(filepath.Join(l.pages, i.name(), s.Name)); err != nil {
			v.failures = append(v.failures, err.Error())
		}
	}
	return v
}

// choose returns the items of a list that are named, with commas between the names.
func choose[T any](all []T, wanted string, name func(T) string) ([]T, error) {
	if wanted == everything {
		return all, nil
	}
	var chosen []T
	for w := range strings.SplitSeq(wanted, ",") {
		i := slices.IndexFunc(all, func(item T) bool { return name(item) == w })
		if i < 0 {
			return nil, fmt.Errorf("no %q, only %s", w, names(all, name))
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func names[T any](all []T, name func(T) string) string {
	var list []string
	for _, item := range all {
		list = append(list, name(item))
	}
	return strings.Join(list, ",")
}

func scenarioName(s scenario.Scenario) string { return s.Name }
