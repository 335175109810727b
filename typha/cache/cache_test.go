package cache

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
)

func at(name string) api.Key { return api.Key{Kind: "WorkloadEndpoint", Namespace: "shop", Name: name} }

func endpoint(name, node string) Change {
	o := &api.WorkloadEndpoint{}
	o.Namespace, o.Name, o.Spec.Node = "shop", name, node
	return Change{Key: at(name), Object: EndpointOf(o)}
}

func set(objects ...api.Object) (out []Change) {
	for _, o := range objects {
		out = append(out, Change{Key: api.KeyOf(o), Object: o})
	}
	return out
}

func names[T api.Object](seq iter.Seq[T]) []string {
	var out []string
	for o := range seq {
		out = append(out, o.GetName())
	}
	slices.Sort(out)
	return out
}

func TestLookups(t *testing.T) {
	c := New()
	node, pool := &api.Node{}, &api.IPPool{}
	node.Name, pool.Name = "n1", "p"
	c.Apply(append(set(node, pool), endpoint("a", "n1"), endpoint("b", "n2")), view.Checkpoint{"etcd": 3}, true)

	s := c.Snapshot()
	require.True(t, s.InSync())
	require.Equal(t, uint64(3), s.Checkpoint()["etcd"])
	require.Equal(t, "n1", s.Node("n1").Name)
	require.Nil(t, s.Node("n2"))
	require.Equal(t, []string{"n1"}, names(s.Nodes()))
	require.Equal(t, []string{"p"}, names(s.Pools()))
	require.Equal(t, 2, s.Len("WorkloadEndpoint"))
	require.Len(t, slices.Collect(All[*Endpoint](s, "WorkloadEndpoint")), 2)

	// An endpoint moves, a node goes; the old snapshot stays what it was.
	c.Apply([]Change{endpoint("a", "n2"), {Key: api.KeyOf(node)}}, nil, false)
	now := c.Snapshot()
	require.Equal(t, "n1", s.Get(at("a")).(*Endpoint).Node)
	require.Equal(t, "n1", s.Node("n1").Name)
	require.Equal(t, "n2", now.Get(at("a")).(*Endpoint).Node)
	require.Nil(t, now.Node("n1"))
	require.Nil(t, now.Get(api.KeyOf(node)))
	require.Greater(t, now.Version(), s.Version())
	require.True(t, now.InSync(), "once in sync it stays so")
	require.Equal(t, uint64(3), now.Checkpoint()["etcd"])

	o, inSync := c.Get(api.KeyOf(pool))
	require.Same(t, pool, o)
	require.True(t, inSync)
	all, _ := c.List("IPPool")
	require.Equal(t, []api.Object{pool}, all)
}

// What is kept of an endpoint says what the object does.
func TestEndpoints(t *testing.T) {
	require.Nil(t, EndpointOf(nil))
	o := &api.WorkloadEndpoint{}
	o.Namespace, o.UID, o.Labels = "shop", "u1", map[string]string{"app": "web"}
	o.Spec = api.WorkloadEndpointSpec{
		Orchestrator: api.OrchestratorKubernetes, Node: "n1", Pod: "web-0", Endpoint: "eth0", ContainerID: "c1", Workload: "other",
		IPNetworks: []string{"10.0.0.1/32", "10.0.0.2", "nonsense"}, InterfaceName: "cali1", MAC: "ee:ee:ee:ee:ee:ee",
	}
	o.Default()
	e := EndpointOf(o)
	require.Equal(t, "n1-k8s-web--0-eth0", e.Name)
	require.Equal(t, "web-0", e.Workload)
	require.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32"), netip.MustParsePrefix("10.0.0.2/32")}, e.Nets)
	require.True(t, e.Equal(EndpointOf(o.DeepCopy())))
	require.False(t, e.Equal(nil))
	for orchestrator, workload := range map[string]string{api.OrchestratorCNI: "c1", "else": "other"} {
		changed := o.DeepCopy()
		changed.Spec.Orchestrator = orchestrator
		require.Equal(t, workload, EndpointOf(changed).Workload)
		require.False(t, e.Equal(EndpointOf(changed)))
	}
}

// TestReadersSeeWholeSnapshots moves two endpoints to and fro together while many read: they are always on the same node.
func TestReadersSeeWholeSnapshots(t *testing.T) {
	c := New()
	c.Apply([]Change{endpoint("a", "n0"), endpoint("b", "n0")}, nil, true)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				s := c.Snapshot()
				if a, b := s.Get(at("a")).(*Endpoint).Node, s.Get(at("b")).(*Endpoint).Node; a != b || s.Len("WorkloadEndpoint") != 2 {
					t.Errorf("one is on %s, and the other on %s", a, b)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for i := range 2000 {
		node := fmt.Sprint("n", i%3)
		c.Apply([]Change{endpoint("a", node), endpoint("b", node)}, nil, false)
	}
	close(stop)
	wg.Wait()
}
