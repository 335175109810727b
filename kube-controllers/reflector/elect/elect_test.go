package elect_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/kube-controllers/reflector/elect"
)

func crowd(n, zones int) []elect.Candidate {
	var out []elect.Candidate
	for i := range n {
		out = append(out, elect.Candidate{Name: fmt.Sprintf("node-%03d", i), Zone: fmt.Sprint("zone-", i%zones), Fit: true})
	}
	return out
}

// TestChoose checks what holds for every choice, over random crowds and histories: zones are even, whoever is there stays,
// order does not matter, and one loss changes one place.
func TestChoose(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		zones, count := 1+r.IntN(4), 2+r.IntN(4)
		all := crowd(count+zones*count+r.IntN(40), zones)
		chosen := elect.Choose(all, nil, count)
		require.Len(t, chosen, count)
		require.True(t, slices.IsSorted(chosen))
		per := map[string]int{}
		for _, c := range all {
			if slices.Contains(chosen, c.Name) {
				per[c.Zone]++
			}
		}
		for _, n := range per {
			require.LessOrEqual(t, n, (count+zones-1)/zones, "%v", per)
		}
		shuffled := slices.Clone(all)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		require.Equal(t, chosen, elect.Choose(shuffled, nil, count))
		require.Equal(t, chosen, elect.Choose(append(shuffled, crowd(200, zones)[150:]...), chosen, count), "newcomers change nothing")

		lost := chosen[r.IntN(count)]
		left := slices.DeleteFunc(slices.Clone(all), func(c elect.Candidate) bool { return c.Name == lost })
		again := elect.Choose(left, chosen, count)
		require.Len(t, again, count)
		stayed := slices.DeleteFunc(slices.Clone(chosen), func(s string) bool { return !slices.Contains(again, s) })
		require.Len(t, stayed, count-1, "only what is lost is chosen anew")
		require.Equal(t, again, elect.Choose(all, again, count), "who comes back does not push anyone out")

		fewer := elect.Choose(all, chosen, count-1)
		require.Len(t, fewer, count-1)
		require.Subset(t, chosen, fewer)
	}
}

func TestAwayIsKeptButNotChosen(t *testing.T) {
	all := crowd(4, 1)
	for i := range all {
		all[i].Fit = i != 0
	}
	require.NotContains(t, elect.Choose(all, nil, 4), "node-000")
	require.Equal(t, []string{"node-000", "node-001"}, elect.Choose(all, []string{"node-000", "node-001"}, 2))
}

// cluster makes nodes n0 to n<count-1>.
func cluster(count int) []*api.Node {
	var out []*api.Node
	for i := range count {
		n := &api.Node{}
		n.Name, n.Labels = fmt.Sprint("n", i), map[string]string{"even": fmt.Sprint(i%2 == 0)}
		n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: fmt.Sprintf("10.0.0.%d/24", i+1)}
		out = append(out, n)
	}
	return out
}

func auto(minNodes, count int32, nodeSelector string) *api.BGPConfiguration {
	c := &api.BGPConfiguration{}
	c.Spec.RouteReflectors = &api.RouteReflectors{Mode: api.ReflectorsAuto, MinNodes: &minNodes, Count: &count, NodeSelector: nodeSelector}
	return c
}

func TestWant(t *testing.T) {
	other := api.ASNumber(65001)
	six := cluster(6)
	byHand, twoAS, dual, bare := cluster(6), cluster(6), cluster(6), cluster(6)
	byHand[1].Spec.BGP.RouteReflectorClusterID = "1.0.0.1"
	twoAS[3].Spec.BGP.ASNumber = &other
	for _, i := range []int{0, 3, 5} {
		dual[i].Spec.BGP.IPv6Address = "fd00::1/64"
	}
	bare[2].Spec.BGP = nil
	now := &api.Reflection{Reflectors: []string{"n4", "n5"}}
	manual := auto(1, 2, "")
	manual.Spec.RouteReflectors.Mode = api.ReflectorsManual
	for _, row := range []struct {
		what    string
		config  *api.BGPConfiguration
		nodes   []*api.Node
		now     *api.Reflection
		lost    []string
		from    []string // who may be chosen, and how many are
		count   int
		message string
	}{
		{"nothing is said", &api.BGPConfiguration{}, six, nil, nil, nil, 0, ""},
		{"Manual", manual, six, now, nil, nil, 0, ""},
		{"enough nodes", auto(6, 3, ""), six, nil, nil, []string{"n0", "n1", "n2", "n3", "n4", "n5"}, 3, ""},
		{"too few", auto(7, 3, ""), six, nil, nil, nil, 0, "full mesh: fewer nodes than minNodes, 7"},
		{"one fewer than at the start", auto(7, 2, ""), six, now, nil, []string{"n4", "n5"}, 2, ""},
		{"two fewer", auto(8, 2, ""), six, now, nil, nil, 0, "full mesh: fewer nodes than minNodes, 8"},
		{"selected", auto(1, 3, "even == 'true'"), six, now, nil, []string{"n0", "n2", "n4"}, 3, ""},
		{"fewer than asked for", auto(1, 5, "even == 'true'"), six, nil, nil, []string{"n0", "n2", "n4"}, 3, ""},
		{"nobody selected", auto(1, 3, "has(tail)"), six, nil, nil, nil, 0, "full mesh: fewer than 2 nodes are able and selected to reflect"},
		{"one is lost", auto(1, 2, "even == 'true'"), six, &api.Reflection{Reflectors: []string{"n0", "n4"}}, []string{"n4"}, []string{"n0", "n2"}, 2, ""},
		{"by hand", auto(5, 5, ""), byHand, nil, nil, []string{"n0", "n2", "n3", "n4", "n5"}, 5, ""},
		{"by hand does not count", auto(6, 5, ""), byHand, nil, nil, nil, 0, "full mesh: fewer nodes than minNodes, 6"},
		{"two AS numbers", auto(1, 3, ""), twoAS, nil, nil, nil, 0, "full mesh: nodes have several AS numbers, 64512 and 65001 among them; reflectors are for one AS"},
		{"both families", auto(1, 5, ""), dual, nil, nil, []string{"n0", "n3", "n5"}, 3, ""},
		{"no address", auto(1, 6, ""), bare, nil, nil, []string{"n0", "n1", "n3", "n4", "n5"}, 5, ""},
	} {
		got := elect.Want(row.config, row.nodes, row.now, func(n string) elect.Presence {
			if slices.Contains(row.lost, n) {
				return elect.Lost
			}
			return elect.Here
		})
		require.Equal(t, row.count == 0, got.Mesh, row.what)
		require.Len(t, got.Reflectors, row.count, row.what)
		require.Subset(t, row.from, got.Reflectors, row.what)
		require.Equal(t, row.message, got.Message, row.what)
	}
}

// TestNext follows the steps between all set-ups: nothing goes in a step in which something comes, what is wanted is reached,
// and without settling nothing ever goes.
func TestNext(t *testing.T) {
	setups := []*api.Reflection{
		nil,
		{Mesh: true, Message: "full mesh: because"},
		{Reflectors: []string{"a", "b"}},
		{Reflectors: []string{"b", "c"}},
		{Reflectors: []string{"a", "b", "c"}},
		{Mesh: true, Reflectors: []string{"a", "c"}},
	}
	sessions := func(r *api.Reflection) map[string]bool {
		if r == nil {
			return map[string]bool{"mesh": true}
		}
		out := map[string]bool{}
		for _, n := range r.Reflectors {
			out[n] = true
		}
		if r.Mesh {
			out["mesh"] = true
		}
		return out
	}
	covers := func(a, b map[string]bool) bool {
		for k := range b {
			if !a[k] {
				return false
			}
		}
		return true
	}
	for _, from := range setups {
		for _, to := range setups {
			if to == nil || to.Mesh && len(to.Reflectors) > 0 {
				continue // Want never says so
			}
			first := elect.Next(from, *to, false)
			require.True(t, covers(sessions(first), sessions(from)), "%v to %v: %v", from, to, first)
			require.True(t, covers(sessions(first), sessions(to)), "%v to %v: %v", from, to, first)
			require.Equal(t, first, elect.Next(first, *to, false), "it waits")
			second := elect.Next(first, *to, true)
			require.Equal(t, to, second)
			require.Equal(t, to, elect.Next(second, *to, true), "it is reached")
		}
	}
	require.Nil(t, elect.Next(&api.Reflection{Mesh: true, Reflectors: []string{"a"}}, api.Reflection{Mesh: true}, true), "no trace is left")
	require.Nil(t, elect.Next(nil, api.Reflection{Mesh: true}, false))
}
