package scale

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

// World is the objects of a generated cluster, and what becomes of them as it changes. It is pure: it says what to write, and a
// Writer writes it. It is not safe for concurrent use.
//
// Pods are spread over namespaces of very different size (exponentially distributed) and over all nodes, so that a node has pods
// of as many namespaces as it has pods, nearly. A namespace has from one to five policies, one network set at most, and pods of
// two to six applications. One policy in a hundred is cluster-wide, of which these are for every endpoint: what gateways may do
// (one pod in fifty is one, at most 5,000), DNS, and the marker (see Marker).
type World struct {
	shape      Shape
	r          *rand.Rand // of changes
	namespaces []namespace
	global     int // how many policies are cluster-wide
	pods       []pod
	nodes      []node
	edits      []int // by policy: how often it was changed
	joined     []int // nodes that came later, oldest first
	next       struct{ relabel, restart, policy, gateway int }
	gateways   []int
}

type namespace struct {
	name     string
	policies int
	first    int // number of its first policy
	apps     int
}

type pod struct {
	node       int
	namespace  int
	app        int
	version    int // label, which changes
	generation int // how often it was made anew
	gateway    bool
	ordinal    int // of its address among those of its node
}

type node struct {
	pods []int
	free []int // ordinals, the one that was free longest first
}

// seed streams, so that one part of the shape does not shift another's numbers.
const (
	streamNamespaces = iota + 1
	streamPods
	streamChanges
)

// blockBits is the length of the prefixes of blocks, blockSize how many addresses that are.
const (
	blockBits = 26
	blockSize = 1 << (32 - blockBits)
)

// podRange is the pool.
var podRange = netip.MustParsePrefix("10.0.0.0/8")

// NewWorld generates a cluster.
func NewWorld(s Shape) (*World, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	w := &World{shape: s, r: rand.New(rand.NewPCG(s.Seed, streamChanges)), global: max(3, s.Policies/100)}
	w.makeNamespaces()
	w.makePods()
	w.edits = make([]int, s.Policies)
	return w, nil
}

func (w *World) makeNamespaces() {
	r := rand.New(rand.NewPCG(w.shape.Seed, streamNamespaces))
	for first := w.global; first < w.shape.Policies; {
		n := namespace{
			name: fmt.Sprintf("ns-%04d", len(w.namespaces)), first: first,
			policies: min(1+r.IntN(maxPolicies), w.shape.Policies-first), apps: 2 + r.IntN(5),
		}
		w.namespaces = append(w.namespaces, n)
		first += n.policies
	}
}

// maxPolicies is how many policies a namespace has at most.
const maxPolicies = 5

// gatewayEvery and maxGateways say how many pods are gateways, whom every node lets in.
const (
	gatewayEvery = 50
	maxGateways  = 5_000
)

func (w *World) makePods() {
	r := rand.New(rand.NewPCG(w.shape.Seed, streamPods))
	weights := make([]float64, len(w.namespaces))
	sum := 0.0
	for i := range weights {
		sum += 0.1 + r.ExpFloat64()
		weights[i] = sum
	}
	w.nodes = make([]node, w.shape.Nodes)
	for i := range w.shape.Endpoints {
		p := pod{node: i % w.shape.Nodes}
		if w.shape.Local > 0 {
			if p.node = 0; i >= w.shape.Local {
				p.node = 1 + (i-w.shape.Local)%(w.shape.Nodes-1)
			}
		}
		p.namespace, _ = slices.BinarySearch(weights, r.Float64()*sum)
		p.app, p.version = r.IntN(w.namespaces[p.namespace].apps), r.IntN(versions)
		p.gateway = i%gatewayEvery == gatewayEvery/2 && len(w.gateways) < maxGateways
		if p.gateway {
			w.gateways = append(w.gateways, i)
		}
		n := &w.nodes[p.node]
		p.ordinal = 1 + len(n.pods) // 0 is the tunnel's
		n.pods = append(n.pods, i)
		w.pods = append(w.pods, p)
	}
	for i := range w.nodes {
		w.nodes[i].free = freeOrdinals(len(w.nodes[i].pods))
	}
}

// freeOrdinals are those of a node with so many pods, each with the address of its number.
func freeOrdinals(pods int) (free []int) {
	for o := pods + 1; o < blocksFor(pods)*blockSize; o++ {
		free = append(free, o)
	}
	return free
}

// blocksFor is how many blocks a node with so many pods has: some addresses are left, so that pods come and go.
func blocksFor(pods int) int { return (pods + 1 + 8 + blockSize - 1) / blockSize }

// versions is how many values the label that changes has.
const versions = 3

// Nodes are the names of the nodes that were there from the beginning.
func (w *World) Nodes() (names []string) {
	for i := range w.shape.Nodes {
		names = append(names, nodeName(i))
	}
	return names
}

func nodeName(i int) string { return fmt.Sprintf("node-%05d", i) }

// Objects are all that the world has at first, each kind after those that it refers to.
func (w *World) Objects() iter.Seq[api.Object] {
	return func(yield func(api.Object) bool) {
		for _, part := range []iter.Seq[api.Object]{
			w.poolAndProfiles, w.nodeObjects, w.setObjects, w.policyObjects, w.podObjects,
		} {
			for o := range part {
				if !yield(o) {
					return
				}
			}
		}
	}
}

func (w *World) poolAndProfiles(yield func(api.Object) bool) {
	pool := &api.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "default-ipv4-ippool"}}
	pool.Spec = api.IPPoolSpec{CIDR: podRange.String(), VXLANMode: api.VXLANAlways, NATOutgoing: true, BlockSize: blockBits}
	if !yield(pool) {
		return
	}
	for i, n := range w.namespaces {
		p := &api.Profile{ObjectMeta: metav1.ObjectMeta{Name: "kns." + n.name}}
		p.Spec = api.ProfileSpec{
			Ingress: []api.Rule{{Action: api.Allow}}, Egress: []api.Rule{{Action: api.Allow}},
			LabelsToApply: map[string]string{
				"pcns.projectcalico.org/name": n.name, "pcns.kubernetes.io/metadata.name": n.name, "pcns.team": fmt.Sprintf("team-%d", i%40),
			},
		}
		if !yield(p) {
			return
		}
	}
}

func (w *World) nodeObjects(yield func(api.Object) bool) {
	for i := range w.shape.Nodes {
		for _, o := range w.nodeWithBlocks(i) {
			if !yield(o) {
				return
			}
		}
	}
}

// nodeWithBlocks is a node and the blocks that are affine to it.
func (w *World) nodeWithBlocks(i int) (out []api.Object) {
	n := &api.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), Labels: map[string]string{
		"kubernetes.io/hostname": nodeName(i), "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": fmt.Sprintf("zone-%d", i%3),
	}}}
	n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: netip.PrefixFrom(nodeAddress(i), 12).String()}
	n.Spec.OrchRefs = []api.OrchRef{{NodeName: n.Name, Orchestrator: "k8s"}}
	n.Spec.IPv4VXLANTunnelAddr = w.address(i, 0).String()
	n.Spec.VXLANTunnelMACAddr = n.VXLANMAC(false)
	out = append(out, n)
	for b := range w.blocks(i) {
		cidr := w.block(i, b)
		affinity := &api.BlockAffinity{ObjectMeta: metav1.ObjectMeta{Name: api.AffinityName(api.AffinityHost, n.Name, cidr)}}
		affinity.Spec = api.BlockAffinitySpec{State: api.AffinityConfirmed, Node: n.Name, Type: api.AffinityHost, CIDR: cidr.String()}
		out = append(out, affinity, w.blockObject(i, b))
	}
	return out
}

// nodeAddress is in 172.16.0.0/12.
func nodeAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, byte(16 + i>>16), byte(i >> 8), byte(i)})
}

func (w *World) blocks(node int) int { return blocksFor(len(w.nodes[node].pods)) }

// block is the b-th block of a node. Numbers are left out where no node has so many.
func (w *World) block(node, b int) netip.Prefix {
	number := node + b*(1<<15)
	a := uint32(10)<<24 | uint32(number)*blockSize
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)}), blockBits)
}

// address is the one of a node's addresses with a number.
func (w *World) address(node, ordinal int) netip.Addr {
	a := w.block(node, ordinal/blockSize).Addr().As4()
	a[3] += byte(ordinal % blockSize)
	return netip.AddrFrom4(a)
}

func (w *World) blockObject(node, b int) *api.IPAMBlock {
	o := api.NewIPAMBlock(w.block(node, b))
	affinity := "host:" + nodeName(node)
	o.Spec.Affinity, o.Spec.Unallocated = &affinity, []int{}
	give := func(ordinal int, handle string, owner map[string]string) {
		if ordinal/blockSize == b {
			index := len(o.Spec.Attributes)
			o.Spec.Allocations[ordinal%blockSize] = &index
			o.Spec.Attributes = append(o.Spec.Attributes, api.AllocationAttribute{HandleID: &handle, Owner: owner})
		}
	}
	give(0, "vxlan-tunnel-addr-"+nodeName(node), map[string]string{api.OwnerNode: nodeName(node), api.OwnerType: "vxlanTunnelAddress"})
	for _, i := range w.nodes[node].pods {
		give(w.pods[i].ordinal, "k8s-pod-network."+w.containerID(i), map[string]string{
			api.OwnerNode: nodeName(node), api.OwnerPod: w.podName(i), api.OwnerNamespace: w.namespaces[w.pods[i].namespace].name,
		})
	}
	for _, ordinal := range w.nodes[node].free {
		if ordinal/blockSize == b {
			o.Spec.Unallocated = append(o.Spec.Unallocated, ordinal%blockSize)
		}
	}
	return o
}

func (w *World) podObjects(yield func(api.Object) bool) {
	for i := range w.pods {
		if !yield(w.podObject(i)) {
			return
		}
	}
}

func (w *World) podName(i int) string {
	p := w.pods[i]
	return fmt.Sprintf("app-%d-%s-%d", p.app, templateHash(p), i*1000+p.generation)
}

func templateHash(p pod) string { return fmt.Sprintf("%06x", (p.namespace*31+p.app)*7919%(1<<24)) }

func (w *World) containerID(i int) string {
	return fmt.Sprintf("%048x%08x%08x", 0, i, w.pods[i].generation)
}

func (w *World) interfaceName(i int) string {
	return fmt.Sprintf("cali%07x%04x", i, w.pods[i].generation&0xffff)
}

// podObject is a pod's endpoint.
func (w *World) podObject(i int) *api.WorkloadEndpoint {
	p := w.pods[i]
	ns := w.namespaces[p.namespace]
	o := &api.WorkloadEndpoint{ObjectMeta: metav1.ObjectMeta{Namespace: ns.name, Labels: map[string]string{
		"app": fmt.Sprintf("app-%d", p.app), "version": "v" + strconv.Itoa(p.version), "pod-template-hash": templateHash(p),
		"app.kubernetes.io/part-of": ns.name, "app.kubernetes.io/managed-by": "helm",
		api.LabelNamespace: ns.name, api.LabelOrchestrator: api.OrchestratorKubernetes,
	}}}
	if p.gateway {
		o.Labels["role"] = "gateway"
	}
	if i < dnsPods {
		o.Labels["k8s-app"] = "dns"
	}
	o.Spec = api.WorkloadEndpointSpec{
		Orchestrator: api.OrchestratorKubernetes, Node: nodeName(p.node), Pod: w.podName(i), Endpoint: "eth0", ContainerID: w.containerID(i),
		IPNetworks: []string{w.address(p.node, p.ordinal).String() + "/32"}, Profiles: []string{"kns." + ns.name},
		InterfaceName: w.interfaceName(i), MAC: "ee:ee:ee:ee:ee:ee",
	}
	o.Default()
	return o
}

// dnsPods is how many pods resolve names.
const dnsPods = 3
