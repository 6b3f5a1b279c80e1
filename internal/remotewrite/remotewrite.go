// Package remotewrite sends samples to servers that accept Prometheus's remote write
// protocol, version 1: Prometheus itself, VictoriaMetrics, Thanos.
package remotewrite

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/snappy"
)

// Label is a label of a series. The series' name has the label "__name__".
type Label struct{ Name, Value string }

// Batch is a request that is being made: prompb.WriteRequest, repeated TimeSeries with
// repeated Label and Sample. It must not be used concurrently.
type Batch struct {
	URL string
	// Samples and Series are the numbers that have been sent.
	Samples, Series int

	out, one        []byte
	samples, series int
	some            int // samples of the current series
}

// full is the size at which a request is sent, in bytes before compression.
const full = 1 << 20

// Begin begins a series.
func (b *Batch) Begin(labels []Label) {
	labels = slices.SortedFunc(slices.Values(labels), func(a, b Label) int { return strings.Compare(a.Name, b.Name) })
	b.one, b.some = b.one[:0], 0
	for _, l := range labels {
		if l.Value == "" {
			continue // the same as no label, and Thanos refuses it
		}
		b.one = append(b.one, 1<<3|2)
		b.one = binary.AppendUvarint(b.one, uint64(size(l.Name)+size(l.Value)))
		for i, text := range []string{l.Name, l.Value} {
			b.one = append(b.one, byte(i+1)<<3|2)
			b.one = binary.AppendUvarint(b.one, uint64(len(text)))
			b.one = append(b.one, text...)
		}
	}
}

// size returns the size of a text with the number and length of its field.
func size(text string) int {
	n := 1
	for rest := len(text); rest >= 0x80; rest >>= 7 {
		n++
	}
	return 1 + n + len(text)
}

// Sample adds a sample to the series. Samples must be added in the order of their times.
func (b *Batch) Sample(v float64, at time.Time) {
	var s [32]byte
	sample := append(s[:0], 1<<3|1)
	sample = binary.LittleEndian.AppendUint64(sample, math.Float64bits(v))
	sample = append(sample, 2<<3)
	sample = binary.AppendUvarint(sample, uint64(at.UnixMilli()))
	b.one = field(b.one, 2, sample)
	b.some++
}

func field(b []byte, number byte, content []byte) []byte {
	b = append(b, number<<3|2)
	b = binary.AppendUvarint(b, uint64(len(content)))
	return append(b, content...)
}

// End ends the series, and sends the request if it is full.
func (b *Batch) End(ctx context.Context) error {
	if b.some == 0 {
		return nil
	}
	b.out = field(b.out, 1, b.one)
	b.samples += b.some
	b.series++
	if len(b.out) < full {
		return nil
	}
	return b.Flush(ctx)
}

// Flush sends what has not been sent.
func (b *Batch) Flush(ctx context.Context) error {
	if len(b.out) == 0 {
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.URL, bytes.NewReader(snappy.Encode(nil, b.out)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Encoding", "snappy")
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("X-Prometheus-Remote-Write-Version", "0.1.0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %s: %.300s", b.URL, resp.Status, answer)
	}
	b.Samples += b.samples
	b.Series += b.series
	b.out, b.samples, b.series = b.out[:0], 0, 0
	return nil
}
