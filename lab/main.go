// Command lab boots stock kernels of Debian in QEMU, drives each of them into
// every failure that the exporter warns of, and holds what the exporter said
// against what the guest read from the kernel by itself:
//
//	go run ./lab
//
// With --record it also renews lab/recordings and docs/kernels.md.
package main

import (
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
	kernelNames := flags.String("kernels", names(kernels(), kernelName), "kernels to boot")
	scenarioNames := flags.String("scenarios", names(scenario.All(), scenarioName), "scenarios to drive them through")
	jobs := flags.Int("jobs", runtime.NumCPU()+1, "guests at the same time")
	timeout := flags.Duration("timeout", 3*time.Minute, "time that a guest may take")
	cache := flags.String("cache", filepath.Join(cacheHome, "sockpressure-lab"), "folder for Debian's kernels; remove it to have the newest")
	record := flags.Bool("record", false, "write lab/recordings and docs/kernels.md")
	pages := flags.String("pages", "", "write the status page of every step below this folder")
	_ = flags.Parse(args) // exits by itself
	if flags.NArg() > 0 || *jobs < 1 {
		return errors.New("there are arguments, or --jobs is below 1")
	}
	wantedKernels, err := choose(kernels(), *kernelNames, kernelName)
	if err != nil {
		return fmt.Errorf("--kernels: %w", err)
	}
	wantedScenarios, err := choose(scenario.All(), *scenarioNames, scenarioName)
	if err != nil {
		return fmt.Errorf("--scenarios: %w", err)
	}
	if _, err := os.Stat("lab/init"); err != nil {
		return errors.New("run it from the top folder of the repository: there is no lab/init here")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Before anything is fetched for it.
	if _, err := command(ctx, "", "qemu-system-x86_64", "--version"); err != nil {
		return err
	}

	dir, err := os.MkdirTemp("", "lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	verdicts, err := experiment(ctx, out, wantedKernels, wantedScenarios, lab{
		cache: *cache, dir: dir, jobs: *jobs, timeout: *timeout, record: *record, pages: *pages,
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d guests in %v\n", len(verdicts), time.Since(began).Round(time.Second))
	if *record {
		if err := writeKernels("docs/kernels.md", verdicts); err != nil {
			return err
		}
	}
	failed := 0
	for _, v := range verdicts {
		failed += min(len(v.failures), 1)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d guests failed", failed, len(verdicts))
	}
	return nil
}

// lab is how it is run.
type lab struct {
	cache, dir string
	jobs       int
	timeout    time.Duration
	record     bool
	pages      string // folder, empty if nobody wants any
}

// experiment takes every kernel through every scenario that is meant for it, and
// writes a line for each as it ends. The verdicts are in the order of the lists.
func experiment(ctx context.Context, out io.Writer, ks []kernel, ss []scenario.Scenario, l lab) ([]verdict, error) {
	images := make([]image, len(ks))
	failures := make([]error, len(ks))
	var building sync.WaitGroup
	for i, k := range ks {
		building.Go(func() {
			if images[i], failures[i] = k.build(ctx, l.cache, filepath.Join(l.dir, k.name)); failures[i] != nil {
				failures[i] = fmt.Errorf("kernel %s: %w", k.name, failures[i])
			}
		})
	}
	building.Wait()
	if err := errors.Join(failures...); err != nil {
		return nil, err
	}

	type guest struct {
		image    image
		scenario scenario.Scenario
		at       int
	}
	var guests []guest
	for _, i := range images {
		for _, s := range ss {
			if s.Only == "" || s.Only == i.goarch {
				guests = append(guests, guest{i, s, len(guests)})
			}
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
				// A guest whose emulator had to wait for a processor for too long deserves
				// another try, and everybody sees that it had one. A hang is a failure.
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

// drive boots one guest and judges it.
func drive(ctx context.Context, i image, s scenario.Scenario, l lab) verdict {
	o, err := i.boot(ctx, s, l)
	if err != nil {
		v := verdict{kernel: i.name, release: i.release, scenario: s.Name, refusal: -1, failures: []string{err.Error()}}
		if o != nil {
			v.seconds, v.steps, v.hung = o.seconds, len(o.steps), o.hung
		}
		return v
	}
	r, err := o.recording()
	if err != nil {
		return verdict{kernel: i.name, release: i.release, scenario: s.Name, refusal: -1, failures: []string{err.Error()}}
	}
	v := judge(o, r)
	if l.record {
		if err := save(r); err != nil {
			v.failures = append(v.failures, err.Error())
		}
	}
	if l.pages != "" {
		if err := o.savePages(filepath.Join(l.pages, i.name, s.Name)); err != nil {
			v.failures = append(v.failures, err.Error())
		}
	}
	return v
}

// choose takes the items of a list that are named, with commas between the names.
func choose[T any](all []T, wanted string, name func(T) string) ([]T, error) {
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

func kernelName(k kernel) string { return k.name }

func scenarioName(s scenario.Scenario) string { return s.Name }
