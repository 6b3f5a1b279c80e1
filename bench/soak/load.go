package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockpressure/sockpressure_exporter/bench/internal/exporter"
)

// What comes and goes. All of it is bounded: there are at most as many sockets and
// processes at once as stand here, and those of TIME_WAIT, which last a minute.
const (
	shortPerSecond     = 200 // connections
	longPerSecond      = 20  // connections that are held
	heldConnections    = 500
	listenersPerSecond = 50
	heldListeners      = 1000
	processesPerSecond = 5
	heldProcesses      = 50
)

// load is what has come and gone.
type load struct {
	sync.WaitGroup
	connections, listeners, processes, failed atomic.Int64
}

func (l *load) String() string {
	return fmt.Sprintf("%d connections, %d listeners, %d processes; %d could not be made",
		l.connections.Load(), l.listeners.Load(), l.processes.Load(), l.failed.Load())
}

// startLoad lets sockets and processes come and go until the context ends.
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
			// It closes as its client does.
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
		cmd := exec.CommandContext(ctx, "sleep", "3600")
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

// comeAndGo makes so many things a second, and ends the oldest when there are more
// than may be held. made counts them.
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
	kept, anew atomic.Int64
	failed     atomic.Int64
	collectors sync.Map // the failures of collectors, by their sample on the page

	mutex sync.Mutex
	first error
}

func (s *scrapes) String() string {
	b := strings.Builder{}
	fmt.Fprintf(&b, "%d over one connection, %d over new ones, %d failed; failures of collectors:", s.kept.Load(), s.anew.Load(), s.failed.Load())
	none := true
	s.collectors.Range(func(sample, n any) bool {
		fmt.Fprintf(&b, " %v (%d times)", sample, n.(*atomic.Int64).Load()) //nolint:forcetypeassert // nothing else is stored
		none = false
		return true
	})
	if none {
		b.WriteString(" none")
	}
	return b.String()
}

// err returns the first failure to fetch a page.
func (s *scrapes) err() error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.first
}

// startScrapes fetches pages until the context ends.
func startScrapes(ctx context.Context, e *exporter.Exporter) *scrapes {
	s := &scrapes{}
	s.each(ctx, time.Second, &s.kept, func(int) error {
		page, _, err := e.Scrape(ctx, "")
		if err != nil {
			return err
		}
		return s.read(page)
	})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Minute}
	paths := []string{"/metrics", "/", "/metrics?collect[]=tcp&collect[]=ports", "/-/healthy", "/metrics?collect[]=process", "/none"}
	s.each(ctx, 3*time.Second, &s.anew, func(i int) error {
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

// each fetches a page every so often, as long as the last one does not take longer.
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
	const success = "sockpressure_scrape_collector_success"
	found := false
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, success+"{") {
			continue
		}
		found = true
		sample, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if value == "1" || value == "1.0" {
			continue
		}
		n, _ := s.collectors.LoadOrStore(strings.TrimPrefix(sample, success), &atomic.Int64{})
		n.(*atomic.Int64).Add(1) //nolint:forcetypeassert // nothing else is stored
	}
	if !found {
		return errors.New("the page has no " + success)
	}
	return nil
}
