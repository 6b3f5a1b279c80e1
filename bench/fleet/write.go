package main

import (
	"context"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sockpressure/sockpressure_exporter/internal/remotewrite"
)

// writer sends samples by remote write, which all engines accept.
type writer struct {
	url     string
	samples atomic.Int64
	series  atomic.Int64
}

// write sends the samples of the nodes from one time to another, for the series that keep
// selects; all nodes, several concurrently.
func (w *writer) write(ctx context.Context, f *fleet, from, to time.Time, every time.Duration, keep func(*series) bool) error {
	return w.each(ctx, f, func(b *remotewrite.Batch, n node) error {
		for i := range n.page.series {
			s := &n.page.series[i]
			if keep != nil && !keep(s) {
				continue
			}
			b.Begin(n.labelsOf(s.labels))
			for at := from; !at.After(to); at = at.Add(every) {
				if v := n.at(s, at); !math.IsNaN(v) {
					b.Sample(v, at)
				}
			}
			if err := b.End(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// writeRecorded sends what recording rules would have recorded for the nodes.
func (w *writer) writeRecorded(ctx context.Context, f *fleet, from, to time.Time, every time.Duration, keep func(recorded) bool) error {
	return w.each(ctx, f, func(b *remotewrite.Batch, n node) error {
		for _, r := range f.recorded {
			if !keep(r) {
				continue
			}
			for i := range n.page.series {
				s := &n.page.series[i]
				own := r.labels(n, s)
				if own == nil {
					continue
				}
				b.Begin(n.labelsOf(own))
				for at := from; !at.After(to); at = at.Add(every) {
					if v := r.value(n, s, at); !math.IsNaN(v) {
						b.Sample(v, at)
					}
				}
				if err := b.End(ctx); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (w *writer) each(ctx context.Context, f *fleet, one func(*remotewrite.Batch, node) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var group sync.WaitGroup
	for range runtime.NumCPU() {
		group.Go(func() {
			b := remotewrite.Batch{URL: w.url}
			defer func() {
				w.samples.Add(int64(b.Samples))
				w.series.Add(int64(b.Series))
			}()
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
			if err := b.Flush(ctx); err != nil {
				cancel(err)
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}
