package conf_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/annotation"
	"github.com/muslin-net/muslin/cni/conf"
)

func parse(t *testing.T, in string) *conf.Network {
	t.Helper()
	n, err := conf.Parse([]byte(in))
	require.NoError(t, err)
	return n
}

// What is closer to the pod beats what is further away.
func TestAPodGetsWhatTheClosestAsksFor(t *testing.T) {
	const all = `{"name":"n","ipam":{"type":"calico-ipam","assign_ipv6":"true","ipv4_pools":["net"],"ipv6_pools":["net6"]},
		"args":{"cni":{"ips":["10.0.0.3"],"mac":"02:00:00:00:00:03"}},
		"runtimeConfig":{"ips":["10.0.0.4/24","fd00::4"],"mac":"02:00:00:00:00:04",
			"bandwidth":{"ingressRate":1000,"ingressBurst":2000,"egressRate":3000}%s}}`
	annotated := `,"io.kubernetes.cri.pod-annotations":{"cni.projectcalico.org/ipv4pools":"[\"pod\"]","cni.projectcalico.org/ipAddrs":"[\"10.0.0.1\"]",
		"cni.projectcalico.org/hwAddr":"02:00:00:00:00:01","kubernetes.io/egress-bandwidth":"10M","cni.projectcalico.org/ipFamilies":"[\"IPv6\"]"}`
	args := map[string]string{"IP": "10.0.0.2", "MAC": "02:00:00:00:00:02"}
	addrs := func(list ...string) (out []netip.Addr) {
		for _, a := range list {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}

	p, err := parse(t, fmt.Sprintf(all, annotated)).Pod(args)
	require.NoError(t, err)
	require.Equal(t, conf.Pod{
		IPv6: true, IPv4Pools: []string{"pod"}, IPv6Pools: []string{"net6"}, Fixed: addrs("10.0.0.1"), MAC: "02:00:00:00:00:01",
		Limits: annotation.Limits{Ingress: annotation.Limit{Bandwidth: 1000, Burst: 2000}, Egress: annotation.Limit{Bandwidth: 10e6}},
	}, p)

	p, err = parse(t, fmt.Sprintf(all, "")).Pod(args)
	require.NoError(t, err)
	require.Equal(t, addrs("10.0.0.2"), p.Fixed)
	require.Equal(t, "02:00:00:00:00:02", p.MAC)
	require.Equal(t, []string{"net"}, p.IPv4Pools)
	require.True(t, p.IPv4 && p.IPv6)

	p, err = parse(t, fmt.Sprintf(all, "")).Pod(nil)
	require.NoError(t, err)
	require.Equal(t, addrs("10.0.0.3"), p.Fixed)
	require.Equal(t, "02:00:00:00:00:03", p.MAC)

	p, err = parse(t, `{"name":"n","runtimeConfig":{"ips":["10.0.0.4/24","fd00::4"],"mac":"02-00-00-00-00-04"}}`).Pod(nil)
	require.NoError(t, err)
	require.Equal(t, addrs("10.0.0.4", "fd00::4"), p.Fixed)
	require.Equal(t, "02:00:00:00:00:04", p.MAC)

	p, err = parse(t, `{"name":"n","ipam":{"type":"host-local"},"runtimeConfig":{"ips":["10.0.0.4/24"]}}`).Pod(args)
	require.NoError(t, err)
	require.Empty(t, p.Fixed, "another plugin's to give")
	require.False(t, p.IPv4 || p.IPv6)
}

func TestWhatAPodMayNotAskFor(t *testing.T) {
	with := func(network, key, value string) error {
		var doc map[string]any
		require.NoError(t, json.Unmarshal([]byte(network), &doc))
		doc["runtimeConfig"] = map[string]any{"io.kubernetes.cri.pod-annotations": map[string]string{key: value}}
		body, err := json.Marshal(doc)
		require.NoError(t, err)
		n, err := conf.Parse(body)
		require.NoError(t, err)
		_, err = n.Pod(nil)
		return err
	}
	const cni = "cni.projectcalico.org/"
	require.ErrorContains(t, with(`{"name":"n"}`, cni+"ipAddrsNoIpam", `["10.0.0.1"]`), "set feature_control.ip_addrs_no_ipam")
	require.NoError(t, with(`{"name":"n","feature_control":{"ip_addrs_no_ipam":true}}`, cni+"ipAddrsNoIpam", `["10.0.0.1"]`))
	require.ErrorContains(t, with(`{"name":"n"}`, cni+"floatingIPs", `["10.0.0.1"]`), "set feature_control.floating_ips")
	require.NoError(t, with(`{"name":"n","feature_control":{"floating_ips":true}}`, cni+"floatingIPs", `["10.0.0.1"]`))
	require.ErrorContains(t, with(`{"name":"n","ipam":{"type":"host-local"}}`, cni+"ipAddrs", `["10.0.0.1"]`), "needs IPAM of type calico-ipam, and network n has host-local")
	require.ErrorContains(t, with(`{"name":"n"}`, cni+"hwAddr", "x"), "write it as 02:00:5e:10:00:01")

	for in, want := range map[string]string{
		`{"name":"n","runtimeConfig":{"ips":["10.0.0"]}}`:              "runtimeConfig.ips: \"10.0.0\" is not an address",
		`{"name":"n","runtimeConfig":{"ips":["10.0.0.1","10.0.0.2"]}}`: "at most one IPv4 and one IPv6 address",
		`{"name":"n","args":{"cni":{"mac":"ff:ff:ff:ff:ff:ff"}}}`:      "args.cni.mac",
	} {
		_, err := parse(t, in).Pod(nil)
		require.ErrorContains(t, err, want)
	}
	require.ErrorContains(t, conf.CheckArgs(map[string]string{"MAC": "x"}), "MAC=x is not")
	require.ErrorContains(t, conf.CheckArgs(map[string]string{"IP": "x"}), "IP=x is not an address")
}

func TestRangesOfTheNode(t *testing.T) {
	in := []byte(`{"name":"n","ipam":{"type":"host-local","subnet":"usePodCidr","ranges":[[{"subnet":"usePodCidrIPv6"}],[{"subnet":"10.9.0.0/24"}]]}}`)
	require.True(t, conf.UsesPodCIDR(in))
	out, err := conf.WithPodCIDRs(in, []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")})
	require.NoError(t, err)
	require.JSONEq(t, `{"name":"n","ipam":{"type":"host-local","subnet":"10.244.1.0/24","ranges":[[{"subnet":"fd00:1::/64"}],[{"subnet":"10.9.0.0/24"}]]}}`, string(out))
	_, err = conf.WithPodCIDRs(in, []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")})
	require.ErrorContains(t, err, `ipam subnet "usePodCidrIPv6": Kubernetes gave the node no such range`)
	require.False(t, conf.UsesPodCIDR([]byte(`{"name":"n","ipam":{"subnet":"10.9.0.0/24"}}`)))
	require.False(t, conf.UsesPodCIDR([]byte(`{"name":"n"}`)))
}
