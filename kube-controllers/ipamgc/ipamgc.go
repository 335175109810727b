// Package ipamgc collects what is lost of addresses: it follows nodes, endpoints and blocks, has package leak decide what
// nobody needs any more, and releases it. It owns that decision and the annotation by which nodes are asked; the blocks,
// affinities and handles are ipam/alloc's to write.
//
// Everything that it releases was looked at once more right before, at the datastore itself, and is released with the
// handle and the sequence number under which it was found lost: what has been given out again is never touched.
package ipamgc

import (
	"cmp"
	"context"
	"crypto/rand"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/ipam/alloc"
	"github.com/muslin-net/muslin/kube-controllers/ipamgc/leak"
	"github.com/muslin-net/muslin/kube-controllers/loop"
)

// Options tune a Controller. The zero value is what a cluster wants.
type Options struct {
	// DryRun has everything decided and told, and nothing released or deleted. Nodes are asked all the same, since
	// without their answer nothing is proven.
	DryRun bool
	Gather time.Duration // for how long changes are put together; 0 means 5 s
	Fence  time.Duration // for how long a node is gone before its addresses are released; 0 means 30 s
	// LeastGrace is a lower bound of the configured leakGracePeriod: an ADD that is under way must end within it. 0 means
	// 2 minutes.
	LeastGrace time.Duration
	// KeepEndpoints leaves the endpoints of nodes that are gone alone: where they are pods, Kubernetes deletes them.
	KeepEndpoints bool
	Retry         time.Duration // after which time what failed is tried again, and who does not answer is asked again; 0 means 1 minute
}

// Controller collects. One of them runs at a time.
type Controller struct {
	store   *loop.Store
	alloc   *alloc.Allocator
	options Options
	log     *slog.Logger
	metrics *metrics
}

// New returns a controller that writes to store.
func New(store *loop.Store, o Options, log *slog.Logger, registry prometheus.Registerer) *Controller {
	o.Gather = cmp.Or(o.Gather, 5*time.Second)
	o.Fence = cmp.Or(o.Fence, 30*time.Second)
	o.LeastGrace = cmp.Or(o.LeastGrace, 2*time.Minute)
	o.Retry = cmp.Or(o.Retry, time.Minute)
	log = log.With("part", "ipamgc")
	return &Controller{store: store, alloc: alloc.New(store, alloc.Options{Log: log}), options: o, log: log, metrics: newMetrics(registry)}
}

// kinds are what the decision depends on.
var kinds = []string{
	"Node", "WorkloadEndpoint", "IPAMBlock", "BlockAffinity", "IPPool", "IPReservation", "IPAMConfiguration",
	"KubeControllersConfiguration", "ClusterInformation",
}

// Run collects until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	r := &run{Controller: c, told: map[string]bool{}}
	return loop.Run(ctx, c.store, loop.Config{Kinds: kinds, Gather: c.options.Gather, Slim: slim, Log: c.log}, r.decide)
}

// slim keeps of endpoints, of which there are most, what matters here.
var slim = map[string]func(api.Object) api.Object{"WorkloadEndpoint": func(o api.Object) api.Object {
	ep := o.(*api.WorkloadEndpoint)
	out := &api.WorkloadEndpoint{}
	out.Name, out.Namespace, out.ResourceVersion = ep.Name, ep.Namespace, ep.ResourceVersion
	out.Spec.Node, out.Spec.IPNetworks = ep.Spec.Node, ep.Spec.IPNetworks
	return out
}}

// run is one time of being the leader.
type run struct {
	*Controller
	memory leak.Memory
	told   map[string]bool // what a dry run has told already
}

func (r *run) decide(ctx context.Context, all loop.Objects) (time.Duration, error) {
	facts := r.read(all)
	plan := r.memory.Look(facts.State, facts.rules(r.options), time.Now(), rand.Text)
	r.metrics.show(facts, plan)
	if facts.off != "" {
		r.log.Debug("nothing is collected", "because", facts.off)
		return 0, nil
	}
	if failed := r.act(ctx, facts, plan); failed {
		plan.Next = min(cmp.Or(plan.Next, r.options.Retry), r.options.Retry)
	}
	if plan.Next > 0 {
		plan.Next += 10 * time.Millisecond // timers and clocks round
	}
	return plan.Next, ctx.Err()
}
