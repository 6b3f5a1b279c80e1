package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sockpressure/sockpressure_exporter/collector"
)

// pages makes pages of readings, a few at a time. Requests for the same page share it.
//
// A page is made completely before it is sent, so that a slow client does not hold a
// turn.
type pages struct {
	turns   *turns
	logger  *slog.Logger
	refused *repeated
	panics  *repeated

	mu sync.Mutex
	// asked is the number of requests in progress, kept the pages that are made for them.
	asked int
	kept  []*page

	buffers sync.Pool
}

// keptPages is how many pages are kept for requests that arrived before they were ready.
const keptPages = 4

// page is a response that is being made.
type page struct {
	name    string // what was asked for, and in which form
	reading *collector.Reading
	wanted  int // number of requests that wait for it
	begun   bool

	made   chan struct{} // closed when it is made; the fields below are set by then
	at     time.Time
	status int
	header http.Header
	body   []byte
}

func newPages(c Config) *pages {
	return &pages{
		turns:  newTurns(c.MaxRequests, maxConnections),
		logger: c.Logger,
		refused: &repeated{
			logger: c.Logger, level: slog.LevelWarn,
			msg: "Refusing requests because too many are waiting or they waited too long",
		},
		panics:  &repeated{logger: c.Logger, level: slog.LevelError, msg: "Panic in a request"},
		buffers: sync.Pool{New: func() any { return new(bytes.Buffer) }},
	}
}

// pageRequest is one request for a page.
type pageRequest struct {
	ctx   context.Context // ends when the client no longer waits
	asked time.Time
	// What the page shows: a name for what was asked for and in which form, and the
	// reading.
	name    string
	reading *collector.Reading
	// render writes the page.
	render http.HandlerFunc
}

// serve answers a request with the page.
func (p *pages) serve(w http.ResponseWriter, r *http.Request, wanted pageRequest) {
	page, err := p.get(r, wanted)
	if err != nil {
		if r.Context().Err() != nil {
			return // the client has disconnected
		}
		p.refused.report("client", r.RemoteAddr)
		unavailable(w, err)
		return
	}
	toRead(w)
	maps.Copy(w.Header(), page.header)
	w.Header().Set("Content-Length", strconv.Itoa(len(page.body)))
	w.WriteHeader(page.status)
	if _, err := w.Write(page.body); err != nil {
		p.logger.Debug("A client did not read its page", "client", r.RemoteAddr, "err", err)
	}
}

// toRead gives a client its full time to read a response, however long making it took.
func toRead(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
}

// unavailable tells a client to try again later.
func unavailable(w http.ResponseWriter, err error) {
	why := "timed out waiting for a slot, try again later"
	if errors.Is(err, errRefused) {
		why = "too many requests are waiting, try again later"
	}
	toRead(w)
	// A page that reloads itself continues to do so.
	w.Header().Set("Refresh", strconv.Itoa(refresh))
	w.Header().Set("Retry-After", strconv.Itoa(refresh))
	http.Error(w, why, http.StatusServiceUnavailable)
}

// get returns the page, either made when it is the client's turn or made by another
// request.
func (p *pages) get(r *http.Request, wanted pageRequest) (*page, error) {
	page := p.find(wanted)
	defer p.leave(page)
	turn, err := p.turns.take(wanted.ctx, clientOf(r.RemoteAddr), page.made)
	if err != nil {
		return nil, err
	}
	if turn {
		defer p.turns.giveBack()
		if p.begin(page) {
			p.make(page, wanted.render, r)
		}
	}
	<-page.made // making it waits for nothing
	return page, nil
}

// find returns a page that can be shared, or a new one.
func (p *pages) find(wanted pageRequest) *page {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	for _, k := range p.kept {
		if k.name == wanted.name && (k.at.IsZero() || wanted.asked.Before(k.at)) && slices.EqualFunc(k.reading.Results, wanted.reading.Results, same) {
			k.wanted++
			return k
		}
	}
	n := &page{name: wanted.name, reading: wanted.reading, wanted: 1, made: make(chan struct{})}
	p.kept = append(p.kept, n)
	return n
}

// same reports whether two results look the same on a page.
func same(a, b collector.Result) bool {
	return a.Same(b) && (a.Age-b.Age).Abs() < time.Second
}

// begin reports whether the page is not being made yet, and marks it as begun.
func (p *pages) begin(page *page) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !page.begun
	page.begun = true
	return first
}

// make makes the page.
func (p *pages) make(page *page, render http.HandlerFunc, r *http.Request) {
	body := p.buffers.Get().(*bytes.Buffer)
	defer p.buffers.Put(body)
	body.Reset()
	w := &answer{header: http.Header{}, status: http.StatusOK, body: body}
	defer func() {
		if v := recover(); v != nil {
			p.panics.report("err", fmt.Sprint(v))
			p.logger.Debug("panic", "stack", string(debug.Stack()))
			*w = answer{header: http.Header{}, status: http.StatusInternalServerError, body: body}
			body.Reset()
		}
		page.status, page.header, page.body = w.status, w.header, bytes.Clone(body.Bytes())
		p.mu.Lock()
		page.at = time.Now()
		p.mu.Unlock()
		close(page.made)
	}()
	render(w, r)
}

// leave ends a call of get.
func (p *pages) leave(left *page) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked--
	left.wanted--
	if p.asked == 0 {
		p.kept = nil
		return
	}
	// Those that no request waits for any more, oldest first.
	spare := -keptPages
	for _, k := range p.kept {
		if k.wanted == 0 {
			spare++
		}
	}
	p.kept = slices.DeleteFunc(p.kept, func(k *page) bool {
		if k.wanted > 0 || k.begun && spare <= 0 {
			return false
		}
		spare--
		return true
	})
}

// answer is a response that is being written.
type answer struct {
	header http.Header
	status int
	body   *bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }
