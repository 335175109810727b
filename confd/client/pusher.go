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

// Target is the speaker that a pusher keeps at a configuration.
type Target interface {
	// Apply makes a configuration the running one, whole or not at all. An error that wraps ErrRefused is final for this
	// configuration.
	Apply(ctx context.Context, c render.Config, generation uint64) (bird.Applied, error)
}

// ErrRefused says that a speaker will not run a configuration, however often it is asked; what ran before goes on.
var ErrRefused = errors.New("refused")

// Bird is what Muslin wraps: our speaker's Apply.
type Bird interface {
	Apply(context.Context, *birdv1.Config) (bird.Applied, error)
}

// Muslin is our own speaker as a target.
type Muslin struct{ Bird Bird }

// Apply sends the configuration in bird's terms.
func (m Muslin) Apply(ctx context.Context, c render.Config, generation uint64) (bird.Applied, error) {
	done, err := m.Bird.Apply(ctx, toWire(c, generation))
	if status.Code(errors.Unwrap(err)) == codes.InvalidArgument {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return done, err
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
	log    *slog.Logger
	target Target
	file   string // empty writes none

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

// NewPusher returns a pusher to a speaker that writes file for people.
func NewPusher(log *slog.Logger, to Target, file string) *Pusher {
	return &Pusher{log: log, target: to, file: file, wake: make(chan struct{}, 1)}
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
		case err == nil || errors.Is(err, ErrRefused):
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

// settle gives bird the job, which does nothing if bird runs it already.
func (p *Pusher) settle(ctx context.Context, j *job, news bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := p.writeFile(j.text); err != nil {
		p.log.Warn("the file for people is not up to date", "error", err)
	}
	done, err := p.target.Apply(ctx, j.config, j.generation)
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
func (p *Pusher) writeFile(text []byte) error {
	if p.file == "" {
		return nil
	}
	_, err := replace(p.file, text, 0o644, func(string) error { return nil })
	return err
}

// replace makes text the content of a file, at once and only if check agrees with it under another name, unless it is that
// already. It returns what there was before: nil if there was no file, or if nothing changed.
func replace(path string, text []byte, mode os.FileMode, check func(path string) error) (before []byte, err error) {
	before, err = os.ReadFile(path)
	if err == nil && bytes.Equal(before, text) {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return nil, err
	}
	if err := check(f.Name()); err != nil {
		return nil, err
	}
	return before, os.Rename(f.Name(), path)
}
