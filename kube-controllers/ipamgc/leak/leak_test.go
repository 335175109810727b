package leak_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/internal/thorough"
	"github.com/muslin-net/muslin/ipam/block"
	"github.com/muslin-net/muslin/kube-controllers/ipamgc/leak"
)

var (
	start = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	rules = leak.Rules{Grace: 15 * time.Minute, Fence: 30 * time.Second, Again: time.Minute}
)

// world is what is stored, and one that looks at it.
type world struct {
	t         *testing.T
	now       time.Time
	rules     leak.Rules
	blocks    map[string]block.Block
	nodes     map[string]*api.Node
	endpoints map[string]*api.WorkloadEndpoint
	memory    leak.Memory
	questions int
}

func newWorld(t *testing.T, nodes ...string) *world {
	w := &world{t: t, now: start, rules: rules, blocks: map[string]block.Block{}, nodes: map[string]*api.Node{}, endpoints: map[string]*api.WorkloadEndpoint{}}
	for _, n := range nodes {
		w.node(n)
	}
	return w
}

func (w *world) node(name string) *api.Node {
	n := &api.Node{}
	n.Name, n.Annotations = name, map[string]string{}
	w.nodes[name] = n
	return n
}

// block makes a block of a node; "" for nobody.
func (w *world) block(cidr, node string) block.Block {
	b := block.New(netip.MustParsePrefix(cidr), "host:"+node, w.now)
	if node == "" {
		b.Disown()
	}
	w.blocks[cidr] = b
	return b
}

// give gives an address out of a block.
func (w *world) give(cidr, addr, handle string, attributes ...string) {
	w.t.Helper()
	owner := block.Owner{Handle: handle, Attributes: map[string]string{}}
	for _, text := range attributes {
		k, v, _ := strings.Cut(text, "=")
		owner.Attributes[k] = v
	}
	require.NoError(w.t, w.blocks[cidr].TakeAddr(netip.MustParseAddr(addr), owner))
	w.blocks[cidr].Written()
}

// endpoint makes an endpoint.
func (w *world) endpoint(node, name string, addrs ...string) {
	ep := &api.WorkloadEndpoint{}
	ep.Name, ep.Namespace, ep.Spec.Node = name, "default", node
	for _, a := range addrs {
		ep.Spec.IPNetworks = append(ep.Spec.IPNetworks, a+"/32")
	}
	w.endpoints[name] = ep
}

func (w *world) look() leak.Plan {
	s := leak.State{Nodes: w.nodes}
	used := map[netip.Addr]bool{}
	for _, b := range w.blocks {
		s.Blocks = append(s.Blocks, b)
	}
	for _, ep := range w.endpoints {
		s.Endpoints = append(s.Endpoints, ep)
		if w.nodes[ep.Spec.Node] == nil {
			continue
		}
		for _, text := range ep.Spec.IPNetworks {
			used[netip.MustParsePrefix(text).Addr()] = true
		}
	}
	s.Owners = leak.Reported{Nodes: w.nodes, Endpoints: used}
	plan := w.memory.Look(s, w.rules, w.now, func() string { w.questions++; return fmt.Sprint("q", w.questions) })
	for node, q := range plan.Ask {
		w.nodes[node].Annotations[api.AnnotationEndpointsAsked] = q
	}
	return plan
}

// after looks after a time.
func (w *world) after(d time.Duration) leak.Plan {
	w.now = w.now.Add(d)
	return w.look()
}

// answer has a node answer what it was asked.
func (w *world) answer(node string) {
	a := w.nodes[node].Annotations
	a[api.AnnotationEndpointsTold] = a[api.AnnotationEndpointsAsked]
}

func addrs(list []leak.Address) []string {
	out := []string{}
	for _, a := range list {
		out = append(out, a.Addr.String())
	}
	return out
}

const aBlock = "10.0.0.0/29"

// lost is a world in which 10.0.0.1 of a pod is lost, and 10.0.0.2 is another pod's.
func lost(t *testing.T) *world {
	w := newWorld(t, "a")
	w.block(aBlock, "a")
	w.give(aBlock, "10.0.0.1", "net.1", "node=a", "endpoint=cni/default/1/eth0")
	w.give(aBlock, "10.0.0.2", "net.2", "node=a", "endpoint=cni/default/2/eth0")
	w.endpoint("a", "a-cni-2-eth0", "10.0.0.2")
	return w
}

// TestLostOnANodeThatAnswers: missing for the grace period, then asked for, then released.
func TestLostOnANodeThatAnswers(t *testing.T) {
	w := lost(t)
	plan := w.look()
	require.Equal(t, []string{"10.0.0.1"}, addrs(plan.Candidates))
	require.Empty(t, plan.Ask)
	require.Equal(t, rules.Grace, plan.Next)

	plan = w.after(rules.Grace)
	require.Equal(t, map[string]string{"a": "q1"}, plan.Ask)
	require.Empty(t, plan.Lost)
	require.Empty(t, w.after(time.Second).Ask, "the question stands")
	w.answer("a")
	plan = w.after(time.Second)
	require.Equal(t, []string{"10.0.0.1"}, addrs(plan.Lost))
	require.Empty(t, plan.Candidates)
	require.Empty(t, plan.Ask)
}

// TestNodeThatIsCutOff: however long it is silent, nothing of it is released; an endpoint that it reports when it is back
// keeps its address, and what is lost is found then.
func TestNodeThatIsCutOff(t *testing.T) {
	w := lost(t)
	w.give(aBlock, "10.0.0.3", "net.3", "node=a", "endpoint=cni/default/3/eth0") // of a pod whose report did not get through
	w.give(aBlock, "10.0.0.4", "warm-a-7", "node=a", "type=warmPool")            // maybe a pod has it: only the node knows
	w.nodes["a"].Annotations[api.AnnotationIPAMEpoch] = "7"
	w.look()
	asked := 0
	for range 200 {
		plan := w.after(10 * time.Minute)
		require.Empty(t, plan.Lost)
		asked += len(plan.Ask)
	}
	require.Equal(t, 1, asked)
	w.endpoint("a", "a-cni-3-eth0", "10.0.0.3")
	w.answer("a")
	require.Equal(t, []string{"10.0.0.1"}, addrs(w.after(time.Second).Lost))
	require.Empty(t, w.look().Candidates)
}

// TestAnswersCountForWhatWasDue: an ADD may be under way when a node answers a question about another address.
func TestAnswersCountForWhatWasDue(t *testing.T) {
	w := lost(t)
	w.look()
	w.now = w.now.Add(rules.Grace - time.Minute)
	w.give(aBlock, "10.0.0.3", "net.3", "node=a", "endpoint=cni/default/3/eth0")
	w.look()
	require.Len(t, w.after(time.Minute).Ask, 1)
	w.answer("a")
	plan := w.after(time.Second)
	require.Equal(t, []string{"10.0.0.1"}, addrs(plan.Lost))
	require.Equal(t, []string{"10.0.0.3"}, addrs(plan.Candidates))
	plan = w.after(rules.Grace)
	require.Equal(t, []string{"10.0.0.1"}, addrs(plan.Lost), "what is proven stays so while others are asked for")
	require.Equal(t, map[string]string{"a": "q2"}, plan.Ask)
	w.answer("a")
	require.Equal(t, []string{"10.0.0.1", "10.0.0.3"}, addrs(w.after(time.Second).Lost))
}

// TestWhatStopsTheClock: the grace period begins anew when an address was in use, or was given out anew.
func TestWhatStopsTheClock(t *testing.T) {
	for name, disturb := range map[string]func(w *world){
		"in use in between": func(w *world) {
			w.endpoint("a", "a-cni-1-eth0", "10.0.0.1")
			w.look()
			delete(w.endpoints, "a-cni-1-eth0")
		},
		"given out anew": func(w *world) {
			_, err := w.blocks[aBlock].Release([]block.Release{{Addr: netip.MustParseAddr("10.0.0.1")}}, w.now, 0)
			require.NoError(w.t, err)
			w.give(aBlock, "10.0.0.1", "net.1", "node=a", "endpoint=cni/default/1/eth0")
		},
		"another one leads": func(w *world) { w.memory = leak.Memory{} },
		"the question was lost with the Node": func(w *world) {
			w.node("a")
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := lost(t)
			w.look()
			require.Len(t, w.after(rules.Grace).Ask, 1)
			disturb(w)
			w.answer("a")
			plan := w.look()
			require.Empty(t, plan.Lost)
			require.Equal(t, []string{"10.0.0.1"}, addrs(plan.Candidates))
			require.Len(t, w.after(rules.Grace).Ask, 1)
			w.answer("a")
			require.Len(t, w.after(time.Second).Lost, 1)
		})
	}
}

// TestWhatIsLeftAlone on a node that is registered, for ever.
func TestWhatIsLeftAlone(t *testing.T) {
	for name, attributes := range map[string][]string{
		"made by another plugin": {"net.1", "node=a"},
		"of a tunnel":            {"ipip-tunnel-addr-a", "node=a", "type=ipipTunnelAddress"},
		"of a tunnel of no pool": {"vxlan-tunnel-addr-a", "node=a", "type=vxlanTunnelAddress"},
		"warm":                   {"warm-a-7", "node=a", "type=warmPool"},
		"warm, of a later epoch": {"warm-a-8", "node=a", "type=warmPool"},
		"warm, of unknown form":  {"warm-a-x", "node=a", "type=warmPool"},
		"of a service":           {"lb-x", "service=web", "namespace=shop"},
		"of a machine":           {"net.vmi.shop.vm1", "node=a", "vmi-name=vm1", "namespace=shop"},
		"of something new":       {"x", "node=a", "type=somethingNew"},
		"without attributes":     {"old"},
		"without handle":         {"", "node=a"},
		"kept for Windows":       {"windows-reserved-ipam-handle"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a")
			w.nodes["a"].Annotations[api.AnnotationIPAMEpoch] = "7"
			w.block(aBlock, "a")
			w.give(aBlock, "10.0.0.1", attributes[0], attributes[1:]...)
			w.look()
			plan := w.after(24 * time.Hour)
			require.Empty(t, plan.Candidates)
			require.Empty(t, plan.Lost)
			require.Empty(t, plan.Ask)
		})
	}
}

// TestWarmAddressesOfAnEndedEpoch are lost like others: who fenced them may have died before he released them.
func TestWarmAddressesOfAnEndedEpoch(t *testing.T) {
	w := newWorld(t, "a")
	w.nodes["a"].Annotations[api.AnnotationIPAMEpoch] = "8"
	w.block(aBlock, "a")
	w.give(aBlock, "10.0.0.1", "warm-a-7", "node=a", "type=warmPool")
	w.give(aBlock, "10.0.0.2", "warm-a-7", "node=a", "type=warmPool")
	w.give(aBlock, "10.0.0.3", "warm-a-8", "node=a", "type=warmPool")
	w.endpoint("a", "a-cni-2-eth0", "10.0.0.2") // a pod of the old epoch that lives, and is being settled
	w.look()
	w.after(rules.Grace)
	w.answer("a")
	plan := w.after(time.Second)
	require.Empty(t, plan.Lost, "they share a handle")
	delete(w.endpoints, "a-cni-2-eth0")
	w.look()
	w.after(rules.Grace)
	w.answer("a")
	require.Equal(t, []string{"10.0.0.1", "10.0.0.2"}, addrs(w.after(time.Second).Lost))
}

// TestAllOfAHandle: a pod with addresses of both families loses them together or not at all.
func TestAllOfAHandle(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.block(aBlock, "a")
	w.block("fd00::/125", "a")
	w.give(aBlock, "10.0.0.1", "net.1", "node=a", "endpoint=e")
	w.give("fd00::/125", "fd00::1", "net.1", "node=a", "endpoint=e")
	w.endpoint("a", "ep", "10.0.0.1")
	w.look()
	w.after(rules.Grace)
	w.answer("a")
	plan := w.after(time.Second)
	require.Empty(t, plan.Lost)
	require.Equal(t, []string{"fd00::1"}, addrs(plan.Candidates))
	delete(w.endpoints, "ep")
	w.look()
	w.after(rules.Grace)
	w.answer("a")
	require.Equal(t, []string{"10.0.0.1", "fd00::1"}, addrs(w.after(time.Second).Lost))
}

// TestNodeIsGone: what it had is fenced, but for what can live elsewhere.
func TestNodeIsGone(t *testing.T) {
	w := newWorld(t, "a", "b")
	w.rules.Grace = 0 // which leaves nodes that are there alone
	w.block(aBlock, "a")
	w.block("10.0.0.8/29", "b")
	w.give(aBlock, "10.0.0.1", "net.1", "node=a")
	w.give(aBlock, "10.0.0.2", "warm-a-3", "node=a", "type=warmPool")
	w.give(aBlock, "10.0.0.3", "ipip-tunnel-addr-a", "node=a", "type=ipipTunnelAddress")
	w.give(aBlock, "10.0.0.4", "net.4", "node=b", "endpoint=e") // borrowed
	w.give("10.0.0.8/29", "10.0.0.9", "net.9", "node=a")        // borrowed the other way
	w.endpoint("a", "a-cni-1-eth0", "10.0.0.1")
	require.Empty(t, w.look().Nodes)
	delete(w.nodes, "a")
	plan := w.look()
	require.Empty(t, plan.Nodes, "it may be made anew at once")
	require.Empty(t, plan.Lost)
	require.Equal(t, rules.Fence, plan.Next)
	w.node("a")
	w.after(rules.Fence)
	delete(w.nodes, "a")
	require.Empty(t, w.look().Nodes, "the time begins anew")
	plan = w.after(rules.Fence)
	require.Equal(t, []string{"a"}, plan.Nodes)
	require.Equal(t, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.9"}, addrs(plan.Lost))
	require.Len(t, plan.Endpoints, 1)
	require.Empty(t, plan.Ask)

	w.give(aBlock, "10.0.0.5", "net.vmi.shop.vm1", "node=a", "vmi-name=vm1")
	require.Empty(t, w.look().Nodes, "a machine may have moved")
	require.NotContains(t, addrs(w.look().Lost), "10.0.0.5")

	w = newWorld(t)
	w.block(aBlock, "a")
	w.give(aBlock, "10.0.0.1", "of-old") // nobody knows what
	w.look()
	require.Empty(t, w.after(rules.Fence).Nodes)

	w = newWorld(t, "b")
	w.block(aBlock, "a")
	w.give(aBlock, "10.0.0.1", "net.1", "node=a")
	w.look()
	require.Equal(t, []string{"10.0.0.1"}, addrs(w.after(rules.Fence).Lost))
	w.endpoint("b", "b-cni-1-eth0", "10.0.0.1") // somebody else reports it
	require.Empty(t, w.look().Lost)
}

// TestSurplusBlocks: a node keeps one block with room for each family.
func TestSurplusBlocks(t *testing.T) {
	full := func(w *world, cidr string) {
		b := w.blocks[cidr]
		b.Take(b.Size(), block.Owner{Handle: "warm-a-1", Attributes: map[string]string{"node": "a", "type": "warmPool"}}, block.Reserved{})
	}
	for name, tc := range map[string]struct {
		make func(w *world)
		want []string
	}{
		"the only one":       {func(w *world) { w.block("10.0.0.0/30", "a") }, nil},
		"two empty ones":     {func(w *world) { w.block("10.0.0.0/30", "a"); w.block("10.0.0.4/30", "a") }, []string{"10.0.0.4/30"}},
		"one of each family": {func(w *world) { w.block("10.0.0.0/30", "a"); w.block("fd00::/126", "a") }, nil},
		"beside a full one":  {func(w *world) { w.block("10.0.0.0/30", "a"); full(w, "10.0.0.0/30"); w.block("10.0.0.4/30", "a") }, nil},
		"beside one with room": {func(w *world) {
			w.block("10.0.0.0/30", "a")
			w.block("10.0.0.4/30", "a")
			w.give("10.0.0.4/30", "10.0.0.5", "h", "node=a")
		}, []string{"10.0.0.0/30"}},
		"of several nodes":    {func(w *world) { w.block("10.0.0.0/30", "a"); w.block("10.0.0.4/30", "b") }, nil},
		"one that nobody has": {func(w *world) { w.block("10.0.0.0/30", "a"); w.block("10.0.0.4/30", "") }, nil},
		"cooling, which is not empty": {func(w *world) {
			w.block("10.0.0.0/30", "a")
			w.block("10.0.0.4/30", "a")
			w.give("10.0.0.4/30", "10.0.0.5", "h", "node=a")
			_, err := w.blocks["10.0.0.4/30"].Release([]block.Release{{Addr: netip.MustParseAddr("10.0.0.5")}}, w.now, time.Hour)
			require.NoError(w.t, err)
		}, []string{"10.0.0.0/30"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "a", "b")
			tc.make(w)
			require.Empty(t, w.look().Surplus)
			var got []string
			for _, e := range w.after(rules.Grace).Surplus {
				got = append(got, e.CIDR.String())
			}
			require.Equal(t, tc.want, got)
		})
	}
	w := newWorld(t, "a")
	w.block("10.0.0.0/30", "a")
	w.block("10.0.0.4/30", "a")
	w.look()
	w.blocks["10.0.0.4/30"].Written() // somebody used it meanwhile
	require.Empty(t, w.after(rules.Grace).Surplus)
}

// TestNothingInUseIsEverLost runs random lives of nodes: pods come and go, reports get through or not, nodes are cut off,
// answer, and are deleted. Whatever a node that is registered has is never lost; what nobody has is, in the end.
func TestNothingInUseIsEverLost(t *testing.T) {
	for seed := range uint64(thorough.Rounds(20, 300)) {
		random := rand.New(rand.NewPCG(seed, 0))
		w := newWorld(t, "a", "b")
		w.block("10.0.0.0/27", "a")
		living := map[string]map[string]string{"a": {}, "b": {}} // node → address → endpoint
		report := func(node string) {                            // all of it gets through
			for name, ep := range w.endpoints {
				if ep.Spec.Node == node {
					delete(w.endpoints, name)
				}
			}
			for a, name := range living[node] {
				w.endpoint(node, name, a)
			}
			if w.nodes[node] != nil {
				w.answer(node)
			}
		}
		check := func(plan leak.Plan) {
			for _, a := range plan.Lost {
				for node, pods := range living {
					require.True(t, pods[a.Addr.String()] == "" || w.nodes[node] == nil, "seed %d: %s is in use on %s", seed, a.Addr, node)
				}
				_, err := w.blocks["10.0.0.0/27"].Release([]block.Release{{Addr: a.Addr, Handle: a.Handle, Sequence: &a.Sequence}}, w.now, 0)
				require.NoError(t, err)
			}
			for _, ep := range plan.Endpoints {
				require.Nil(t, w.nodes[ep.Spec.Node])
				delete(w.endpoints, ep.Name)
			}
		}
		step := 0
		for range 200 {
			step++
			node := []string{"a", "b"}[random.IntN(2)]
			w.now = w.now.Add(time.Duration(random.IntN(300)) * time.Second)
			switch random.IntN(8) {
			case 0, 1: // an ADD, which ends, well or not
				if w.nodes[node] == nil {
					continue
				}
				name := fmt.Sprint("pod-", step)
				got := w.blocks["10.0.0.0/27"].Take(1, block.Owner{Handle: "net." + name, Attributes: map[string]string{"node": node, "endpoint": name}}, block.Reserved{})
				w.blocks["10.0.0.0/27"].Written()
				check(w.look())
				if len(got) > 0 && random.IntN(3) > 0 {
					living[node][got[0].String()] = name
				}
			case 2: // a pod ends; its address is released, or that gets lost
				for a, name := range living[node] {
					delete(living[node], a)
					if random.IntN(2) == 0 {
						_, err := w.blocks["10.0.0.0/27"].Release([]block.Release{{Addr: netip.MustParseAddr(a), Handle: "net." + name}}, w.now, 0)
						require.NoError(t, err)
					}
					break
				}
			case 3, 4: // a report gets through
				if w.nodes[node] != nil {
					report(node)
				}
			case 5:
				if random.IntN(10) == 0 { // the machine burns
					delete(w.nodes, node)
					living[node] = map[string]string{}
				}
			case 6:
				if w.nodes[node] == nil {
					w.node(node)
				}
			}
			check(w.look())
		}
		for range 4 {
			for node := range living {
				if w.nodes[node] != nil {
					report(node)
				}
			}
			w.now = w.now.Add(rules.Grace)
			check(w.look())
		}
		var left []string
		for a := range w.blocks["10.0.0.0/27"].All() {
			left = append(left, a.Addr.String())
		}
		var want []string
		for _, pods := range living {
			for a := range pods {
				want = append(want, a)
			}
		}
		slices.Sort(want)
		slices.Sort(left)
		require.Equal(t, want, left, "seed %d", seed)
	}
}
