package annotation_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/muslin-net/muslin/api/annotation"
)

func TestAPodAsks(t *testing.T) {
	r, err := annotation.Pod(map[string]string{
		"cni.projectcalico.org/ipv4pools":             `["blue","10.1.0.0/16"]`,
		"cni.projectcalico.org/ipv6pools":             `["six"]`,
		"cni.projectcalico.org/ipFamilies":            `["IPv4","IPv6"]`,
		"cni.projectcalico.org/ipAddrs":               `["fd00::7","10.1.2.3"]`,
		"cni.projectcalico.org/floatingIPs":           `["192.0.2.7"]`,
		"cni.projectcalico.org/hwAddr":                "02:00:5E:10:00:01",
		"cni.projectcalico.org/allowedSourcePrefixes": `["10.9.0.0/16"]`,
		"kubernetes.io/ingress-bandwidth":             "10M",
		"kubernetes.io/egress-bandwidth":              "1M",
		"qos.projectcalico.org/egressBandwidth":       "2M",
		"qos.projectcalico.org/egressBurst":           "1Mi",
		"qos.projectcalico.org/egressPeakrate":        "4M",
		"qos.projectcalico.org/ingressPacketRate":     "1k",
		"app": "web",
	})
	require.NoError(t, err)
	require.Equal(t, annotation.Request{
		IPv4Pools: []string{"blue", "10.1.0.0/16"}, IPv6Pools: []string{"six"}, Families: []string{"IPv4", "IPv6"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::7")},
		Floating:  []netip.Addr{netip.MustParseAddr("192.0.2.7")}, MAC: "02:00:5e:10:00:01",
		AllowedSources: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")},
		Limits: annotation.Limits{
			Ingress: annotation.Limit{Bandwidth: 10e6, PacketRate: 1000},
			Egress:  annotation.Limit{Bandwidth: 2e6, Burst: 1 << 20, Peakrate: 4e6},
		},
	}, r)

	r, err = annotation.Pod(map[string]string{"app": "web"})
	require.NoError(t, err)
	require.Equal(t, annotation.Request{}, r)
}

func TestAPodsPoolsBeatItsNamespaces(t *testing.T) {
	ns, err := annotation.Namespace(map[string]string{
		"cni.projectcalico.org/ipv4pools": `["ns4"]`, "cni.projectcalico.org/ipv6pools": `["ns6"]`,
		"cni.projectcalico.org/hwAddr": "no concern of a namespace",
	})
	require.NoError(t, err)
	pod := annotation.Request{IPv4Pools: []string{"own"}}.Within(ns)
	require.Equal(t, []string{"own"}, pod.IPv4Pools)
	require.Equal(t, []string{"ns6"}, pod.IPv6Pools)
}

func TestBadAnnotationsAreNamedWithTheirValueAndTheRemedy(t *testing.T) {
	const cni, qos = "cni.projectcalico.org/", "qos.projectcalico.org/"
	for _, c := range []struct{ key, value, says string }{
		{cni + "ipv4pools", "blue", `write it as ["default-ipv4-ippool"]`},
		{cni + "ipFamilies", `["v4"]`, `use "IPv4" and "IPv6"`},
		{cni + "ipAddrs", `["10.1.2"]`, "is not such a JSON list"},
		{cni + "ipAddrs", `["10.1.2.3","10.1.2.4"]`, "at most one IPv4 and one IPv6 address"},
		{cni + "ipAddrs", `["127.0.0.1"]`, "one that is none of a host"},
		{cni + "ipAddrsNoIpam", `["224.0.0.1"]`, "one that is none of a host"},
		{cni + "floatingIPs", `{}`, "is not such a JSON list"},
		{cni + "hwAddr", "02:00:5e:10:00", "write it as 02:00:5e:10:00:01"},
		{cni + "hwAddr", "01:00:5e:10:00:01", "is not the Ethernet address of one interface"},
		{cni + "hwAddr", "00:00:00:00:00:00", "is not the Ethernet address of one interface"},
		{cni + "allowedSourcePrefixes", `["10.9.0.0"]`, `write it as ["10.1.0.0/16"]`},
		{"kubernetes.io/ingress-bandwidth", "fast", "write it as 10M or 512Ki"},
		{"kubernetes.io/egress-bandwidth", "10", "is out of range; use 1000 to 1000000000000000"},
		{qos + "ingressBurst", "10M", "needs qos.projectcalico.org/ingressBandwidth beside it"},
		{qos + "egressPacketRate", "0", "is out of range"},
		{qos + "egressPacketBurst", "10", "needs qos.projectcalico.org/egressPacketRate"},
	} {
		_, err := annotation.Pod(map[string]string{c.key: c.value})
		require.ErrorContains(t, err, c.says, "%s=%s", c.key, c.value)
		require.ErrorContains(t, err, c.key)
	}
	_, err := annotation.Pod(map[string]string{cni + "ipAddrs": `["10.1.2.3"]`, cni + "ipAddrsNoIpam": `["10.1.2.3"]`})
	require.ErrorContains(t, err, "cannot stand beside cni.projectcalico.org/ipAddrs")
	_, err = annotation.Pod(map[string]string{qos + "egressBandwidth": "10M", qos + "egressPeakrate": "10M"})
	require.ErrorContains(t, err, "is not above the bandwidth")
}

// FuzzQuantity compares with Kubernetes' own reading, where ours takes the text.
func FuzzQuantity(f *testing.F) {
	for _, s := range []string{"1500", "10M", "1.5Gi", "2e6", "1500m", "0.1", ".5k", "5.", "1E", "1e", "1e-3", "+7", "1Ei", "99999999999E", "1n", "-1", "", "1ee3", "0x10", "1_0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, ok := annotation.Quantity(s)
		if !ok {
			return
		}
		q, err := resource.ParseQuantity(s)
		require.NoError(t, err, s)
		if n < 1<<62 { // theirs is capped at 1<<63 - 1
			require.EqualValues(t, q.Value(), n, s)
		}
	})
}

// What people write is taken; see FuzzQuantity for what it is worth.
func TestQuantitiesThatPeopleWrite(t *testing.T) {
	for s, want := range map[string]uint64{"1500": 1500, "10M": 10e6, "1.5Gi": 3 << 29, "2e6": 2e6, "1500m": 2, "1G": 1e9, "0": 0, "1Ei": 1 << 60, "18446744073709551615": 1<<64 - 1} {
		n, ok := annotation.Quantity(s)
		require.True(t, ok, s)
		require.Equal(t, want, n, s)
	}
	for _, s := range []string{"", ".", "-1", "M", "1.2.3", "10 M", "10Mbit", "1e19", "99999999999E", "18446744073709551616", "1e", "0x10"} {
		_, ok := annotation.Quantity(s)
		require.False(t, ok, s)
	}
}
