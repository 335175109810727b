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

func endpoint(name, node string) *api.WorkloadEndpoint {
	o := &api.WorkloadEndpoint{}
	o.Namespace, o.Name, o.Spec.Node = "shop", name, node
	return o
}

func set(objects ...api.Object) (out []Change) {
	for _, o := range objects {
		out = append(out, Change{Key: api.KeyOf(o), Object: o})
	}
	return out
}

func gone(objects ...api.Object) (out []Change) {
	for _, o := range objects {
		out = append(out, Change{Key: api.KeyOf(o)})
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
	node := &api.Node{}
	node.Name = "n1"
	pool := &api.IPPool{}
	pool.Name = "p"
	cidr := netip.MustParsePrefix("10.0.0.0/26")
	block := api.NewIPAMBlock(cidr)
	affinity := "host:n1"
	block.Spec.Affinity = &affinity
	claim := api.NewBlockAffinity(api.AffinityHost, "n1", cidr, api.AffinityConfirmed)
	host := &api.HostEndpoint{}
	host.Name, host.Spec.Node = "h", "n1"
	c.Apply(set(node, pool, block, claim, host, endpoint("a", "n1"), endpoint("b", "n2")), view.Checkpoint{"etcd": 3}, true)

	s := c.Snapshot()
	require.True(t, s.InSync())
	require.Equal(t, uint64(3), s.Checkpoint()["etcd"])
	require.Equal(t, "n1", s.Node("n1").Name)
	require.Nil(t, s.Node("n2"))
	require.Equal(t, []string{"n1"}, names(s.Nodes()))
	require.Equal(t, []string{"p"}, names(s.Pools()))
	require.Equal(t, []string{"a"}, names(s.EndpointsOf("n1")))
	require.Equal(t, []string{"10.0.0.0/26"}, names(s.BlocksOf("n1")))
	require.Equal(t, []string{"host/n1/10.0.0.0/26"}, names(s.AffinitiesOf("n1")))
	require.Equal(t, []string{"h"}, names(s.HostEndpointsOf("n1")))
	require.Equal(t, 2, s.Len("WorkloadEndpoint"))

	// An endpoint moves, a block changes hands, a node goes; the old snapshot stays what it was.
	other := block.DeepCopy()
	to := "host:n2"
	other.Spec.Affinity = &to
	c.Apply(append(set(endpoint("a", "n2"), other), gone(node)...), nil, false)
	now := c.Snapshot()
	require.Equal(t, []string{"a"}, names(s.EndpointsOf("n1")))
	require.Equal(t, "n1", s.Node("n1").Name)
	require.Empty(t, names(now.EndpointsOf("n1")))
	require.Equal(t, []string{"a", "b"}, names(now.EndpointsOf("n2")))
	require.Empty(t, names(now.BlocksOf("n1")))
	require.Equal(t, []string{"10.0.0.0/26"}, names(now.BlocksOf("n2")))
	require.Nil(t, now.Node("n1"))
	require.Nil(t, now.Get(api.Key{Kind: "Node", Name: "n1"}))
	require.Greater(t, now.Version(), s.Version())
	require.True(t, now.InSync(), "once in sync it stays so")
	require.Equal(t, uint64(3), now.Checkpoint()["etcd"])
	require.Zero(t, now.hosts.Len()-1)

	c.Apply(gone(endpoint("a", ""), endpoint("b", ""), host, other, claim, pool), nil, false)
	now = c.Snapshot()
	for _, index := range []Map[string, Map[api.Key, api.Object]]{now.endpoints, now.hosts, now.blocks, now.affinities} {
		require.Zero(t, index.Len(), "nothing is left behind")
	}
}

// TestReadersSeeWholeSnapshots moves an endpoint to and fro while many read: it is always on exactly one node.
func TestReadersSeeWholeSnapshots(t *testing.T) {
	c := New()
	c.Apply(set(endpoint("a", "n0")), nil, true)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				s := c.Snapshot()
				found := 0
				for n := range 3 {
					found += len(names(s.EndpointsOf(fmt.Sprint("n", n))))
				}
				if found != 1 || s.Len("WorkloadEndpoint") != 1 {
					t.Errorf("the endpoint is on %d nodes", found)
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
		c.Apply(set(endpoint("a", fmt.Sprint("n", i%3))), nil, false)
	}
	close(stop)
	wg.Wait()
}
