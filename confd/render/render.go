package render

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
)

func (r *renderer) render() (Config, error) {
	id, err := r.routerID()
	if err != nil {
		return Config{}, err
	}
	c := &r.out
	c.RouterID, c.ASNumber, c.ListenPort, c.ClusterID = id, r.own.as, r.own.port, r.clusterID(id)
	c.LogSeverity = cmp.Or(r.ownSpec.LogSeverityScreen, r.config.LogSeverityScreen)
	c.LogLevel = logLevel(c.LogSeverity)
	c.NormalPriority4, c.NormalPriority6 = priority(r.config.IPv4NormalRoutePriority), priority(r.config.IPv6NormalRoutePriority)
	if m := r.config.BindMode; m != nil && *m == api.BindNodeIP {
		for _, a := range []netip.Addr{r.own.v4, r.own.v6} {
			if a.IsValid() {
				c.ListenAddresses = append(c.ListenAddresses, a)
			}
		}
	}
	c.IgnoredInterfaces = r.config.IgnoredInterfaces
	r.serviceRanges()
	r.advertisements()
	r.sessions()
	r.usedFilters()

	slices.SortFunc(c.Pools, func(a, b Pool) int { return a.Prefix.Compare(b.Prefix) })
	sortPrefixes(&c.OwnBlocks)
	sortPrefixes(&c.Originate)
	sortPrefixes(&c.ServiceRanges)
	sortPrefixes(&c.Unrouted)
	slices.SortFunc(c.StaticRoutes, func(a, b StaticRoute) int { return a.Prefix.Compare(b.Prefix) })
	slices.SortFunc(c.Peers, func(a, b Peer) int { return cmp.Or(cmp.Compare(a.Type, b.Type), strings.Compare(a.Name, b.Name)) })
	for w := range r.warnings {
		c.Warnings = append(c.Warnings, w)
	}
	slices.Sort(c.Warnings)
	return *c, nil
}

func sortPrefixes(list *[]netip.Prefix) {
	slices.SortFunc(*list, netip.Prefix.Compare)
	*list = slices.Compact(*list)
}

func logLevel(severity string) string {
	switch strings.ToLower(severity) {
	case "debug":
		return "debug"
	case "", "info":
		return "info"
	default:
		return "warning"
	}
}

func priority(p *int) uint32 {
	if p == nil {
		return api.DefaultRoutePriority
	}
	return uint32(*p)
}

// serviceRanges are those whose routes a reflector passes on, and those that no node routes by: services of every kind, and
// what the node itself announces of them.
func (r *renderer) serviceRanges() {
	for _, list := range []struct {
		field  string
		blocks []api.ServiceIPBlock
	}{
		{"serviceLoadBalancerIPs", r.config.ServiceLoadBalancerIPs},
		{"serviceExternalIPs", r.config.ServiceExternalIPs},
		{"serviceClusterIPs", r.config.ServiceClusterIPs},
	} {
		for _, b := range list.blocks {
			if b.CIDR == "" {
				continue
			}
			if p, ok := r.prefix("BGPConfiguration(default).spec."+list.field, b.CIDR); ok {
				r.out.Unrouted = append(r.out.Unrouted, p)
				if list.field != "serviceClusterIPs" {
					r.out.ServiceRanges = append(r.out.ServiceRanges, p)
				}
			}
		}
	}
	r.out.Unrouted = append(r.out.Unrouted, r.out.Originate...)
}

// advertisements are the node's own, or else the cluster's; the two are not merged. Names of communities are looked up in
// the same object only.
func (r *renderer) advertisements() {
	spec, object := r.config, "BGPConfiguration(default)"
	if len(r.ownSpec.PrefixAdvertisements) > 0 {
		spec, object = r.ownSpec, "BGPConfiguration(node."+r.own.name+")"
	}
	values := map[string]string{}
	for _, c := range spec.Communities {
		values[c.Name] = string(c.Value)
	}
	for _, a := range spec.PrefixAdvertisements {
		p, ok := r.prefix(object+".spec.prefixAdvertisements", a.CIDR)
		if !ok {
			continue
		}
		out := Advertisement{Prefix: p}
		for _, c := range a.Communities {
			value := cmp.Or(values[c], c)
			if !strings.Contains(value, ":") {
				r.warn("%s.spec.prefixAdvertisements: there is no community named %q in the same object; it is left out", object, c)
				continue
			}
			if parsed, ok := r.community(object+".spec.prefixAdvertisements", value); ok {
				out.Communities = append(out.Communities, *parsed)
			}
		}
		if len(out.Communities) > 0 {
			r.out.Advertisements = append(r.out.Advertisements, out)
		}
	}
	slices.SortStableFunc(r.out.Advertisements, func(a, b Advertisement) int { return a.Prefix.Compare(b.Prefix) })
}
