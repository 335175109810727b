package scale

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/muslin-net/muslin/api"
)

func makeWorld(t testing.TB, s Shape) *World {
	t.Helper()
	w, err := NewWorld(s)
	require.NoError(t, err)
	return w
}

func small(t testing.TB) Shape {
	t.Helper()
	s, err := SizeOf("small")
	require.NoError(t, err)
	return s
}

// text is all of a world, and of what becomes of it.
func text(t testing.TB, w *World) string {
	var b strings.Builder
	show := func(o api.Object) {
		out, err := yaml.Marshal(o)
		require.NoError(t, err)
		b.Write(out)
	}
	for o := range w.Objects() {
		show(o)
	}
	for i := range 60 {
		for _, write := range w.Change([]Kind{Relabel, RelabelGateway, Restart, Policy, Join, Leave}[i%6], nil).Writes {
			fmt.Fprintln(&b, write.Verb, write.Tells)
			show(write.Object)
		}
	}
	return b.String()
}

func TestAWorldIsAFunctionOfItsShape(t *testing.T) {
	shape := Shape{Nodes: 10, Endpoints: 100, Policies: 30, Sets: 4, Seed: 7}
	one := text(t, makeWorld(t, shape))
	require.Equal(t, one, text(t, makeWorld(t, shape)))
	shape.Seed++
	require.NotEqual(t, one, text(t, makeWorld(t, shape)))
}

func TestSizes(t *testing.T) {
	for name, want := range sizes {
		s, err := SizeOf(name)
		require.NoError(t, err)
		require.NoError(t, s.Validate(), name)
		s.Seed = want.Seed
		require.Equal(t, want, s)
	}
	_, err := SizeOf("huge")
	require.EqualError(t, err, `size "huge" is none; use large, medium, small`)
	for want, s := range map[string]Shape{
		"nodes 1:":          {Nodes: 1, Endpoints: 2, Policies: 8, Sets: 2},
		"endpoints 5 on 10": {Nodes: 10, Endpoints: 5, Policies: 8, Sets: 2},
		"policies 1:":       {Nodes: 2, Endpoints: 2, Policies: 1, Sets: 2},
		"sets 0:":           {Nodes: 2, Endpoints: 2, Policies: 8},
		"local 9:":          {Nodes: 2, Endpoints: 10, Policies: 8, Sets: 2, Local: 9},
	} {
		_, err := NewWorld(s)
		require.ErrorContains(t, err, want)
	}
}

// TestTheShapeIsAsPromised checks what is generated against what the shape says and the documentation of World promises.
func TestTheShapeIsAsPromised(t *testing.T) {
	shape := small(t)
	w := makeWorld(t, shape)
	count := map[string]int{}
	keys := map[api.Key]bool{}
	perNamespace, podsOf, podsOn := map[string]int{}, map[string]int{}, map[string]int{}
	addresses, gateways := map[string]bool{}, 0
	allocated := map[string]bool{}
	for o := range w.Objects() {
		o := o.DeepCopyObject().(api.Object)
		o.Default()
		require.NoError(t, o.Validate(), "%v", api.KeyOf(o))
		key := api.KeyOf(o)
		require.False(t, keys[key], "%v twice", key)
		keys[key] = true
		count[key.Kind]++
		switch o := o.(type) {
		case *api.NetworkPolicy:
			perNamespace[o.Namespace]++
		case *api.WorkloadEndpoint:
			podsOf[o.Namespace]++
			podsOn[o.Spec.Node]++
			require.False(t, addresses[o.Spec.IPNetworks[0]], "an address twice")
			addresses[o.Spec.IPNetworks[0]] = true
			if o.Labels["role"] == "gateway" {
				gateways++
			}
		case *api.IPAMBlock:
			require.Len(t, o.Spec.Unallocated, len(o.Spec.Allocations)-len(o.Spec.Attributes))
			for ordinal, index := range o.Spec.Allocations {
				if index != nil {
					node := strings.TrimPrefix(*o.Spec.Affinity, "host:")
					require.Equal(t, node, o.Spec.Attributes[*index].Owner[api.OwnerNode])
					allocated[fmt.Sprintf("%s+%d", o.Name, ordinal)] = true
				}
			}
		}
	}
	require.Equal(t, shape.Nodes, count["Node"])
	require.Equal(t, shape.Endpoints, count["WorkloadEndpoint"])
	require.Equal(t, shape.Policies, count["NetworkPolicy"]+count["GlobalNetworkPolicy"])
	require.Equal(t, shape.Sets+1, count["NetworkSet"]+count["GlobalNetworkSet"], "and the marker")
	require.Equal(t, 3, count["GlobalNetworkPolicy"])
	require.Equal(t, count["BlockAffinity"], count["IPAMBlock"])
	require.GreaterOrEqual(t, count["IPAMBlock"], shape.Nodes)
	require.Len(t, allocated, shape.Endpoints+shape.Nodes, "each pod's address and each node's tunnel's")
	require.Equal(t, shape.Endpoints/gatewayEvery, gateways)
	require.Len(t, podsOn, shape.Nodes)
	numbers := map[int]int{}
	for _, n := range perNamespace {
		numbers[n]++
	}
	for n := 1; n <= maxPolicies; n++ {
		require.Positive(t, numbers[n], "namespaces with %d policies", n)
	}
	require.Len(t, numbers, maxPolicies)
	var pods []int
	for _, n := range podsOf {
		pods = append(pods, n)
	}
	slices.Sort(pods)
	require.Greater(t, pods[len(pods)-1], 3*pods[len(pods)/2], "namespaces differ")
}

// TestLocal puts the asked number of endpoints on the first node.
func TestLocal(t *testing.T) {
	w := makeWorld(t, Shape{Nodes: 20, Endpoints: 400, Policies: 20, Sets: 2, Local: 100})
	require.Len(t, w.nodes[0].pods, 100)
	for _, n := range w.nodes[1:] {
		require.InDelta(t, 300/19, len(n.pods), 1)
	}
}

// TestChangesAreWritable applies changes to what is stored as a datastore would, and checks that what is left is what the world
// says it has.
func TestChangesAreWritable(t *testing.T) {
	w := makeWorld(t, Shape{Nodes: 10, Endpoints: 100, Policies: 30, Sets: 4, Seed: 7})
	stored := map[api.Key]api.Object{}
	for o := range w.Objects() {
		stored[api.KeyOf(o)] = o
	}
	for i := range 1200 {
		kind := []Kind{Relabel, RelabelGateway, Restart, Policy, Join, Leave}[i%6]
		c := w.Change(kind, nil)
		for _, write := range c.Writes {
			key := api.KeyOf(write.Object)
			was := stored[key]
			require.Equal(t, write.Verb == Create, was == nil, "%v of %v", write.Verb, key)
			if write.Verb == Update {
				require.NotEqual(t, was, write.Object, "%v changes nothing", key)
			}
			require.NoError(t, write.Object.Validate())
			if stored[key] = write.Object; write.Verb == Delete {
				delete(stored, key)
			}
		}
	}
	require.Empty(t, w.joined)
	for o := range w.Objects() {
		key := api.KeyOf(o)
		if key.Kind == "GlobalNetworkSet" && key.Name == markerSet {
			continue
		}
		require.Equal(t, o, stored[key])
		delete(stored, key)
	}
	require.Len(t, stored, 1, "the marker: %v", stored)
}

// TestEachOnceBeforeAnyAgain: what a client was told would otherwise be taken for the effect of a later write.
func TestEachOnceBeforeAnyAgain(t *testing.T) {
	shape := small(t)
	w := makeWorld(t, shape)
	for kind, number := range map[Kind]int{Relabel: shape.Endpoints, Policy: shape.Policies, RelabelGateway: shape.Endpoints / gatewayEvery} {
		told := map[string]bool{}
		for range number {
			told[w.Change(kind, nil).Writes[0].Tells] = true
		}
		require.Len(t, told, number, "%s", kind)
	}
}

func TestOnlySomePods(t *testing.T) {
	w := makeWorld(t, small(t))
	for range 100 {
		c := w.Change(Relabel, func(i int) bool { return w.pods[i].node == 3 })
		require.Equal(t, nodeName(3), c.Writes[0].Object.(*api.WorkloadEndpoint).Spec.Node)
	}
}
