// Package intake brings the datastore's objects to the computation: one watch for each kind, what fails validation
// reported and taken for absent, what changes nothing that matters left out, and all that is available at a time handed
// on as one batch. It also takes what felix reports of its endpoints, and keeps that before the datastore's word until
// the datastore shows it.
//
// Services, EndpointSlices, cluster-wide policies of Kubernetes and the values of secrets come in by the same way, from where
// Options say.
//
// It refuses to interpret: what an object means is for package compute.
package intake

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
)

// Batch is what happened since the batch before.
type Batch struct {
	Changes  []cache.Change                    // at most one for each key
	Services map[string]*compute.Service       // by namespace/name; nil for those that are gone
	Slices   map[string]*compute.EndpointSlice // likewise
	Secrets  map[compute.SecretRef][]byte      // nil for those that are missing
	Progress
}

// Progress says how far in the history of the datastore one is.
type Progress struct {
	// Checkpoint has, for each source, the highest revision of anything taken in. Clients are told it.
	Checkpoint view.Checkpoint
	// Floor has, for each source, the revision up to which everything has been taken in. A replica may serve a client
	// that has seen a checkpoint once its floor has reached that: only then it has all that the client may have seen.
	Floor view.Checkpoint
	// InSync is true once everything that was there at the start has been taken in.
	InSync bool
}

// kinds are those that views and lookups depend on.
var kinds = []string{
	"ClusterInformation", "FelixConfiguration", "IPAMConfiguration", "IPPool", "IPReservation", "Node",
	"BGPConfiguration", "BGPFilter", "BGPPeer", "Tier", "Profile", "GlobalNetworkSet", "NetworkSet",
	"GlobalNetworkPolicy", "NetworkPolicy", "StagedGlobalNetworkPolicy", "StagedNetworkPolicy",
	"StagedKubernetesNetworkPolicy", "HostEndpoint", "WorkloadEndpoint", "IPAMBlock", "BlockAffinity",
}

// Options tune an Intake. The zero value is for etcd, silent metrics and the default logger.
type Options struct {
	// SourcePerKind says that revisions of different kinds cannot be compared, as under Kubernetes. Otherwise there is
	// the one source "etcd".
	SourcePerKind bool
	Logger        *slog.Logger // nil means slog.Default
	Metrics       *Metrics     // nil means none
	// Services, if set, tells of Services and EndpointSlices. Without it there are none.
	Services ServiceSource
	// Pods, if set, tells of the pods and namespaces of Kubernetes. Without it there are none.
	Pods PodSource
	// PodsAreEndpoints says that the datastore's endpoints are the pods, so that those of Pods are all that there are.
	PodsAreEndpoints bool
	// Policies, if set, tells of the cluster-wide policies of Kubernetes. Without it there are none.
	Policies PolicySource
	// Secrets, if set, looks up the secrets that are used. Without it all are missing.
	Secrets SecretSource
	// Trouble, if set, is told each failure to follow a kind, and nil once it is followed again.
	Trouble func(kind string, err error)
}

// Intake follows a datastore. Run is called once; the other methods by anyone at any time.
type Intake struct {
	reader  datastore.Reader
	cache   *cache.Cache
	opts    Options
	log     *slog.Logger
	inbox   chan message
	overlay *overlay
	now     progress

	slimmer *slimmer           // of the loop alone, as is the next
	podKeys map[string]api.Key // of the endpoints of pods, where those are the pods

	mu      sync.Mutex // guards the next two
	invalid map[api.Key]error
	taken   map[string]map[*api.WorkloadEndpoint]struct{} // the last report of each node, as far as it was valid
}

// message is one thing that arrives at the loop.
type message struct {
	kind   string // with delta
	delta  datastore.Delta[api.Object]
	report *report

	services *Told[compute.Service]
	slices   *Told[compute.EndpointSlice]
	policies *toldPolicies
	pods     *Told[api.WorkloadEndpoint]
	spaces   *Told[api.Profile]
	secret   *secretValue
}

// New returns an Intake that fills a cache from a datastore. The cache must have no other writer.
func New(r datastore.Reader, c *cache.Cache, opts Options) *Intake {
	log := opts.Logger
	if log == nil {
		log = slog.Default()
	}
	if opts.Metrics == nil {
		opts.Metrics = NewMetrics(nil)
	}
	return &Intake{
		reader: r, cache: c, opts: opts, log: log,
		inbox:   make(chan message),
		overlay: newOverlay(),
		now:     newProgress(opts),
		invalid: map[api.Key]error{}, taken: map[string]map[*api.WorkloadEndpoint]struct{}{},
		slimmer: newSlimmer(),
		podKeys: map[string]api.Key{},
	}
}

// Run follows all kinds until ctx ends or apply fails. For each batch it first brings the cache up to date and then
// calls apply, from one goroutine. Whatever the datastore goes through is survived inside; see datastore.Follow.
func (in *Intake) Run(ctx context.Context, apply func(Batch) error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, kind := range kinds {
		if kind == endpointKind && in.opts.PodsAreEndpoints {
			continue
		}
		group.Go(func() error { return in.follow(ctx, kind) })
	}
	in.followSources(ctx, group)
	group.Go(func() error { return in.loop(ctx, apply) })
	return group.Wait()
}

func (in *Intake) follow(ctx context.Context, kind string) error {
	opts := datastore.FollowOptions{Logger: in.log, Parts: true}
	if in.opts.Trouble != nil {
		opts.Trouble = func(err error) { in.opts.Trouble(kind, err) }
	}
	return datastore.Follow(ctx, in.reader, kind, opts, func(d datastore.Delta[api.Object]) error {
		return in.send(ctx, message{kind: kind, delta: d})
	})
}

func (in *Intake) send(ctx context.Context, m message) error {
	select {
	case in.inbox <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Wake causes a batch, an empty one if nothing else has happened. It returns once the batch is under way or ctx ends.
func (in *Intake) Wake(ctx context.Context) error { return in.send(ctx, message{}) }

func (in *Intake) loop(ctx context.Context, apply func(Batch) error) error {
	for {
		b := newBuilder(in)
		select {
		case m := <-in.inbox:
			b.take(m)
		case <-ctx.Done():
			return ctx.Err()
		}
	available:
		for {
			select {
			case m := <-in.inbox:
				b.take(m)
			default:
				break available
			}
		}
		batch := b.build()
		in.cache.Apply(batch.Changes, batch.Checkpoint, batch.InSync)
		if err := apply(batch); err != nil {
			return err
		}
	}
}

// Invalid returns the objects that fail validation, with what is wrong with them. A policy among them denies everything to
// whom it selects; others are handled as absent (api.Closed). Of cluster-wide policies of Kubernetes it has those of which
// something could not be said in our terms, and was closed (package api/kubernetes).
func (in *Intake) Invalid() map[api.Key]error {
	in.mu.Lock()
	defer in.mu.Unlock()
	return maps.Clone(in.invalid)
}

// judge validates an object and keeps account of those that fail. An object that is gone is fine.
func (in *Intake) judge(key api.Key, o api.Object) bool {
	var err error
	if o != nil {
		// What is stored may come from a writer that leaves defaults out; that is no fault. The defaults themselves
		// are not taken in: an unset field of one layer must not hide the next one's.
		full := o.DeepCopyObject().(api.Object)
		full.Default()
		err = full.Validate()
	}
	in.note(key, err, "object is not valid: a policy denies everything to whom it selects, anything else is handled as if it did not exist; correct it")
	return err == nil
}

// note keeps account of what is wrong with an object, and logs what that means.
func (in *Intake) note(key api.Key, err error, means string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	was := in.invalid[key]
	switch {
	case err == nil && was != nil:
		delete(in.invalid, key)
		in.opts.Metrics.invalid.WithLabelValues(key.Kind).Dec()
		in.log.Info("object is valid again, or gone", "object", key.String())
	case err != nil:
		if was == nil {
			in.opts.Metrics.invalid.WithLabelValues(key.Kind).Inc()
		}
		in.invalid[key] = err
		if was == nil || was.Error() != err.Error() {
			in.log.Warn(means, "object", key.String(), "error", err)
		}
	}
}

// errForeign is why a report of another node's endpoint is not believed.
var errForeign = errors.New("is on another node")
