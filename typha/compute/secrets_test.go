package compute

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/typha/views"
)

// passwords are those in a node's view, as name=value.
func passwords(store *views.Store, node string) (out []string) {
	for _, e := range store.View(bgpView(node)) {
		if s, ok := e.Item().(view.Secret); ok {
			out = append(out, s.Name+"="+string(s.Value))
		}
	}
	slices.Sort(out)
	return out
}

func passwordOf(key string) *api.BGPPassword {
	return &api.BGPPassword{SecretKeyRef: &api.SecretKeySelector{Name: "s", Key: key}}
}

// protectedPeer is a BGPPeer with the password s/peer.
func protectedPeer(change func(*api.BGPPeerSpec)) *api.BGPPeer {
	p := &api.BGPPeer{}
	p.Name = "peer"
	p.Spec = api.BGPPeerSpec{PeerIP: "192.0.2.1", ASNumber: 65000, Password: passwordOf("peer")}
	change(&p.Spec)
	return p
}

// TestSecretScope goes through who is told a password. Nodes are n1 to n3 in AS 64512; n1 has the label rack=a, n3 is a route
// reflector that listens on port 1179, and n4 has no addresses.
func TestSecretScope(t *testing.T) {
	mesh := func(change func(*api.BGPConfigurationSpec)) *api.BGPConfiguration {
		c := bgpConfig(nil, nil, nil, "")
		c.Spec.NodeMeshPassword = passwordOf("mesh")
		change(&c.Spec)
		return c
	}
	keep := func(*api.BGPConfigurationSpec) {}
	for _, row := range []struct {
		name   string
		object api.Object
		want   []string
	}{
		{"mesh: all but reflectors", mesh(keep), []string{"n1", "n2"}},
		{"mesh that is off", mesh(func(s *api.BGPConfigurationSpec) { s.NodeToNodeMeshEnabled = new(false) }), nil},
		{"elected reflectors take the mesh's place", mesh(func(s *api.BGPConfigurationSpec) {
			s.RouteReflectors = &api.RouteReflectors{Mode: api.ReflectorsAuto}
		}), []string{"n1", "n2", "n3"}},
		{"what is not a reference", mesh(func(s *api.BGPConfigurationSpec) { s.NodeMeshPassword = &api.BGPPassword{} }), nil},

		{"global peer", protectedPeer(func(*api.BGPPeerSpec) {}), []string{"n1", "n2", "n3"}},
		{"one node", protectedPeer(func(s *api.BGPPeerSpec) { s.Node = "n2" }), []string{"n2"}},
		{"selected nodes", protectedPeer(func(s *api.BGPPeerSpec) { s.NodeSelector = "rack == 'a'" }), []string{"n1"}},
		{"nothing is selected", protectedPeer(func(s *api.BGPPeerSpec) { s.NodeSelector = "rack == 'z'" }), nil},
		{"pods", protectedPeer(func(s *api.BGPPeerSpec) { s.PeerIP, s.LocalWorkloadSelector = "", "all()" }), nil},

		{"both sides of a peering of nodes", protectedPeer(func(s *api.BGPPeerSpec) {
			s.PeerIP, s.ASNumber, s.Node, s.PeerSelector = "", 0, "n2", "rack == 'a'"
		}), []string{"n1", "n2"}},
		{"one side, if the way back is by hand", protectedPeer(func(s *api.BGPPeerSpec) {
			s.PeerIP, s.ASNumber, s.Node, s.PeerSelector, s.ReversePeering = "", 0, "n2", "rack == 'a'", new(api.ReverseManual)
		}), []string{"n2"}},
		{"the near side does not exist", protectedPeer(func(s *api.BGPPeerSpec) {
			s.PeerIP, s.ASNumber, s.Node, s.PeerSelector = "", 0, "n9", "rack == 'a'"
		}), nil},
		{"a node that selects itself alone", protectedPeer(func(s *api.BGPPeerSpec) {
			s.PeerIP, s.ASNumber, s.Node, s.PeerSelector = "", 0, "n1", "rack == 'a'"
		}), []string{"n1"}},
		{"a node by its address", protectedPeer(func(s *api.BGPPeerSpec) { s.PeerIP, s.ASNumber, s.Node = "10.0.0.1", 64512, "n2" }), []string{"n1", "n2"}},
		{"the AS of the cluster if none is given", protectedPeer(func(s *api.BGPPeerSpec) { s.PeerIP, s.ASNumber, s.Node = "10.0.0.1", 0, "n2" }), []string{"n1", "n2"}},
		{"another AS", protectedPeer(func(s *api.BGPPeerSpec) { s.PeerIP, s.Node = "10.0.0.1", "n2" }), []string{"n2"}},
		{"the port that the node listens on", protectedPeer(func(s *api.BGPPeerSpec) { s.PeerIP, s.ASNumber, s.Node = "10.0.0.3:1179", 64512, "n2" }), []string{"n2", "n3"}},
		{"another port", protectedPeer(func(s *api.BGPPeerSpec) { s.PeerIP, s.ASNumber, s.Node = "10.0.0.3:179", 64512, "n2" }), []string{"n2"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			n3, n4 := announcer("n3"), announcer("n4")
			n3.Spec.BGP.RouteReflectorClusterID, n4.Spec.BGP = "1.0.0.1", nil
			port := &api.BGPConfiguration{}
			port.Name, port.Spec.ListenPort = "node.n3", 1179
			e, store := New(), views.NewStore()
			put(e, announcer("n1", "rack", "a"), announcer("n2"), n3, n4, port, row.object)
			for _, ref := range e.Secrets() {
				e.SetSecret(ref, []byte("x"))
			}
			store.Commit(e.Flush())
			var got []string
			for i := range 4 {
				if n := fmt.Sprintf("n%d", i+1); len(passwords(store, n)) > 0 {
					got = append(got, n)
				}
			}
			require.Equal(t, row.want, got)
		})
	}
}

// TestSecretsChange has values come late, change, vanish, and be used by others.
func TestSecretsChange(t *testing.T) {
	e, store := New(), views.NewStore()
	e.Configure(Options{Namespace: "calico-system"})
	flush := func() map[views.Scope]*views.Delta {
		c := e.Flush()
		store.Commit(c)
		return c.Scopes
	}
	require.True(t, e.SecretsKnown(), "there are none")
	peer := protectedPeer(func(s *api.BGPPeerSpec) { s.NodeSelector = "rack == 'a'" })
	ref := SecretRef{"s", "peer"}
	put(e, announcer("n1", "rack", "a"), announcer("n2"), peer)
	require.Equal(t, []SecretRef{ref}, e.Secrets())
	require.False(t, e.SecretsKnown())
	e.SetSecret(SecretRef{"s", "other"}, []byte("not used"))
	e.SetSecret(ref, nil)
	require.True(t, e.SecretsKnown(), "known to be missing")
	flush()
	require.Empty(t, passwords(store, "n1"))

	e.SetSecret(ref, []byte("one"))
	flush()
	const name = "calico-system/s/peer="
	require.Equal(t, []string{name + "one"}, passwords(store, "n1"))
	for k, entry := range store.View(bgpView("n1")) {
		if k.Kind == view.KindSecret {
			require.NotContains(t, fmt.Sprintf("%s %v %+v %#v", entry.Item(), entry.Item(), entry.Item(), entry.Item()), "one", "no log shows it")
		}
	}
	require.Empty(t, passwords(store, "n2"))
	e.SetSecret(ref, []byte("one"))
	require.Empty(t, flush(), "no news")
	e.SetSecret(ref, []byte("two"))
	require.Len(t, flush(), 1)
	require.Equal(t, []string{name + "two"}, passwords(store, "n1"))

	// Nodes come to use it, and cease to.
	put(e, announcer("n1"), announcer("n2", "rack", "a"))
	flush()
	require.Empty(t, passwords(store, "n1"))
	require.Equal(t, []string{name + "two"}, passwords(store, "n2"))
	touched := announcer("n2", "rack", "a")
	touched.Spec.IPv4VXLANTunnelAddr = "10.1.0.1"
	put(e, touched)
	flush()
	require.False(t, e.secrets.dirty)

	e.SetSecret(ref, []byte{})
	flush()
	require.Empty(t, passwords(store, "n2"), "an empty one is none")
	e.SetSecret(ref, []byte("three"))
	remove(e, peer)
	require.Empty(t, flush()[bgpView("n2")].Put)
	require.Empty(t, e.Secrets())
	require.Empty(t, passwords(store, "n2"))
	put(e, peer)
	require.False(t, e.SecretsKnown(), "what was not used has to be looked up again")
	flush()
	require.Empty(t, passwords(store, "n2"))
	e.SetSecret(ref, []byte("three"))
	flush()
	require.Equal(t, []string{name + "three"}, passwords(store, "n2"))
	remove(e, touched)
	flush()
	require.Empty(t, passwords(store, "n2"))
}
