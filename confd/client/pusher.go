package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bird "github.com/muslin-net/muslin/bird/client"
	"github.com/muslin-net/muslin/confd/render"
	birdv1 "github.com/muslin-net/muslin/proto/muslin/bird/v1"
)

// Bird is what the pusher calls.
type Bird interface {
	Apply(context.Context, *birdv1.Config) (bird.Applied, error)
}

// Timing of the pusher: how long one call may take, between which bounds it waits after a failure, and how often it repeats
// what bird has, in case it lost it.
const (
	callTimeout = 10 * time.Second
	retryFirst  = 200 * time.Millisecond
	retryMost   = 10 * time.Second
	repeatEvery = 15 * time.Second
)

// Pusher keeps bird, and the file for people, at the newest configuration.
type Pusher struct {
	log  *slog.Logger
	bird Bird
	file string // empty writes none

	mu     sync.Mutex // guards the following
	wanted *job
	wake   chan struct{}
}

type job struct {
	config     render.Config
	text       []byte
	generation uint64
	done       func(error) // of every configuration that this one replaced, too
}

// NewPusher returns a pusher to bird that writes file.
func NewPusher(log *slog.Logger, b Bird, file string) *Pusher {
	return &Pusher{log: log, bird: b, file: file, wake: make(chan struct{}, 1)}
}

// Want makes c what bird should run. done is called once it does, or was refused for good, or a newer one was settled.
func (p *Pusher) Want(c render.Config, done func(error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.wanted; old != nil && old.done != nil {
		newer, earlier := done, old.done
		old.done = nil // it is called with the newer one, also if the older one is being settled
		done = func(err error) { earlier(err); newer(err) }
	}
	// Milliseconds grow from one run of confd to the next, too.
	generation := uint64(time.Now().UnixMilli())
	if old := p.wanted; old != nil {
		generation = max(generation, old.generation+1)
	}
	p.wanted = &job{config: c, text: c.Text(), generation: generation, done: done}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run pushes until ctx ends. report is told, after each attempt and check, how bird stands: nil if it runs what is wanted.
func (p *Pusher) Run(ctx context.Context, report func(error)) error {
	var settled *job // what bird took, or refused for good
	wait := retryFirst
	again := time.NewTimer(repeatEvery)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-again.C:
		}
		p.mu.Lock()
		j := p.wanted
		p.mu.Unlock()
		if j == nil {
			again.Reset(repeatEvery)
			continue
		}
		err := p.settle(ctx, j, j != settled)
		report(err)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil || refused(err):
			p.finish(j, err)
			settled, wait = j, retryFirst
			again.Reset(repeatEvery)
		default:
			pause := wait/2 + rand.N(wait)
			p.log.Warn("bird has not taken the configuration", "error", err, "again", pause.Round(time.Millisecond))
			wait = min(2*wait, retryMost)
			again.Reset(pause)
		}
	}
}

// finish calls a job's done once.
func (p *Pusher) finish(j *job, err error) {
	p.mu.Lock()
	done := j.done
	j.done = nil
	p.mu.Unlock()
	if done != nil {
		done(err)
	}
}

// refused tells that repeating makes no sense.
func refused(err error) bool { return status.Code(errors.Unwrap(err)) == codes.InvalidArgument }

// settle gives bird the job, which does nothing if bird runs it already.
func (p *Pusher) settle(ctx context.Context, j *job, news bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := p.writeFile(j.text); err != nil {
		p.log.Warn("the file for people is not up to date", "error", err)
	}
	done, err := p.bird.Apply(ctx, toWire(j.config, j.generation))
	if err != nil || !news {
		return err
	}
	for _, w := range j.config.Warnings {
		p.log.Warn("configuration", "warning", w)
	}
	p.log.Info("applied", "generation", done.Generation, "peers", len(j.config.Peers), "added", done.Added, "removed", done.Removed,
		"restarted", done.Restarted, "refreshed", done.Refreshed)
	return nil
}

// writeFile replaces the file unless it says the same already.
func (p *Pusher) writeFile(text []byte) (err error) {
	if p.file == "" {
		return nil
	}
	if old, err := os.ReadFile(p.file); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(p.file), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(p.file), "."+filepath.Base(p.file)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", p.file, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), p.file)
}
