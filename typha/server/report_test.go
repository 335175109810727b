package server_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/datastore"
	"github.com/muslin-net/muslin/typha/client"
	"github.com/muslin-net/muslin/typha/server"
)

// cluster is a typha with two nodes and a pool.
func (w *world) cluster() (r *replica, n1, n2 *client.Client) {
	r = w.typha()
	w.create(pool("default", "192.168.0.0/16"))
	n1, n2 = w.node("n1", r.address), w.node("n2", r.address)
	register(w.t, n1, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24")})
	register(w.t, n2, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.2/24")})
	eventually(w.t, "typha knows the pool", func() bool { return r.state.Snapshot().Len("IPPool") > 0 })
	return r, n1, n2
}

// reserve takes an address for a pod.
func reserve(t testing.TB, c *client.Client, container string) netip.Addr {
	t.Helper()
	got, err := c.Reserve(t.Context(), client.Reserve{Count4: 1, Owner: &client.Owner{Handle: "net." + container}})
	require.NoError(t, err)
	require.Len(t, got, 1)
	return got[0].Address
}

// pod is an endpoint that the CNI plugin made.
func pod(container string, addrs ...netip.Addr) client.Endpoint {
	return client.Endpoint{
		ID:        view.EndpointID{Orchestrator: "cni", Workload: "default/" + container, Endpoint: "eth0"},
		Interface: "cali" + container, MAC: "EE:EE:EE:EE:EE:EE", Addresses: addrs,
		Labels: map[string]string{"app": container}, Profiles: []string{"net"},
		Ports: []client.Port{{Name: "http", Protocol: 6, Port: 80}},
	}
}

func report(t testing.TB, c *client.Client, instance string, sequence uint64, list ...client.Endpoint) []client.RefusedEndpoint {
	t.Helper()
	refused, _, err := c.Report(t.Context(), client.Report{Instance: instance, Sequence: sequence, Endpoints: list})
	require.NoError(t, err)
	return refused
}

func (w *world) endpoints() []string {
	l, err := w.store.List(w.t.Context(), "WorkloadEndpoint", datastore.ListOptions{})
	require.NoError(w.t, err)
	var out []string
	for _, o := range l.Items {
		out = append(out, o.GetName())
	}
	return out
}

func (w *world) eventuallyEndpoints(want ...string) {
	w.t.Helper()
	eventually(w.t, "endpoints in the datastore", func() bool { return assert.ObjectsAreEqual(want, w.endpoints()) })
}

func TestReportedEndpointsAreServedAndStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, n2 := w.cluster()
	f := w.follow("n1", []string{r.address})
	a, b := reserve(t, n1, "c1"), reserve(t, n2, "c2")
	assert.Empty(t, report(t, n1, "x", 1, pod("c1", a)))
	assert.Empty(t, report(t, n2, "y", 1, pod("c2", b)))
	for found := false; !found; {
		for _, it := range f.next().Updates {
			if e, ok := it.(view.WorkloadEndpoint); ok {
				assert.Equal(t, "cni/default/c1/eth0", e.ID.String(), "only its own")
				found = true
			}
		}
	}
	w.eventuallyEndpoints("n1-cni-c1-eth0", "n2-cni-c2-eth0")
	o, err := w.store.Get(t.Context(), api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "n1-cni-c1-eth0"})
	require.NoError(t, err)
	ep := o.(*api.WorkloadEndpoint)
	assert.Equal(t, api.WorkloadEndpointSpec{
		Orchestrator: "cni", Node: "n1", ContainerID: "c1", Endpoint: "eth0", IPNetworks: []string{a.String() + "/32"},
		Profiles: []string{"net"}, InterfaceName: "calic1", MAC: "ee:ee:ee:ee:ee:ee",
		Ports: []api.WorkloadEndpointPort{{Name: "http", Protocol: "TCP", Port: 80}},
	}, ep.Spec)
	assert.Equal(t, map[string]string{"app": "c1", "projectcalico.org/namespace": "default", "projectcalico.org/orchestrator": "cni"}, ep.Labels)

	assert.Empty(t, report(t, n1, "x", 2))
	w.eventuallyEndpoints("n2-cni-c2-eth0")
	eventually(t, "stored", func() bool {
		_, stored, err := n1.Report(t.Context(), client.Report{Instance: "x", Sequence: 2})
		require.NoError(t, err)
		return stored
	})
}

// A pod's coming and its going cost the datastore one request each, once its network's profile is there.
func TestAnEndpointIsOneRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seen := &counted{Client: w.bare, asked: map[string]int{}}
	of := []string{"WorkloadEndpoint", "Profile"}
	r := w.typha(func(c *server.Config) { c.Datastore = datastore.Validating(seen) })
	w.create(pool("default", "192.168.0.0/16"))
	n1 := w.node("n1", r.address)
	register(t, n1, client.Registration{IPv4: netip.MustParsePrefix("10.0.0.1/24")})
	eventually(t, "typha knows the pool", func() bool { return r.state.Snapshot().Len("IPPool") > 0 })
	first := pod("c1", reserve(t, n1, "c1"))
	stored := func(sequence uint64, list ...client.Endpoint) {
		t.Helper()
		eventually(t, "stored", func() bool {
			_, all, err := n1.Report(t.Context(), client.Report{Instance: "x", Sequence: sequence, Endpoints: list})
			require.NoError(t, err)
			return all
		})
	}
	stored(1, first)
	eventually(t, "typha knows the profile", func() bool { return r.state.Snapshot().Get(api.Key{Kind: "Profile", Name: "net"}) != nil })
	seen.take(of...)
	stored(2, first, pod("c2", reserve(t, n1, "c2")), pod("c3", reserve(t, n1, "c3")))
	assert.Equal(t, map[string]int{"create WorkloadEndpoint": 2}, seen.take(of...))
	stored(3, first)
	assert.Equal(t, map[string]int{"delete WorkloadEndpoint": 2}, seen.take(of...))
}

func TestLateReportIsIgnored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, _ := w.cluster()
	a := reserve(t, n1, "c1")
	report(t, n1, "x", 5, pod("c1", a))
	w.eventuallyEndpoints("n1-cni-c1-eth0")
	report(t, n1, "x", 4)
	report(t, n1, "x", 6, pod("c1", a))
	assert.Equal(t, []string{"n1-cni-c1-eth0"}, w.endpoints())
	report(t, n1, "restarted", 1)
	w.eventuallyEndpoints()
}

func TestEndpointsThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, n2 := w.cluster()
	mine, foreign := reserve(t, n1, "c1"), reserve(t, n2, "c2")
	nameless := pod("c3")
	nameless.ID.Workload = "c3"
	badLabel := pod("c4")
	badLabel.Interface = "a name that no interface has"
	refused := report(t, n1, "x", 1,
		pod("c1", mine), pod("c2", foreign), pod("c5", netip.MustParseAddr("192.168.255.1")), pod("c6", netip.MustParseAddr("10.9.9.9")),
		nameless, badLabel, pod("c1", mine))
	reasons := map[string]string{}
	for _, r := range refused {
		reasons[r.ID] += r.Reason
	}
	assert.Len(t, reasons, 6)
	assert.Contains(t, reasons["cni/default/c2/eth0"], `allocated to node "n2"`)
	assert.Contains(t, reasons["cni/default/c5/eth0"], "not allocated")
	assert.Contains(t, reasons["cni/default/c6/eth0"], "not allocated")
	assert.Contains(t, reasons["cni/c3/eth0"], "namespace/name")
	assert.Contains(t, reasons["cni/default/c4/eth0"], "interfaceName")
	assert.Contains(t, reasons["cni/default/c1/eth0"], "twice")
	w.eventuallyEndpoints("n1-cni-c1-eth0")
}

// An endpoint that was taken before is judged by its addresses again, and is written again when it has changed or has come back.
func TestEndpointsOfTheReportBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, n2 := w.cluster()
	one, two := pod("c1", reserve(t, n1, "c1")), pod("c2", reserve(t, n1, "c2"))
	assert.Empty(t, report(t, n1, "x", 1, one, two))
	w.eventuallyEndpoints("n1-cni-c1-eth0", "n1-cni-c2-eth0")
	assert.Empty(t, report(t, n1, "x", 2, one))
	w.eventuallyEndpoints("n1-cni-c1-eth0")
	two.Labels = map[string]string{"app": "other"}
	assert.Empty(t, report(t, n1, "x", 3, one, two))
	w.eventuallyEndpoints("n1-cni-c1-eth0", "n1-cni-c2-eth0")
	o, err := w.store.Get(t.Context(), api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "n1-cni-c2-eth0"})
	require.NoError(t, err)
	assert.Equal(t, "other", o.GetLabels()["app"])

	_, err = n1.ReleaseHandle(t.Context(), "net.c1")
	require.NoError(t, err)
	_, err = n2.Reserve(t.Context(), client.Reserve{Address: one.Addresses[0], Owner: &client.Owner{Handle: "net.c3"}})
	require.NoError(t, err)
	sequence := uint64(3)
	eventually(t, "whose address it is now", func() bool {
		sequence++
		two.Labels = map[string]string{"app": fmt.Sprint(sequence)} // else it is the report before
		refused := report(t, n1, "x", sequence, one, two)
		return len(refused) == 1 && refused[0].ID == one.ID.String()
	})
	w.eventuallyEndpoints("n1-cni-c2-eth0")
}

// A pool may be deleted while pods have addresses of it, which they keep.
func TestEndpointsOfAPoolThatIsGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, n2 := w.cluster()
	kept := pod("c1", reserve(t, n1, "c1"))
	assert.Empty(t, report(t, n1, "x", 1, kept))
	w.eventuallyEndpoints("n1-cni-c1-eth0")
	_, err := w.store.Delete(t.Context(), api.Key{Kind: "IPPool", Name: "default"}, datastore.Precondition{})
	require.NoError(t, err)
	eventually(t, "typha knows that the pool is gone, and the block", func() bool {
		now := r.state.Snapshot()
		return now.Len("IPPool") == 0 && now.Len("IPAMBlock") > 0
	})
	kept.Labels = map[string]string{"app": "other"} // else it is the report before
	assert.Empty(t, report(t, n1, "x", 2, kept))
	assert.Empty(t, report(t, n1, "restarted", 1, kept))
	w.eventuallyEndpoints("n1-cni-c1-eth0")
	refused := report(t, n2, "y", 1, kept)
	require.Len(t, refused, 1)
	assert.Contains(t, refused[0].Reason, `allocated to node "n1"`)
}

func TestWhatOthersWroteStays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, _ := w.cluster()
	a := reserve(t, n1, "c1")
	stored := &api.WorkloadEndpoint{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Labels: map[string]string{"mine": "yes", "app": "old"}},
		Spec: api.WorkloadEndpointSpec{
			Orchestrator: "cni", Node: "n1", ContainerID: "c1", Endpoint: "eth0", InterfaceName: "calic1", ServiceAccountName: "sa",
			AllowSpoofedSourcePrefixes: []string{"10.0.0.0/8"},
		},
	}
	w.create(stored)
	left := stored.DeepCopy()
	left.Name, left.ResourceVersion, left.Spec.ContainerID = "", "", "gone"
	w.create(left)
	report(t, n1, "x", 1, pod("c1", a))
	w.eventuallyEndpoints("n1-cni-c1-eth0")
	eventually(t, "written", func() bool {
		o, err := w.store.Get(t.Context(), api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "n1-cni-c1-eth0"})
		require.NoError(t, err)
		ep := o.(*api.WorkloadEndpoint)
		return len(ep.Spec.IPNetworks) == 1 && ep.Spec.ServiceAccountName == "sa" && len(ep.Spec.AllowSpoofedSourcePrefixes) == 1 &&
			ep.Labels["mine"] == "yes" && ep.Labels["app"] == "c1"
	})
}

func TestSomebodyElsesChangeIsNoObstacle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, n1, _ := w.cluster()
	a := reserve(t, n1, "c1")
	report(t, n1, "x", 1, pod("c1", a))
	w.eventuallyEndpoints("n1-cni-c1-eth0")
	_, err := w.store.Delete(t.Context(), api.Key{Kind: "WorkloadEndpoint", Namespace: "default", Name: "n1-cni-c1-eth0"}, datastore.Precondition{})
	require.NoError(t, err)
	changed := pod("c1", a)
	changed.Interface = "calinew"
	report(t, n1, "x", 2, changed)
	w.eventuallyEndpoints("n1-cni-c1-eth0")
}

// TestReportsWaitForTheDatastore takes the datastore away: an endpoint whose address is known to be the node's is served
// at once all the same, and written when the datastore is back.
func TestReportsWaitForTheDatastore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r, n1, _ := w.cluster()
	f := w.follow("n1", []string{r.address})
	warm, err := n1.Reserve(t.Context(), client.Reserve{Count4: 1, Epoch: enter(t, n1)})
	require.NoError(t, err)
	eventually(t, "pool and allocation seen by typha", func() bool {
		now := r.state.Snapshot()
		o, ok := now.Get(api.Key{Kind: "IPAMBlock", Name: api.BlockName(warm[0].Block)}).(*api.IPAMBlock)
		return ok && now.Len("IPPool") > 0 && slices.ContainsFunc(o.Spec.Allocations, func(a *int) bool { return a != nil })
	})
	require.NoError(t, w.etcd.Close())
	refused, stored, err := n1.Report(t.Context(), client.Report{Instance: "x", Sequence: 1, Endpoints: []client.Endpoint{pod("c1", warm[0].Address)}})
	require.NoError(t, err)
	assert.Empty(t, refused)
	assert.False(t, stored)
	for served := false; !served; {
		for _, it := range f.next().Updates {
			served = served || it.Key().Kind == view.KindWorkloadEndpoint
		}
	}
	w.startStore()
	w.eventuallyEndpoints("n1-cni-c1-eth0")
	eventually(t, "stored", func() bool {
		_, stored, err := n1.Report(t.Context(), client.Report{Instance: "x", Sequence: 2, Endpoints: []client.Endpoint{pod("c1", warm[0].Address)}})
		return err == nil && stored
	})
}
