package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/muslin-net/muslin/api/view"
)

// How long to wait between two attempts: the first retry is quick, since mostly another replica answers at once.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	awaitFiles = time.Second // looking for a certificate bothers nobody
)

// errMove ends a stream whose replica wants its client elsewhere.
var errMove = errors.New("typha asks to use another replica")

// Run follows the view until ctx ends, and returns nil then. First it hands over the saved view, if there is a good one,
// before anything is dialled. Then it connects, to whichever replica answers, and hands over each whole batch; when the
// stream breaks it connects again and goes on with the difference. Only a configuration that can never work is an error.
func (c *Client) Run(ctx context.Context, h Handler) error {
	if c.cfg.Node == "" || (c.cfg.View != NodeView && c.cfg.View != BGPView) {
		return errors.New("to follow a view the client needs the node's name and which view it is")
	}
	a := newAssembler()
	c.mu.Lock()
	c.ledger = newLedger() // of an earlier Run
	c.mu.Unlock()
	if c.saver == nil {
		return c.follow(ctx, a, h)
	}
	c.restore(a, h)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.saver.run(ctx, c.applied, c.saved) })
	group.Go(func() error { return c.follow(ctx, a, h) })
	return group.Wait()
}

// follow keeps a stream up.
func (c *Client) follow(ctx context.Context, a *assembler, h Handler) error {
	wait := firstRetry
	for {
		reached, err := c.stream(ctx, a, h)
		if ctx.Err() != nil {
			c.setStatus(Status{})
			return nil
		}
		if reached {
			wait = firstRetry
		}
		c.setStatus(Status{Err: err})
		if errors.Is(err, errMove) {
			c.log.Info("moving to another replica of typha")
		} else {
			c.log.Warn("no stream from typha, trying again", "error", err, "within", wait)
		}
		if errors.Is(err, fs.ErrNotExist) {
			wait = min(wait, awaitFiles)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Duration(float64(wait) * (0.5 + rand.Float64()/2))): // jitter, so that nodes do not come at once
		}
		wait = min(2*wait, lastRetry)
	}
}

// stream opens one stream and follows it to its end. reached tells that the view came in sync over it.
func (c *Client) stream(ctx context.Context, a *assembler, h Handler) (reached bool, err error) {
	r := c.replicas.next()
	conn, err := c.replicas.conn(r)
	if err != nil {
		return false, err
	}
	conn.ResetConnectBackoff() // how often to try is decided in follow
	a.reset()
	s, err := openSession(ctx, c, conn, a, h)
	if err != nil {
		c.replicas.failed(r)
		return false, fmt.Errorf("typha at %s: %w", r.Address, plain(err))
	}
	c.mu.Lock()
	c.session = s
	c.mu.Unlock()
	err = s.run(r)
	c.mu.Lock()
	c.session = nil
	c.mu.Unlock()
	c.replicas.failed(r)
	if !errors.Is(err, errMove) {
		err = fmt.Errorf("typha at %s: %w", r.Address, plain(err))
	}
	return s.inSync, err
}

// hand gives a step to the handler. seq is the number of its batch on the session, which is nil for the saved view.
func (c *Client) hand(s step, from *session, seq uint64, h Handler) {
	c.mu.Lock()
	number := c.ledger.hand(s)
	if from != nil {
		c.noteUnsaved()
	}
	c.mu.Unlock()
	endpoints := s.touches(view.KindWorkloadEndpoint)
	h.OnBatch(Batch{
		Batch: s.batch(c.cfg.SetDeltas && from != nil), Saved: from == nil,
		applied: func(failures []Failure) {
			c.apply(number, from, seq, failures)
			if endpoints && c.saver != nil {
				c.saver.hasten() // a felix that is killed now would close the pod to which it has just given its policy
			}
		},
	})
}

// apply takes the handler's word that a step is programmed.
func (c *Client) apply(number int, from *session, seq uint64, failures []Failure) {
	c.mu.Lock()
	changed := c.ledger.apply(number)
	current := c.session == from && from != nil
	c.mu.Unlock()
	if !changed {
		return
	}
	if c.saver != nil && from != nil {
		c.saver.changed()
	}
	if current {
		from.applied(seq, failures)
	}
}

// restore hands over the saved view.
func (c *Client) restore(a *assembler, h Handler) {
	saved, err := c.saver.load(c.cfg.Node, c.cfg.View)
	switch {
	case err != nil:
		c.log.Warn("the saved view is of no use, starting without one", "error", err)
		return
	case saved == nil:
		c.log.Info("there is no saved view, starting without one", "file", c.saver.path)
		return
	}
	if c.olderThanProgrammed() {
		c.replicas.learn(saved.replicas)
		c.log.Info("the saved view is older than what was programmed last, waiting for typha", "file", c.saver.path, "since", c.cfg.UnsavedPath)
		return
	}
	c.log.Info("starting from the saved view", "file", c.saver.path, "items", len(saved.items))
	c.replicas.learn(saved.replicas)
	a.load(saved.items, saved.point)
	c.hand(step{puts: saved.puts, point: saved.point, inSync: saved.inSync}, nil, 0, h)
}

// noteUnsaved puts the file at UnsavedPath, before what it tells of is programmed. It is called with mu held.
func (c *Client) noteUnsaved() {
	if c.unsaved || c.saver == nil || c.cfg.UnsavedPath == "" {
		return
	}
	err := os.MkdirAll(filepath.Dir(c.cfg.UnsavedPath), 0o755)
	if err == nil {
		err = os.WriteFile(c.cfg.UnsavedPath, nil, 0o600)
	}
	if err != nil {
		c.log.Warn("should this process be killed now, the next one starts from an older view", "error", err)
		return
	}
	c.unsaved = true
}

// olderThanProgrammed tells whether a process that was killed had programmed more than it has saved.
func (c *Client) olderThanProgrammed() bool {
	if c.cfg.UnsavedPath == "" {
		return false
	}
	_, err := os.Stat(c.cfg.UnsavedPath)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unsaved = !errors.Is(err, fs.ErrNotExist)
	return c.unsaved
}

// saved takes note that a view was saved: the file at UnsavedPath goes if that is all that was handed over.
func (c *Client) saved(v savedView) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.unsaved || !v.inSync || v.number != c.ledger.handed {
		return
	}
	if err := os.Remove(c.cfg.UnsavedPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Warn("the next process will not start from the saved view", "error", err)
		return
	}
	c.unsaved = false
}

// applied returns what there is to save.
func (c *Client) applied() savedView {
	c.mu.Lock()
	defer c.mu.Unlock()
	return savedView{
		node: c.cfg.Node, view: c.cfg.View,
		items: maps.Clone(c.ledger.items), point: c.ledger.point, inSync: c.ledger.inSync, replicas: c.replicas.all(), number: c.ledger.applied,
	}
}

// plain turns an error of gRPC into the words that the other side meant.
func plain(err error) error {
	s, ok := status.FromError(err)
	if !ok || s.Code() == codes.Unknown {
		return err
	}
	return &callError{code: s.Code(), text: s.Message()}
}
