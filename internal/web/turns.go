package web

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
)

// turns lets a few requests proceed at a time and makes the others wait. Clients take
// turns, however many requests each of them has.
type turns struct {
	room int // how many may wait

	mu      sync.Mutex
	free    int
	waiting int
	lines   []*line // of waiting clients, the next one first
}

// line is the requests of one client, oldest first.
type line struct {
	client   netip.Prefix
	requests []*request
}

type request struct {
	// ended is closed when the request gets its turn, or is refused.
	ended   chan struct{}
	refused bool
}

func newTurns(atOnce, room int) *turns { return &turns{room: room, free: atOnce} }

var errRefused = errors.New("too many requests are already waiting")

// take waits for a turn until the context ends, or until enough is closed because the
// turn is no longer needed. It reports whether it got a turn, which must be given back. A
// client is refused if the maximum number of requests wait and no other client has more
// of them.
func (t *turns) take(ctx context.Context, client netip.Prefix, enough <-chan struct{}) (bool, error) {
	r, err := t.join(client)
	if r == nil {
		return err == nil, err
	}
	select {
	case <-r.ended:
		if r.refused {
			return false, errRefused
		}
		return true, nil
	case <-enough:
	case <-ctx.Done():
		err = ctx.Err()
	}
	t.leave(client, r)
	return false, err
}

// join takes a free turn, and then returns nil, nil, or joins the line.
func (t *turns) join(client netip.Prefix) (*request, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.free > 0 {
		t.free--
		return nil, nil
	}
	own := t.find(client)
	if t.waiting == t.room {
		longest := own
		for _, l := range t.lines {
			if longest == nil || len(l.requests) > len(longest.requests) {
				longest = l
			}
		}
		if longest == nil || longest == own {
			return nil, errRefused
		}
		last := longest.requests[len(longest.requests)-1]
		last.refused = true
		close(last.ended)
		t.remove(longest, last)
		// That may have been the client's only request.
		own = t.find(client)
	}
	if own == nil {
		own = &line{client: client}
		t.lines = append(t.lines, own)
	}
	r := &request{ended: make(chan struct{})}
	own.requests = append(own.requests, r)
	t.waiting++
	return r, nil
}

// leave stops waiting.
func (t *turns) leave(client netip.Prefix, r *request) {
	t.mu.Lock()
	select {
	case <-r.ended:
		t.mu.Unlock()
		if !r.refused {
			t.giveBack() // the turn came a moment too late
		}
		return
	default:
	}
	t.remove(t.find(client), r)
	t.mu.Unlock()
}

// giveBack ends a turn.
func (t *turns) giveBack() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.lines) == 0 {
		t.free++
		return
	}
	next := t.lines[0]
	r := next.requests[0]
	t.remove(next, r)
	if len(next.requests) > 0 {
		t.lines = append(t.lines[1:], next)
	}
	close(r.ended)
}

// clients returns the number of waiting clients.
func (t *turns) clients() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.lines)
}

func (t *turns) find(client netip.Prefix) *line {
	i := slices.IndexFunc(t.lines, func(l *line) bool { return l.client == client })
	if i < 0 {
		return nil
	}
	return t.lines[i]
}

func (t *turns) remove(from *line, r *request) {
	i := slices.Index(from.requests, r)
	from.requests = slices.Delete(from.requests, i, i+1)
	t.waiting--
	if len(from.requests) == 0 {
		t.lines = slices.DeleteFunc(t.lines, func(l *line) bool { return l == from })
	}
}
