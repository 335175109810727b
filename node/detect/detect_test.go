package detect_test

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/node/detect"
)

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

var host = []detect.Interface{
	{Name: "lo", Index: 1, Addresses: prefixes("127.0.0.1/8", "::1/128")},
	{Name: "ens5", Index: 2, Addresses: prefixes("fe80::1/64", "10.30.0.10/24", "fd00:30::10/64")},
	{Name: "eth1", Index: 3, Addresses: prefixes("172.20.0.5/16")},
	{Name: "docker0", Index: 4, Addresses: prefixes("172.17.0.1/16")},
	{Name: "vxlan.calico", Index: 5, Addresses: prefixes("192.168.1.0/32")},
	{Name: "london0", Index: 6, Addresses: prefixes("10.99.0.1/24")},
}

func TestMethods(t *testing.T) {
	for _, c := range []struct {
		method string
		v6     bool
		source string
		want   string
		err    string
	}{
		{method: "", want: "eth1 172.20.0.5/16"},
		{method: "first-found", want: "eth1 172.20.0.5/16"},
		{method: "first-found", v6: true, want: "ens5 fd00:30::10/64"},
		{method: "interface=ens.*", want: "ens5 10.30.0.10/24"},
		{method: "interface=nope,docker.*", want: "docker0 172.17.0.1/16"},
		{method: "interface=lo.*", want: "london0 10.99.0.1/24"},
		{method: "skip-interface=eth.*", want: "ens5 10.30.0.10/24"},
		{method: "cidr=10.30.0.0/16,172.17.0.0/16", want: "docker0 172.17.0.1/16"},
		{method: "cidr=192.0.2.0/24", err: "found no IPv4 address on london0, vxlan.calico"},
		{method: "can-reach=8.8.8.8", source: "10.30.0.10", want: "ens5 10.30.0.10/24"},
		{method: "can-reach=8.8.8.8", source: "192.0.2.1", err: "found no IPv4 address"},
		{method: "interface=eth1", v6: true, err: "found no IPv6 address"},
		{method: "can-reach=", err: "no host is named"},
		{method: "cidr=10.0.0.0", err: `"10.0.0.0" is not a CIDR`},
		{method: "interface=", err: "is not a regular expression"},
		{method: "interface=[", err: "is not a regular expression"},
		{method: "kubernetes-internal-ip=1", err: "kubernetes-internal-ip takes no value"},
		{method: "best", err: "there is no such method"},
	} {
		t.Run(c.method, func(t *testing.T) {
			m, err := detect.ParseMethod(c.method)
			var found detect.Found
			if err == nil {
				source, _ := netip.ParseAddr(c.source)
				found, err = m.Choose(host, c.v6, source)
			}
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, found.Interface+" "+found.Address.String())
		})
	}
}

func TestCompleteTakesTheMaskOfTheInterface(t *testing.T) {
	p, ok := detect.Complete(netip.MustParseAddr("10.30.0.10"), host)
	require.True(t, ok)
	require.Equal(t, "10.30.0.10/24", p.String())
	p, ok = detect.Complete(netip.MustParseAddr("203.0.113.1"), host)
	require.False(t, ok)
	require.Equal(t, "203.0.113.1/32", p.String())
}

func TestReportedLeavesVirtualInterfacesOut(t *testing.T) {
	got := detect.Reported(host, true, false)
	require.Len(t, got, 2)
	require.Equal(t, "ens5", got[0].Name)
	require.Equal(t, prefixes("10.30.0.10/24"), got[0].Addresses)
	require.Empty(t, detect.Reported(host, false, false))
}
