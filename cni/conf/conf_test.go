package conf_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/cni/conf"
)

func TestParseReadsWhatManifestsShip(t *testing.T) {
	n, err := conf.Parse([]byte(`{
		"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "calico", "log_level": "info",
		"datastore_type": "kubernetes", "nodename": "worker-1", "mtu": 1450,
		"ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true", "ipv4_pools": ["10.0.0.0/16", "named"]},
		"policy": {"type": "k8s"}, "container_settings": {"allow_ip_forwarding": true},
		"args": {"cni": {"labels": [{"key": "app", "value": "web"}]}},
		"policy_setup_timeout_seconds": 3}`))
	require.NoError(t, err)
	require.True(t, n.Own())
	require.True(t, n.IPv4())
	require.True(t, n.IPv6())
	require.Equal(t, 1450, n.MTU)
	require.True(t, n.ContainerSettings.AllowIPForwarding)
	require.Equal(t, map[string]string{"app": "web"}, n.Labels())
	require.Equal(t, "3s", n.PolicyWait().String())
}

func TestDefaults(t *testing.T) {
	n, err := conf.Parse([]byte(`{"name": "n", "ipam": {"type": "host-local"}}`))
	require.NoError(t, err)
	require.True(t, n.IPv4())
	require.False(t, n.IPv6())
	require.False(t, n.Own())
}

func TestParseRefuses(t *testing.T) {
	for in, want := range map[string]string{
		`{`:                                                "not valid JSON",
		`{"type": "calico"}`:                               `key "name" is missing`,
		`{"name":"n","mtu":-1}`:                            "mtu -1 is out of range",
		`{"name":"n","mtu":"x"}`:                           "mtu",
		`{"name":"n","mtu":70000}`:                         "mtu 70000",
		`{"name":"n","policy":{"type":"mesos"}}`:           `policy.type "mesos" is unknown`,
		`{"name":"n","ipam":{"assign_ipv4":"yes"}}`:        `ipam.assign_ipv4 "yes"`,
		`{"name":"n","ipam":{"ipv4_pools":["fd00::/64"]}}`: `ipam.ipv4_pools "fd00::/64"`,
		`{"name":"n","policy_setup_timeout_seconds":-1}`:   "policy_setup_timeout_seconds -1",
		`{"name":"n","num_queues":-2}`:                     "num_queues -2",
	} {
		_, err := conf.Parse([]byte(in))
		require.ErrorContains(t, err, want, in)
	}
}

func TestArgs(t *testing.T) {
	args, err := conf.ParseArgs("IgnoreUnknown=1;K8S_POD_NAME=web-0;EMPTY=;")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"IgnoreUnknown": "1", "K8S_POD_NAME": "web-0", "EMPTY": ""}, args)
	_, err = conf.ParseArgs("nonsense")
	require.ErrorContains(t, err, `"nonsense" is not of the form KEY=VALUE`)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"name":"n","ipam":{"assign_ipv4":"true"}}`), "A=B")
	f.Fuzz(func(_ *testing.T, stdin []byte, args string) {
		if n, err := conf.Parse(stdin); err == nil {
			n.IPv4()
			n.Labels()
		}
		_, _ = conf.ParseArgs(args)
	})
}
