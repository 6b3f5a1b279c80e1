package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/procfs"

	"github.com/sockpressure/sockpressure_exporter/internal/remotewrite"
)

// engine stores samples, answers queries and evaluates rules.
type engine struct {
	query, write string // base URLs; that of queries without "/api/v1/..."
	programs     []*program
	// loadRules starts to evaluate the rules in the files of a pattern.
	loadRules func(ctx context.Context, pattern string) error
	// unloadRules stops that; queries of recorded series still work.
	unloadRules func(context.Context) error
	// rules is the URL of the metrics of the evaluation.
	rules string
}

// program is a running server.
type program struct {
	name, address string
	cmd           *exec.Cmd
	ended         chan struct{}
}

// engines returns the engines that the command line can name.
func engines() map[string]func(context.Context, options, string) (*engine, error) {
	return map[string]func(context.Context, options, string) (*engine, error){
		"prometheus": startPrometheus, "victoriametrics": startVictoriaMetrics, "thanos": startThanos,
	}
}

// start runs a server and waits until it answers on the given path.
func (e *engine) start(ctx context.Context, dir, ready, name string, args ...string) (*program, error) {
	address, err := free(ctx)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, filepath.Base(name)+"-"+strconv.Itoa(len(e.programs))+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "ADDRESS", address)
	}
	p := &program{name: filepath.Base(name), address: address, cmd: exec.CommandContext(ctx, name, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	e.programs = append(e.programs, p)
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	for {
		if _, err := get(ctx, "http://"+address+ready); err == nil {
			return p, nil
		}
		select {
		case <-p.ended:
			said, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("%s ended: %s", name, said[max(0, len(said)-500):])
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// stop stops all servers.
func (e *engine) stop() {
	for _, p := range e.programs {
		p.kill()
	}
}

func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// free returns an address of this machine on which nothing listens.
func free(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func startPrometheus(ctx context.Context, o options, dir string) (*engine, error) {
	e := new(engine)
	config := filepath.Join(dir, "prometheus.yml")
	write := func(pattern string) error {
		text := "global: {scrape_interval: 15s, evaluation_interval: 15s}\n"
		if pattern != "" {
			text += "rule_files: [" + strconv.Quote(pattern) + "]\n"
		}
		return os.WriteFile(config, []byte(text), 0o600)
	}
	if err := write(""); err != nil {
		return nil, err
	}
	// The head accepts samples that are less than half a block old.
	p, err := e.start(ctx, dir, "/-/ready", o.prometheus,
		"--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=ADDRESS",
		"--web.enable-remote-write-receiver", "--web.enable-lifecycle", "--storage.tsdb.min-block-duration=60h", "--storage.tsdb.max-block-duration=60h")
	if err != nil {
		return e, err
	}
	e.query, e.rules = "http://"+p.address, "http://"+p.address+"/metrics"
	e.write = e.query + "/api/v1/write"
	e.unloadRules = func(ctx context.Context) error { return e.loadRules(ctx, "") }
	e.loadRules = func(ctx context.Context, pattern string) error {
		if err := write(pattern); err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.query+"/-/reload", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		if err := resp.Body.Close(); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return errors.New("Prometheus does not take the rules: " + resp.Status)
		}
		return nil
	}
	return e, nil
}

func startVictoriaMetrics(ctx context.Context, o options, dir string) (*engine, error) {
	e := new(engine)
	p, err := e.start(ctx, dir, "/health", filepath.Join(o.programs, "victoria-metrics"),
		"-storageDataPath="+filepath.Join(dir, "data"), "-httpListenAddr=ADDRESS", "-retentionPeriod=1", "-search.maxUniqueTimeseries=5000000",
		"-search.maxQueryDuration=120s", "-search.maxSamplesPerQuery=2000000000")
	if err != nil {
		return e, err
	}
	e.query, e.write = "http://"+p.address, "http://"+p.address+"/api/v1/write"
	e.loadRules = func(ctx context.Context, pattern string) error {
		a, err := e.start(ctx, dir, "/health", filepath.Join(o.programs, "vmalert"),
			"-rule="+pattern, "-datasource.url="+e.query, "-remoteWrite.url="+e.query, "-remoteRead.url="+e.query, "-notifier.blackhole",
			"-evaluationInterval=15s", "-httpListenAddr=ADDRESS")
		if err != nil {
			return err
		}
		e.rules = "http://" + a.address + "/metrics"
		e.unloadRules = func(context.Context) error {
			e.programs = e.programs[:len(e.programs)-1]
			a.kill()
			return nil
		}
		return nil
	}
	return e, nil
}

func startThanos(ctx context.Context, o options, dir string) (*engine, error) {
	e := new(engine)
	thanos := filepath.Join(o.programs, "thanos")
	storage, err := free(ctx)
	if err != nil {
		return nil, err
	}
	in, err := free(ctx)
	if err != nil {
		return nil, err
	}
	_, err = e.start(ctx, dir, "/-/ready", thanos, "receive",
		"--http-address=ADDRESS", "--grpc-address="+storage, "--remote-write.address="+in, "--tsdb.path="+filepath.Join(dir, "receive"),
		`--label=replica="0"`, "--tsdb.min-block-duration=60h", "--tsdb.max-block-duration=60h")
	if err != nil {
		return e, err
	}
	e.write = "http://" + in + "/api/v1/receive"
	if err := accepts(ctx, e.write); err != nil {
		return e, err
	}
	ruler, err := free(ctx)
	if err != nil {
		return e, err
	}
	grpc, err := free(ctx)
	if err != nil {
		return e, err
	}
	q, err := e.start(ctx, dir, "/-/ready", thanos, "query",
		"--http-address=ADDRESS", "--grpc-address="+grpc, "--endpoint="+storage, "--endpoint="+ruler,
		"--query.replica-label=replica", "--query.replica-label=tenant_id", "--query.timeout=120s")
	if err != nil {
		return e, err
	}
	e.query = "http://" + q.address
	e.loadRules = func(ctx context.Context, pattern string) error {
		r, err := e.start(ctx, dir, "/-/ready", thanos, "rule",
			"--http-address=ADDRESS", "--grpc-address="+ruler, "--data-dir="+filepath.Join(dir, "rule"), "--rule-file="+pattern,
			"--query="+q.address, `--label=replica="0"`, "--eval-interval=15s")
		if err != nil {
			return err
		}
		e.rules = "http://" + r.address + "/metrics"
		// It answers queries of what it recorded, so it keeps running.
		e.unloadRules = func(context.Context) error { return nil }
		return nil
	}
	return e, nil
}

// accepts waits until a server takes samples: Thanos makes the storage of a tenant on its
// first request, and refuses until it is ready.
func accepts(ctx context.Context, url string) error {
	for end := time.Now().Add(30 * time.Second); ; {
		b := remotewrite.Batch{URL: url}
		b.Begin([]remotewrite.Label{{Name: "__name__", Value: "fleet_begins"}})
		b.Sample(1, time.Now().Add(-time.Hour))
		err := b.End(ctx)
		if err == nil {
			err = b.Flush(ctx)
		}
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// used is what the programs have used.
type used struct {
	cpu      time.Duration
	resident uint64 // bytes, the peak of all programs together
}

func (e *engine) used() (used, error) {
	var u used
	for _, p := range e.programs {
		proc, err := procfs.NewProc(p.cmd.Process.Pid)
		if err != nil {
			return u, err
		}
		// Sum over its threads, in nanoseconds: the times of the process are in
		// hundredths of a second. Go's threads seldom end.
		threads, err := procfs.AllThreads(proc.PID)
		if err != nil {
			return u, err
		}
		for _, t := range threads {
			s, err := t.Schedstat()
			if err != nil {
				return u, err
			}
			u.cpu += time.Duration(s.RunningNanoseconds)
		}
		status, err := proc.NewStatus()
		if err != nil {
			return u, err
		}
		u.resident += status.VmHWM
	}
	return u, nil
}
