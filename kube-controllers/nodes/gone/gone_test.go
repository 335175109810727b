package gone

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

func node(name, kubernetes string) *api.Node {
	n := &api.Node{}
	n.Name = name
	if kubernetes != "" {
		n.Spec.OrchRefs = []api.OrchRef{{Orchestrator: "other", NodeName: "x"}, {Orchestrator: "k8s", NodeName: kubernetes}}
	}
	return n
}

func named[T api.Object](o T, name string) T {
	o.SetName(name)
	return o
}

func TestLook(t *testing.T) {
	const wait = 30 * time.Second
	now := time.Unix(1000, 0)
	nodes := []*api.Node{node("b", "kb"), node("alone", ""), node("a", "ka")}
	known := map[string]bool{"ka": true, "kb": true}
	others := []api.Object{
		named(&api.HostEndpoint{Spec: api.HostEndpointSpec{Node: "b"}}, "h"), named(&api.HostEndpoint{Spec: api.HostEndpointSpec{Node: "a"}}, "ha"),
		named(&api.BGPPeer{Spec: api.BGPPeerSpec{Node: "b"}}, "p"), named(&api.BGPPeer{Spec: api.BGPPeerSpec{NodeSelector: "all()"}}, "all"),
		named(&api.FelixConfiguration{}, "node.b"), named(&api.FelixConfiguration{}, "default"),
		named(&api.BGPConfiguration{}, "node.b"), named(&api.BGPConfiguration{}, "node.b.c"),
	}
	var m Memory
	look := func() ([]Node, time.Duration) {
		return m.Look(nodes, func(n string) bool { return known[n] }, others, wait, now)
	}
	list, next := look()
	require.Empty(t, list)
	require.Zero(t, next)

	delete(known, "kb")
	list, next = look()
	require.Empty(t, list)
	require.Equal(t, wait, next)
	now = now.Add(20 * time.Second)
	_, next = look()
	require.Equal(t, 10*time.Second, next)

	known["kb"] = true // it was set up anew
	look()
	delete(known, "kb")
	now = now.Add(20 * time.Second)
	list, next = look()
	require.Empty(t, list, "it is gone for a moment, again")
	require.Equal(t, wait, next)

	now = now.Add(wait)
	list, next = look()
	require.Zero(t, next)
	require.Len(t, list, 1)
	require.Equal(t, "b", list[0].Name)
	require.Equal(t, "kb", list[0].Kubernetes)
	var own []string
	for _, o := range list[0].Own {
		own = append(own, api.KeyOf(o).String())
	}
	require.Equal(t, []string{"BGPConfiguration(node.b)", "BGPPeer(p)", "FelixConfiguration(node.b)", "HostEndpoint(h)"}, own)
}

func TestLabelled(t *testing.T) {
	n := node("a", "a")
	n.Labels = map[string]string{"mine": "1", "zone": "typed"}
	n = Labelled(n, map[string]string{"zone": "z1", "os": "linux"})
	require.Equal(t, map[string]string{"mine": "1", "zone": "z1", "os": "linux"}, n.Labels)
	require.JSONEq(t, `{"zone":"z1","os":"linux"}`, n.Annotations[AnnotationLabels])
	require.Nil(t, Labelled(n, map[string]string{"zone": "z1", "os": "linux"}))

	n.Labels["os"] = "changed by hand"
	n = Labelled(n, map[string]string{})
	require.Equal(t, map[string]string{"mine": "1", "os": "changed by hand"}, n.Labels)
	require.Nil(t, Labelled(n, nil))

	n.Annotations[AnnotationLabels] = "no JSON"
	n.Labels["zone"] = "z1"
	n = Labelled(n, map[string]string{"os": "linux"})
	require.Equal(t, map[string]string{"mine": "1", "os": "linux", "zone": "z1"}, n.Labels)
}

// TestLabelsInTheEnd: whatever was copied in between, in the end a node has its own labels and those of Kubernetes, which win.
func TestLabelsInTheEnd(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	some := func(prefix string) map[string]string {
		m := map[string]string{}
		for range r.IntN(5) {
			m[fmt.Sprint(prefix, r.IntN(6))] = fmt.Sprint(r.IntN(3))
		}
		return m
	}
	for range 300 {
		mine := some("own")
		n := node("a", "a")
		n.Labels = maps.Clone(mine)
		var last map[string]string
		for range 1 + r.IntN(4) {
			last = some("k")
			if changed := Labelled(n, last); changed != nil {
				n = changed
			}
		}
		want := maps.Clone(mine)
		maps.Copy(want, last)
		require.Equal(t, want, n.Labels)
		require.Nil(t, Labelled(n, last))
	}
}
