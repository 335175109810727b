// Package board runs controllers as the configuration says, while this process leads: it starts those that have an entry, starts
// anew those whose part of the configuration changes, and stops the others. It follows KubeControllersConfiguration(default),
// creates it if there is none, and owns its status.
package board

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apiequality "k8s.io/apimachinery/pkg/api/equality"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/internal/backoff"
	"github.com/muslin-net/muslin/kube-controllers/configure"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

// Spec is the configuration in effect.
type Spec = api.KubeControllersConfigurationSpec

// Running is the configuration in effect, which changes.
type Running struct {
	env configure.Environment
	in  configure.Cluster
	log *slog.Logger

	mu      sync.Mutex // guards the following
	spec    *Spec      // nil until it is known
	changed chan struct{}
}

// NewRunning returns a Running that knows nothing yet.
func NewRunning(env configure.Environment, in configure.Cluster, log *slog.Logger) *Running {
	return &Running{env: env, in: in, log: log, changed: make(chan struct{})}
}

// Now returns the configuration in effect, nil if it is not known yet, and a channel that is closed when it changes.
func (r *Running) Now() (*Spec, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.spec, r.changed
}

// Follow keeps up with what is stored until ctx ends.
func (r *Running) Follow(ctx context.Context, store *loop.Store) error {
	config := loop.Config{Kinds: []string{kind}, Log: r.log}
	return loop.Run(ctx, store, config, func(_ context.Context, all loop.Objects) (time.Duration, error) {
		stored, _ := all[key].(*api.KubeControllersConfiguration)
		r.set(configure.Effective(stored, r.env, r.in))
		return 0, nil
	})
}

func (r *Running) set(spec *Spec) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.spec != nil && apiequality.Semantic.DeepEqual(r.spec, spec) {
		return
	}
	r.spec = spec
	close(r.changed)
	r.changed = make(chan struct{})
}

// Each calls act with the configuration in effect, first when it is known and then whenever it changes, until ctx ends.
func (r *Running) Each(ctx context.Context, act func(*Spec)) error {
	for {
		spec, changed := r.Now()
		if spec != nil {
			act(spec)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

const kind = "KubeControllersConfiguration"

var key = api.Key{Kind: kind, Name: api.DefaultName}

// Controller is something that runs while it has an entry in the configuration.
type Controller struct {
	Name string
	// Part returns what of the configuration the controller goes by, nil if it has no entry. It is started anew when that
	// changes.
	Part func(*Spec) any
	Run  func(context.Context, *Spec) error
}

// Run runs controllers by a configuration until ctx ends.
func Run(ctx context.Context, config *Running, log *slog.Logger, controllers ...Controller) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range controllers {
		group.Go(func() error { return keep(ctx, config, log.With("controller", c.Name), c) })
	}
	return group.Wait()
}

// keep runs one controller while it is wanted, and again when it has failed.
func keep(ctx context.Context, config *Running, log *slog.Logger, c Controller) error {
	retry := backoff.Backoff{Min: time.Second, Max: time.Minute}
	for ctx.Err() == nil {
		spec, changed := config.Now()
		var part any
		if spec != nil {
			part = c.Part(spec)
		}
		if part == nil {
			select {
			case <-ctx.Done():
			case <-changed:
			}
			continue
		}
		own, stop := context.WithCancel(ctx)
		watch := make(chan struct{})
		go func() {
			defer close(watch)
			until(own, config, func(s *Spec) bool { return !apiequality.Semantic.DeepEqual(part, c.Part(s)) })
			stop()
		}()
		log.Info("controller runs")
		err := c.Run(own, spec)
		asked := own.Err() != nil
		stop()
		<-watch
		if asked || err == nil {
			log.Info("controller stopped")
			retry.Reset()
			continue
		}
		log.Error("controller ended, starting it again", "error", err)
		if err := retry.Wait(ctx); err != nil {
			break
		}
	}
	return ctx.Err()
}

// until returns when a configuration satisfies is, or ctx ends.
func until(ctx context.Context, config *Running, is func(*Spec) bool) {
	for {
		spec, changed := config.Now()
		if spec != nil && is(spec) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// Report writes the configuration in effect into the status of the stored one, and creates that if there is none, until ctx
// ends.
func Report(ctx context.Context, store *loop.Store, config *Running, log *slog.Logger) error {
	return loop.Run(ctx, store, loop.Config{Kinds: []string{kind}, Log: log}, func(ctx context.Context, all loop.Objects) (time.Duration, error) {
		stored, ok := all[key].(*api.KubeControllersConfiguration)
		if !ok {
			_, err := store.Create(ctx, api.NewKubeControllersConfiguration())
			if errors.Is(err, datastore.ErrExists) {
				err = nil // the watch is about to bring it
			}
			return 0, err
		}
		status := api.KubeControllersConfigurationStatus{
			RunningConfig:   configure.Effective(stored, config.env, config.in),
			EnvironmentVars: maps.Clone(config.env.Set),
		}
		if apiequality.Semantic.DeepEqual(stored.Status, status) {
			return 0, nil
		}
		written := stored.DeepCopy()
		written.Status = status
		if _, err := store.Update(ctx, written); err != nil && !errors.Is(err, datastore.ErrConflict) {
			return 0, fmt.Errorf("status of %s: %w", key, err)
		}
		return 0, nil
	})
}
