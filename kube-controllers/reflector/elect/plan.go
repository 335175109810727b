package elect

import (
	"fmt"
	"slices"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/selector"
)

// ZoneLabel is the label of nodes that names their zone.
const ZoneLabel = "topology.kubernetes.io/zone"

// fewest is how few reflectors there may be: with a single one the cluster would hang on it.
const fewest = 2

// Presence is what is known of a node's life.
type Presence uint8

// The presences.
const (
	Here Presence = iota // or nobody says anything else
	Away                 // not connected now
	Lost                 // not connected for so long that others take its place
)

// Want says what should stand in for the mesh. now is what does, nil for nothing.
func Want(c *api.BGPConfiguration, nodes []*api.Node, now *api.Reflection, presence func(node string) Presence) api.Reflection {
	spec := c.Spec.RouteReflectors
	if spec == nil || spec.Mode != api.ReflectorsAuto {
		return api.Reflection{Mesh: true}
	}
	mesh := func(format string, args ...any) api.Reflection {
		return api.Reflection{Mesh: true, Message: "full mesh: " + fmt.Sprintf(format, args...)}
	}
	members := Members(nodes)
	if as := numbers(c, members); len(as) > 1 {
		return mesh("nodes have several AS numbers, %d and %d among them; reflectors are for one AS", as[0], as[1])
	}
	least := value(spec.MinNodes, api.DefaultReflectorMinNodes)
	if now != nil && len(now.Reflectors) > 0 {
		least -= max(1, least/5) // not to and fro
	}
	if len(members) < least {
		return mesh("fewer nodes than minNodes, %d", value(spec.MinNodes, api.DefaultReflectorMinNodes))
	}
	candidates, err := candidates(spec, members, presence)
	if err != nil {
		return mesh("nodeSelector: %v", err)
	}
	var reflect []string
	if now != nil {
		reflect = now.Reflectors
	}
	chosen := Choose(candidates, reflect, value(spec.Count, api.DefaultReflectorCount))
	if len(chosen) < fewest {
		return mesh("fewer than %d nodes are able and selected to reflect", fewest)
	}
	return api.Reflection{Reflectors: chosen}
}

// Members are the nodes that the mesh is made of: those with an address that do not reflect by hand.
func Members(nodes []*api.Node) []*api.Node {
	var out []*api.Node
	for _, n := range nodes {
		if b := n.Spec.BGP; b != nil && b.RouteReflectorClusterID == "" && (b.IPv4Address != "" || b.IPv6Address != "") {
			out = append(out, n)
		}
	}
	return out
}

// numbers are the AS numbers of nodes, sorted.
func numbers(c *api.BGPConfiguration, nodes []*api.Node) []api.ASNumber {
	cluster := api.ASNumber(api.DefaultASNumber)
	if c.Spec.ASNumber != nil {
		cluster = *c.Spec.ASNumber
	}
	var out []api.ASNumber
	for _, n := range nodes {
		as := cluster
		if n.Spec.BGP.ASNumber != nil {
			as = *n.Spec.BGP.ASNumber
		}
		if !slices.Contains(out, as) {
			out = append(out, as)
		}
	}
	slices.Sort(out)
	return out
}

// candidates are the members that may reflect: that are selected, are not lost, and can be reached over every family that
// any node has.
func candidates(spec *api.RouteReflectors, members []*api.Node, presence func(string) Presence) ([]Candidate, error) {
	text := spec.NodeSelector
	if text == "" {
		text = "all()"
	}
	selected, err := selector.Parse(text)
	if err != nil {
		return nil, err
	}
	v4 := slices.ContainsFunc(members, func(n *api.Node) bool { return n.Spec.BGP.IPv4Address != "" })
	v6 := slices.ContainsFunc(members, func(n *api.Node) bool { return n.Spec.BGP.IPv6Address != "" })
	var out []Candidate
	for _, n := range members {
		p, b := presence(n.Name), n.Spec.BGP
		if p == Lost || v4 && b.IPv4Address == "" || v6 && b.IPv6Address == "" || !selected.Matches(n.Labels) {
			continue
		}
		out = append(out, Candidate{Name: n.Name, Zone: n.Labels[ZoneLabel], Fit: p == Here})
	}
	return out, nil
}

func value(p *int32, otherwise int) int {
	if p == nil {
		return otherwise
	}
	return int(*p)
}

// Next is the next step from what stands in for the mesh now to what should: first all that is new is made, beside what
// there is, and only when that has settled what is not wanted any more goes. It returns what there should be at once.
func Next(now *api.Reflection, want api.Reflection, settled bool) *api.Reflection {
	if now == nil {
		now = &api.Reflection{Mesh: true}
	}
	both := api.Reflection{Mesh: now.Mesh || want.Mesh, Reflectors: union(now.Reflectors, want.Reflectors), Message: want.Message}
	switch {
	case same(both, want), settled && same(both, *now):
		both = want
	case !want.Mesh && both.Mesh:
		both.Message = "reflectors take over; the mesh goes when that has settled"
	default:
		both.Message = "sessions change; those that are not needed any more go when that has settled"
	}
	if both.Mesh && len(both.Reflectors) == 0 && both.Message == "" {
		return nil // as if there had never been any
	}
	return &both
}

func same(a, b api.Reflection) bool {
	return a.Mesh == b.Mesh && slices.Equal(a.Reflectors, b.Reflectors)
}

// Same tells whether two set-ups have the same sessions.
func Same(a, b *api.Reflection) bool {
	full := &api.Reflection{Mesh: true}
	if a == nil {
		a = full
	}
	if b == nil {
		b = full
	}
	return same(*a, *b)
}

func union(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.Compact(out)
}
