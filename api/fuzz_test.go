package api_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

// FuzzDecode: whatever users write, Decode gives objects or readable errors, and what it took it takes again.
func FuzzDecode(f *testing.F) {
	for _, dir := range []string{"good", "bad", "calico"} {
		files, err := filepath.Glob(filepath.Join("testdata", dir, "*.yaml"))
		require.NoError(f, err)
		for _, file := range files {
			for _, doc := range documents(f, file) {
				f.Add([]byte(doc))
			}
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		objects, err := api.Decode(text)
		if err != nil {
			require.NotEmpty(t, err.Error())
			require.Nil(t, objects)
			return
		}
		for _, o := range objects {
			o.Default()
			_ = o.Validate()
			once, err := api.Encode(o)
			require.NoError(t, err)
			o.Default()
			twice, err := api.Encode(o)
			require.NoError(t, err)
			require.Equal(t, string(once), string(twice), "Default is not idempotent")
			back, err := api.DecodeStored(api.KindOf(o), once)
			require.NoError(t, err)
			again, err := api.Encode(back)
			require.NoError(t, err)
			require.JSONEq(t, string(once), string(again))
		}
	})
}

// FuzzDecodeStored: what can be read is written back with the same meaning.
func FuzzDecodeStored(f *testing.F) {
	f.Add("IPPool", []byte(`{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"a"},"spec":{"cidr":"10.0.0.0/16","x":[{"y":1}]}}`))
	f.Add("Node", []byte(`{"kind":"Node","metadata":{"name":"a"},"spec":{"bgp":{"asNumber":"1.10","x":null}},"status":{}}`))
	f.Add("NetworkPolicy", []byte(`{"kind":"NetworkPolicy","spec":{"ingress":[{"action":"Allow","x":1},{"source":{"nets":[]}}]}}`))
	f.Fuzz(func(t *testing.T, name string, text []byte) {
		kind, ok := api.LookupKind(name)
		if !ok {
			return
		}
		o, err := api.DecodeStored(kind, text)
		if err != nil {
			return
		}
		once, err := api.Encode(o)
		require.NoError(t, err)
		back, err := api.DecodeStored(kind, once)
		require.NoError(t, err)
		twice, err := api.Encode(back)
		require.NoError(t, err)
		require.JSONEq(t, string(once), string(twice))
	})
}

// FuzzParsers: the small parsers take back what they print.
func FuzzParsers(f *testing.F) {
	for _, s := range []string{"80", "8000:8080", "http", "64512", "1.10", "TCP", "47", "EF", "10.0.0.0/8", "fd00::1", "[fd00::1]:179", "host/a/10.0.0.0/26", "node--a-k8s-web--0-eth0", "tcp:[fd00::/8]:22"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := api.ParsePort(s); err == nil {
			again, err := api.ParsePort(p.String())
			require.NoError(t, err)
			require.Equal(t, p, again)
		}
		if a, err := api.ParseASNumber(s); err == nil {
			again, err := api.ParseASNumber(a.String())
			require.NoError(t, err)
			require.Equal(t, a, again)
		}
		p := api.ParseProtocol(s)
		require.Equal(t, p, api.ParseProtocol(string(p)))
		_, _ = p.Number()
		_, _ = api.DSCP(s).Number()
		if n, err := api.ParseNet(s); err == nil {
			again, err := api.ParseNet(n.String())
			require.NoError(t, err)
			require.Equal(t, n, again)
		}
		if peer, err := api.ParsePeerIP(s); err == nil && peer.Port() != 0 {
			again, err := api.ParsePeerIP(peer.String())
			require.NoError(t, err)
			require.Equal(t, peer, again)
		}
		if kind, node, cidr, err := api.ParseAffinityName(s); err == nil {
			require.Equal(t, s, api.AffinityName(kind, node, cidr))
		}
		if node, orchestrator, workload, endpoint, err := api.ParseWorkloadEndpointName(s); err == nil && orchestrator == api.OrchestratorKubernetes {
			again, err := api.WorkloadEndpointName(api.WorkloadEndpointSpec{Node: node, Orchestrator: orchestrator, Pod: workload, Endpoint: endpoint})
			if err == nil {
				require.Equal(t, s, again)
			}
		}
		_ = api.SetFelixParameter(&api.FelixConfigurationSpec{}, "failsafeInboundHostPorts", s)
	})
}
