package compute

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/typha/cache"
)

// world is the objects of a small, crowded cluster, in which everything that can meet does.
type world struct {
	r       *rand.Rand
	objects map[api.Key]api.Object
	sorted  []api.Object // objects in the order of their keys; nil when out of date

	services map[string]*Service
	slices   map[string]*EndpointSlice
	values   map[SecretRef][]byte
}

func newWorld(seed uint64) *world {
	return &world{
		r: rand.New(rand.NewPCG(seed, 1)), objects: map[api.Key]api.Object{},
		services: map[string]*Service{}, slices: map[string]*EndpointSlice{}, values: map[SecretRef][]byte{},
	}
}

var (
	worldNodes      = []string{"n1", "n2", "n3"}
	worldNamespaces = []string{"red", "blue"}
	worldTiers      = []string{"default", "security", "platform", "kube-baseline"}
	worldProfiles   = []string{"kns.red", "kns.blue", "ksa.red.bot", api.ProfileDefaultAllow}
	worldValues     = []string{"a", "b", "c"}
)

func (w *world) pick(from []string) string { return from[w.r.IntN(len(from))] }

func (w *world) chance(percent int) bool { return w.r.IntN(100) < percent }

// step changes one random thing, and tells the engine.
func (w *world) step(e *Engine) {
	if w.chance(20) {
		w.stepKubernetes(e)
		return
	}
	w.sorted = nil
	o := w.random()
	key := api.KeyOf(o)
	if w.objects[key] != nil && w.chance(35) {
		delete(w.objects, key)
		e.Apply(cache.Change{Key: key})
		return
	}
	w.objects[key] = o
	e.Apply(cache.Change{Key: key, Object: o})
}

// all bring the whole world in, in an order that the seed alone decides, so that a failure can be seen again.
func (w *world) all() []func(*Engine) {
	var out []func(*Engine)
	for _, k := range slices.SortedFunc(maps.Keys(w.objects), compareKeys) {
		out = append(out, func(e *Engine) { e.Apply(cache.Change{Key: k, Object: w.objects[k]}) })
	}
	for _, name := range slices.Sorted(maps.Keys(w.services)) {
		out = append(out, func(e *Engine) { e.SetService(name, w.services[name]) })
	}
	for _, name := range slices.Sorted(maps.Keys(w.slices)) {
		out = append(out, func(e *Engine) { e.SetEndpointSlice(name, w.slices[name]) })
	}
	w.r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// answer has every value that an engine asks for looked up.
func (w *world) answer(e *Engine) {
	for _, ref := range e.Secrets() {
		e.SetSecret(ref, w.values[ref])
	}
}

func (w *world) random() api.Object {
	switch w.r.IntN(28) {
	case 0, 1, 2, 3, 4, 5:
		return w.workload()
	case 6, 7:
		return w.host()
	case 8:
		return w.networkSet()
	case 9:
		return w.globalNetworkSet()
	case 10, 11:
		return w.networkPolicy()
	case 12, 13:
		return w.globalNetworkPolicy()
	case 14:
		return w.staged()
	case 15:
		return w.tier()
	case 16:
		return w.profile()
	case 17, 18:
		return w.node()
	case 19:
		return w.felix()
	case 20:
		return w.pool()
	case 21, 22, 23:
		return w.block()
	case 24:
		return w.affinity()
	default:
		return w.bgp()
	}
}

func (w *world) labels(more ...string) map[string]string {
	m := map[string]string{}
	for _, k := range append([]string{"app", "env"}, more...) {
		if w.chance(60) {
			m[k] = w.pick(worldValues)
		}
	}
	return m
}

func (w *world) selector() string {
	k, v := w.pick([]string{"app", "env"}), w.pick(worldValues)
	return w.pick([]string{
		"", "all()", fmt.Sprintf("%s == '%s'", k, v), fmt.Sprintf("has(%s)", k), fmt.Sprintf("!has(%s)", k),
		fmt.Sprintf("%s in {'a', '%s'} && has(app)", k, v), fmt.Sprintf("app == 'a' || env == '%s'", v),
		fmt.Sprintf("%s != '%s'", k, v), "pcns.team == 'x'", "projectcalico.org/orchestrator == 'k8s'",
	})
}

func (w *world) workload() api.Object {
	o := &api.WorkloadEndpoint{}
	node, n := w.pick(worldNodes), w.r.IntN(4)
	o.Namespace = w.pick(worldNamespaces)
	o.Spec.Node, o.Spec.Orchestrator, o.Spec.Endpoint = node, api.OrchestratorKubernetes, "eth0"
	o.Spec.Pod = fmt.Sprintf("pod%d", n)
	o.Name = fmt.Sprintf("%s-k8s-pod%d-eth0", node, n)
	o.Labels = w.labels("pcns.team", "projectcalico.org/namespace")
	o.Spec.ContainerID = w.pick(worldValues)
	o.Spec.Profiles = []string{"kns." + o.Namespace}
	if w.chance(30) {
		o.Spec.Profiles = append(o.Spec.Profiles, w.pick(worldProfiles))
	}
	if w.chance(30) {
		o.Spec.ServiceAccountName = "bot"
	}
	if w.chance(90) {
		o.Spec.IPNetworks = []string{fmt.Sprintf("10.0.0.%d/32", w.r.IntN(20))}
	}
	if w.chance(30) {
		o.Spec.IPNetworks = append(o.Spec.IPNetworks, fmt.Sprintf("fd00::%d/128", w.r.IntN(20)+1))
	}
	if w.chance(20) {
		o.Spec.IPNATs = []api.IPNAT{{InternalIP: fmt.Sprintf("10.0.0.%d", w.r.IntN(20)), ExternalIP: fmt.Sprintf("10.0.0.%d", 10+w.r.IntN(20))}}
	}
	if w.chance(50) {
		o.Spec.Ports = []api.WorkloadEndpointPort{{Name: w.pick([]string{"http", "dns"}), Protocol: api.ProtocolTCP, Port: 80}}
	}
	if w.chance(20) {
		o.Spec.Ports = append(o.Spec.Ports, api.WorkloadEndpointPort{Name: "dns", Protocol: api.ProtocolUDP, Port: 53})
	}
	return o
}

func (w *world) host() api.Object {
	o := &api.HostEndpoint{}
	o.Name = fmt.Sprintf("hep%d", w.r.IntN(3))
	o.Labels = w.labels()
	o.Spec.Node = w.pick(worldNodes)
	o.Spec.InterfaceName = w.pick([]string{"*", "eth0"})
	o.Spec.ExpectedIPs = []string{fmt.Sprintf("192.168.0.%d", w.r.IntN(5)+1)}
	if w.chance(50) {
		o.Spec.Profiles = []string{w.pick(worldProfiles)}
	}
	if w.chance(50) {
		o.Spec.Ports = []api.EndpointPort{{Name: "http", Protocol: api.ProtocolTCP, Port: 8080}}
	}
	return o
}

func (w *world) networkSet() api.Object {
	o := &api.NetworkSet{}
	o.Name, o.Namespace, o.Labels = fmt.Sprintf("set%d", w.r.IntN(2)), w.pick(worldNamespaces), w.labels("pcns.team")
	o.Spec.Nets = []string{fmt.Sprintf("172.16.%d.0/24", w.r.IntN(3)), "10.0.0.1/32"}
	return o
}

func (w *world) globalNetworkSet() api.Object {
	o := &api.GlobalNetworkSet{}
	o.Name, o.Labels = fmt.Sprintf("gset%d", w.r.IntN(2)), w.labels("pcns.team")
	o.Spec.Nets = []string{fmt.Sprintf("172.16.%d.0/24", w.r.IntN(3)), fmt.Sprintf("172.17.%d.0/24", w.r.IntN(3))}
	return o
}

func (w *world) rule() api.Rule {
	r := api.Rule{Action: api.Action(w.pick([]string{"Allow", "Deny", "Pass", "Log"}))}
	if w.chance(60) {
		tcp := api.ProtocolTCP
		r.Protocol = &tcp
		if w.chance(50) {
			r.Destination.Ports = []api.Port{api.SinglePort(443), {Name: w.pick([]string{"http", "dns"})}}
		}
	}
	for _, e := range []*api.EntityRule{&r.Source, &r.Destination} {
		if w.chance(40) {
			e.Selector = w.selector()
		}
		if w.chance(20) {
			e.NotSelector = w.selector()
		}
		if w.chance(20) {
			e.NamespaceSelector = w.pick([]string{"team == 'x'", "all()", "global()"})
		}
		if w.chance(10) {
			e.ServiceAccounts = &api.ServiceAccountMatch{Names: []string{"bot"}}
		}
		if w.chance(10) {
			e.Nets = []string{"10.0.0.0/8"}
		}
		if w.chance(10) && len(r.Destination.Ports) == 0 {
			*e = api.EntityRule{Services: &api.ServiceMatch{Namespace: w.pick(worldNamespaces), Name: w.pick(worldServices)}}
		}
	}
	return r
}

func (w *world) policySpec() (s api.NetworkPolicySpec) {
	s.Tier = w.pick(worldTiers)
	if w.chance(60) {
		order := float64(w.r.IntN(3))
		s.Order = &order
	}
	s.Selector = w.selector()
	s.Types = [][]api.PolicyType{nil, {api.Ingress}, {api.Egress}, {api.Ingress, api.Egress}}[w.r.IntN(4)]
	for range w.r.IntN(3) {
		s.Ingress = append(s.Ingress, w.rule())
	}
	for range w.r.IntN(2) {
		s.Egress = append(s.Egress, w.rule())
	}
	if w.chance(20) {
		s.ServiceAccountSelector = "role == 'robot'"
	}
	if w.chance(10) {
		s.PerformanceHints = []api.PolicyPerformanceHint{api.AssumeNeededOnEveryNode}
	}
	return s
}

func (w *world) networkPolicy() api.Object {
	o := &api.NetworkPolicy{Spec: w.policySpec()}
	o.Namespace, o.Name = w.pick(worldNamespaces), w.pick([]string{"p0", "p1", "knp.default.p0"})
	return o
}

func (w *world) globalSpec() api.GlobalNetworkPolicySpec {
	s := api.GlobalNetworkPolicySpec{NetworkPolicySpec: w.policySpec()}
	if w.chance(30) {
		s.NamespaceSelector = w.pick([]string{"team == 'x'", "all()", "team != 'x'"})
	}
	switch w.r.IntN(6) {
	case 0:
		s.ApplyOnForward = true
	case 1:
		s.ApplyOnForward, s.DoNotTrack = true, true
	case 2:
		s.ApplyOnForward, s.PreDNAT = true, true
		s.Egress, s.Types = nil, []api.PolicyType{api.Ingress}
	}
	return s
}

func (w *world) globalNetworkPolicy() api.Object {
	o := &api.GlobalNetworkPolicy{Spec: w.globalSpec()}
	o.Name = fmt.Sprintf("g%d", w.r.IntN(4))
	return o
}

func (w *world) staged() api.Object {
	if w.chance(50) {
		o := &api.StagedGlobalNetworkPolicy{}
		o.Name = "g0"
		o.Spec.GlobalNetworkPolicySpec = w.globalSpec()
		o.Spec.StagedAction = api.StagedAction(w.pick([]string{"", "Set", "Delete"}))
		return o
	}
	o := &api.StagedNetworkPolicy{}
	o.Name, o.Namespace = "p0", w.pick(worldNamespaces)
	o.Spec.NetworkPolicySpec = w.policySpec()
	return o
}

func (w *world) tier() api.Object {
	o := &api.Tier{}
	o.Name = w.pick(worldTiers)
	if w.chance(70) {
		order := float64(w.r.IntN(3))
		o.Spec.Order = &order
	}
	if w.chance(50) {
		a := api.Pass
		o.Spec.DefaultAction = &a
	}
	return o
}

func (w *world) profile() api.Object {
	o := &api.Profile{}
	o.Name = w.pick(worldProfiles)
	o.Spec.LabelsToApply = map[string]string{}
	if w.chance(60) {
		o.Spec.LabelsToApply["pcns.team"] = w.pick([]string{"x", "y"})
	}
	if w.chance(40) {
		o.Spec.LabelsToApply["app"] = w.pick(worldValues)
	}
	if w.chance(40) {
		o.Spec.LabelsToApply["pcsa.role"] = "robot"
	}
	for range w.r.IntN(2) {
		o.Spec.Ingress = append(o.Spec.Ingress, w.rule())
	}
	return o
}

func (w *world) node() api.Object {
	o := &api.Node{}
	o.Name = w.pick(worldNodes)
	o.Labels = w.labels()
	if w.chance(20) {
		o.Labels[excludeLabel] = w.pick([]string{"true", "false"})
	}
	if w.chance(30) {
		o.Spec.OrchRefs = []api.OrchRef{{Orchestrator: w.pick([]string{"k8s", "other"}), NodeName: w.pick(worldNodes)}}
	}
	if w.chance(80) {
		o.Spec.BGP = &api.NodeBGPSpec{IPv4Address: fmt.Sprintf("10.30.0.%d/24", w.r.IntN(3)+1)}
		o.Spec.BGP.RouteReflectorClusterID = w.pick([]string{"", "", "1.0.0.1", "bad"})
		if w.chance(30) {
			o.Spec.BGP.ASNumber = new(api.ASNumber(64500))
		}
	}
	if w.chance(60) {
		o.Spec.IPv4VXLANTunnelAddr = fmt.Sprintf("10.0.0.%d", w.r.IntN(20))
	}
	if o.Spec.BGP != nil && w.chance(40) {
		o.Spec.BGP.IPv4IPIPTunnelAddr = fmt.Sprintf("10.0.0.%d", w.r.IntN(20))
	}
	return o
}

func (w *world) felix() api.Object {
	o := &api.FelixConfiguration{}
	o.Name = w.pick([]string{"default", "node.n1", "node.n2", "zone-a", "zone-b"})
	if o.Name[:4] == "zone" && w.chance(80) {
		s := "app == 'a'"
		o.Spec.NodeSelector = &s
	}
	o.Spec.LogPrefix = w.pick([]string{"", "x", "y"})
	o.Spec.LogSeverityScreen = w.pick([]string{"", "Debug", "Info"})
	return o
}

func (w *world) pool() api.Object {
	o := &api.IPPool{}
	o.Name = fmt.Sprintf("pool%d", w.r.IntN(3))
	o.Spec.CIDR = w.pick([]string{"10.0.0.0/24", "10.0.0.0/28", "fd00::/64"})
	o.Spec.VXLANMode = api.VXLANMode(w.pick([]string{"", "Never", "Always", "CrossSubnet"}))
	if o.Spec.VXLANMode == "" {
		o.Spec.IPIPMode = api.IPIPMode(w.pick([]string{"", "Always", "CrossSubnet"}))
	}
	o.Spec.NATOutgoing = w.chance(50)
	return o
}

var worldBlocks = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/29"), netip.MustParsePrefix("10.0.0.8/29"), netip.MustParsePrefix("10.0.0.16/30"),
	netip.MustParsePrefix("fd00::/125"),
}

func (w *world) block() api.Object {
	cidr := worldBlocks[w.r.IntN(len(worldBlocks))]
	b := api.NewIPAMBlock(cidr)
	if w.chance(80) {
		affinity := w.pick([]string{"host:n1", "host:n2", "host:n3", "virtual:load-balancer"})
		b.Spec.Affinity = &affinity
	}
	b.Spec.Attributes = []api.AllocationAttribute{
		{Owner: map[string]string{api.OwnerNode: "n1"}},
		{Owner: map[string]string{api.OwnerNode: "n2"}},
		{Owner: map[string]string{api.OwnerNode: "n1", api.OwnerType: "vxlanTunnelAddress"}},
		{},
	}
	for i := range b.Spec.Allocations {
		if w.chance(50) {
			n := w.r.IntN(4)
			b.Spec.Allocations[i] = &n
		}
	}
	b.Spec.Deleted = w.chance(5)
	return b
}

func (w *world) affinity() api.Object {
	state := api.AffinityState(w.pick([]string{"", "pending", "confirmed", "pendingDeletion"}))
	return api.NewBlockAffinity(api.AffinityHost, w.pick(worldNodes), worldBlocks[w.r.IntN(len(worldBlocks))], state)
}

// of returns the objects of a Go type, in the order of their keys.
func of[T api.Object](w *world) []T {
	if w.sorted == nil {
		for _, k := range slices.SortedFunc(maps.Keys(w.objects), compareKeys) {
			w.sorted = append(w.sorted, w.objects[k])
		}
	}
	var out []T
	for _, o := range w.sorted {
		if o, ok := o.(T); ok {
			out = append(out, o)
		}
	}
	return out
}

func compareKeys(a, b api.Key) int {
	return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
