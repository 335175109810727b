// Package generate makes up worlds for the oracle and what enforces policy to disagree on: small and crowded, so that what
// can meet does. Everything follows from a seed. Shrink makes a world in which something was found small enough to read.
package generate

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/oracle"
)

// Node is the node that is looked at. Local endpoints are on it; there are others on another.
const Node = "n1"

// Generator makes up worlds and packets.
type Generator struct {
	r        *rand.Rand
	world    oracle.World
	settings oracle.Settings
	local    []*api.WorkloadEndpoint
	wires    map[api.Key][2]netip.Addr // addresses that lead to local, by family
	// interesting addresses, by family: those of endpoints, sets and rules
	interesting [2][]netip.Addr
}

// New returns a generator with a world that follows from the seed.
func New(seed uint64) *Generator {
	return generator(rand.NewPCG(seed, 0x6d75736c696e), rand.NewPCG(seed, 0x77696465))
}

// From returns a generator that makes its choices by the bytes, one each, and when there are no more by what they add up to.
func From(data []byte) *Generator {
	sum := fnv.New64()
	_, _ = sum.Write(data)
	return generator(&choices{data, rand.NewPCG(sum.Sum64(), 1)}, rand.NewPCG(sum.Sum64(), 2))
}

// choices is a source of numbers that are chosen by bytes.
type choices struct {
	left []byte
	then *rand.PCG
}

// Uint64 is the next number: what is made of it follows from its highest bits.
func (c *choices) Uint64() uint64 {
	if len(c.left) == 0 {
		return c.then.Uint64()
	}
	b := c.left[0]
	c.left = c.left[1:]
	return uint64(b) * 0x0101010101010101
}

// generator makes a world out of two sources: cluster-wide policies of Kubernetes and failsafe ports have one of their own, so that a
// seed is the same world but for them as it was before they were there.
func generator(source, wide rand.Source) *Generator {
	g := &Generator{r: rand.New(source), wires: map[api.Key][2]netip.Addr{}}
	g.settings = oracle.Settings{
		Node: Node, EndpointToHost: pick(g, "Drop", "Accept", "Return"), VXLANPort: pick[uint16](g, 4789, 8000), AllowVXLAN: g.chance(30), AllowIPIP: g.chance(30),
	}
	for _, ns := range namespaces {
		g.add(g.namespace(ns))
		g.add(g.account(ns))
	}
	g.add(g.looseProfile())
	for i := range 9 {
		e := g.workload(i)
		g.add(e)
		if e.Spec.Node == Node {
			g.local = append(g.local, e)
			g.wires[api.KeyOf(e)] = [2]netip.Addr{address(e, 0), address(e, 1)}
		}
	}
	for i := range g.r.IntN(3) {
		g.add(g.host(i))
	}
	if g.chance(40) {
		g.add(g.own("hep-own", oracle.Uplink))
	}
	if g.chance(30) {
		g.add(g.own("hep-any", "*"))
	}
	for i := range g.r.IntN(3) {
		g.add(g.networkSet(i))
		g.add(g.globalNetworkSet(i))
	}
	for _, name := range services {
		g.world.Services = append(g.world.Services, g.service(name))
	}
	for _, name := range tiers[1:] {
		if g.chance(80) {
			g.add(g.tier(name))
		}
	}
	for i := range 1 + g.r.IntN(7) {
		g.policy(i)
	}
	rest := g.r
	g.r = rand.New(wide)
	for i := range g.r.IntN(3) {
		g.clusterWide(i)
	}
	g.settings.FailsafeIn, g.settings.FailsafeOut = g.failsafes(), g.failsafes()
	g.r = rest
	return g
}

// OnlyIPv4 takes their IPv6 addresses from the node's workloads, and its host endpoints away: then it writes no policy of IPv6. Packets of it
// are made up as before.
func (g *Generator) OnlyIPv4() {
	for _, e := range g.local {
		e.Spec.IPNetworks = e.Spec.IPNetworks[:1]
	}
	g.world.Objects = slices.DeleteFunc(g.world.Objects, func(o api.Object) bool {
		h, ok := o.(*api.HostEndpoint)
		return ok && h.Spec.Node == Node
	})
}

// World is what was made up.
func (g *Generator) World() oracle.World { return g.world }

// Settings are those of the node.
func (g *Generator) Settings() oracle.Settings { return g.settings }

// Local are the workloads of the node.
func (g *Generator) Local() []*api.WorkloadEndpoint { return g.local }

func (g *Generator) add(o api.Object) { g.world.Objects = append(g.world.Objects, o) }

func (g *Generator) chance(percent int) bool { return g.r.IntN(100) < percent }

func pick[T any](g *Generator, from ...T) T { return from[g.r.IntN(len(from))] }

// What things are called.
var (
	namespaces = []string{"red", "blue"}
	services   = []string{"red/web", "blue/web", "blue/empty"}
	tiers      = []string{"default", "kube-admin", "kube-baseline", "first", "last", "other"}
	values     = []string{"a", "b", "ab"}
	keys       = []string{"app", "env"}
	portNames  = []string{"http", "dns"}
)

func (g *Generator) labels() map[string]string {
	m := map[string]string{}
	for _, k := range keys {
		if g.chance(60) {
			m[k] = pick(g, values...)
		}
	}
	return m
}

func (g *Generator) namespace(name string) api.Object {
	o := &api.Profile{}
	o.Name = "kns." + name
	o.Spec.LabelsToApply = map[string]string{"pcns.projectcalico.org/name": name}
	if g.chance(60) {
		o.Spec.LabelsToApply["pcns.team"] = pick(g, values...)
	}
	o.Spec.Ingress, o.Spec.Egress = []api.Rule{{Action: api.Allow}}, []api.Rule{{Action: api.Allow}}
	return o
}

func (g *Generator) account(namespace string) api.Object {
	o := &api.Profile{}
	o.Name = "ksa." + namespace + ".bot"
	o.Spec.LabelsToApply = map[string]string{"pcsa.projectcalico.org/name": "bot"}
	if g.chance(60) {
		o.Spec.LabelsToApply["pcsa.role"] = pick(g, values...)
	}
	return o
}

// looseProfile is one with rules of its own, as workloads outside of Kubernetes have.
func (g *Generator) looseProfile() api.Object {
	o := &api.Profile{}
	o.Name = "loose"
	o.Spec.LabelsToApply = map[string]string{"app": pick(g, values...)}
	o.Spec.Ingress, o.Spec.Egress = g.rules(3, api.Ingress, ""), g.rules(3, api.Egress, "")
	return o
}

func (g *Generator) workload(i int) *api.WorkloadEndpoint {
	o := &api.WorkloadEndpoint{}
	node := Node
	if i%3 == 2 {
		node = "n2"
	}
	o.Namespace, o.Labels = pick(g, namespaces...), g.labels()
	if g.chance(10) {
		o.Labels["pcns.team"] = pick(g, values...) // a forgery
	}
	s := &o.Spec
	s.Node, s.Orchestrator, s.Endpoint, s.Pod = node, api.OrchestratorKubernetes, "eth0", fmt.Sprintf("pod%d", i)
	s.ContainerID, s.InterfaceName = fmt.Sprintf("c%d", i), fmt.Sprintf("cali%d", i)
	o.Name = fmt.Sprintf("%s-k8s-%s-eth0", node, s.Pod)
	s.Profiles = []string{"kns." + o.Namespace}
	if g.chance(40) {
		s.ServiceAccountName = "bot"
		s.Profiles = append(s.Profiles, "ksa."+o.Namespace+".bot")
	}
	if g.chance(15) {
		s.Profiles = append([]string{"loose"}, s.Profiles[g.r.IntN(2):]...)
	}
	if g.chance(12) {
		s.Orchestrator, s.Pod, s.Profiles = api.OrchestratorCNI, "", []string{"loose"}
		o.Name = fmt.Sprintf("%s-cni-c%d-eth0", node, i)
	}
	s.IPNetworks = []string{fmt.Sprintf("10.65.0.%d/32", i+1), fmt.Sprintf("fd00:65::%x/128", i+1)}
	if g.chance(50) {
		s.Ports = append(s.Ports, api.WorkloadEndpointPort{Name: pick(g, portNames...), Protocol: api.ProtocolTCP, Port: pick[uint16](g, 80, 8080)})
	}
	if g.chance(40) {
		s.Ports = append(s.Ports, api.WorkloadEndpointPort{Name: "dns", Protocol: pick(g, api.ProtocolUDP, api.ProtocolSCTP), Port: 53})
	}
	g.note(s.IPNetworks...)
	return o
}

// host is a host endpoint of another node, which rules may mean as a peer.
func (g *Generator) host(i int) api.Object {
	o := &api.HostEndpoint{}
	o.Name, o.Labels = fmt.Sprintf("hep%d", i), g.labels()
	o.Spec.Node, o.Spec.InterfaceName = "n2", fmt.Sprintf("eth%d", i)
	o.Spec.ExpectedIPs = []string{fmt.Sprintf("192.168.7.%d", i+1), fmt.Sprintf("fd00:7::%d", i+1)}
	if g.chance(50) {
		o.Spec.Ports = []api.EndpointPort{{Name: pick(g, portNames...), Protocol: api.ProtocolTCP, Port: 80}}
	}
	g.note(o.Spec.ExpectedIPs...)
	return o
}

// own is a host endpoint of the node.
func (g *Generator) own(name, iface string) api.Object {
	o := &api.HostEndpoint{}
	o.Name, o.Labels = name, g.labels()
	o.Spec.Node, o.Spec.InterfaceName, o.Spec.ExpectedIPs = Node, iface, []string{"192.168.9.1", "fd00:9::1"}
	o.Spec.Profiles = pick(g, nil, []string{api.ProfileDefaultAllow}, []string{"loose"})
	return o
}

// failsafes are failsafe ports: those that nobody has asked for otherwise, none, or some that packets go to.
func (g *Generator) failsafes() string {
	if g.chance(40) {
		return pick(g, "", "", "none")
	}
	var out []string
	for range 1 + g.r.IntN(3) {
		entry := pick(g, "tcp", "tcp", "udp", "sctp")
		switch n := pick(g, append(netsOf(4), netsOf(6)...)...); {
		case g.chance(40):
		case strings.Contains(n, ":"):
			entry += ":[" + n + "]"
		default:
			entry += ":" + n
		}
		out = append(out, fmt.Sprintf("%s:%d", entry, pick(g, 22, 53, 80, 443, 8080, 9000)))
	}
	if g.chance(20) {
		out = append(out, "81")
	}
	return strings.Join(out, ",")
}

func (g *Generator) networkSet(i int) api.Object {
	o := &api.NetworkSet{}
	o.Name, o.Namespace, o.Labels = fmt.Sprintf("set%d", i), pick(g, namespaces...), g.labels()
	o.Spec.Nets = g.someNets()
	return o
}

func (g *Generator) globalNetworkSet(i int) api.Object {
	o := &api.GlobalNetworkSet{}
	o.Name, o.Labels = fmt.Sprintf("gset%d", i), g.labels()
	o.Spec.Nets = g.someNets()
	return o
}

// someNets are networks of both families, which may overlap each other and the endpoints' addresses.
func (g *Generator) someNets() (out []string) {
	seen := map[string]bool{}
	for range 1 + g.r.IntN(4) {
		n := pick(g, append(netsOf(4), netsOf(6)...)...)
		if !seen[n] {
			out = append(out, n)
		}
		seen[n] = true
	}
	g.note(out...)
	return out
}

func netsOf(version int) []string {
	if version == 6 {
		return []string{"fd00:65::/124", "fd00:65::2/128", "fd00:7::/64", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::5", "::/1"}
	}
	return []string{"10.65.0.0/29", "10.65.0.2/32", "192.168.7.0/24", "203.0.113.0/24", "203.0.113.128/25", "203.0.113.7", "128.0.0.0/1"}
}

// note remembers the addresses at the edges of networks.
func (g *Generator) note(nets ...string) {
	for _, n := range nets {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			a := netip.MustParseAddr(n)
			p = netip.PrefixFrom(a, a.BitLen())
		}
		family := 0
		if p.Addr().Is6() {
			family = 1
		}
		last := p.Masked().Addr().AsSlice()
		for bit := p.Bits(); bit < p.Addr().BitLen(); bit++ {
			last[bit/8] |= 0x80 >> (bit % 8)
		}
		end, _ := netip.AddrFromSlice(last)
		for _, a := range []netip.Addr{p.Masked().Addr(), end, p.Masked().Addr().Prev(), end.Next()} {
			if a.IsValid() && !a.IsMulticast() && !a.IsUnspecified() && !a.IsLoopback() {
				g.interesting[family] = append(g.interesting[family], a)
			}
		}
	}
}

func (g *Generator) service(name string) oracle.Service {
	s := oracle.Service{Name: name}
	if name == "blue/empty" {
		return s
	}
	for _, o := range g.world.Objects {
		if e, ok := o.(*api.WorkloadEndpoint); ok && g.chance(35) {
			for _, n := range e.Spec.IPNetworks {
				s.Addresses = append(s.Addresses, netip.MustParsePrefix(n).Addr())
			}
		}
	}
	if g.chance(60) {
		s.Ports = append(s.Ports, oracle.Port{Protocol: oracle.TCP, Number: pick[uint16](g, 80, 443)})
	}
	if g.chance(30) {
		s.Ports = append(s.Ports, oracle.Port{Protocol: oracle.UDP, Number: 53})
	}
	return s
}

func (g *Generator) tier(name string) api.Object {
	o := &api.Tier{}
	o.Name = name
	switch name {
	case api.TierKubeAdmin:
		o.Spec.Order, o.Spec.DefaultAction = new(api.OrderKubeAdmin), new(api.Pass)
		return o
	case api.TierKubeBaseline:
		o.Spec.Order, o.Spec.DefaultAction = new(api.OrderKubeBaseline), new(api.Pass)
		return o
	}
	if g.chance(80) {
		o.Spec.Order = new(pick[float64](g, 1, 2, 2, 2_000_000, -1.5))
	}
	if g.chance(60) {
		o.Spec.DefaultAction = new(pick(g, api.Pass, api.Deny))
	}
	return o
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}
