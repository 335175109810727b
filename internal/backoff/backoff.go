// Package backoff spaces retries: exponentially growing waits with jitter, so that many clients which lost the same
// server do not come back in step.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff yields growing waits. Min and Max bound them; the zero value of the rest is ready to use. Not for concurrent use.
type Backoff struct {
	Min, Max time.Duration

	next time.Duration
}

// Next returns the next wait: between half and the whole of a duration that starts at Min and doubles up to Max.
func (b *Backoff) Next() time.Duration {
	d := min(max(b.next, b.Min), b.Max)
	b.next = min(2*d, b.Max)
	if d <= 1 {
		return d
	}
	return d/2 + rand.N(d/2)
}

// Reset makes the next wait Min again. Call it after a success.
func (b *Backoff) Reset() { b.next = 0 }

// Wait sleeps for Next, or until ctx ends; then it returns the error of ctx.
func (b *Backoff) Wait(ctx context.Context) error { return Pause(ctx, b.Next()) }

// Pause sleeps for d, or until ctx ends; then it returns the error of ctx.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
