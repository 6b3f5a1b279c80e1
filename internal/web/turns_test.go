package web

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func client(n int) netip.Prefix { return clientOf(fmt.Sprintf("192.0.2.%d:1", n)) }

// TestTurns checks that clients take turns, however many requests one of them has.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1, 100)
		if ok, err := turns.take(t.Context(), client(9), nil); !ok || err != nil {
			t.Fatal("no free turn:", err)
		}
		var mu sync.Mutex
		var order []string
		wait := func(who, n int) {
			for range n {
				go func() {
					if ok, err := turns.take(t.Context(), client(who), nil); !ok || err != nil {
						t.Error(who, err)
						return
					}
					mu.Lock()
					order = append(order, strconv.Itoa(who))
					mu.Unlock()
					turns.giveBack()
				}()
				synctest.Wait()
			}
		}
		wait(1, 5)
		wait(2, 1)
		wait(3, 2)
		turns.giveBack()
		synctest.Wait()
		if got := strings.Join(order, ""); got != "12313111" {
			t.Errorf("the order of turns is %s", got)
		}
		if turns.free != 1 || turns.waiting != 0 || len(turns.lines) != 0 {
			t.Errorf("in the end: %+v", turns)
		}
	})
}

// TestTurnsRefused checks that requests of the client with the most are refused first, and
// those that wait for too long.
func TestTurnsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1, 4)
		_, _ = turns.take(t.Context(), client(9), nil)
		var mu sync.Mutex
		ended := map[string]error{}
		outcome := func(name string) (err error, ok bool) {
			mu.Lock()
			defer mu.Unlock()
			err, ok = ended[name]
			return err, ok
		}
		wait := func(name string, who int, patience time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			go func() {
				defer cancel()
				ok, err := turns.take(ctx, client(who), nil)
				mu.Lock()
				ended[name] = err
				mu.Unlock()
				if ok {
					turns.giveBack()
				}
			}()
			synctest.Wait()
		}
		for i := range 4 {
			wait(fmt.Sprintf("flood %d", i), 1, time.Hour)
		}
		wait("flood 4", 1, time.Hour)
		wait("prometheus", 2, time.Hour)
		wait("other", 3, time.Minute)
		for _, name := range []string{"flood 4", "flood 3", "flood 2"} {
			if err, _ := outcome(name); !errors.Is(err, errRefused) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, name := range []string{"flood 0", "flood 1", "prometheus", "other"} {
			if err, ok := outcome(name); ok {
				t.Errorf("%s does not wait: %v", name, err)
			}
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if err, _ := outcome("other"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after the timeout: %v", err)
		}
		turns.giveBack()
		synctest.Wait()
		for _, name := range []string{"flood 0", "flood 1", "prometheus"} {
			if err, ok := outcome(name); !ok || err != nil {
				t.Errorf("%s: %t %v", name, ok, err)
			}
		}
		// A request that is already served takes no turn.
		_, _ = turns.take(t.Context(), client(9), nil)
		enough := make(chan struct{})
		close(enough)
		if ok, err := turns.take(t.Context(), client(1), enough); ok || err != nil {
			t.Errorf("a request that is already served: %t, %v", ok, err)
		}
		if turns.waiting != 0 {
			t.Errorf("%d wait", turns.waiting)
		}
	})
}

// FuzzTurns checks, for requests that arrive and end in any order, that there are never too
// many turns, that none is lost, and that a client never waits while another one gets two
// turns.
func FuzzTurns(f *testing.F) {
	f.Add([]byte("\x00\x00\x01\x41\x80\xc0\x02\x81\xc1"))
	f.Fuzz(func(t *testing.T, events []byte) {
		const atOnce, room = 2, 5
		turns := newTurns(atOnce, room)
		type asked struct {
			who int
			*request
		}
		var waiting []asked
		working := 0
		// others is the number of turns of each other client since a client began to wait.
		others := map[int]map[int]int{}
		settle := func() {
			waiting = slices.DeleteFunc(waiting, func(a asked) bool {
				select {
				case <-a.ended:
				default:
					return false
				}
				if a.refused {
					return true
				}
				working++
				delete(others, a.who)
				for who, had := range others {
					had[a.who]++
					if had[a.who] > 1 {
						t.Fatalf("client %d had two turns while %d waited", a.who, who)
					}
				}
				return true
			})
			for who := range others {
				if !slices.ContainsFunc(waiting, func(a asked) bool { return a.who == who }) {
					delete(others, who)
				}
			}
			for _, a := range waiting {
				if others[a.who] == nil {
					others[a.who] = map[int]int{}
				}
			}
			if working > atOnce || len(waiting) > room || turns.waiting != len(waiting) {
				t.Fatalf("%d have a turn, %d wait, %d are counted", working, len(waiting), turns.waiting)
			}
			if len(waiting) > 0 && working < atOnce {
				t.Fatal("a request waits although a turn is free")
			}
		}
		for _, e := range events {
			who := int(e & 7)
			switch e >> 6 {
			case 0, 1:
				own := 0
				for _, a := range waiting {
					if a.who == who {
						own++
					}
				}
				r, err := turns.join(client(who))
				switch {
				case err != nil:
					if len(waiting) < room || own == 0 {
						t.Fatalf("refused with %d waiting, %d of them its own", len(waiting), own)
					}
				case r == nil:
					working++
				default:
					waiting = append(waiting, asked{who, r})
				}
			case 2:
				if len(waiting) > 0 {
					i := int(e) % len(waiting)
					turns.leave(client(waiting[i].who), waiting[i].request)
					waiting = slices.Delete(waiting, i, i+1)
				}
			case 3:
				if working > 0 {
					working--
					turns.giveBack()
				}
			}
			settle()
		}
		for working > 0 {
			working--
			turns.giveBack()
			settle()
		}
		if turns.free != atOnce || len(turns.lines) != 0 {
			t.Fatalf("in the end: %+v", turns)
		}
	})
}
