package intake

import (
	"context"
	"strconv"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/cache"
)

// endpointKind is the kind of endpoints in the datastore.
const endpointKind = "WorkloadEndpoint"

// PodSource tells of the pods and namespaces of Kubernetes, by the rules of ServiceSource.
type PodSource interface {
	// Pods tells of the pods that are on a node and have a network of their own, each as the endpoint that it has or is to have.
	// One that has ended is gone.
	Pods(ctx context.Context, tell func(Told[api.WorkloadEndpoint]) error) error
	// Namespaces tells of the namespaces that ask something for their pods, as profiles with their annotations alone.
	Namespaces(ctx context.Context, tell func(Told[api.Profile]) error) error
}

// takePods takes in pods among the datastore's objects, beside which they stand under a kind of their own; where the endpoints are
// the pods, as these too.
func (b *builder) takePods(t *Told[api.WorkloadEndpoint]) {
	b.in.now.tell(kubernetes.KindPod, t.Seen, t.Reached, t.InSync)
	if b.in.opts.PodsAreEndpoints {
		b.in.now.moved(endpointKind, strconv.FormatUint(max(t.Reached, t.Seen), 10), datastore.Seen(strconv.FormatUint(t.Seen, 10)), t.InSync)
	}
	for name, pod := range t.Changes {
		namespace, short, _ := strings.Cut(name, "/")
		key := api.Key{Kind: kubernetes.KindPod, Namespace: namespace, Name: short}
		var endpoint *cache.Endpoint
		if pod != nil {
			endpoint = b.in.slimmer.endpoint(pod)
			b.set(key, endpoint)
		} else {
			b.set(key, nil)
		}
		if b.in.opts.PodsAreEndpoints {
			b.takePodEndpoint(name, endpoint)
		}
	}
}

// takePodEndpoint takes in a pod as an endpoint of the datastore's.
func (b *builder) takePodEndpoint(name string, pod *cache.Endpoint) {
	was, known := b.in.podKeys[name]
	var now api.Key
	if pod != nil {
		now = api.Key{Kind: endpointKind, Namespace: pod.Namespace, Name: pod.Name}
	}
	if known && was != now {
		delete(b.in.podKeys, name)
		b.takeObject(was, nil)
	}
	if pod == nil {
		return
	}
	b.in.podKeys[name] = now
	if b.in.overlay.stored(now, pod) { // what api/kubernetes makes of a pod is valid
		b.set(now, pod)
	}
}

// takeNamespaces does the same for namespaces.
func (b *builder) takeNamespaces(t *Told[api.Profile]) {
	b.in.now.tell(kubernetes.KindNamespace, t.Seen, t.Reached, t.InSync)
	for name, o := range t.Changes {
		key := api.Key{Kind: kubernetes.KindNamespace, Name: name}
		if o == nil {
			b.set(key, nil)
		} else {
			b.set(key, o)
		}
	}
}
