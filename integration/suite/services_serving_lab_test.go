//go:build lab

package suite

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/k8s"
	"github.com/muslin-net/muslin/integration/lab"
)

// The ports of the service shop: its own, and that of its pods.
const shopPort, podPort = 80, 8080

// shop are the addresses of a service, in both families. The host is an entry of its own in the ranges that are announced.
var shop = struct{ cluster, external, balancer, host []netip.Addr }{
	cluster:  []netip.Addr{netip.MustParseAddr("10.96.0.90"), netip.MustParseAddr("fd96::90")},
	external: []netip.Addr{netip.MustParseAddr("172.20.0.90"), netip.MustParseAddr("fd00:172:20::90")},
	balancer: []netip.Addr{netip.MustParseAddr("172.21.0.90"), netip.MustParseAddr("fd00:172:21::90")},
	host:     []netip.Addr{netip.MustParseAddr("172.22.0.1"), netip.MustParseAddr("fd00:172:22::1")},
}

// shopRanges are what is announced of services.
const shopRanges = `serviceClusterIPs: [{cidr: 10.96.0.0/16}, {cidr: "fd96::/112"}], ` +
	`serviceExternalIPs: [{cidr: 172.20.0.0/16}, {cidr: "fd00:172:20::/64"}, {cidr: 172.22.0.1/32}, {cidr: "fd00:172:22::1/128"}], ` +
	`serviceLoadBalancerIPs: [{cidr: 172.21.0.0/16}, {cidr: "fd00:172:21::/64"}]`

// servesOutside has a client behind a vendor's ToR open connections to a service of a real Kubernetes, by its cluster, external
// and load-balancer addresses in both families. With externalTrafficPolicy Local they come by the nodes that have ready
// endpoints, and pods see the client; with Cluster they come by every node, and end at every endpoint. In place of
// kube-proxy the nodes have rules that the test writes.
func (c *cluster) servesOutside(t *testing.T, server *k8s.Server, v vendor) {
	ctx := within(t, 15*patience)
	do := func(err error) {
		t.Helper()
		require.NoError(t, err)
	}
	c.remove(t)
	tor := c.router(t, v, theToR, torConf{as: torAS, nodes: ownAS}.text(v))
	defer tor.stop(t, syscall.SIGTERM)                                                                      // with what it has in the kernel
	c.sh(t, theToR, "sysctl -qw net.ipv4.fib_multipath_hash_policy=1 net.ipv6.fib_multipath_hash_policy=1") // ports count, too
	c.apply(t, ownRoutes+bgpConfiguration(shopRanges)+peerings(torAS, "filters: [own-routes]"))
	c.awaitToR(t)

	const services, slicesOf = "/api/v1/namespaces/default/services", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
	text := func(list ...netip.Addr) (out []string) {
		for _, a := range list {
			out = append(out, a.String())
		}
		return out
	}
	do(server.Create(ctx, services, object{"metadata": object{"name": "shop"}, "spec": object{
		"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ipFamilyPolicy": "RequireDualStack",
		"clusterIP": shop.cluster[0].String(), "clusterIPs": text(shop.cluster...),
		"externalIPs": text(append(slices.Clone(shop.external), shop.host...)...), "ports": []object{{"port": shopPort, "targetPort": podPort}},
	}}))
	defer func() { do(server.Delete(ctx, services+"/shop")) }()
	var ingress []object
	for _, a := range shop.balancer {
		ingress = append(ingress, object{"ip": a.String()})
	}
	do(server.Patch(ctx, services+"/shop/status", object{"status": object{"loadBalancer": object{"ingress": ingress}}}))
	ends := map[string]string{"pod-1": "worker-1", "pod-3": "worker-3"}
	for pod, node := range ends {
		for _, v6 := range []bool{false, true} {
			name := fmt.Sprintf("shop-%s-%t", pod, v6)
			do(server.Create(ctx, slicesOf, object{
				"metadata":    object{"name": name, "labels": object{"kubernetes.io/service-name": "shop"}},
				"addressType": map[bool]string{false: "IPv4", true: "IPv6"}[v6], "ports": []object{{"port": podPort}},
				"endpoints": []object{{"addresses": text(firstOf(c.pod(t, pod), v6)), "nodeName": node}},
			}))
			defer func() { do(server.Delete(ctx, slicesOf+"/"+name)) }()
		}
	}
	outer := slices.Concat(shop.external, shop.balancer, shop.host)
	nodesOf := func(names ...string) map[bool][]string {
		all := map[bool][]string{}
		for _, name := range names {
			for _, a := range c.node(t, name).Addresses {
				all[a.Is6()] = append(all[a.Is6()], a.String())
			}
		}
		return all
	}
	client, everyone := nodesOf(theClient), nodesOf("master", "worker-1", "worker-2", "worker-3")
	host := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

	c.proxy(t, ends, true)
	for _, a := range slices.Concat(shop.cluster, outer) {
		c.awaitRoute(t, theToR, host(a), nodesOf("worker-1", "worker-3")[a.Is6()]...)
	}
	for _, a := range outer {
		c.awaitVisits(t, a, []string{"pod-1", "pod-3"}, client[a.Is6()])
	}
	for _, a := range shop.cluster { // only these nodes pass it on, to any pod
		c.awaitVisits(t, a, []string{"pod-1", "pod-3"}, nodesOf("worker-1", "worker-3")[a.Is6()])
	}

	for _, v6 := range []bool{false, true} { // an endpoint is not ready any more
		do(server.Patch(ctx, fmt.Sprintf("%s/shop-pod-3-%t", slicesOf, v6), object{"endpoints": []object{{
			"addresses": text(firstOf(c.pod(t, "pod-3"), v6)), "nodeName": "worker-3", "conditions": object{"ready": false},
		}}}))
	}
	c.proxy(t, map[string]string{"pod-1": "worker-1"}, true)
	for _, a := range outer {
		c.awaitRoute(t, theToR, host(a), nodesOf("worker-1")[a.Is6()]...)
		c.awaitVisits(t, a, []string{"pod-1"}, client[a.Is6()])
	}

	do(server.Patch(ctx, services+"/shop", object{"spec": object{"externalTrafficPolicy": "Cluster"}}))
	c.proxy(t, ends, false)
	for _, a := range slices.Concat(shop.cluster, outer) {
		// The service has an address that is an entry of its own, hence each of its addresses is announced by itself.
		c.awaitRoute(t, theToR, host(a), everyone[a.Is6()]...)
		c.awaitVisits(t, a, []string{"pod-1", "pod-3"}, everyone[a.Is6()])
	}
	do(server.Patch(ctx, services+"/shop", object{"spec": object{"externalIPs": text(shop.external...)}}))
	for _, a := range slices.Concat(shop.cluster, shop.external, shop.balancer) { // by the range
		c.awaitRoute(t, theToR, host(a))
		c.awaitVisits(t, a, []string{"pod-1", "pod-3"}, everyone[a.Is6()])
	}
}

// proxy gives every node the rules of a kube-proxy for the service shop, whose endpoints are pods, each on a node.
// With externalTrafficPolicy Local what comes for its outer addresses goes to the node's own pods, as it is; all else goes to
// any pod, in the node's name.
func (c *cluster) proxy(t *testing.T, ends map[string]string, local bool) {
	t.Helper()
	pods := slices.Sorted(maps.Keys(ends))
	for _, node := range c.topology.Nodes {
		if node.Name == theClient {
			continue
		}
		var in, out strings.Builder
		for _, a := range slices.Concat(shop.cluster, shop.external, shop.balancer, shop.host) {
			family := map[bool]string{false: "ip", true: "ip6"}[a.Is6()]
			here := pods
			if local && !slices.Contains(shop.cluster, a) {
				here = slices.DeleteFunc(slices.Clone(pods), func(p string) bool { return ends[p] != node.Name })
			} else {
				fmt.Fprintf(&out, "ct original %s daddr %s masquerade\n", family, a)
			}
			match := fmt.Sprintf("%s daddr %s tcp dport %d", family, a, shopPort)
			for i, p := range here {
				to := netip.AddrPortFrom(firstOf(c.pod(t, p), a.Is6()), podPort)
				fmt.Fprintf(&in, "%s numgen random mod %d 0 dnat %s to %s\n", match, len(here)-i, family, to)
			}
			if len(here) == 0 {
				fmt.Fprintln(&in, match, "drop")
			}
		}
		rules := fmt.Sprintf("table inet proxy {\nchain in { type nat hook prerouting priority -100;\n%s}\n"+
			"chain out { type nat hook postrouting priority 100;\n%s}\n}\n", in.String(), out.String())
		var said strings.Builder
		code, err := c.Exec(within(t, patience), node.Name, lab.Command{
			Args: []string{"nft", "-f", "-"}, Stdin: strings.NewReader("table inet proxy\ndelete table inet proxy\n" + rules), Stderr: &said,
		})
		require.NoError(t, err)
		require.Zero(t, code, said.String())
	}
}

// serve answers each connection to a pod with the pod's name and the address that it comes from, until the test ends.
func (c *cluster) serve(t *testing.T, pod string) {
	t.Helper()
	for _, v6 := range []bool{false, true} {
		l, err := c.Listen(within(t, patience), pod, netip.AddrPortFrom(firstOf(c.pod(t, pod), v6), podPort))
		require.NoError(t, err)
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				from, _ := netip.ParseAddrPort(conn.RemoteAddr().String())
				_, _ = fmt.Fprintln(conn, pod, from.Addr().Unmap())
				_ = conn.Close()
			}
		}()
	}
}

// crowdOfClients is how many connections a look at a service consists of.
const crowdOfClients = 64

// awaitVisits waits until a crowd of connections from the client to the service's port of an address all succeed, and ends
// at all of these pods and no others, which see all of these addresses and no others.
func (c *cluster) awaitVisits(t *testing.T, to netip.Addr, pods, seen []string) {
	t.Helper()
	want := fmt.Sprint(slices.Sorted(slices.Values(pods)), slices.Sorted(slices.Values(seen)))
	eventually(t, patience, func() string {
		ends, from := map[string]bool{}, map[string]bool{}
		for range crowdOfClients {
			conn, err := c.Dial(within(t, patience), theClient, netip.AddrPortFrom(to, shopPort))
			if err != nil {
				return err.Error()
			}
			said, err := io.ReadAll(conn)
			_ = conn.Close()
			words := strings.Fields(string(said))
			if err != nil || len(words) != 2 {
				return fmt.Sprintf("%s answered %q: %v", to, said, err)
			}
			ends[words[0]], from[words[1]] = true, true
		}
		if got := fmt.Sprint(slices.Sorted(maps.Keys(ends)), slices.Sorted(maps.Keys(from))); got != want {
			return fmt.Sprintf("connections to %s end at, and seem to be from, %s, not %s", to, got, want)
		}
		return ""
	})
}
