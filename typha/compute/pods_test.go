package compute_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/kubernetes"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/compute"
	"github.com/muslin-net/muslin/typha/views"
)

// podOn is a pod as it is taken in, and the key of its endpoint.
func podOn(node, name string, annotations map[string]string, labels ...string) (pod *api.WorkloadEndpoint, endpoint api.Key) {
	o := &api.WorkloadEndpoint{}
	o.Namespace, o.Annotations, o.Labels = "shop", annotations, map[string]string{}
	o.UID = kubernetes.ReversedUID("0b5a9a4e-7d3c-4a52-9f51-0c1d2e3f4a5b")
	for _, l := range labels {
		o.Labels[l] = "yes"
	}
	o.Spec = api.WorkloadEndpointSpec{
		Orchestrator: "k8s", Node: node, Pod: name, Endpoint: "eth0", InterfaceName: "cali" + name, ServiceAccountName: "cook",
		Profiles: []string{"kns.shop"},
	}
	o.Default()
	return o, api.KeyOf(o)
}

func change(key api.Key, o api.Object) cache.Change { return cache.Change{Key: key, Object: o} }

func podKey(name string) api.Key {
	return api.Key{Kind: kubernetes.KindPod, Namespace: "shop", Name: name}
}

// kitchen is an engine with a namespace and a policy for pods with a label.
func kitchen() *compute.Engine {
	e := compute.New()
	profile := &api.Profile{}
	profile.Name = "kns.shop"
	profile.Spec.LabelsToApply = map[string]string{"pcns.team": "a"}
	policy := &api.NetworkPolicy{}
	policy.Namespace, policy.Name = "shop", "cooks"
	policy.Spec.Selector, policy.Spec.Ingress = "has(cook)", []api.Rule{{Action: api.Allow, Source: api.EntityRule{Selector: "has(waiter)"}}}
	policy.Spec.Types = []api.PolicyType{api.Ingress}
	tier := &api.Tier{}
	tier.Name = "default"
	node := &api.Node{}
	node.Name = "n1"
	e.Apply(change(api.KeyOf(profile), profile), change(api.KeyOf(policy), policy), change(api.KeyOf(tier), tier), change(api.KeyOf(node), node))
	return e
}

// endpointsOf are the endpoints of a node's view.
func endpointsOf(s *views.Store, node string) map[string]view.WorkloadEndpoint {
	out := map[string]view.WorkloadEndpoint{}
	for _, e := range s.View(views.Scope{Node: node, View: views.NodeView}) {
		if ep, ok := e.Item().(view.WorkloadEndpoint); ok {
			out[ep.ID.Workload] = ep
		}
	}
	return out
}

func commit(s *views.Store, e *compute.Engine) {
	c := e.Flush()
	c.InSync = true
	s.Commit(c)
}

// A pod that has been bound to a node is told to it with its policies and with what it asks for, before anything of it is there.
func TestAPodIsToldBeforeItIsMade(t *testing.T) {
	e, store := kitchen(), views.NewStore()
	floating := netip.MustParseAddr("203.0.113.7")
	pod, key := podOn("n1", "web", map[string]string{
		"cni.projectcalico.org/ipv4pools": `["gold"]`, "cni.projectcalico.org/hwAddr": "02:00:00:00:00:07", "cni.projectcalico.org/ipFamilies": `["IPv4"]`,
		"cni.projectcalico.org/floatingIPs": `["203.0.113.7"]`,
	}, "cook")
	namespace := &api.Profile{}
	namespace.Name, namespace.Annotations = "shop", map[string]string{"cni.projectcalico.org/ipv4pools": `["silver"]`, "cni.projectcalico.org/ipv6pools": `["six"]`}
	e.Apply(change(podKey("web"), pod), change(api.Key{Kind: kubernetes.KindNamespace, Name: "shop"}, namespace))
	commit(store, e)
	got := endpointsOf(store, "n1")["shop/web"]
	require.Equal(t, "0b5a9a4e-7d3c-4a52-9f51-0c1d2e3f4a5b", got.UID)
	require.Equal(t, &view.AddressRequest{Pools4: []string{"gold"}, Pools6: []string{"six"}, Families: []int{4}, MAC: "02:00:00:00:00:07", Floating: []netip.Addr{floating}}, got.Request)
	require.Empty(t, got.NATs, "there is nothing yet that it could lead to")
	require.Empty(t, got.Addresses)
	require.Empty(t, got.Incomplete)
	list := store.Get(views.Scope{Node: "n1", View: views.NodeView}, view.Key{Kind: view.KindPolicyList, ID: got.PolicyList})
	require.NotNil(t, list)
	require.Equal(t, []string{"np/shop/cooks"}, list.Item().(view.PolicyList).Tiers[0].Ingress)

	t.Log("felix reports it, with labels of its own invention: the pod's count")
	reported := pod.DeepCopy()
	reported.Annotations, reported.Labels = nil, map[string]string{"waiter": "yes"}
	reported.Spec.IPNetworks, reported.Spec.ContainerID, reported.Spec.MAC = []string{"10.0.0.1/32"}, "c1", "02:00:00:00:00:07"
	e.Apply(change(key, reported))
	commit(store, e)
	now := endpointsOf(store, "n1")["shop/web"]
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.0.0.1")}, now.Addresses)
	require.Equal(t, "c1", now.ContainerID)
	require.Equal(t, []view.NAT{{External: floating, Internal: now.Addresses[0]}}, now.NATs)
	route := store.Get(views.Scope{Node: "n2", View: views.NodeView}, view.Route{Dst: netip.PrefixFrom(floating, 32), Node: "n1"}.Key())
	require.Nil(t, route, "an address of no pool is nobody's to take")
	pool := &api.IPPool{}
	pool.Name, pool.Spec.CIDR = "floating", "203.0.113.0/28"
	e.Apply(change(api.KeyOf(pool), pool))
	commit(store, e)
	route = store.Get(views.Scope{Node: "n2", View: views.NodeView}, view.Route{Dst: netip.PrefixFrom(floating, 32), Node: "n1"}.Key())
	require.NotNil(t, route, "other nodes know the way to the floating address")
	require.Equal(t, got.PolicyList, now.PolicyList)
	require.Equal(t, got.Request, now.Request, "a new sandbox of the pod asks for the same")
	for _, entry := range store.View(views.Scope{Node: "n1", View: views.NodeView}) {
		if set, ok := entry.Item().(view.IPSet); ok {
			require.Empty(t, set.Members, "nobody is a waiter")
		}
	}

	t.Log("what makes no sense is told, and whose it is")
	bad := namespace.DeepCopy()
	bad.Annotations["cni.projectcalico.org/ipv4pools"] = "gold"
	e.Apply(change(api.Key{Kind: kubernetes.KindNamespace, Name: "shop"}, bad))
	commit(store, e)
	require.Contains(t, endpointsOf(store, "n1")["shop/web"].Request.Wrong, "namespace shop: annotation cni.projectcalico.org/ipv4pools")
	e.Apply(change(api.Key{Kind: kubernetes.KindNamespace, Name: "shop"}, nil))
	worse := pod.DeepCopy()
	worse.Annotations["cni.projectcalico.org/hwAddr"] = "x"
	e.Apply(change(podKey("web"), worse))
	commit(store, e)
	require.Contains(t, endpointsOf(store, "n1")["shop/web"].Request.Wrong, "annotation cni.projectcalico.org/hwAddr")

	t.Log("the pod goes, its endpoint stays; then both are gone")
	e.Apply(change(podKey("web"), nil))
	commit(store, e)
	left := endpointsOf(store, "n1")["shop/web"]
	require.Empty(t, left.UID)
	require.Nil(t, left.Request)
	e.Apply(change(key, nil))
	commit(store, e)
	require.Empty(t, endpointsOf(store, "n1"))
}

// A pod that kubelet has from a file is known to the runtime by another uid than its mirror in the API has.
func TestAStaticPodIsKnownByItsOwnUID(t *testing.T) {
	e, store := kitchen(), views.NewStore()
	pod, _ := podOn("n1", "dns", map[string]string{kubernetes.AnnotationMirror: "8a9f1e"})
	e.Apply(change(podKey("dns"), pod))
	commit(store, e)
	got := endpointsOf(store, "n1")["shop/dns"]
	require.Equal(t, "8a9f1e", got.UID)
	require.Nil(t, got.Request)
}

// Whatever comes first, and however often pods move and endpoints come and go, the views are those of the last state.
func TestPodsAndEndpointsInAnyOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	nodes := []string{"n1", "n2"}
	e, store := kitchen(), views.NewStore()
	now := map[api.Key]api.Object{}
	set := func(key api.Key, o api.Object) {
		now[key] = o
		if o == nil {
			delete(now, key)
		}
		e.Apply(change(key, o))
	}
	for step := range 2000 {
		name := fmt.Sprintf("p%d", r.IntN(4))
		pod, key := podOn(nodes[r.IntN(2)], name, nil, []string{"cook", "waiter"}[r.IntN(2)])
		switch r.IntN(6) {
		case 0:
			set(podKey(name), nil)
		case 1, 2:
			if r.IntN(2) == 0 {
				pod.Annotations = map[string]string{"cni.projectcalico.org/ipv4pools": `["gold"]`}
			}
			set(podKey(name), pod)
		case 3:
			set(key, nil)
		case 4:
			pod.Spec.IPNetworks = []string{fmt.Sprintf("10.0.0.%d/32", 1+r.IntN(3))}
			set(key, pod)
		case 5:
			namespace := &api.Profile{}
			namespace.Name = "shop"
			if r.IntN(2) == 0 {
				namespace.Annotations = map[string]string{"cni.projectcalico.org/ipv6pools": `["six"]`}
			}
			set(api.Key{Kind: kubernetes.KindNamespace, Name: "shop"}, namespace)
		}
		if step%7 != 0 {
			continue
		}
		commit(store, e)
		fresh, other := kitchen(), views.NewStore()
		for key, o := range now { // in no order
			fresh.Apply(change(key, o))
		}
		commit(other, fresh)
		for _, node := range nodes {
			require.Equal(t, content(other, node), content(store, node), "step %d, node %s", step, node)
		}
	}
}

// content is all of a node's view, by key.
func content(s *views.Store, node string) map[view.Key]view.Version {
	out := map[view.Key]view.Version{}
	for _, e := range s.View(views.Scope{Node: node, View: views.NodeView}) {
		out[e.Key] = e.Version
	}
	return out
}
