package compute

import (
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
)

// serviceRanges are the ranges in which addresses of services are announced.
type serviceRanges struct {
	cluster, external, balancer []netip.Prefix
	// separate has every address that is not bound to a node announced by itself, and no range of load balancers.
	separate bool
}

// rangesOf are the ranges of the cluster's configuration, which may be nil. Entries that are no CIDR are left out.
func rangesOf(c *api.BGPConfiguration) serviceRanges {
	if c == nil {
		return serviceRanges{}
	}
	return serviceRanges{
		cluster:  blocks(c.Spec.ServiceClusterIPs),
		external: blocks(c.Spec.ServiceExternalIPs),
		balancer: blocks(c.Spec.ServiceLoadBalancerIPs),
		separate: c.Spec.ServiceLoadBalancerAggregation != nil && *c.Spec.ServiceLoadBalancerAggregation == "Disabled",
	}
}

func blocks(list []api.ServiceIPBlock) []netip.Prefix {
	var out []netip.Prefix
	for _, b := range list {
		if p := subnet(b.CIDR).Masked(); p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

func (r serviceRanges) equal(o serviceRanges) bool {
	return slices.Equal(r.cluster, o.cluster) && slices.Equal(r.external, o.external) &&
		slices.Equal(r.balancer, o.balancer) && r.separate == o.separate
}

// whole are the ranges that every node announces as they are. A range of one external or load-balancer address is not
// among them: it is announced while there is a service that has it.
func (r serviceRanges) whole() []netip.Prefix {
	out := slices.Clone(r.cluster)
	for _, p := range r.external {
		if !p.IsSingleIP() {
			out = append(out, p)
		}
	}
	for _, p := range r.balancer {
		if !p.IsSingleIP() && !r.separate {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// announcement is which addresses of a service nodes announce.
type announcement struct {
	all   []netip.Prefix            // by every node
	local map[string][]netip.Prefix // by the node of that name in Kubernetes
}

// announced decides who announces the addresses of a service. All its slices are judged together.
func (s *serviceState) announced(r serviceRanges) announcement {
	svc := s.service
	if svc == nil || len(svc.ClusterIPs) == 0 || svc.Type != ClusterIP && svc.Type != NodePort && svc.Type != LoadBalancer {
		return announcement{}
	}
	addresses, single := r.addresses(svc)
	if len(addresses) == 0 {
		return announcement{}
	}
	anywhere, on := s.ready()
	if svc.External == TrafficLocal {
		out := announcement{local: map[string][]netip.Prefix{}}
		for node, ready := range on {
			if mine := ready.among(addresses); len(mine) > 0 {
				out.local[node] = mine
			}
		}
		return out
	}
	switch {
	case svc.External == TrafficCluster && single && len(s.slices) > 0:
		return announcement{all: addresses}
	case r.separate:
		return announcement{all: anywhere.among(addresses)}
	}
	return announcement{}
}

// addresses are a service's addresses inside the ranges, and whether one of them is a range of its own.
func (r serviceRanges) addresses(s *Service) (out []netip.Prefix, single bool) {
	for _, list := range []struct {
		addresses []netip.Addr
		ranges    []netip.Prefix
		cluster   bool
	}{{s.ClusterIPs, r.cluster, true}, {s.ExternalIPs, r.external, false}, {s.LoadBalancerIPs, r.balancer, false}} {
		for _, a := range list.addresses {
			if !slices.ContainsFunc(list.ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
				continue
			}
			out = append(out, host(a))
			single = single || !list.cluster && slices.Contains(list.ranges, host(a))
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), single
}

// families tells for which families there is a ready endpoint.
type families struct{ v4, v6 bool }

func (f families) among(addresses []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range addresses {
		if p.Addr().Is4() && f.v4 || p.Addr().Is6() && f.v6 {
			out = append(out, p)
		}
	}
	return out
}

// ready tells for which families a service has ready endpoints, anywhere and on each node.
func (s *serviceState) ready() (anywhere families, on map[string]families) {
	on = map[string]families{}
	for _, slice := range s.slices {
		for _, ep := range slice.Endpoints {
			if !ep.Ready {
				continue
			}
			here := on[ep.Node]
			for _, a := range ep.Addresses {
				here.v4, here.v6 = here.v4 || a.Is4(), here.v6 || a.Is6()
			}
			if ep.Node != "" {
				on[ep.Node] = here
			}
			anywhere = families{anywhere.v4 || here.v4, anywhere.v6 || here.v6}
		}
	}
	return anywhere, on
}
