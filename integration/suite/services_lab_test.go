//go:build lab

package suite

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/k8s"
)

// object is an object of Kubernetes as JSON.
type object = map[string]any

// TestKubernetesServices: addresses of Services of a real Kubernetes are announced to the ToR by the nodes whose endpoints are ready, go
// with the last of them, and are in no node's kernel. The sessions have a password from a Secret, and wait for it. Then a client
// behind the ToR of either vendor talks to a service.
func TestKubernetesServices(t *testing.T) {
	server, err := k8s.Start(within(t, 25*time.Minute), t.TempDir(), func(line string) { t.Log(line) })
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Stop()) })
	require.NoError(t, server.AllowTypha(within(t, patience)))
	c := upRack(t, "suite-services")
	c.joinKubernetes(t, server)
	do := func(err error) {
		t.Helper()
		require.NoError(t, err)
	}
	ctx := within(t, 10*time.Minute)

	tor := c.router(t, vendorBIRD, theToR, torConf{as: torAS, nodes: ownAS, password: "of this rack"}.text(vendorBIRD))
	c.apply(t, bgpConfiguration("serviceExternalIPs: [{cidr: 172.20.0.0/16}], serviceClusterIPs: [{cidr: 10.96.0.0/16}]")+
		peerings(torAS, "filters: [own-routes]", "password: {secretKeyRef: {name: bgp-passwords, key: rack}}")+ownRoutes)
	const secrets = "/api/v1/namespaces/kube-system/secrets"
	do(server.Create(ctx, secrets, object{"metadata": object{"name": "bgp-passwords"}, "stringData": object{"rack": "of this rack"}}))
	c.awaitToR(t)

	const worker1, worker3, everyone = "10.30.0.206", "10.30.1.66", "10.30.0.10 10.30.0.206 10.30.0.56 10.30.1.66"
	external, cluster := netip.MustParsePrefix("172.20.0.80/32"), netip.MustParsePrefix("10.96.0.80/32")
	all := netip.MustParsePrefix("172.20.0.0/16")
	tor.awaitHops(t, all, strings.Fields(everyone)...)
	tor.awaitHops(t, netip.MustParsePrefix("10.96.0.0/16"), strings.Fields(everyone)...)

	const web, slices = "/api/v1/namespaces/default/services", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
	do(server.Create(ctx, web, object{"metadata": object{"name": "web"}, "spec": object{
		"type": "NodePort", "externalTrafficPolicy": "Local", "clusterIP": "10.96.0.80",
		"externalIPs": []string{"172.20.0.80"}, "ports": []object{{"port": 80}},
	}}))
	slice := func(name, node string) object {
		return object{
			"metadata": object{"name": name, "labels": object{"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
			"endpoints": []object{{"addresses": []string{firstOf(c.pod(t, "pod-1"), false).String()}, "nodeName": node}},
			"ports":     []object{{"port": 80}},
		}
	}
	do(server.Create(ctx, slices, slice("one", "worker-1")))
	tor.awaitHops(t, external, worker1)
	tor.awaitHops(t, cluster, worker1)
	assert.Equal(t, []path{{NextHop: worker1, ASPath: "64512"}}, tor.paths(t, external))
	do(server.Create(ctx, slices, slice("two", "worker-3")))
	tor.awaitHops(t, external, worker1, worker3)
	c.awaitRoute(t, theToR, external, worker1, worker3) // ECMP
	for _, node := range c.topology.Nodes[:4] {
		for _, p := range []netip.Prefix{external, cluster, all} {
			_, route := c.gateways(t, node.Name, p)
			assert.Empty(t, route, "%s has a route to %s in its kernel", node.Name, p)
		}
	}
	do(server.Patch(ctx, slices+"/one", object{"endpoints": []object{{
		"addresses": []string{"192.168.0.1"}, "nodeName": "worker-1", "conditions": object{"ready": false},
	}}}))
	tor.awaitHops(t, external, worker3)
	c.awaitRoute(t, theToR, external, worker3)
	do(server.KillAPI())
	c.reachesAll(t, theClient)
	tor.awaitHops(t, external, worker3)
	do(server.StartAPI(ctx))
	do(server.Delete(ctx, slices+"/two"))
	c.awaitRoute(t, theToR, external)
	c.awaitRoute(t, theToR, cluster)
	tor.awaitHops(t, external, strings.Fields(everyone)...) // what is left is the way to the whole range

	c.apply(t, "---\napiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {name: default}\nspec: {}\n")
	tor.awaitHops(t, all)
	c.awaitToR(t)

	tor.stop(t, syscall.SIGTERM)
	for _, pod := range []string{"pod-1", "pod-3"} {
		c.serve(t, pod)
	}
	for _, v := range vendors {
		t.Run("packets by "+string(v), func(t *testing.T) { c.servesOutside(t, server, v) })
	}
}

// reachAPI lets a node reach the API server, which runs outside the lab, by a port of its loopback.
func (c *cluster) reachAPI(t *testing.T, server *k8s.Server, node string) (port int) {
	t.Helper()
	l, err := c.Listen(within(t, patience), node, netip.MustParseAddrPort("127.0.0.1:0"))
	require.NoError(t, err)
	go forward(l, fmt.Sprintf("127.0.0.1:%d", server.Port()))
	t.Cleanup(func() { assert.NoError(t, l.Close()) })
	return int(l.Addr().(*net.TCPAddr).AddrPort().Port())
}

// joinKubernetes gives typha a kubeconfig.
func (c *cluster) joinKubernetes(t *testing.T, server *k8s.Server) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, k8s.Kubeconfig(k8s.Typha, c.reachAPI(t, server, "master")), 0o600))

	st, err := c.Status(within(t, patience))
	require.NoError(t, err)
	for _, p := range st.Processes {
		if p.Name != "typha" {
			continue
		}
		said := c.run(t, p.Node, "cat", fmt.Sprintf("/proc/%d/cmdline", p.PID))
		args := append(strings.Split(strings.TrimRight(said, "\x00"), "\x00"), "--kubeconfig", file, "--secrets-dir=")
		require.NoError(t, c.Kill(within(t, patience), p.Node, p.Name))
		typha := c.daemon(p.Node, args...)
		t.Cleanup(func() {
			typha.end(t, "typha", syscall.SIGTERM)
			if t.Failed() {
				text := typha.log.Bytes()
				t.Logf("typha with Kubernetes:\n%s", text[max(0, len(text)-logTail):])
			}
		})
	}
	eventually(t, patience, func() string {
		if said, ok := c.calicoctl(t, "", "get", "nodes"); !ok {
			return said
		}
		return ""
	})
}

// forward connects what comes to a listener with an address, until the listener is closed.
func forward(l net.Listener, to string) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer near.Close()
			far, err := net.Dial("tcp", to)
			if err != nil {
				return
			}
			defer far.Close()
			go func() {
				_, _ = io.Copy(far, near)
				_ = far.(*net.TCPConn).CloseWrite()
			}()
			_, _ = io.Copy(near, far)
		}()
	}
}
