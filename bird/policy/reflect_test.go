package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// reflecting is a reflector with two clients and a fellow reflector on the mesh, a peer of its own choice inside the AS, and
// a router outside.
func reflecting() Config {
	mesh := func(a string, client bool) Peer {
		return Peer{Name: "Mesh " + a, Type: PeerMesh, Source: "Node", Address: addr(a), ASNumber: 64512, ReflectorClient: client}
	}
	c := Config{
		RouterID: addr("10.0.0.1"), ASNumber: 64512, ClusterID: addr("10.0.0.1"),
		Peers: []Peer{
			mesh("10.0.0.2", true), mesh("10.0.0.3", true), mesh("10.0.0.9", false),
			{Name: "Node", Type: PeerNode, Source: "BGPPeer(a)", Address: addr("10.0.0.20"), ASNumber: 64512},
			{Name: "Tor", Type: PeerNode, Source: "BGPPeer(tor)", Address: addr("10.0.0.254"), ASNumber: 65001},
		},
		Export: Export{Pools: []Pool{{Prefix: prefix("192.168.0.0/16")}}},
	}
	c.Normalize()
	return c
}

// TestReflection has a row for each way that a route may take through a reflector, and through the same node before and
// after it is one. Programs are judged in TestCompiledIsDecided.
func TestReflection(t *testing.T) {
	const client, client2, fellow, aside, router = 0, 1, 2, 3, 4
	for _, row := range []struct {
		what           string
		from, to       int
		while, without bool
	}{
		{"client to client", client, client2, true, false},
		{"client to fellow", client, fellow, true, false},
		{"fellow's copy to client", fellow, client, false, false},
		{"fellow itself to client", fellow, client, true, false},
		{"mesh to a peer beside it", client, aside, false, false},
		{"peer beside the mesh to a client", aside, client, false, false},
		{"client to a router", client, router, true, true},
		{"router to client", router, client, true, true},
		{"router to fellow", router, fellow, true, true},
	} {
		c := reflecting()
		rt := Route{Prefix: prefix("192.168.2.0/26"), Preference: PreferenceOf(1024), NextHop: addr("10.0.0.99")}
		if strings.Contains(row.what, "itself") {
			rt.NextHop = c.Peers[row.from].Address
		}
		require.Equal(t, row.while, c.ExportLearned(&c.Peers[row.to], &c.Peers[row.from], rt).Accept, row.what)
		c.ClusterID = netip.Addr{}
		require.Equal(t, row.without, c.ExportLearned(&c.Peers[row.to], &c.Peers[row.from], rt).Accept, "no reflector: %s", row.what)
	}
}

// TestCopiesOfFellows: what a client says itself is preferred to what another reflector says of it.
func TestCopiesOfFellows(t *testing.T) {
	c := reflecting()
	med := func(p Program) (out []string) {
		for _, s := range p.Import {
			if s.MED != 0 {
				out = append(out, s.String())
			}
		}
		return out
	}
	require.Equal(t, []string{
		"copies of 10.0.0.9: if neighbor in peers fellow 10.0.0.9 and next hop in [10.0.0.2 10.0.0.3]: MED 1",
	}, med(c.Compile(Context{})))
	c.Peers[2].ReflectorClient = true
	require.Empty(t, med(c.Compile(Context{})))
	require.Len(t, med(c.Compile(Context{Reflected: []netip.Addr{c.Peers[2].Address}})), 1, "its copies may still be there")
	c.ClusterID = netip.Addr{}
	require.Empty(t, med(c.Compile(Context{Reflected: []netip.Addr{c.Peers[2].Address}})), "no reflector itself")
}

// TestRolesOnTheMeshAreQuiet: nodes of a mesh become reflectors and cease to be without a session made anew, and what
// sends to a peer stays as it is, so that the engine takes back what is no longer allowed.
func TestRolesOnTheMeshAreQuiet(t *testing.T) {
	before, after := reflecting(), reflecting()
	before.ClusterID = netip.Addr{}
	for i := range before.Peers {
		before.Peers[i].ReflectorClient = false
		change, why := Compare(&before.Peers[i], &after.Peers[i])
		require.Equal(t, Unchanged, change, why)
	}
	require.Equal(t, before.Compile(Context{}).Export, after.Compile(Context{}).Export)
	client := before.Peers[0]
	client.Type, client.ReflectorClient = PeerNode, true
	change, why := Compare(&before.Peers[3], &client)
	require.Equal(t, Restarted, change)
	require.Equal(t, "reflector client", why)
}
