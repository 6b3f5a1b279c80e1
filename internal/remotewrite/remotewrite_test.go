package remotewrite

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
)

// TestBatch checks that a request has the bytes of prompb.WriteRequest, and that an error
// status is returned as an error.
func TestBatch(t *testing.T) {
	t.Parallel()
	var got string
	status := http.StatusNoContent
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		plain, err := snappy.Decode(nil, body)
		if err != nil {
			t.Error(err)
		}
		got = string(plain)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, strings.Repeat("too old", min(1, status/400)))
	}))
	defer server.Close()

	b := Batch{URL: server.URL}
	send := func() error {
		b.Begin([]Label{{"job", "a"}, {"pod", ""}, {"__name__", "up"}})
		b.Sample(1, time.UnixMilli(1000))
		if err := b.End(t.Context()); err != nil {
			return err
		}
		return b.Flush(t.Context())
	}
	if err := send(); err != nil {
		t.Fatal(err)
	}
	const want = "\x0a\x28" + // a series of 40 bytes
		"\x0a\x0e\x0a\x08__name__\x12\x02up" + "\x0a\x08\x0a\x03job\x12\x01a" + // its labels, sorted
		"\x12\x0c\x09\x00\x00\x00\x00\x00\x00\xf0\x3f\x10\xe8\x07" // 1, at 1000
	if got != want {
		t.Errorf("sent %q\nwant %q", got, want)
	}
	if b.Samples != 1 || b.Series != 1 {
		t.Errorf("%d samples of %d series", b.Samples, b.Series)
	}

	status = http.StatusBadRequest
	if err := send(); err == nil || !strings.Contains(err.Error(), "400 Bad Request: too old") {
		t.Errorf("the error of a rejected request is %v", err)
	}
}
