package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/snappy"
)

// writer sends samples in Prometheus's remote write format, which all engines take.
type writer struct {
	url     string
	samples atomic.Int64
	series  atomic.Int64
}

// batchBytes is about how much is sent at once.
const batchBytes = 1 << 20

// write sends what the nodes showed at each time from one to another, of the series that
// keep says; all nodes, some at once.
func (w *writer) write(ctx context.Context, f *fleet, from, to time.Time, every time.Duration, keep func(*series) bool) error {
	return w.each(ctx, f, func(b *batch, n node) error {
		for i := range n.page.series {
			s := &n.page.series[i]
			if keep != nil && !keep(s) {
				continue
			}
			b.begin(n.labelsOf(s.labels))
			for at := from; !at.After(to); at = at.Add(every) {
				if v := n.at(s, at); !math.IsNaN(v) {
					b.sample(v, at)
				}
			}
			if err := b.end(ctx, w); err != nil {
				return err
			}
		}
		return nil
	})
}

// writeRecorded sends what recording rules would have made of the nodes.
func (w *writer) writeRecorded(ctx context.Context, f *fleet, from, to time.Time, every time.Duration, keep func(recorded) bool) error {
	return w.each(ctx, f, func(b *batch, n node) error {
		for _, r := range f.recorded {
			if !keep(r) {
				continue
			}
			for i := range n.page.series {
				s := &n.page.series[i]
				if s.labels[0].value != "sockpressure_saturation_ratio" || r.perNode && s.resource != "memory" {
					continue
				}
				own := []label{{"__name__", r.name}, {"resource", s.resource}}
				if r.perNode {
					own = own[:1]
				}
				b.begin(n.labelsOf(own))
				for at := from; !at.After(to); at = at.Add(every) {
					if v := n.at(s, at); v >= r.from {
						b.sample(v, at)
					}
				}
				if err := b.end(ctx, w); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (w *writer) each(ctx context.Context, f *fleet, one func(*batch, node) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var group sync.WaitGroup
	for range runtime.NumCPU() {
		group.Go(func() {
			var b batch
			for {
				i := int(next.Add(1)) - 1
				if i >= f.nodes || ctx.Err() != nil {
					break
				}
				if err := one(&b, f.node(i)); err != nil {
					cancel(err)
					return
				}
			}
			if err := b.flush(ctx, w); err != nil {
				cancel(err)
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}

// batch is a WriteRequest of prompb: repeated TimeSeries, each with repeated Label and
// Sample.
type batch struct {
	out, one        []byte
	samples, series int
	some            int // samples of the series at hand
}

func field(b []byte, number int, content []byte) []byte {
	b = binary.AppendUvarint(b, uint64(number)<<3|2)
	b = binary.AppendUvarint(b, uint64(len(content)))
	return append(b, content...)
}

func (b *batch) begin(labels []label) {
	b.one, b.some = b.one[:0], 0
	for _, l := range labels {
		b.one = append(b.one, 1<<3|2)
		b.one = binary.AppendUvarint(b.one, uint64(size(l.name)+size(l.value)))
		for i, text := range []string{l.name, l.value} {
			b.one = append(b.one, byte(i+1)<<3|2)
			b.one = binary.AppendUvarint(b.one, uint64(len(text)))
			b.one = append(b.one, text...)
		}
	}
}

// size is that of a short field.
func size(text string) int {
	return 1 + len(binary.AppendUvarint(nil, uint64(len(text)))) + len(text)
}

func (b *batch) sample(v float64, at time.Time) {
	var sample []byte
	sample = append(sample, 1<<3|1)
	sample = binary.LittleEndian.AppendUint64(sample, math.Float64bits(v))
	sample = append(sample, 2<<3)
	sample = binary.AppendUvarint(sample, uint64(at.UnixMilli()))
	b.one = field(b.one, 2, sample)
	b.some++
}

func (b *batch) end(ctx context.Context, w *writer) error {
	if b.some == 0 {
		return nil
	}
	b.out = field(b.out, 1, b.one)
	b.samples += b.some
	b.series++
	if len(b.out) < batchBytes {
		return nil
	}
	return b.flush(ctx, w)
}

func (b *batch) flush(ctx context.Context, w *writer) error {
	if len(b.out) == 0 {
		return nil
	}
	body := snappy.Encode(nil, b.out)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
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
		return fmt.Errorf("%s: %s: %.300s", w.url, resp.Status, answer)
	}
	w.samples.Add(int64(b.samples))
	w.series.Add(int64(b.series))
	b.out, b.samples, b.series = b.out[:0], 0, 0
	return nil
}
