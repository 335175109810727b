package render_test

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/state"
)

// self is the node that everything is computed for.
const self = "worker-1"

var (
	addr   = netip.MustParseAddr
	prefix = netip.MustParsePrefix
)

// world is what a node may know, taken apart so that tests can bring it in any order.
type world struct {
	items []view.Item
	local []state.Endpoint
	paths []state.Path
	host  state.Host
	lacks map[string]string   // what the kernel cannot do
	bore  map[string][]string // interfaces of host endpoints before
}

// base is a node on eth0 (10.30.0.206/24), a neighbour in its subnet (worker-2) and one beyond a router (worker-3).
func base() *world {
	w := &world{host: state.Host{
		Interfaces: map[string]state.Interface{
			"eth0":    {Index: 2, MTU: 1500, Up: true, Addresses: []netip.Prefix{prefix("10.30.0.206/24"), prefix("fd00:30::206/64")}},
			"docker0": {Index: 9, MTU: 1400, Up: true, Addresses: []netip.Prefix{prefix("172.17.0.1/16")}},
		},
		NextHops: map[netip.Addr]state.NextHop{
			addr("10.30.0.56"):   {Via: addr("10.30.0.56"), Link: "eth0"},
			addr("10.30.1.66"):   {Via: addr("10.30.0.1"), Link: "eth0"},
			addr("10.30.0.99"):   {},
			addr("fd00:30::56"):  {Via: addr("fd00:30::56"), Link: "eth0"},
			addr("fd00:31::66"):  {Via: addr("fd00:30::1"), Link: "eth0"},
			addr("10.30.0.57"):   {Via: addr("10.30.0.57"), Link: "eth0"},
			addr("203.0.113.99"): {Via: addr("10.30.0.1"), Link: "eth0", Metric: 100},
		},
	}}
	return w.add(
		node(self, "10.30.0.206/24", "fd00:30::206/64", 1),
		node("worker-2", "10.30.0.56/24", "fd00:30::56/64", 2),
		node("worker-3", "10.30.1.66/24", "fd00:31::66/64", 3),
	)
}

// node is a node with tunnel ends of all kinds and families; the number makes them up.
func node(name, ip4, ip6 string, n byte) view.Node {
	return view.Node{
		Name: name, IPv4: prefix(ip4), IPv6: prefix(ip6), IPIPAddr: netip.AddrFrom4([4]byte{10, 88, n, 1}),
		VXLANAddr4: netip.AddrFrom4([4]byte{10, 77, n, 1}), VXLANMAC4: "66:00:00:00:04:0" + string('0'+n),
		VXLANAddr6: addr("fd00:77::" + string('0'+n)), VXLANMAC6: "66:00:00:00:06:0" + string('0'+n),
	}
}

func pool(name, cidr string, change ...func(*api.IPPool)) view.Item {
	p := &api.IPPool{}
	p.Name, p.Spec.CIDR = name, cidr
	for _, c := range change {
		c(p)
	}
	p.Default()
	return view.Resource{Object: p}
}

func vxlan(m api.VXLANMode) func(*api.IPPool) { return func(p *api.IPPool) { p.Spec.VXLANMode = m } }
func ipip(m api.IPIPMode) func(*api.IPPool)   { return func(p *api.IPPool) { p.Spec.IPIPMode = m } }
func natted(p *api.IPPool)                    { p.Spec.NATOutgoing = true }
func disabled(p *api.IPPool)                  { p.Spec.Disabled = true }

// config is the resolved configuration with some settings changed.
func config(change func(*api.FelixConfigurationSpec)) view.Item {
	c := &api.FelixConfiguration{Spec: *api.EffectiveFelix()}
	c.Name = "default"
	change(&c.Spec)
	return view.Resource{Object: c}
}

func block(dst, node string, send view.Tunnel) view.Route {
	return view.Route{Dst: prefix(dst), Type: view.RouteBlock, Node: node, Send: send, Receive: []view.Tunnel{send}}
}

func crossSubnet(r view.Route) view.Route { r.CrossSubnet = true; return r }

func typed(r view.Route, t view.RouteType) view.Route { r.Type = t; return r }

// leadsHere is the route to a floating address of a workload of this node.
func leadsHere(to string) view.Route {
	return typed(block(to+"/32", self, view.TunnelNone), view.RouteWorkload)
}

// pod is an endpoint of the node on interface "cali"+name.
func pod(name string, addrs ...string) state.Endpoint {
	e := state.Endpoint{
		ID:      view.EndpointID{Orchestrator: "k8s", Workload: "shop/" + name, Endpoint: "eth0"},
		Network: "net", ContainerID: "c-" + name, Pod: name, Namespace: "shop", Interface: "cali" + name,
		MAC: "aa:00:00:00:00:01", MTU: 1450,
	}
	for _, a := range addrs {
		e.Addresses = append(e.Addresses, addr(a))
	}
	return e
}

// follows has felix choose the endpoint's MTU.
func follows(e state.Endpoint) state.Endpoint {
	e.AutoMTU, e.Netns = true, "/run/netns/"+e.Pod
	return e
}

// policed are the items that open a pod: the endpoint, a list with one policy and one profile, and a set they use.
func policed(e state.Endpoint, change ...func(*view.WorkloadEndpoint)) []view.Item {
	w := view.WorkloadEndpoint{
		ID: e.ID, ContainerID: e.ContainerID, Interface: e.Interface, Addresses: e.Addresses, PolicyList: "l1",
	}
	for _, c := range change {
		c(&w)
	}
	return []view.Item{
		view.IPSet{ID: "s:web", Type: view.SetNet, Members: []view.Member{{Prefix: prefix("192.168.1.1/32")}, {Prefix: prefix("192.168.1.2/32")}}},
		view.Policy{ID: "np/shop/web", Tier: "default", Ingress: []view.Rule{{Action: view.Allow, Source: view.Match{Sets: []string{"s:web"}}}}},
		view.Policy{ID: "snp/shop/try", Tier: "default", Staged: true, Ingress: []view.Rule{{Action: view.Deny}}},
		view.Policy{ID: "pro/kns.shop", Egress: []view.Rule{{Action: view.Allow}}},
		view.PolicyList{
			ID: "l1", Profiles: []string{"pro/kns.shop"},
			Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{"snp/shop/try", "np/shop/web"}}},
		},
		w,
	}
}

// hosted are host endpoints of each kind: two that claim eth0, one by its address; one whose address the host does not have;
// one of an interface that is not there; and all others.
func hosted() []view.Item {
	return hostsOf(
		view.HostEndpoint{Name: "b-eth0", Interface: "eth0", Normal: "l1"},
		view.HostEndpoint{Name: "a-by-address", ExpectedIPs: []netip.Addr{addr("10.30.0.206")}, Normal: "h-normal", Untracked: "h-untracked", Forward: "h-forward"},
		view.HostEndpoint{Name: "c-elsewhere", ExpectedIPs: []netip.Addr{addr("10.30.9.9")}, Normal: "h-normal"},
		view.HostEndpoint{Name: "d-later", Interface: "bond7", Normal: "h-normal", PreDNAT: "h-prednat"},
		view.HostEndpoint{Name: "all", Interface: "*", Normal: "l1", PreDNAT: "h-prednat", Forward: "h-forward"},
		view.HostEndpoint{Name: "everything", Interface: "*", Normal: "l1"},
	)
}

// hostsOf are host endpoints with the lists of policies that they may have.
func hostsOf(endpoints ...view.HostEndpoint) []view.Item {
	tier := func(ingress, egress string) []view.TierPolicies {
		t := view.TierPolicies{Name: "default", DefaultAction: view.Deny}
		if ingress != "" {
			t.Ingress = []string{ingress}
		}
		if egress != "" {
			t.Egress = []string{egress}
		}
		return []view.TierPolicies{t}
	}
	rules := []view.Rule{{Action: view.Deny, Protocol: 17}}
	items := append(policed(pod("web", "192.168.1.5")),
		view.Policy{ID: "gnp/no-track", Tier: "default", DoNotTrack: true, ApplyOnForward: true, Ingress: rules, Egress: rules},
		view.Policy{ID: "gnp/early", Tier: "default", PreDNAT: true, ApplyOnForward: true, Ingress: rules},
		view.Policy{ID: "gnp/transit", Tier: "default", ApplyOnForward: true, Ingress: rules},
		view.Policy{ID: "gnp/deny-dns", Tier: "default", Egress: rules},
		view.Policy{ID: "sgnp/try", Tier: "default", Staged: true, ApplyOnForward: true, Ingress: rules},
		view.PolicyList{ID: "h-untracked", Tiers: tier("gnp/no-track", "gnp/no-track")},
		view.PolicyList{ID: "h-prednat", Tiers: tier("gnp/early", "")},
		view.PolicyList{ID: "h-forward", Tiers: tier("gnp/transit", "")},
		view.PolicyList{ID: "h-staged", Tiers: tier("sgnp/try", "")},
		view.PolicyList{ID: "h-normal", Tiers: tier("gnp/transit", "gnp/deny-dns"), Profiles: []string{"pro/kns.shop"}},
	)
	for _, e := range endpoints {
		items = append(items, e)
	}
	return items
}

// stagedHosts are an endpoint of all interfaces, with a list of its own before translation, and one of eth0 with staged policies alone;
// bond7's has none.
func stagedHosts(early string) []view.Item {
	rules := []view.Rule{{Action: view.Deny, Protocol: 17}}
	of := func(policy string, both bool) []view.TierPolicies {
		t := view.TierPolicies{Name: "default", DefaultAction: view.Deny, Ingress: []string{policy}}
		if both {
			t.Egress = t.Ingress
		}
		return []view.TierPolicies{t}
	}
	return append(hostsOf(
		view.HostEndpoint{Name: "all", Interface: "*", Normal: "h-normal", PreDNAT: early},
		view.HostEndpoint{Name: "later", Interface: "bond7", Normal: "h-normal"},
		view.HostEndpoint{Name: "own", Interface: "eth0", Normal: "h-normal", Untracked: "h-staged-raw", PreDNAT: "h-staged-early", Forward: "h-staged"},
	),
		view.Policy{ID: "sgnp/raw", Tier: "default", Staged: true, DoNotTrack: true, ApplyOnForward: true, Ingress: rules, Egress: rules},
		view.Policy{ID: "sgnp/early", Tier: "default", Staged: true, PreDNAT: true, ApplyOnForward: true, Ingress: rules},
		view.PolicyList{ID: "h-staged-raw", Tiers: of("sgnp/raw", true)},
		view.PolicyList{ID: "h-staged-early", Tiers: of("sgnp/early", false)},
	)
}

func path(dst string, hops ...string) state.Path {
	p := state.Path{Prefix: prefix(dst), Ways: &state.Ways{}}
	for _, h := range hops {
		p.Ways.NextHops = append(p.Ways.NextHops, addr(h))
	}
	return p
}

func (w *world) add(items ...view.Item) *world { w.items = append(w.items, items...); return w }

func (w *world) wire(e ...state.Endpoint) *world { w.local = append(w.local, e...); return w }

func (w *world) learn(p ...state.Path) *world { w.paths = append(w.paths, p...); return w }

// nic replaces an interface of the host.
func (w *world) nic(name string, mtu int, up bool, addrs ...string) *world {
	i := state.Interface{Index: cmp.Or(w.host.Interfaces[name].Index, 10+len(w.host.Interfaces)), MTU: mtu, Up: up}
	for _, a := range addrs {
		i.Addresses = append(i.Addresses, prefix(a))
	}
	w.host.Interfaces[name] = i
	return w
}

// leaves says by which links packets to other nodes leave.
func (w *world) leaves(links ...string) *world { w.host.Uplinks = links; return w }

// way says by which link packets to another node leave.
func (w *world) way(node netip.Addr, link string) *world {
	w.host.Ways = maps.Clone(w.host.Ways)
	if w.host.Ways == nil {
		w.host.Ways = map[netip.Addr]string{}
	}
	w.host.Ways[node] = link
	return w
}

// loopback says which of the node's addresses are on the loopback.
func (w *world) loopback(addrs ...netip.Addr) *world { w.host.Loopback = addrs; return w }

// bears says on which interface a host endpoint was found before.
func (w *world) bears(endpoint, iface string) *world {
	w.bore = map[string][]string{endpoint: {iface}}
	return w
}

// without says what the kernel cannot do.
func (w *world) without(capabilities ...string) *world {
	w.lacks = map[string]string{}
	for _, c := range capabilities {
		w.lacks[c] = "the module is not there"
	}
	return w
}

// replace puts another item in the place of the one with its key.
func (w *world) replace(it view.Item) *world {
	i := slices.IndexFunc(w.items, func(old view.Item) bool { return old.Key() == it.Key() })
	w.items[i] = it
	return w
}

// state brings everything at once.
func (w *world) state() *state.State {
	s := state.New(self)
	s.SetHost(state.Host{Interfaces: maps.Clone(w.host.Interfaces), NextHops: maps.Clone(w.host.NextHops), Uplinks: w.host.Uplinks, Ways: w.host.Ways, Loopback: w.host.Loopback})
	s.SetCapabilities(state.Capabilities{Lacks: w.lacks})
	s.SetBearers(w.bore)
	s.Apply(view.Batch{Updates: w.items, InSync: true})
	for _, e := range w.local {
		s.SetLocal(e)
	}
	for _, p := range w.paths {
		s.SetPath(p)
	}
	return s
}
