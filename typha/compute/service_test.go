package compute

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/cache"
	"github.com/muslin-net/muslin/typha/views"
)

// put applies objects.
func put(e *Engine, objects ...api.Object) {
	for _, o := range objects {
		e.Apply(cache.Change{Key: api.KeyOf(o), Object: o})
	}
}

// remove applies their end.
func remove(e *Engine, objects ...api.Object) {
	for _, o := range objects {
		e.Apply(cache.Change{Key: api.KeyOf(o)})
	}
}

// pod makes a workload endpoint.
func pod(node, namespace, name, address string, labels map[string]string) *api.WorkloadEndpoint {
	o := &api.WorkloadEndpoint{}
	o.Namespace, o.Name, o.Labels = namespace, node+"-k8s-"+name+"-eth0", labels
	o.Spec.Node, o.Spec.Orchestrator, o.Spec.Pod, o.Spec.Endpoint = node, api.OrchestratorKubernetes, name, "eth0"
	o.Spec.InterfaceName = "cali" + name
	o.Spec.IPNetworks = []string{address + "/32"}
	return o
}

// members are those of the only set of a type in a view.
func members(t *testing.T, store *views.Store, s views.Scope, kind view.SetType) []view.Member {
	t.Helper()
	var found []view.IPSet
	for _, e := range store.View(s) {
		if set, ok := e.Item().(view.IPSet); ok && set.Type == kind {
			found = append(found, set)
			require.Equal(t, view.VersionOf(set), e.Version)
		}
	}
	require.Len(t, found, 1)
	return found[0].Members
}

// TestServices has the members of a service come, change and go, before and after a policy needs them.
func TestServices(t *testing.T) {
	e, store := New(), views.NewStore()
	flush := func() { store.Commit(e.Flush()) }
	np := &api.NetworkPolicy{}
	np.Namespace, np.Name = "shop", "dns"
	np.Spec.Egress = []api.Rule{{Action: api.Allow, Destination: api.EntityRule{Services: &api.ServiceMatch{Name: "dns"}}}}
	np.Spec.Ingress = []api.Rule{{Action: api.Allow, Source: api.EntityRule{Services: &api.ServiceMatch{Name: "dns"}}}}
	m := func(last byte, port uint16) view.Member {
		return view.Member{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, last}), 32), Protocol: 17, Port: port}
	}
	bare := func(m view.Member) view.Member { return view.Member{Prefix: m.Prefix} }

	e.setMembers("shop/dns", []view.Member{m(1, 53)})
	put(e, np, pod("n1", "shop", "web", "10.0.0.9", nil))
	flush()
	require.Equal(t, []view.Member{m(1, 53)}, members(t, store, nodeView("n1"), view.SetIPPort))
	require.Equal(t, []view.Member{bare(m(1, 53))}, members(t, store, nodeView("n1"), view.SetNet))

	e.setMembers("shop/dns", []view.Member{m(1, 53), m(1, 5353), m(2, 53)})
	flush()
	require.Equal(t, []view.Member{m(1, 53), m(1, 5353), m(2, 53)}, members(t, store, nodeView("n1"), view.SetIPPort))
	require.Equal(t, []view.Member{bare(m(1, 53)), bare(m(2, 53))}, members(t, store, nodeView("n1"), view.SetNet))

	e.setMembers("shop/dns", nil)
	flush()
	require.Empty(t, members(t, store, nodeView("n1"), view.SetIPPort))
	require.Empty(t, members(t, store, nodeView("n1"), view.SetNet))
}

// TestScoping asserts that a node is sent nothing that concerns only others: neither their endpoints, nor the policies
// that apply to them, nor the sets that only those policies use.
func TestScoping(t *testing.T) {
	e, store := New(), views.NewStore()
	policy := func(name, selects, from string) *api.GlobalNetworkPolicy {
		o := &api.GlobalNetworkPolicy{}
		o.Name = name
		o.Spec.Selector, o.Spec.Types = selects, []api.PolicyType{api.Ingress}
		o.Spec.Ingress = []api.Rule{{Action: api.Allow, Source: api.EntityRule{Selector: from}}}
		return o
	}
	a := pod("n1", "shop", "a", "10.0.0.1", map[string]string{"app": "a"})
	b := pod("n2", "shop", "b", "10.0.0.2", map[string]string{"app": "b"})
	put(e, a, b, policy("only-a", "app == 'a'", "role == 'x'"), policy("only-b", "app == 'b'", "role == 'y'"),
		policy("both", "has(app)", "role == 'z'"), policy("nobody", "app == 'c'", "role == 'w'"))
	host := &api.HostEndpoint{}
	host.Name, host.Spec.Node, host.Spec.InterfaceName = "h", "n2", "eth0"
	put(e, host)
	store.Commit(e.Flush())

	ids := func(node string) (out []string) {
		for k, entry := range store.View(nodeView(node)) {
			switch it := entry.Item().(type) {
			case view.IPSet, view.PolicyList:
			case view.WorkloadEndpoint:
				out = append(out, it.ID.Workload)
			default:
				out = append(out, k.ID)
			}
		}
		return out
	}
	sets := func(node string) (n int) {
		for k := range store.View(nodeView(node)) {
			if k.Kind == view.KindIPSet {
				n++
			}
		}
		return n
	}
	require.ElementsMatch(t, []string{"shop/a", "gnp/only-a", "gnp/both"}, ids("n1"))
	require.ElementsMatch(t, []string{"shop/b", "gnp/only-b", "gnp/both", "h"}, ids("n2"))
	require.Empty(t, ids("n3"))
	require.Equal(t, 2, sets("n1"))
	require.Equal(t, 2, sets("n2"))
	require.Len(t, e.sets, 3, "members are computed only for sets that some node needs")

	// A change elsewhere is no change here.
	moved := b.DeepCopy()
	moved.Labels["role"] = "y"
	put(e, moved)
	change := e.Flush()
	require.NotContains(t, change.Scopes, nodeView("n1"))
	require.Contains(t, change.Scopes, nodeView("n2"))
	store.Commit(change)

	// When its last endpoint goes a node is left with nothing.
	remove(e, a)
	store.Commit(e.Flush())
	require.Empty(t, store.View(nodeView("n1")))
}
