package pools_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/node/pools"
)

func facts(env map[string]string) pools.Facts {
	return pools.Facts{Env: func(n string) string { return env[n] }, IPv4: true, Random: [5]byte{1, 2, 3, 4, 5}}
}

func TestDefaults(t *testing.T) {
	got, err := pools.Propose(facts(nil))
	require.NoError(t, err)
	require.Len(t, got, 1)
	p := got[0]
	require.Equal(t, "default-ipv4-ippool 192.168.0.0/16 Always Never", p.Name+" "+p.Spec.CIDR+" "+string(p.Spec.IPIPMode)+" "+string(p.Spec.VXLANMode))
	require.True(t, p.Spec.NATOutgoing)
	require.Equal(t, 26, p.Spec.BlockSize)
}

func TestIPv6PoolIsAUniqueLocalRange(t *testing.T) {
	f := facts(nil)
	f.IPv4, f.IPv6 = false, true
	got, err := pools.Propose(f)
	require.NoError(t, err)
	require.Equal(t, "fd01:203:405::/48", got[0].Spec.CIDR)
	require.False(t, got[0].Spec.NATOutgoing)
	require.Equal(t, 122, got[0].Spec.BlockSize)
}

func TestARangeInUseIsAvoided(t *testing.T) {
	f := facts(nil)
	f.Addresses = []netip.Prefix{netip.MustParsePrefix("192.168.7.1/24"), netip.MustParsePrefix("172.16.3.4/20")}
	got, err := pools.Propose(f)
	require.NoError(t, err)
	require.Equal(t, "172.17.0.0/16", got[0].Spec.CIDR)
}

func TestEnvironment(t *testing.T) {
	got, err := pools.Propose(facts(map[string]string{
		"CALICO_IPV4POOL_CIDR": "10.244.0.0/16", "CALICO_IPV4POOL_BLOCK_SIZE": "24", "CALICO_IPV4POOL_VXLAN": "CrossSubnet",
		"CALICO_IPV4POOL_NAT_OUTGOING": "false", "CALICO_IPV4POOL_NODE_SELECTOR": "rack == 'a'",
		"CALICO_IPV4POOL_DISABLE_BGP_EXPORT": "true",
	}))
	require.NoError(t, err)
	s := got[0].Spec
	require.Equal(t, "10.244.0.0/16 24 Never CrossSubnet", s.CIDR+" 24 "+string(s.IPIPMode)+" "+string(s.VXLANMode))
	require.Equal(t, 24, s.BlockSize)
	require.False(t, s.NATOutgoing)
	require.True(t, s.DisableBGPExport)
	require.Equal(t, "rack == 'a'", s.NodeSelector)

	got, err = pools.Propose(facts(map[string]string{"NO_DEFAULT_POOLS": "true"}))
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestMistakesNameTheirVariable(t *testing.T) {
	for variable, value := range map[string]string{
		"NO_DEFAULT_POOLS": "perhaps", "CALICO_IPV4POOL_CIDR": "fd00::/48", "CALICO_IPV4POOL_BLOCK_SIZE": "big",
		"CALICO_IPV4POOL_IPIP": "Sometimes", "CALICO_IPV4POOL_VXLAN": "On", "CALICO_IPV4POOL_NAT_OUTGOING": "ja",
	} {
		_, err := pools.Propose(facts(map[string]string{variable: value}))
		require.ErrorContains(t, err, variable)
		require.ErrorContains(t, err, value)
	}
	for text, env := range map[string]map[string]string{
		`environment variable CALICO_IPV4POOL_VXLAN: "CrossSubnet" cannot be combined with CALICO_IPV4POOL_IPIP=Always; set one of the two to Never`: {
			"CALICO_IPV4POOL_IPIP": "Always", "CALICO_IPV4POOL_VXLAN": "CrossSubnet",
		},
		`environment variable CALICO_IPV6POOL_IPIP: "Always" is for IPv4 only; use CALICO_IPV6POOL_VXLAN`: {"CALICO_IPV6POOL_IPIP": "Always"},
		`environment variable CALICO_IPV6POOL_VXLAN: "Yes" is no mode; use Always, CrossSubnet or Never`:  {"CALICO_IPV6POOL_VXLAN": "Yes"},
	} {
		f := facts(env)
		f.IPv6 = true
		_, err := pools.Propose(f)
		require.EqualError(t, err, text)
	}
}

// How packets of the default pools travel, for what is set.
func TestModes(t *testing.T) {
	for _, c := range []struct {
		backend               api.Backend
		ipip4, vxlan4, vxlan6 string
		want4, want6          string // ipipMode and vxlanMode
	}{
		{want4: "Always Never", want6: "Never Never"},
		{backend: api.BackendBird, want4: "Always Never", want6: "Never Never"},
		{vxlan4: "Never", want4: "Always Never", want6: "Never Never"},
		{ipip4: "Off", vxlan6: "Always", want4: "Never Never", want6: "Never Always"},
		{ipip4: "cross-subnet", vxlan6: "CrossSubnet", want4: "CrossSubnet Never", want6: "Never CrossSubnet"},
		{vxlan4: "Always", want4: "Never Always", want6: "Never Never"},
		{ipip4: "Never", vxlan4: "crosssubnet", want4: "Never CrossSubnet", want6: "Never Never"},
		{backend: api.BackendVXLAN, want4: "Never Always", want6: "Never Always"},
		{backend: api.BackendVXLAN, ipip4: "Always", vxlan6: "Never", want4: "Always Never", want6: "Never Never"},
		{backend: api.BackendVXLAN, ipip4: "Always", vxlan4: "Always", want4: "Never Always", want6: "Never Always"},
	} {
		f := facts(map[string]string{"CALICO_IPV4POOL_IPIP": c.ipip4, "CALICO_IPV4POOL_VXLAN": c.vxlan4, "CALICO_IPV6POOL_VXLAN": c.vxlan6})
		f.IPv6, f.Backend = true, c.backend
		got, err := pools.Propose(f)
		require.NoError(t, err, c)
		for i, want := range []string{c.want4, c.want6} {
			require.Equal(t, want, string(got[i].Spec.IPIPMode)+" "+string(got[i].Spec.VXLANMode), "%s: %+v", got[i].Name, c)
		}
	}
}
