package conf_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/cni/conf"
)

func TestAKeyThatNobodyKnowsIsNamed(t *testing.T) {
	for in, want := range map[string]string{
		`{"name":"n","mtuu":1400}`:                                     `key "mtuu" is unknown; did you mean "mtu"?`,
		`{"name":"n","policy_setup_timeout":3}`:                        `did you mean "policy_setup_timeout_seconds"?`,
		`{"name":"n","quite_something_else":3}`:                        `key "quite_something_else" is unknown; take it out`,
		`{"name":"n","ipam":{"type":"calico-ipam","ipv4pools":["a"]}}`: `key "ipam.ipv4pools" is unknown; did you mean "ipv4_pools"?`,
		`{"name":"n","container_settings":{"allow_ip_forward":true}}`:  `key "container_settings.allow_ip_forward" is unknown; did you mean "allow_ip_forwarding"?`,
		`{"name":"n","feature_control":{"ip_addrs":true}}`:             `key "feature_control.ip_addrs"`,
		`{"name":"n","device_type":"macvlan"}`:                         `device_type "macvlan" is unknown`,
		`{"name":"n","policy":{"type":"k8s","k8s_api_rot":"x"}}`:       `did you mean "k8s_api_root"?`,
	} {
		_, err := conf.Parse([]byte(in))
		require.ErrorContains(t, err, want, in)
		_, err = conf.Read([]byte(in))
		require.NoError(t, err, "a pod can always go")
	}
	for _, in := range []string{
		`{"name":"n","ipam":{"type":"host-local","ranges":[],"dataDir":"/x"}}`, // others' plugins have keys of their own
		`{"name":"n","cni.dev/attachments":[],"example.com/x":1,"dns":{}}`,
		`{"name":"n","etcd_endpoints":"http://x","kubernetes":{"kubeconfig":"/x"},"nodename_file_optional":true,"ipMasq":false}`,
		`{"name":"n","ipam":null,"policy":{}}`,
	} {
		_, err := conf.Parse([]byte(in))
		require.NoError(t, err, in)
	}
}

func TestTheIPAMPluginJudgesItsPartOnly(t *testing.T) {
	n, err := conf.ParseIPAM([]byte(`{"name":"n","type":"bridge","bridge":"cni0","policy":"another's","ipam":{"type":"calico-ipam","assign_ipv6":"true"}}`))
	require.NoError(t, err)
	require.True(t, n.IPv6())
	_, err = conf.ParseIPAM([]byte(`{"name":"n","type":"bridge","ipam":{"type":"calico-ipam","assign_ip6":"true"}}`))
	require.ErrorContains(t, err, `key "ipam.assign_ip6" is unknown; did you mean "assign_ipv6"?`)
}
