package web

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// quiet is the time without an occurrence after which something is over.
const quiet = time.Minute

// repeated logs something that clients can cause with each request: when it begins, once
// a minute while its detail changes, and when it is over.
type repeated struct {
	logger *slog.Logger
	level  slog.Level
	msg    string

	mu         sync.Mutex
	times      int // since it began, 0 if it is over
	looked     int // times at the last look
	said, last string
}

// report records an occurrence. detail is the value that is logged under the given name.
func (r *repeated) report(name, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.times++
	r.last = detail
	if r.times == 1 {
		r.said, r.looked = detail, 1
		r.logger.Log(context.Background(), r.level, r.msg, name, detail)
		time.AfterFunc(quiet, func() { r.look(name) })
	}
}

// look logs what has changed since the last time.
func (r *repeated) look(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.times == r.looked {
		r.logger.Info("No longer: "+r.msg, "times", r.times)
		r.times = 0
		return
	}
	if r.last != r.said {
		r.logger.Log(context.Background(), r.level, r.msg, name, r.last, "times", r.times)
		r.said = r.last
	}
	r.looked = r.times
	time.AfterFunc(quiet, func() { r.look(name) })
}

// Println is for promhttp, which reports an error for each scrape.
func (r *repeated) Println(v ...any) { r.report("err", strings.TrimSpace(fmt.Sprintln(v...))) }

// serverLog classifies what http.Server logs. Nearly all of it is about clients that
// disconnect or send garbage.
type serverLog struct {
	debug          *slog.Logger
	accept, panics *repeated
}

func newServerLog(logger *slog.Logger) *log.Logger {
	return log.New(serverLog{
		debug:  logger,
		accept: &repeated{logger: logger, level: slog.LevelWarn, msg: "Cannot accept connections"},
		panics: &repeated{logger: logger, level: slog.LevelError, msg: "Panic in a request"},
	}, "", 0)
}

func (l serverLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	switch {
	case strings.HasPrefix(text, "http: Accept error: "):
		text, _, _ = strings.Cut(strings.TrimPrefix(text, "http: Accept error: "), "; retrying")
		l.accept.report("err", text)
	case strings.HasPrefix(text, "http: panic serving"):
		first, _, _ := strings.Cut(text, "\n")
		l.panics.report("err", strings.TrimPrefix(first, "http: "))
		l.debug.Debug(text)
	default:
		l.debug.Debug(text)
	}
	return len(line), nil
}
