package kube

import (
	"context"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/intake"
)

// Services follows the Services and EndpointSlices of a cluster. It is an intake.ServiceSource.
type Services struct {
	core, discovery rest.Interface
	api             API
}

// NewServices returns a Services; nothing is asked before its methods are called.
func NewServices(a API) (*Services, error) {
	core, err := a.client(corev1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	discovery, err := a.client(discoveryv1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	return &Services{core: core, discovery: discovery, api: a}, nil
}

// Services follows the Services of all namespaces.
func (s *Services) Services(ctx context.Context, tell func(intake.Told[compute.Service]) error) error {
	return (&follower[compute.Service]{
		client: s.core, resource: "services", api: s.api, tell: tell, slim: slimService,
		list: func() runtime.Object { return &corev1.ServiceList{} },
	}).run(ctx)
}

// EndpointSlices follows the EndpointSlices of all namespaces.
func (s *Services) EndpointSlices(ctx context.Context, tell func(intake.Told[compute.EndpointSlice]) error) error {
	return (&follower[compute.EndpointSlice]{
		client: s.discovery, resource: "endpointslices", api: s.api, tell: tell, slim: slimSlice,
		list: func() runtime.Object { return &discoveryv1.EndpointSliceList{} },
	}).run(ctx)
}

func slimService(o runtime.Object) (string, *compute.Service) {
	s := o.(*corev1.Service)
	out := &compute.Service{
		Type:        compute.ServiceType(s.Spec.Type),
		External:    compute.TrafficPolicy(s.Spec.ExternalTrafficPolicy),
		ExternalIPs: addresses(s.Spec.ExternalIPs),
	}
	// A headless Service has the address "None", which is none.
	if out.ClusterIPs = addresses(s.Spec.ClusterIPs); len(s.Spec.ClusterIPs) == 0 {
		out.ClusterIPs = addresses([]string{s.Spec.ClusterIP})
	}
	var given []string
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		given = append(given, ingress.IP)
	}
	out.LoadBalancerIPs = addresses(given)
	return s.Namespace + "/" + s.Name, out
}

// addresses reads what is an address and leaves out the rest.
func addresses(list []string) []netip.Addr {
	var out []netip.Addr
	for _, text := range list {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	return out
}

func slimSlice(o runtime.Object) (string, *compute.EndpointSlice) {
	s := o.(*discoveryv1.EndpointSlice)
	out := &compute.EndpointSlice{}
	if service := s.Labels[discoveryv1.LabelServiceName]; service != "" {
		out.Service = s.Namespace + "/" + service
	}
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		slim := compute.Endpoint{Addresses: addresses(e.Addresses), Ready: e.Conditions.Ready == nil || *e.Conditions.Ready}
		if e.NodeName != nil {
			slim.Node = *e.NodeName
		}
		if len(slim.Addresses) > 0 {
			out.Endpoints = append(out.Endpoints, slim)
		}
	}
	for _, p := range s.Ports {
		protocol := api.ProtocolTCP
		if p.Protocol != nil {
			protocol = api.Protocol(*p.Protocol)
		}
		if n, ok := protocol.Number(); ok && p.Port != nil {
			out.Ports = append(out.Ports, compute.ServicePort{Protocol: view.Protocol(n), Port: uint16(*p.Port)})
		}
	}
	return s.Namespace + "/" + s.Name, out
}
