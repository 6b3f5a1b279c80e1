package collector

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/sockpressure/sockpressure_exporter/internal/kernel"
	"github.com/sockpressure/sockpressure_exporter/internal/procfile"
)

// Scope is what a collector opens its sources with. What the collector opens and starts
// ends with the scope.
type Scope struct {
	*kernel.Files
	// Host is the host's network namespace.
	Host *kernel.Netns
	// Top bounds every list of listeners, ports, processes, caches and zones.
	Top int
	Log *slog.Logger

	holders  *holders
	place    procfile.Place // the file that is being read
	sampling bool           // a sample is being taken
	ctx      context.Context
	cancel   context.CancelFunc
	wait     sync.WaitGroup

	mu       sync.Mutex
	deferred []func()
	failed   error // panic of a goroutine
}

// NewScope returns a scope for a machine.
func NewScope(m *kernel.Machine, top int, log *slog.Logger) *Scope {
	s := &Scope{Top: top, Log: log, holders: newHolders(m)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.Files = &kernel.Files{Machine: m, Place: &s.place, Sampling: &s.sampling, Defer: s.Defer}
	s.Host = s.Files.Host()
	return s
}

// Defer registers f to be called when the scope ends, after all goroutines have ended and
// in the order of defer statements.
func (s *Scope) Defer(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deferred = append(s.deferred, f)
}

// Go runs f in a goroutine. Its context is done when the scope ends. If f panics, every
// later reading fails with that panic.
func (s *Scope) Go(f func(context.Context)) {
	s.wait.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				s.Log.Debug("panic", "stack", string(debug.Stack()))
				s.mu.Lock()
				defer s.mu.Unlock()
				s.failed = fmt.Errorf("panic: %v", p)
			}
		}()
		f(s.ctx)
	})
}

// err returns the panic of a goroutine, or nil.
func (s *Scope) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Close ends the goroutines and closes what was opened. The collector must not be
// reading.
func (s *Scope) Close() {
	s.cancel()
	s.wait.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range slices.Backward(s.deferred) {
		f()
	}
	s.deferred = nil
}
