package compute

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// bgpConfig is the cluster's configuration with ranges of cluster, external and load-balancer addresses.
func bgpConfig(cluster, external, balancer []string, aggregation string) *api.BGPConfiguration {
	c := &api.BGPConfiguration{}
	c.Name = api.DefaultName
	list := func(cidrs []string) (out []api.ServiceIPBlock) {
		for _, cidr := range cidrs {
			out = append(out, api.ServiceIPBlock{CIDR: cidr})
		}
		return out
	}
	c.Spec.ServiceClusterIPs, c.Spec.ServiceExternalIPs, c.Spec.ServiceLoadBalancerIPs = list(cluster), list(external), list(balancer)
	if aggregation != "" {
		c.Spec.ServiceLoadBalancerAggregation = &aggregation
	}
	return c
}

// announcer is a node with an address, and labels as pairs.
func announcer(name string, labels ...string) *api.Node {
	o := &api.Node{}
	o.Name, o.Labels = name, map[string]string{}
	o.Spec.BGP = &api.NodeBGPSpec{IPv4Address: "10.0.0." + name[1:] + "/24"}
	for i := 0; i < len(labels); i += 2 {
		o.Labels[labels[i]] = labels[i+1]
	}
	return o
}

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// at is a slice of service s/web with endpoints "node" (ready) or "-node" (not ready).
func at(address string, nodes ...string) *EndpointSlice {
	s := &EndpointSlice{Service: "s/web"}
	for _, n := range nodes {
		e := Endpoint{Addresses: addrs(address), Node: n, Ready: true}
		if n[0] == '-' {
			e.Node, e.Ready = n[1:], false
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

// originated is what a node announces: prefixes, with a * behind those of single services.
func originated(store *views.Store, node string) (out []string) {
	for _, e := range store.View(bgpView(node)) {
		if o, ok := e.Item().(view.Origination); ok {
			text := o.Prefix.String()
			if o.Host {
				text += "*"
			}
			out = append(out, text)
		}
	}
	slices.Sort(out)
	return out
}

// TestOriginations goes through the rules by which service addresses are announced. Nodes are n1 and n2, and n3, which is
// excluded from load balancers and must never announce anything.
func TestOriginations(t *testing.T) {
	const v4, v6 = "192.168.0.1", "fd00::1"
	web := Service{
		Type: LoadBalancer, ClusterIPs: addrs("10.96.0.1", "fd96::1"), ExternalIPs: addrs("172.20.0.1", "8.8.8.8"),
		LoadBalancerIPs: addrs("172.21.0.1"),
	}
	with := func(change func(*Service)) *Service {
		s := web
		change(&s)
		return &s
	}
	local := with(func(s *Service) { s.External = TrafficLocal })
	clusterwide := with(func(s *Service) { s.External = TrafficCluster })
	cluster, external, balancer := []string{"10.96.0.0/16", "fd96::/112"}, []string{"172.20.0.0/16"}, []string{"172.21.0.0/16"}
	both := func(list ...string) [2][]string { return [2][]string{list, list} }
	for _, row := range []struct {
		name    string
		config  *api.BGPConfiguration
		service *Service
		slices  []*EndpointSlice
		want    [2][]string // n1, n2
	}{
		{"no configuration", nil, local, []*EndpointSlice{at(v4, "n1")}, both()},
		{
			"cluster range: whole, by every node, of any width", bgpConfig([]string{"10.96.0.0/16", "10.97.0.1/32", ""}, nil, nil, ""), nil, nil,
			both("10.96.0.0/16", "10.97.0.1/32"),
		},
		{
			"external range: whole if wider than a host", bgpConfig(nil, []string{"172.20.0.0/16", "172.22.0.1/32", "172.22.0.2", "fd20::1/128"}, nil, ""), nil, nil,
			both("172.20.0.0/16"),
		},
		{
			"load-balancer range: whole if wider than a host", bgpConfig(nil, nil, []string{"172.21.0.0/16", "172.22.0.1/32"}, "Enabled"), nil, nil,
			both("172.21.0.0/16"),
		},
		{
			"load-balancer range: not with aggregation disabled", bgpConfig(cluster, external, balancer, "Disabled"), nil, nil,
			both("10.96.0.0/16", "172.20.0.0/16", "fd96::/112"),
		},
		{"host bits of a range do not matter", bgpConfig([]string{"10.96.1.2/16"}, nil, nil, ""), nil, nil, both("10.96.0.0/16")},

		{
			"single external address: by every node once there is a slice, ready or not, with all other addresses",
			bgpConfig(cluster, []string{"172.20.0.1/32"}, balancer, ""), clusterwide,
			[]*EndpointSlice{at(v4, "-n1")},
			both("10.96.0.0/16", "10.96.0.1/32*", "172.20.0.1/32*", "172.21.0.0/16", "172.21.0.1/32*", "fd96::/112", "fd96::1/128*"),
		},
		{
			"single load-balancer address, with aggregation disabled too", bgpConfig(nil, nil, []string{"172.21.0.1"}, "Disabled"), clusterwide,
			[]*EndpointSlice{{Service: "s/web"}},
			both("172.21.0.1/32*"),
		},
		{"single address: not without a slice", bgpConfig(nil, []string{"172.20.0.1/32"}, nil, ""), clusterwide, nil, both()},
		{"single address: not without a policy", bgpConfig(nil, []string{"172.20.0.1/32"}, nil, ""), &web, []*EndpointSlice{at(v4, "n1")}, both()},
		{
			"single address of another service", bgpConfig(cluster[:1], []string{"172.20.0.9/32"}, nil, ""), clusterwide,
			[]*EndpointSlice{at(v4, "n1")},
			both("10.96.0.0/16"),
		},
		{
			"single address, policy Local: where an endpoint is ready", bgpConfig(nil, []string{"172.20.0.1/32"}, nil, ""), local,
			[]*EndpointSlice{at(v4, "n1", "-n2")},
			[2][]string{{"172.20.0.1/32*"}, nil},
		},

		{
			"policy Local: by the node with a ready endpoint, of its family", bgpConfig(cluster, external, balancer, ""), local,
			[]*EndpointSlice{at(v4, "n1", "-n2")},
			[2][]string{
				{"10.96.0.0/16", "10.96.0.1/32*", "172.20.0.0/16", "172.20.0.1/32*", "172.21.0.0/16", "172.21.0.1/32*", "fd96::/112"},
				{"10.96.0.0/16", "172.20.0.0/16", "172.21.0.0/16", "fd96::/112"},
			},
		},
		{
			"policy Local: families apart, slices together", bgpConfig(cluster, nil, nil, ""), local,
			[]*EndpointSlice{at(v4, "n1"), at(v6, "n2")},
			[2][]string{{"10.96.0.0/16", "10.96.0.1/32*", "fd96::/112"}, {"10.96.0.0/16", "fd96::/112", "fd96::1/128*"}},
		},
		{
			"policy Local: cluster addresses only if configured", bgpConfig(nil, external, nil, ""), local,
			[]*EndpointSlice{at(v4, "n1")},
			[2][]string{{"172.20.0.0/16", "172.20.0.1/32*"}, {"172.20.0.0/16"}},
		},
		{
			"policy Local: no endpoint is known to be anywhere", bgpConfig(nil, external, nil, ""), local,
			[]*EndpointSlice{{Service: "s/web", Endpoints: []Endpoint{{Addresses: addrs(v4), Ready: true}}}},
			both("172.20.0.0/16"),
		},
		{
			"policy Local: of a plain ClusterIP with external addresses", bgpConfig(nil, external, nil, ""),
			with(func(s *Service) { s.Type, s.External = ClusterIP, TrafficLocal }),
			[]*EndpointSlice{at(v4, "n2")},
			[2][]string{{"172.20.0.0/16"}, {"172.20.0.0/16", "172.20.0.1/32*"}},
		},

		{
			"aggregation disabled: by every node while any endpoint of the family is ready", bgpConfig(cluster, external, balancer, "Disabled"), clusterwide,
			[]*EndpointSlice{at(v4, "-n1", "n3")},
			both("10.96.0.0/16", "10.96.0.1/32*", "172.20.0.0/16", "172.20.0.1/32*", "172.21.0.1/32*", "fd96::/112"),
		},
		{
			"aggregation disabled: plain ClusterIP services too", bgpConfig(cluster, nil, nil, "Disabled"),
			with(func(s *Service) { s.Type = ClusterIP }),
			[]*EndpointSlice{at(v6, "n3")},
			both("10.96.0.0/16", "fd96::/112", "fd96::1/128*"),
		},
		{"aggregation disabled: not without a ready endpoint", bgpConfig(nil, nil, balancer, "Disabled"), clusterwide, []*EndpointSlice{at(v4, "-n1")}, both()},
		{
			"aggregation enabled: policy Cluster is in the range", bgpConfig(nil, nil, balancer, "Enabled"), clusterwide,
			[]*EndpointSlice{at(v4, "n1")},
			both("172.21.0.0/16"),
		},

		{
			"headless", bgpConfig(cluster, external, nil, "Disabled"), with(func(s *Service) { s.ClusterIPs = nil }),
			[]*EndpointSlice{at(v4, "n1")},
			both("10.96.0.0/16", "172.20.0.0/16", "fd96::/112"),
		},
		{
			"ExternalName", bgpConfig(nil, external, nil, ""), with(func(s *Service) { s.Type, s.External = "ExternalName", TrafficLocal }),
			[]*EndpointSlice{at(v4, "n1")},
			both("172.20.0.0/16"),
		},
		{
			"NodePort", bgpConfig(nil, external, nil, ""), with(func(s *Service) { s.Type, s.External = NodePort, TrafficLocal }),
			[]*EndpointSlice{at(v4, "n1")},
			[2][]string{{"172.20.0.0/16", "172.20.0.1/32*"}, {"172.20.0.0/16"}},
		},
		{
			"addresses outside the ranges", bgpConfig([]string{"10.95.0.0/16"}, []string{"172.19.0.0/16"}, nil, ""), local,
			[]*EndpointSlice{at(v4, "n1")},
			both("10.95.0.0/16", "172.19.0.0/16"),
		},
		{
			"a range that a service has for its address stays a range", bgpConfig([]string{"10.96.0.1/32"}, nil, nil, ""), local,
			[]*EndpointSlice{at(v4, "n1")},
			both("10.96.0.1/32"),
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			e, store := New(), views.NewStore()
			put(e, announcer("n1"), announcer("n2", excludeLabel, "TRUE"), announcer("n3", excludeLabel, "true"))
			if row.config != nil {
				put(e, row.config)
			}
			for i, s := range row.slices {
				e.SetEndpointSlice("s/"+string(rune('a'+i)), s)
			}
			e.SetService("s/web", row.service)
			store.Commit(e.Flush())
			require.Equal(t, row.want[0], originated(store, "n1"))
			require.Equal(t, row.want[1], originated(store, "n2"))
			require.Empty(t, originated(store, "n3"))

			// Whatever a service announced goes with its slices, and with itself.
			for i := range row.slices {
				e.SetEndpointSlice("s/"+string(rune('a'+i)), nil)
			}
			store.Commit(e.Flush())
			hosts := slices.DeleteFunc(originated(store, "n1"), func(s string) bool { return s[len(s)-1] != '*' })
			require.Empty(t, hosts, "a service left without slices")
			for i, s := range row.slices {
				e.SetEndpointSlice("s/"+string(rune('a'+i)), s)
			}
			store.Commit(e.Flush())
			require.Equal(t, row.want[1], originated(store, "n2"))
			e.SetService("s/web", nil)
			store.Commit(e.Flush())
			hosts = slices.DeleteFunc(originated(store, "n2"), func(s string) bool { return s[len(s)-1] != '*' })
			require.Empty(t, hosts, "a service that is gone")
		})
	}
}

// TestOriginationsChange has what is announced change, and looks at whom it concerns.
func TestOriginationsChange(t *testing.T) {
	e, store := New(), views.NewStore()
	e.Configure(Options{ClusterRanges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}})
	web := &Service{Type: LoadBalancer, External: TrafficLocal, ClusterIPs: addrs("10.96.0.1"), ExternalIPs: addrs("172.20.0.1")}
	n2 := announcer("n2")
	n2.Spec.OrchRefs = []api.OrchRef{{Orchestrator: "other", NodeName: "x"}, {Orchestrator: "k8s", NodeName: "host-2"}}
	put(e, announcer("n1"), n2, bgpConfig([]string{"10.200.0.0/16"}, []string{"172.20.0.0/16"}, nil, ""))
	e.SetService("s/web", web)
	e.SetEndpointSlice("s/1", at("192.168.0.1", "n1", "host-2"))
	store.Commit(e.Flush())
	all := []string{"10.96.0.0/12", "10.96.0.1/32*", "172.20.0.0/16", "172.20.0.1/32*"}
	ranges := []string{"10.96.0.0/12", "172.20.0.0/16"}
	require.Equal(t, all, originated(store, "n1"), "the setting replaces the list of cluster ranges")
	require.Equal(t, all, originated(store, "n2"), "nodes go by their names in Kubernetes")

	flush := func() map[views.Scope]*views.Delta {
		c := e.Flush()
		store.Commit(c)
		return c.Scopes
	}
	e.SetEndpointSlice("s/1", at("192.168.0.1", "n1", "n1", "-host-2"))
	scopes := flush()
	require.NotContains(t, scopes, bgpView("n1"), "an endpoint elsewhere, or a second one here, costs a node nothing")
	require.Equal(t, ranges, originated(store, "n2"))

	// Another service has the same addresses: they go when nobody has them any more.
	e.SetService("s/twin", web)
	e.SetEndpointSlice("s/2", &EndpointSlice{Service: "s/twin", Endpoints: at("192.168.0.2", "n1").Endpoints})
	require.Empty(t, flush())
	e.SetEndpointSlice("s/1", nil)
	require.Empty(t, flush())
	require.Equal(t, all, originated(store, "n1"))
	// The slice moves to a service that does not exist yet.
	e.SetEndpointSlice("s/2", &EndpointSlice{Service: "s/late", Endpoints: at("192.168.0.2", "n1").Endpoints})
	flush()
	require.Equal(t, ranges, originated(store, "n1"))
	e.SetService("s/late", web)
	flush()
	require.Equal(t, all, originated(store, "n1"))

	// A node joins, is excluded, gets another name, and goes.
	n3 := announcer("n3")
	put(e, n3)
	require.Len(t, flush()[bgpView("n3")].Put, 2)
	excluded := announcer("n1", excludeLabel, "true")
	put(e, excluded)
	flush()
	require.Empty(t, originated(store, "n1"))
	renamed := announcer("n3")
	renamed.Spec.OrchRefs = []api.OrchRef{{Orchestrator: "k8s", NodeName: "n1"}}
	put(e, renamed)
	flush()
	require.Equal(t, all, originated(store, "n3"))
	remove(e, renamed)
	flush()
	require.Empty(t, originated(store, "n3"))
	put(e, announcer("n1"))
	flush()
	require.Equal(t, all, originated(store, "n1"))

	// The configuration goes; what typha was told by its own settings stays.
	remove(e, bgpConfig(nil, nil, nil, ""))
	flush()
	require.Equal(t, []string{"10.96.0.0/12", "10.96.0.1/32*"}, originated(store, "n1"))
}
