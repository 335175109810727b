// Package nodes keeps Nodes what the nodes of Kubernetes are, where they are not one object (with etcd): it copies labels, and
// deletes the Node of a machine that Kubernetes does not know any more, with what is of use to that node only. The addresses of
// a Node that is gone, its endpoints and its blocks are ipamgc's.
package nodes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/kube-controllers/loop"
	"github.com/muslin-net/muslin/kube-controllers/nodes/gone"
)

// gather is for how long changes are put together.
const gather = 200 * time.Millisecond

// Kubernetes is where the nodes are.
type Kubernetes interface {
	// HasNode looks once more, at the API server itself.
	HasNode(ctx context.Context, name string) (bool, error)
}

// Node is what is needed of a node of Kubernetes.
type Node struct{ Labels map[string]string }

// Options say what is done.
type Options struct {
	Labels bool          // copy labels
	Wait   time.Duration // for how long a node has to be gone before its Node is deleted
	Every  time.Duration // how often everything is looked at, though nothing has changed
}

// kinds are the Nodes, and what can be one node's own.
var kinds = []string{"Node", "BGPPeer", "FelixConfiguration", "BGPConfiguration", "HostEndpoint"}

// Run keeps Nodes until ctx ends.
func Run(ctx context.Context, store *loop.Store, k Kubernetes, known loop.Table[Node], o Options, log *slog.Logger) error {
	r := &run{Options: o, store: store, api: k, table: known, log: log.With("part", "node")}
	config := loop.Config{Kinds: kinds, Sources: []loop.Source{r.table}, Gather: gather, Every: o.Every, Log: r.log}
	return loop.Run(ctx, store, config, r.decide)
}

// run is one time of being the leader.
type run struct {
	Options
	store  *loop.Store
	api    Kubernetes
	table  loop.Table[Node]
	memory gone.Memory
	log    *slog.Logger
}

func (r *run) decide(ctx context.Context, all loop.Objects) (time.Duration, error) {
	known := r.table.All()
	nodes := slices.Collect(loop.Of[*api.Node](all))
	var others []api.Object
	for _, o := range all {
		if _, is := o.(*api.Node); !is {
			others = append(others, o)
		}
	}
	list, next := r.memory.Look(nodes, func(name string) bool { return known[name] != nil }, others, r.Wait, time.Now())
	var errs []error
	for _, n := range list {
		if err := r.remove(ctx, n); err != nil {
			errs = append(errs, fmt.Errorf("node %s is gone: %w", n.Name, err))
		}
	}
	if r.Labels {
		errs = append(errs, r.label(ctx, nodes, known))
	}
	return next, errors.Join(errs...)
}

// remove deletes a Node; last, so that what fails before is found again.
func (r *run) remove(ctx context.Context, n gone.Node) error {
	if there, err := r.api.HasNode(ctx, n.Kubernetes); err != nil || there {
		return err
	}
	for _, o := range append(n.Own, n.Node) {
		_, err := r.store.Delete(ctx, api.KeyOf(o), datastore.Precondition{Revision: o.GetResourceVersion()})
		if err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return err
		}
		r.log.Info("deleted, since Kubernetes has the node no more", "object", api.KeyOf(o).String(), "node", n.Kubernetes)
	}
	return nil
}

func (r *run) label(ctx context.Context, nodes []*api.Node, known map[string]*Node) error {
	var errs []error
	for _, n := range nodes {
		name, is := gone.KubernetesName(n)
		if !is || known[name] == nil {
			continue
		}
		changed := gone.Labelled(n, known[name].Labels)
		if changed == nil {
			continue
		}
		_, err := r.store.Update(ctx, changed)
		if err != nil && !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrNotFound) { // the watch brings it anew
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
