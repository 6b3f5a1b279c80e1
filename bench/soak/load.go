package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/exporter"
)

// What is created and ended. All of it is bounded: there are at most as many sockets and
// processes at once as listed here, and those in TIME_WAIT, which last a minute.
const (
	shortPerSecond     = 200 // connections
	longPerSecond      = 20  // connections that are held
	heldConnections    = 500
	listenersPerSecond = 50
	heldListeners      = 1000
	processesPerSecond = 5
	heldProcesses      = 50
)

// load counts what was created.
type load struct {
	sync.WaitGroup
	connections, listeners, processes, failed atomic.Int64
}

func (l *load) String() string {
	return fmt.Sprintf("%d connections, %d listeners, %d processes; %d could not be made",
		l.connections.Load(), l.listeners.Load(), l.processes.Load(), l.failed.Load())
}

// startLoad creates and ends sockets and processes until the context ends.
func startLoad(ctx context.Context) (*load, error) {
	var config net.ListenConfig
	server, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &load{}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	l.Go(func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			// It closes when its client does.
			go func() {
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}()
		}
	})

	var dialer net.Dialer
	connect := func() (func(), error) {
		conn, err := dialer.DialContext(ctx, "tcp", server.Addr().String())
		if err != nil {
			return nil, err
		}
		return func() { _ = conn.Close() }, nil
	}
	l.comeAndGo(ctx, shortPerSecond, 1, &l.connections, connect)
	l.comeAndGo(ctx, longPerSecond, heldConnections, &l.connections, connect)
	i := 0
	l.comeAndGo(ctx, listenersPerSecond, heldListeners, &l.listeners, func() (func(), error) {
		i++
		listener, err := config.Listen(ctx, "tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+i>>16&63, i>>8&255, i&255))
		if err != nil {
			return nil, err
		}
		return func() { _ = listener.Close() }, nil
	})
	l.comeAndGo(ctx, processesPerSecond, heldProcesses, &l.processes, func() (func(), error) {
		cmd := exec.CommandContext(ctx, "sleep", "60")
		// It ends with the thread that started it, which ends with the program.
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		return func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}, nil
	})
	return l, nil
}

// comeAndGo creates the given number of things per second, and ends the oldest when there
// are more than held. made counts them.
func (l *load) comeAndGo(ctx context.Context, perSecond, held int, made *atomic.Int64, create func() (end func(), err error)) {
	l.Go(func() {
		ring := make([]func(), held)
		defer func() {
			for _, end := range ring {
				if end != nil {
					end()
				}
			}
		}()
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if oldest := &ring[i%held]; *oldest != nil {
				(*oldest)()
				*oldest = nil
			}
			end, err := create()
			if err != nil {
				if ctx.Err() == nil {
					l.failed.Add(1)
				}
				continue
			}
			ring[i%held] = end
			made.Add(1)
		}
	})
}

// scrapes is what was fetched.
type scrapes struct {
	sync.WaitGroup
	kept, fresh atomic.Int64
	failed      atomic.Int64

	mutex sync.Mutex
	first error
	// zero counts the samples of success and supported that were 0.
	zero map[string]int64
}

func (s *scrapes) String() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d over one connection, %d over new ones, %d failed; collectors", s.kept.Load(), s.fresh.Load(), s.failed.Load())
	for _, sample := range slices.Sorted(maps.Keys(s.zero)) {
		fmt.Fprintf(&b, " %s 0 (%d times)", sample, s.zero[sample])
	}
	if len(s.zero) == 0 {
		b.WriteString(" without failures")
	}
	return b.String()
}

// err returns the first failure to fetch a page, and the collectors that failed every
// time, which were therefore not tested.
func (s *scrapes) err() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	errs := []error{s.first}
	for sample, n := range s.zero {
		if strings.HasPrefix(sample, "success") && n >= s.kept.Load() {
			errs = append(errs, fmt.Errorf("each time 0: %s", sample))
		}
	}
	return errors.Join(errs...)
}

// startScrapes fetches pages until the context ends.
func startScrapes(ctx context.Context, e *exporter.Exporter) *scrapes {
	s := &scrapes{zero: map[string]int64{}}
	s.each(ctx, time.Second, &s.kept, func(int) error {
		page, _, err := e.Scrape(ctx, "")
		if err != nil {
			return err
		}
		return s.read(page)
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	paths := []string{"/metrics", "/", "/metrics?collect[]=tcp&collect[]=ports", "/-/healthy", "/metrics?collect[]=process", "/none"}
	s.each(ctx, 3*time.Second, &s.fresh, func(i int) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, e.URL+paths[i%len(paths)], http.NoBody)
		if err != nil {
			return err
		}
		answer, err := client.Do(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK && r.URL.Path != "/none" {
			return fmt.Errorf("%s: %s", r.URL.Path, answer.Status)
		}
		_, err = io.Copy(io.Discard, answer.Body)
		return err
	})
	return s
}

// each fetches a page at regular intervals, unless the last one takes longer.
func (s *scrapes) each(ctx context.Context, every time.Duration, fetched *atomic.Int64, fetch func(i int) error) {
	s.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			err := fetch(i)
			switch {
			case ctx.Err() != nil:
				return
			case err == nil:
				fetched.Add(1)
				continue
			}
			s.failed.Add(1)
			s.mutex.Lock()
			if s.first == nil {
				s.first = fmt.Errorf("the first page that failed: %w", err)
			}
			s.mutex.Unlock()
		}
	})
}

// read counts the collectors that failed.
func (s *scrapes) read(page []byte) error {
	text, err := exporter.Unpack(bytes.NewReader(page))
	if err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	found := false
	for line := range strings.Lines(string(text)) {
		sample, ours := strings.CutPrefix(line, "sockpressure_scrape_collector_")
		if !ours || !strings.HasPrefix(sample, "success{") && !strings.HasPrefix(sample, "supported{") {
			continue
		}
		found = true
		sample, value, _ := strings.Cut(strings.TrimSpace(sample), " ")
		if value == "0" || value == "0.0" {
			s.zero[sample]++
		}
	}
	if !found {
		return errors.New("the page has no collectors")
	}
	return nil
}
