package web

import (
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// logged is a log that is safe for concurrent use.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// String returns everything logged since the last take.
func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// take returns what has been logged since the last take.
func (l *logged) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// TestRepeated checks that the first and the last occurrence of a repeated message are logged,
// and at most one line a minute in between.
func TestRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b logged
		r := &repeated{logger: slog.New(slog.NewTextHandler(&b, nil)), level: slog.LevelWarn, msg: "Something"}
		logged := func(want string) {
			t.Helper()
			synctest.Wait()
			var lines []string
			for line := range strings.Lines(b.take()) {
				_, line, _ = strings.Cut(line, "level=")
				lines = append(lines, strings.TrimSpace(line))
			}
			if got := strings.Join(lines, "\n"); got != want {
				t.Errorf("the log is\n%s\nwant\n%s", got, want)
			}
		}
		for range 1000 {
			r.report("err", "this")
		}
		logged(`WARN msg=Something err=this`)
		time.Sleep(quiet + time.Second)
		logged("")
		for range 500 {
			r.Println("this")
			r.Println("that")
		}
		time.Sleep(quiet)
		logged(`WARN msg=Something err=that times=2000`)
		time.Sleep(quiet)
		logged(`INFO msg="No longer: Something" times=2000`)
		time.Sleep(time.Hour)
		r.report("err", "this")
		logged(`WARN msg=Something err=this`)
		time.Sleep(quiet)
		logged(`INFO msg="No longer: Something" times=1`)
	})
}

// TestServerLog checks that errors of the host and of the exporter are logged, and that errors
// caused by clients are logged only at level debug.
func TestServerLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b logged
		l := newServerLog(slog.New(slog.NewTextHandler(&b, nil)))
		for range 100 {
			l.Print("http: TLS handshake error from 192.0.2.1:1: EOF")
			l.Print("http: Accept error: accept tcp [::]:10058: accept4: too many open files; retrying in 5ms")
			l.Print("http: panic serving 192.0.2.1:1: broken\ngoroutine 1\nmain.main()")
		}
		for _, want := range []string{
			`level=WARN msg="Cannot accept connections" err="accept tcp [::]:10058: accept4: too many open files"`,
			`level=ERROR msg="Panic in a request" err="panic serving 192.0.2.1:1: broken"`,
		} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("the log lacks %s", want)
			}
		}
		if got := strings.Count(b.String(), "\n"); got != 2 {
			t.Errorf("there are %d lines", got)
		}
		time.Sleep(2 * quiet) // the timers end
	})
}
