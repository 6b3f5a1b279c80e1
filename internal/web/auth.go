package web

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/common/config"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/time/rate"
)

// guard admits the requests that a web configuration file allows, and adds its headers to
// the responses.
type guard struct {
	file    *webFile
	next    http.Handler
	limiter *rate.Limiter // nil: no limit
	wrong   *repeated
	refused *repeated

	// Comparing a password takes tens of milliseconds, so one is compared at a time.
	turns *turns

	mu sync.Mutex
	// right has, by user, a code of the user, hash and password that were right. It has
	// no more entries than there are users, so wrong passwords cannot replace right ones.
	right map[string][sha256.Size]byte
	key   []byte // of the codes
}

func newGuard(file *webFile, next http.Handler, logger *slog.Logger) *guard {
	g := &guard{
		file: file,
		next: next,
		wrong: &repeated{
			logger: logger, level: slog.LevelWarn,
			msg: "Refusing requests with a wrong user name or password",
		},
		refused: &repeated{
			logger: logger, level: slog.LevelWarn,
			msg: "Not checking passwords because too many requests are waiting or they waited too long",
		},
		turns: newTurns(1, maxConnections),
		right: map[string][sha256.Size]byte{},
		key:   make([]byte, sha256.Size),
	}
	rand.Read(g.key) // never fails
	if limit := file.get().RateLimiterConfig; limit.Interval != 0 {
		g.limiter = rate.NewLimiter(rate.Every(limit.Interval), limit.Burst)
		logger.Info("Rate Limiter is enabled.", "burst", limit.Burst, "interval", limit.Interval)
	}
	return g
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.limiter != nil && !g.limiter.Allow() {
		http.Error(w, http.StatusText(http.StatusTooManyRequests), http.StatusTooManyRequests)
		return
	}
	p := g.file.get()
	for name, value := range p.HTTPConfig.Header {
		w.Header().Set(name, value)
	}
	if len(p.Users) > 0 {
		user, password, sent := r.BasicAuth()
		allowed := false
		if sent {
			var err error
			if allowed, err = g.allowed(r, p.Users, user, password); err != nil {
				g.refused.report("client", r.RemoteAddr)
				unavailable(w, err)
				return
			}
			if !allowed {
				g.wrong.report("client", r.RemoteAddr)
			}
		}
		if !allowed {
			toRead(w)
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, http.StatusText(http.StatusUnauthorized), http.StatusUnauthorized)
			return
		}
	}
	g.next.ServeHTTP(w, r)
}

// allowed reports whether a user has this password. It returns an error if the password
// could not be compared while the client waited.
func (g *guard) allowed(r *http.Request, users map[string]config.Secret, user, password string) (bool, error) {
	hash, known := users[user]
	if !known {
		// This takes as long as for an existing user, so that the time does not reveal
		// which users exist.
		hash = users[slices.Min(slices.Collect(maps.Keys(users)))]
	}
	code := g.code(user, string(hash), password)
	if known && g.wasRight(user, code) {
		return true, nil
	}

	_, wait := scrapeTimeout(r.Header)
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	if _, err := g.turns.take(ctx, clientOf(r.RemoteAddr), nil); err != nil {
		return false, err
	}
	if known && g.wasRight(user, code) {
		g.turns.giveBack() // another request had the same
		return true, nil
	}
	began := time.Now()
	err := bcrypt.CompareHashAndPassword([]byte(hash), []byte(password))
	if known && err == nil {
		g.mu.Lock()
		g.right[user] = code
		g.mu.Unlock()
		g.turns.giveBack()
		return true, nil
	}
	// The host has other work: one client gets a fifth of a core for wrong passwords. It
	// is more if many clients wait, because one of them may have the right one.
	time.AfterFunc(4*time.Since(began)/time.Duration(max(g.turns.clients(), 1)), g.turns.giveBack)
	return false, nil
}

func (g *guard) wasRight(user string, code [sha256.Size]byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	right, ok := g.right[user]
	return ok && hmac.Equal(right[:], code[:])
}

// code returns a code that identifies a user, hash and password, and from which they
// cannot be recovered.
func (g *guard) code(parts ...string) (code [sha256.Size]byte) {
	h := hmac.New(sha256.New, g.key)
	for _, p := range parts {
		sum := sha256.Sum256([]byte(p))
		h.Write(sum[:])
	}
	h.Sum(code[:0])
	return code
}
