package uplink

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// What could not be told is told again after retryReport; the whole is repeated every repeatReport, so that a typha that
// lost it learns it again. reportTimeout bounds one attempt.
const (
	retryReport   = 500 * time.Millisecond
	repeatReport  = 30 * time.Second
	reportTimeout = 5 * time.Second
)

// latest is something that typha is told: always all of it, and only as it is now.
type latest[T any] struct {
	changed chan struct{}

	mu    sync.Mutex // guards the following
	value T
	known bool // a value was set
}

func newLatest[T any]() latest[T] { return latest[T]{changed: make(chan struct{}, 1)} }

// set makes v what is to be told. It never blocks.
func (l *latest[T]) set(v T) {
	l.mu.Lock()
	l.value, l.known = v, true
	l.mu.Unlock()
	l.Again()
}

// Again has it told once more, as after typha came back.
func (l *latest[T]) Again() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// run tells it until ctx ends; later is what to log when it could not be told.
func (l *latest[T]) run(ctx context.Context, log *slog.Logger, later string, tell func(context.Context, T) error) error {
	timer := time.NewTimer(repeatReport)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.changed:
		case <-timer.C:
		}
		timer.Reset(repeatReport)
		l.mu.Lock()
		value, known := l.value, l.known
		l.mu.Unlock()
		if !known {
			continue
		}
		if err := attempt(ctx, value, tell); err != nil {
			log.Info(later, "error", err)
			timer.Reset(retryReport)
		}
	}
}

func attempt[T any](ctx context.Context, value T, tell func(context.Context, T) error) error {
	ctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	return tell(ctx, value)
}
