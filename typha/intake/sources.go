package intake

import (
	"context"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/typha/compute"
)

// The kinds of Kubernetes that come beside the datastore's, and the names of their sources in checkpoints.
const (
	serviceKind = "Service"
	sliceKind   = "EndpointSlice"
)

// Told is what a source tells at once of a kind of Kubernetes.
type Told[T any] struct {
	// Changes are what objects are now, by namespace/name; nil for those that are gone.
	Changes map[string]*T
	// Seen is the highest revision of any object told, and Reached the revision up to which everything has been told. 0 is
	// no news.
	Seen, Reached uint64
	// InSync says that the source has told everything there is.
	InSync bool
}

// ServiceSource tells of the Services and EndpointSlices of a cluster. Each method first tells everything there is, then
// each change, until ctx ends (and returns its error) or tell fails (and returns that error). Trouble with the source it
// survives inside, and nothing is told of it: what was told last stays true meanwhile.
type ServiceSource interface {
	Services(ctx context.Context, tell func(Told[compute.Service]) error) error
	EndpointSlices(ctx context.Context, tell func(Told[compute.EndpointSlice]) error) error
}

// SecretSource looks up values of secrets and follows them.
type SecretSource interface {
	// Want says which are used from now on. It does not wait. Each that was not before is told once it has been looked up,
	// missing or not.
	Want(refs []compute.SecretRef)
	// Run tells what is wanted, and each change, nil for what is missing, until ctx ends (and returns its error) or tell
	// fails (and returns that error). A value that cannot be looked up at present stays what it was told to be.
	Run(ctx context.Context, tell func(ref compute.SecretRef, value []byte) error) error
}

// PolicySource tells of the cluster-wide policies of Kubernetes.
type PolicySource interface {
	// Policies follows those of a kind (kubernetes.ClusterKinds) by the rules of ServiceSource. A kind that the cluster does
	// not know is one of which there are none.
	Policies(ctx context.Context, kind string, tell func(Told[ClusterPolicy]) error) error
}

// ClusterPolicy is a cluster-wide policy of Kubernetes.
type ClusterPolicy struct {
	Policy *api.GlobalNetworkPolicy // in our terms; nil if it is for nobody
	Wrong  error                    // what of it could not be said and was closed, if anything
}

// toldPolicies is what a PolicySource tells of a kind.
type toldPolicies struct {
	kind string
	Told[ClusterPolicy]
}

// secretValue is one answer of a SecretSource.
type secretValue struct {
	ref   compute.SecretRef
	value []byte
}

// followSources follows what comes beside the datastore.
func (in *Intake) followSources(ctx context.Context, group *errgroup.Group) {
	if s := in.opts.Services; s != nil {
		group.Go(func() error {
			return s.Services(ctx, func(t Told[compute.Service]) error { return in.send(ctx, message{services: &t}) })
		})
		group.Go(func() error {
			return s.EndpointSlices(ctx, func(t Told[compute.EndpointSlice]) error { return in.send(ctx, message{slices: &t}) })
		})
	}
	if s := in.opts.Pods; s != nil {
		group.Go(func() error {
			return s.Pods(ctx, func(t Told[api.WorkloadEndpoint]) error { return in.send(ctx, message{pods: &t}) })
		})
		group.Go(func() error {
			return s.Namespaces(ctx, func(t Told[api.Profile]) error { return in.send(ctx, message{spaces: &t}) })
		})
	}
	if s := in.opts.Policies; s != nil {
		for _, kind := range kubernetes.ClusterKinds() {
			group.Go(func() error {
				return s.Policies(ctx, kind, func(t Told[ClusterPolicy]) error {
					return in.send(ctx, message{policies: &toldPolicies{kind, t}})
				})
			})
		}
	}
	if s := in.opts.Secrets; s != nil {
		v := newVanished(func(ref compute.SecretRef, value []byte) error {
			return in.send(ctx, message{secret: &secretValue{ref, value}})
		})
		group.Go(func() error {
			defer v.stop()
			return s.Run(ctx, v.tell)
		})
	}
}

// takeTold takes in what a source beside the datastore tells.
func (b *builder) takeTold(m message) {
	if m.services != nil {
		takeKind(b, serviceKind, m.services, &b.batch.Services)
	}
	if m.slices != nil {
		takeKind(b, sliceKind, m.slices, &b.batch.Slices)
	}
	if m.policies != nil {
		b.takePolicies(m.policies)
	}
	if m.pods != nil {
		b.takePods(m.pods)
	}
	if m.spaces != nil {
		b.takeNamespaces(m.spaces)
	}
	if m.secret != nil {
		if b.batch.Secrets == nil {
			b.batch.Secrets = map[compute.SecretRef][]byte{}
		}
		b.batch.Secrets[m.secret.ref] = m.secret.value
	}
}

// takePolicies takes in policies among the datastore's objects, beside which they stand under kinds of their own.
func (b *builder) takePolicies(t *toldPolicies) {
	b.in.now.tell(t.kind, t.Seen, t.Reached, t.InSync)
	for name, p := range t.Changes {
		key := api.Key{Kind: t.kind, Name: name}
		if p == nil {
			p = &ClusterPolicy{}
		}
		b.in.note(key, p.Wrong, "a policy of Kubernetes says what cannot be enforced: it is closed instead; correct it")
		if p.Policy == nil {
			b.set(key, nil)
		} else {
			b.set(key, p.Policy)
		}
	}
}

func takeKind[T any](b *builder, kind string, t *Told[T], all *map[string]*T) {
	b.in.now.tell(kind, t.Seen, t.Reached, t.InSync)
	b.in.opts.Metrics.updates.WithLabelValues(kind, "changed").Add(float64(len(t.Changes)))
	if *all == nil {
		*all = map[string]*T{}
	}
	maps.Copy(*all, t.Changes)
}

// applyTold tells the computation what came beside the datastore's objects.
func (l *Loop) applyTold(b Batch) {
	for name, s := range b.Services {
		l.engine.SetService(name, s)
	}
	for name, s := range b.Slices {
		l.engine.SetEndpointSlice(name, s)
	}
	for ref, value := range b.Secrets {
		l.engine.SetSecret(ref, value)
	}
}

// lookUp has the secrets that are used looked up, and tells whether views may be given: those that are used at the start
// must have been, else every node would be told to forget its passwords.
func (l *Loop) lookUp() bool {
	wanted := l.engine.Secrets()
	switch source := l.intake.opts.Secrets; {
	case slices.Equal(wanted, l.wanted):
	case source == nil:
		for _, ref := range wanted {
			l.engine.SetSecret(ref, nil)
		}
	default:
		source.Want(wanted)
	}
	l.wanted = wanted
	l.known = l.known || l.engine.SecretsKnown()
	return l.known
}
