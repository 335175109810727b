package compute

import (
	"net/netip"
	"reflect"
	"slices"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// ServiceType is the type of a Service as Kubernetes writes it.
type ServiceType string

// The types of Service that have addresses of their own. Any other has none.
const (
	ClusterIP    ServiceType = "ClusterIP"
	NodePort     ServiceType = "NodePort"
	LoadBalancer ServiceType = "LoadBalancer"
)

// TrafficPolicy is where traffic from outside may go: to any endpoint or to those of the node that it comes to. Plain
// ClusterIP Services have none.
type TrafficPolicy string

// The traffic policies.
const (
	TrafficCluster TrafficPolicy = "Cluster"
	TrafficLocal   TrafficPolicy = "Local"
)

// Service is what the computation needs of a Kubernetes Service. It must not be changed once it has been handed over.
type Service struct {
	Type            ServiceType
	External        TrafficPolicy
	ClusterIPs      []netip.Addr // none of a headless Service
	ExternalIPs     []netip.Addr
	LoadBalancerIPs []netip.Addr // that the load balancer has given it
}

// EndpointSlice is what the computation needs of an EndpointSlice: some of the endpoints of a Service, all of one family.
// It must not be changed once it has been handed over.
type EndpointSlice struct {
	Service   string // namespace/name; empty for a slice that belongs to none
	Endpoints []Endpoint
	Ports     []ServicePort // of each endpoint
}

// Endpoint is what stands behind a Service.
type Endpoint struct {
	Addresses []netip.Addr
	Node      string // Kubernetes' name of the node where it is; empty if unknown
	Ready     bool
}

// ServicePort is a port of endpoints.
type ServicePort struct {
	Protocol view.Protocol
	Port     uint16
}

// serviceState is all that is known of a service. Either half may come first.
type serviceState struct {
	service *Service                  // nil if there is none of the name
	slices  map[string]*EndpointSlice // by namespace/name of the slice
	offers  announcement              // as of the last flush
}

// SetService takes in a Service, given as namespace/name, or with nil its end.
func (e *Engine) SetService(name string, s *Service) {
	o := e.originations
	was := o.services[name]
	if s == nil && was == nil || was != nil && reflect.DeepEqual(was.service, s) {
		return
	}
	o.state(name).service = s
	o.dirty[name] = struct{}{}
}

// SetEndpointSlice takes in an EndpointSlice, given as namespace/name, or with nil its end. A slice may come before its
// Service, and may move to another one.
func (e *Engine) SetEndpointSlice(name string, slice *EndpointSlice) {
	o := e.originations
	was := o.sliceOf[name]
	if was != "" && reflect.DeepEqual(o.services[was].slices[name], slice) {
		return
	}
	if was != "" && (slice == nil || slice.Service != was) {
		delete(o.services[was].slices, name)
		delete(o.sliceOf, name)
		e.serviceMoved(was)
	}
	if slice != nil && slice.Service != "" {
		o.state(slice.Service).slices[name] = slice
		o.sliceOf[name] = slice.Service
		e.serviceMoved(slice.Service)
	}
}

// serviceMoved notes that the endpoints of a service are others.
func (e *Engine) serviceMoved(name string) {
	e.originations.dirty[name] = struct{}{}
	e.setMembers(name, e.originations.services[name].members())
}

// members are the addresses and ports behind a service, ready or not: what a policy says of a service holds for an
// endpoint before it is ready. An address without ports (a headless service need not have any) is a member without.
func (s *serviceState) members() []view.Member {
	var out []view.Member
	for _, slice := range s.slices {
		for _, ep := range slice.Endpoints {
			for _, a := range ep.Addresses {
				if len(slice.Ports) == 0 {
					out = append(out, view.Member{Prefix: host(a)})
				}
				for _, p := range slice.Ports {
					out = append(out, view.Member{Prefix: host(a), Protocol: p.Protocol, Port: p.Port})
				}
			}
		}
	}
	slices.SortFunc(out, views.CompareMembers)
	return slices.Compact(out)
}

// host is an address as a prefix.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
