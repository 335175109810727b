package dataplane

import (
	"context"
	"time"
)

// Watch keeps follow running until ctx ends, and returns nil then. The kernel drops notifications when a reader is slow:
// when follow ends with an error, what was believed is given up by resync, an Apply is asked for, and follow starts over.
func Watch(ctx context.Context, wake Wake, resync func(), follow func(context.Context, Wake) error) error {
	for {
		err := follow(ctx, wake)
		if ctx.Err() != nil {
			return nil
		}
		resync()
		wake(Drift{What: "notifications were lost: " + err.Error()})
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}
