package etcd

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api"
)

func TestPaths(t *testing.T) {
	for _, test := range []struct {
		key  api.Key
		path string
	}{
		{api.Key{Kind: "IPPool", Name: "default-ipv4-ippool"}, "/calico/resources/v3/projectcalico.org/ippools/default-ipv4-ippool"},
		{api.Key{Kind: "FelixConfiguration", Name: "node.worker-1"}, "/calico/resources/v3/projectcalico.org/felixconfigurations/node.worker-1"},
		{api.Key{Kind: "NetworkPolicy", Namespace: "shop", Name: "default.allow-web"}, "/calico/resources/v3/projectcalico.org/networkpolicies/shop/default.allow-web"},
		{api.Key{Kind: "IPAMBlock", Name: "10.9.0.4/30"}, "/calico/ipam/v2/assignment/ipv4/block/10.9.0.4-30"},
		{api.Key{Kind: "IPAMBlock", Name: "fd00:10::/122"}, "/calico/ipam/v2/assignment/ipv6/block/fd00:10::-122"},
		{api.Key{Kind: "BlockAffinity", Name: "host/node-a/10.9.0.4/30"}, "/calico/ipam/v2/host/node-a/ipv4/block/10.9.0.4-30"},
		{api.Key{Kind: "BlockAffinity", Name: "virtual/load-balancer/fd00:10::/122"}, "/calico/ipam/v2/virtual/load-balancer/ipv6/block/fd00:10::-122"},
		{api.Key{Kind: "IPAMHandle", Name: "k8s-pod-network.4F1c"}, "/calico/ipam/v2/handle/k8s-pod-network.4F1c"},
		{api.Key{Kind: "IPAMConfiguration", Name: "default"}, "/calico/ipam/v2/config"},
	} {
		kind := api.MustKind(test.key.Kind)
		path, err := pathOf(kind, test.key)
		require.NoError(t, err)
		require.Equal(t, test.path, path)
		key, ok := keyOf(kind, path)
		require.True(t, ok)
		require.Equal(t, test.key, key)
	}
}

func TestBadNames(t *testing.T) {
	for _, test := range []struct {
		key  api.Key
		want string
	}{
		{api.Key{Kind: "IPPool"}, "name is empty"},
		{api.Key{Kind: "IPPool", Name: "a/b"}, "slash"},
		{api.Key{Kind: "IPPool", Namespace: "shop", Name: "a"}, "no namespace"},
		{api.Key{Kind: "NetworkPolicy", Name: "a"}, "namespace is empty"},
		{api.Key{Kind: "NetworkPolicy", Namespace: "a/b", Name: "a"}, "slash"},
		{api.Key{Kind: "IPAMHandle", Name: "a/b"}, "slash"},
		{api.Key{Kind: "IPAMBlock", Name: "10.9.0.5/30"}, `write "10.9.0.4/30"`},
		{api.Key{Kind: "IPAMBlock", Name: "FD00::/122"}, `write "fd00::/122"`},
		{api.Key{Kind: "IPAMBlock", Name: "10-9-0-4-30"}, "not a CIDR"},
		{api.Key{Kind: "BlockAffinity", Name: "host/10.9.0.4/30"}, "not a CIDR"},
		{api.Key{Kind: "BlockAffinity", Name: "guest/node-a/10.9.0.4/30"}, "not of the form"},
		{api.Key{Kind: "BlockAffinity", Name: "host//10.9.0.4/30"}, "not of the form"},
		{api.Key{Kind: "IPAMConfiguration", Name: "other"}, "only IPAMConfiguration"},
	} {
		_, err := pathOf(api.MustKind(test.key.Kind), test.key)
		require.ErrorContains(t, err, test.want, "%v", test.key)
	}
}

func TestForeignPaths(t *testing.T) {
	for kind, paths := range map[string][]string{
		"IPPool": {
			"", "/calico/resources/v3/projectcalico.org/ippools/", "/calico/resources/v3/projectcalico.org/ippools/a/b",
			"/calico/resources/v3/projectcalico.org/ippoolsx/a", "/calico/v1/Ready",
		},
		"NetworkSet":        {"/calico/resources/v3/projectcalico.org/networksets/a", "/calico/resources/v3/projectcalico.org/networksets/a/", "/calico/resources/v3/projectcalico.org/networksets/a/b/c"},
		"IPAMBlock":         {"/calico/ipam/v2/assignment/ipv4/block/10.9.0.5-30", "/calico/ipam/v2/assignment/ipv6/block/10.9.0.4-30", "/calico/ipam/v2/assignment/ipv4/block/x", "/calico/ipam/v2/assignment/ipv6/block/::ffff:10.9.0.4-126"},
		"BlockAffinity":     {"/calico/ipam/v2/host/a/b/ipv4/block/10.9.0.4-30", "/calico/ipam/v2/handle/a/ipv4/block/10.9.0.4-30", "/calico/ipam/v2/host/a/ipv4/blocks/10.9.0.4-30"},
		"IPAMHandle":        {"/calico/ipam/v2/handle/", "/calico/ipam/v2/handle/a/b"},
		"IPAMConfiguration": {"/calico/ipam/v2/config/x", "/calico/ipam/v2"},
	} {
		for _, path := range paths {
			key, ok := keyOf(api.MustKind(kind), path)
			require.False(t, ok, "%s: %q gave %v", kind, path, key)
		}
	}
}

// FuzzPaths checks that a path is either refused or translates there and back, and that every range holds what it must.
func FuzzPaths(f *testing.F) {
	f.Add("/calico/resources/v3/projectcalico.org/networkpolicies/shop/allow-web")
	f.Add("/calico/ipam/v2/host/node-a/ipv4/block/10.9.0.4-30")
	f.Add("/calico/ipam/v2/virtual/load-balancer/ipv6/block/fd00:10::-122")
	f.Add("/calico/ipam/v2/assignment/ipv6/block/fd00:77::9905:f003:c7bd:fb00-122")
	f.Add("/calico/ipam/v2/handle/k8s-pod-network.4f1c")
	f.Add("/calico/ipam/v2/config")
	f.Add("host/node-a/10.9.0.4/30")
	f.Fuzz(func(t *testing.T, text string) {
		claimed := 0
		for _, kind := range api.Kinds() {
			if key, ok := keyOf(kind, text); ok {
				claimed++
				again, err := pathOf(kind, key)
				require.NoError(t, err)
				require.Equal(t, text, again)
				inRange(t, kind, key, text)
			}
			for _, key := range []api.Key{{Kind: kind.Name, Name: text}, {Kind: kind.Name, Namespace: "shop", Name: text}, {Kind: kind.Name, Namespace: text, Name: "a"}} {
				path, err := pathOf(kind, key)
				if err != nil {
					continue
				}
				again, ok := keyOf(kind, path)
				require.True(t, ok, path)
				require.Equal(t, key, again)
				inRange(t, kind, key, path)
			}
		}
		require.LessOrEqual(t, claimed, 1, "a path belongs to one kind")
	})
}

// inRange checks that a list by any prefix of the name finds the path.
func inRange(t *testing.T, kind api.Kind, key api.Key, path string) {
	t.Helper()
	for i := range len(key.Name) + 1 {
		for _, ns := range []string{"", key.Namespace} {
			start, end := rangeOf(kind, ns, key.Name[:i])
			require.LessOrEqual(t, start, path, "prefix %q", key.Name[:i])
			require.True(t, end == "\x00" || path < end, "prefix %q: %q is not before %q", key.Name[:i], path, end)
			require.True(t, strings.HasPrefix(start, root))
		}
	}
}
