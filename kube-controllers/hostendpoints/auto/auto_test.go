package auto

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

func node(name string) *api.Node {
	n := &api.Node{}
	n.Name = name
	n.Labels = map[string]string{"zone": "z1"}
	n.Spec = api.NodeSpec{
		BGP:                 &api.NodeBGPSpec{IPv4Address: "10.0.0.7/24", IPv6Address: "fd00::7/64", IPv4IPIPTunnelAddr: "192.168.0.1"},
		IPv4VXLANTunnelAddr: "192.168.0.2", Wireguard: &api.NodeWireguardSpec{InterfaceIPv4Address: "192.168.0.3"},
		Addresses: []api.NodeAddress{
			{Address: "10.0.0.7/24", Type: api.AddressCalicoNode}, {Address: "10.0.0.8", Type: api.AddressInternal}, {Address: "203.0.113.1", Type: api.AddressExternal},
		},
		Interfaces: []api.NodeInterface{{Name: "eth0", Addresses: []string{"10.0.0.7", "bad"}}, {Name: "Bond1.5", Addresses: []string{"172.16.0.1"}}},
	}
	return n
}

func config(templates ...api.HostEndpointTemplate) *api.AutoHostEndpointConfig {
	return &api.AutoHostEndpointConfig{AutoCreate: api.Enabled, CreateDefaultHostEndpoint: api.Disabled, Templates: templates}
}

func names(list []*api.HostEndpoint) (out []string) {
	for _, e := range list {
		out = append(out, e.Name)
	}
	return out
}

func TestDefault(t *testing.T) {
	for _, off := range []*api.AutoHostEndpointConfig{nil, {}, {AutoCreate: api.Disabled}} {
		list, wrong := Endpoints([]*api.Node{node("a")}, off)
		require.Empty(t, list)
		require.Empty(t, wrong)
	}
	list, wrong := Endpoints([]*api.Node{node("b"), node("a")}, &api.AutoHostEndpointConfig{AutoCreate: api.Enabled})
	require.Empty(t, wrong)
	require.Equal(t, []string{"a-auto-hep", "b-auto-hep"}, names(list))
	e := list[0]
	require.NoError(t, e.Validate())
	require.True(t, Owned(e))
	require.Equal(t, map[string]string{"zone": "z1", LabelCreatedBy: CreatedBy}, e.Labels)
	require.Equal(t, api.HostEndpointSpec{
		Node: "a", InterfaceName: "*", Profiles: []string{"projectcalico-default-allow"},
		ExpectedIPs: []string{"10.0.0.7", "fd00::7", "192.168.0.1", "192.168.0.2", "192.168.0.3", "10.0.0.8", "172.16.0.1"},
	}, e.Spec)
	require.False(t, Owned(&api.HostEndpoint{}))
}

func TestTemplates(t *testing.T) {
	far := node("far")
	far.Labels = map[string]string{"zone": "z2"}
	list, wrong := Endpoints([]*api.Node{node("a"), far}, config(
		api.HostEndpointTemplate{GenerateName: "up", InterfacePattern: "^(eth|Bond)", NodeSelector: "zone == 'z1'", Labels: map[string]string{"zone": "mine"}, Annotations: map[string]string{"why": "x"}},
		api.HostEndpointTemplate{GenerateName: "lan", InterfaceCIDRs: []string{"10.0.0.0/24"}, NodeSelector: "zone == 'z1'"},
		api.HostEndpointTemplate{GenerateName: "none", InterfaceCIDRs: []string{"10.9.0.0/24"}},
		api.HostEndpointTemplate{GenerateName: "narrow", InterfaceCIDRs: []string{"10.0.0.7"}, InterfacePattern: ".", NodeSelector: "zone == 'z2'"},
		api.HostEndpointTemplate{GenerateName: "all", NodeSelector: "zone == 'z2'"},
		api.HostEndpointTemplate{InterfacePattern: "("}, api.HostEndpointTemplate{NodeSelector: "((("}, api.HostEndpointTemplate{InterfaceCIDRs: []string{"x"}},
	))
	require.Len(t, wrong, 3)
	require.ErrorContains(t, wrong[0], "templates[5]: interfacePattern")
	got := map[string]*api.HostEndpoint{}
	for _, e := range list {
		require.NoError(t, e.Validate(), e.Name)
		got[e.Name] = e
	}
	var bond string
	for n := range got {
		if strings.HasPrefix(n, "a-up-bond1.5-") {
			bond = n
		}
	}
	require.ElementsMatch(t, []string{"a-up-eth0-auto-hep", bond, "a-lan-auto-hep", "far-narrow-eth0-auto-hep", "far-all-auto-hep"}, names(list))
	up := got["a-up-eth0-auto-hep"]
	require.Equal(t, "eth0", up.Spec.InterfaceName)
	require.Equal(t, []string{"10.0.0.7"}, up.Spec.ExpectedIPs)
	require.Equal(t, map[string]string{"zone": "mine", LabelCreatedBy: CreatedBy}, up.Labels)
	require.Equal(t, map[string]string{"why": "x"}, up.Annotations)
	require.Equal(t, "Bond1.5", got[bond].Spec.InterfaceName)
	require.Equal(t, api.HostEndpointSpec{Node: "a", ExpectedIPs: []string{"10.0.0.7", "10.0.0.8"}, Profiles: []string{"projectcalico-default-allow"}}, got["a-lan-auto-hep"].Spec)
	require.Equal(t, "*", got["far-all-auto-hep"].Spec.InterfaceName)
}

func TestLongNamesAreHashed(t *testing.T) {
	long := strings.Repeat("n", 253)
	one, two := name(long, "", ""), name(long, "x", "")
	require.Len(t, one, 253)
	require.NotEqual(t, one, two)
	require.True(t, strings.HasSuffix(one, "-auto-hep"))
	require.NotEqual(t, name("a", "", "Eth0"), name("a", "", "eth0"))
}

// TestOrderDoesNotMatter shuffles the nodes.
func TestOrderDoesNotMatter(t *testing.T) {
	nodes := []*api.Node{node("a"), node("b"), node("c"), node("d")}
	c := config(api.HostEndpointTemplate{GenerateName: "t", InterfacePattern: "."})
	c.CreateDefaultHostEndpoint = api.Enabled
	want, _ := Endpoints(nodes, c)
	for range 20 {
		rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		got, _ := Endpoints(nodes, c)
		require.Equal(t, want, got)
	}
}
