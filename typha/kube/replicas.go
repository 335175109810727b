package kube

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/internal/kubefollow"
)

// Replicas follows the EndpointSlices of typha's own Service.
type Replicas struct {
	discovery          rest.Interface
	namespace, service string
	api                API
}

// Addresses are those of the replicas of a Service: of all, and of those that serve, sorted.
type Addresses struct{ All, Ready []netip.Addr }

// NewReplicas returns a Replicas; nothing is asked before its method is called.
func NewReplicas(a API, namespace, service string) (*Replicas, error) {
	discovery, err := a.client(discoveryv1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	return &Replicas{discovery: discovery, namespace: namespace, service: service, api: a.about("service", service)}, nil
}

// Run tells the addresses, and each change of them, until ctx ends. While the API server is away they are what they were.
func (r *Replicas) Run(ctx context.Context, tell func(Addresses)) error {
	known := map[string]Addresses{}
	var told *Addresses
	err := kubefollow.Follower[Addresses]{
		Client: r.discovery, Resource: "endpointslices", Namespace: r.namespace, Log: r.api.Log, Trouble: r.api.troubleOf("endpointslices of typha's Service"),
		Labels: labels.Set{discoveryv1.LabelServiceName: r.service}.String(),
		List:   func() runtime.Object { return &discoveryv1.EndpointSliceList{} },
		Slim: func(o runtime.Object) (string, *Addresses) {
			s := o.(*discoveryv1.EndpointSlice)
			return s.Name, slimReplicas(s)
		},
		Tell: func(t kubefollow.Told[Addresses]) error {
			for name, a := range t.Changes {
				if a == nil {
					delete(known, name)
				} else {
					known[name] = *a
				}
			}
			now := union(known)
			if told == nil || !slices.Equal(told.All, now.All) || !slices.Equal(told.Ready, now.Ready) {
				told = &now
				tell(now)
			}
			return nil
		},
	}.Run(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func slimReplicas(s *discoveryv1.EndpointSlice) *Addresses {
	var out Addresses
	for _, e := range s.Endpoints {
		list := addresses(e.Addresses)
		out.All = append(out.All, list...)
		if e.Conditions.Ready == nil || *e.Conditions.Ready {
			out.Ready = append(out.Ready, list...)
		}
	}
	return &out
}

// union is what several slices say together.
func union(known map[string]Addresses) (out Addresses) {
	for a := range maps.Values(known) {
		out.All, out.Ready = append(out.All, a.All...), append(out.Ready, a.Ready...)
	}
	for _, list := range []*[]netip.Addr{&out.All, &out.Ready} {
		slices.SortFunc(*list, netip.Addr.Compare)
		*list = slices.Compact(*list)
	}
	return out
}
