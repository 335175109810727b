package api_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

// jsonCase is one value, as documents may write it and as it is stored; stored is empty if it is refused.
type jsonCase struct{ written, stored string }

func runJSON[T any](t *testing.T, cases []jsonCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.written, func(t *testing.T) {
			var v T
			err := json.Unmarshal([]byte(c.written), &v)
			if c.stored == "" {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			text, err := json.Marshal(v)
			require.NoError(t, err)
			require.Equal(t, c.stored, string(text))
		})
	}
}

func TestPortJSON(t *testing.T) {
	runJSON[api.Port](t, []jsonCase{
		{`80`, `80`},
		{`"80"`, `80`},
		{`65535`, `65535`},
		{`"8000:8080"`, `"8000:8080"`},
		{`"80:80"`, `80`},
		{`"http"`, `"http"`},
		{`0`, `0`}, // for Validate to refuse
		{`65536`, ``},
		{`"90:80"`, ``},
		{`"1:2:3"`, ``},
		{`"a b"`, ``},
		{`""`, ``},
		{`-1`, ``},
		{`1.5`, ``},
		{`true`, ``},
	})
	require.Equal(t, api.Port{First: 8000, Last: 8080}, mustPort(t, "8000:8080"))
	require.Equal(t, api.SinglePort(80), mustPort(t, "80"))
	require.True(t, mustPort(t, "http").IsNamed())
}

func mustPort(t *testing.T, s string) api.Port {
	t.Helper()
	p, err := api.ParsePort(s)
	require.NoError(t, err)
	return p
}

func TestProtocolJSON(t *testing.T) {
	runJSON[api.Protocol](t, []jsonCase{
		{`"TCP"`, `"TCP"`},
		{`"tcp"`, `"TCP"`},
		{`"icmpV6"`, `"ICMPv6"`},
		{`6`, `6`},
		{`"6"`, `6`},
		{`"GRE"`, `"GRE"`}, // for Validate to refuse
		{`-6`, ``},
		{`{}`, ``},
	})
	for p, want := range map[api.Protocol]uint8{"TCP": 6, "UDP": 17, "ICMP": 1, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136, "47": 47, "255": 255} {
		n, ok := p.Number()
		require.True(t, ok, p)
		require.Equal(t, want, n, p)
	}
	for _, p := range []api.Protocol{"", "0", "256", "GRE"} {
		_, ok := p.Number()
		require.False(t, ok, p)
	}
	for p, want := range map[api.Protocol]bool{"TCP": true, "17": true, "SCTP": true, "UDPLite": false, "ICMP": false, "x": false} {
		require.Equal(t, want, p.SupportsPorts(), p)
	}
}

func TestASNumberJSON(t *testing.T) {
	runJSON[api.ASNumber](t, []jsonCase{
		{`64512`, `64512`},
		{`"64512"`, `64512`},
		{`"1.10"`, `65546`},
		{`"65535.65535"`, `4294967295`},
		{`4294967295`, `4294967295`},
		{`4294967296`, ``},
		{`"65536.1"`, ``},
		{`"1.2.3"`, ``},
		{`"AS1"`, ``},
		{`1.10`, ``}, // as a number it would be 1.1
	})
}

func TestDSCPJSON(t *testing.T) {
	runJSON[api.DSCP](t, []jsonCase{{`46`, `46`}, {`"46"`, `46`}, {`"EF"`, `"EF"`}, {`"x"`, `"x"`}, {`[]`, ``}})
	for d, want := range map[api.DSCP]uint8{"DF": 0, "EF": 46, "AF11": 10, "AF23": 22, "AF43": 38, "CS0": 0, "CS6": 48, "ef": 46, "63": 63} {
		n, ok := d.Number()
		require.True(t, ok, d)
		require.Equal(t, want, n, d)
	}
	for _, d := range []api.DSCP{"", "64", "AF51", "AF14", "CS7", "XX"} {
		_, ok := d.Number()
		require.False(t, ok, d)
	}
}

func TestParseNet(t *testing.T) {
	for s, want := range map[string]string{"10.0.0.0/8": "10.0.0.0/8", "10.0.0.7/8": "10.0.0.7/8", "10.0.0.7": "10.0.0.7/32", "fd00::1": "fd00::1/128"} {
		p, err := api.ParseNet(s)
		require.NoError(t, err)
		require.Equal(t, want, p.String())
	}
	for _, s := range []string{"", "10.0.0.0/33", "10.0.0", "fe80::1%eth0", "10.0.0.0/8/8", "010.0.0.0/8"} {
		_, err := api.ParseNet(s)
		require.Error(t, err, s)
	}
}

func TestParsePeerIP(t *testing.T) {
	for s, want := range map[string]string{"10.0.0.1": "10.0.0.1:0", "10.0.0.1:1179": "10.0.0.1:1179", "fd00::1": "[fd00::1]:0", "[fd00::1]:1179": "[fd00::1]:1179"} {
		p, err := api.ParsePeerIP(s)
		require.NoError(t, err)
		require.Equal(t, want, p.String())
	}
	for _, s := range []string{"", "10.0.0.1:0", "10.0.0.1:65536", "fe80::1%eth0", "[fe80::1%eth0]:179", "[fd00::1]", "host:179"} {
		_, err := api.ParsePeerIP(s)
		require.Error(t, err, s)
	}
}

func TestNames(t *testing.T) {
	cidr := netip.MustParsePrefix("10.9.0.5/30")
	require.Equal(t, "10.9.0.4/30", api.BlockName(cidr))
	require.Equal(t, "host/node-a/10.9.0.4/30", api.AffinityName("", "node-a", cidr))
	kind, node, back, err := api.ParseAffinityName("virtual/load-balancer/fd00:77::4a80/122")
	require.NoError(t, err)
	require.Equal(t, api.AffinityVirtual, kind)
	require.Equal(t, api.VirtualLoadBalancer, node)
	require.Equal(t, "fd00:77::4a80/122", back.String())
	for _, bad := range []string{"", "host/node-a", "pet/node-a/10.9.0.4/30", "host//10.9.0.4/30", "host/node-a/10.9.0.5/30"} {
		_, _, _, err := api.ParseAffinityName(bad)
		require.Error(t, err, bad)
	}

	name, err := api.WorkloadEndpointName(api.WorkloadEndpointSpec{Node: "node-a", Orchestrator: "k8s", Pod: "web-0", Endpoint: "eth0"})
	require.NoError(t, err)
	require.Equal(t, "node--a-k8s-web--0-eth0", name)
	n, orchestrator, workload, endpoint, err := api.ParseWorkloadEndpointName(name)
	require.NoError(t, err)
	require.Equal(t, []string{"node-a", "k8s", "web-0", "eth0"}, []string{n, orchestrator, workload, endpoint})
	for _, bad := range []string{"", "a-b-c", "a-b-c-d-e", "a-b--c-d", "-a-b-c"} {
		_, _, _, _, err := api.ParseWorkloadEndpointName(bad)
		require.Error(t, err, bad)
	}
	require.Equal(t, "NetworkSet(shop/db)", api.Key{Kind: "NetworkSet", Namespace: "shop", Name: "db"}.String())
}
