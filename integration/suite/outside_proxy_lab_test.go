//go:build lab

package suite

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/integration/k8s"
	"github.com/muslin-net/muslin/integration/lab"
)

// proxied is a node on which kube-proxy runs.
type proxied struct {
	node, pod string
	mode      string
	legacy    bool   // kube-proxy finds iptables-legacy
	auto      string // what rulesOfOurs has in it if they follow kube-proxy's
	port      int    // node port of a service of the node's own pod
	args      []string
	runs      *daemon
}

// What rulesOfOurs has in it of each driver.
const byNFTables, byIPTables, byLegacy = "chain filter-FORWARD {", "iptables-nft *filter ", "iptables-legacy *filter "

// The addresses of services whose endpoint is plainPod.
var allowedService, deniedService = netip.MustParseAddrPort("10.96.0.80:80"), netip.MustParseAddrPort("10.96.0.82:80")

// deniedNodePort is a policy that keeps a node port closed before kube-proxy translates it, when nobody can tell it from the pod's port
// any more. All else of the node is as it was.
const deniedNodePort = `
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: %[1]s, labels: {edge: %[1]s}}
spec: {node: %[1]s, interfaceName: "*", profiles: [projectcalico-default-allow]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: node-port-of-%[1]s}
spec:
  selector: edge == "%[1]s"
  preDNAT: true
  applyOnForward: true
  types: [Ingress]
  ingress: [{action: Deny, protocol: TCP, destination: {ports: [%[2]d]}}]
`

// TestBesideKubeProxy: next to the real kube-proxy by iptables and nftables, whoever starts first, a pod under policy reaches a
// service whose endpoint policy lets it reach, and no other; what policy denies a pod is denied by its services; a node port is
// denied by policy before translation; kube-proxy's rules are what they are without us. IPVS needs the second kernel, where each
// rule driver is tried beside it (rules.TestServicesByIPVS).
func TestBesideKubeProxy(t *testing.T) {
	proxies := []*proxied{
		{node: "worker-1", pod: "pod-1", mode: "iptables", auto: byIPTables},
		{node: "worker-2", pod: "pod-2", mode: "nftables", auto: byNFTables},
		{node: "worker-3", pod: "pod-3", mode: "iptables", legacy: true, auto: byLegacy},
	}
	server, err := k8s.Start(within(t, 25*time.Minute), t.TempDir(), func(line string) { t.Log(line) })
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, server.Stop()) })
	program, err := k8s.Build(within(t, 25*time.Minute), k8s.Proxy, func(line string) { t.Log(line) })
	require.NoError(t, err)
	c := upBeside(t, "beside-proxy")
	c.service(t, server, "allowed", allowedService.Addr(), plainPod, map[int]int{80: bothAllow}, nil)
	c.service(t, server, "denied", deniedService.Addr(), plainPod, map[int]int{80: egressDenies}, nil)
	for i, p := range proxies {
		p.port = 30000 + 10*i
		c.service(t, server, p.node, netip.AddrFrom4([4]byte{10, 96, 1, byte(i)}), p.pod, map[int]int{80: bothAllow, 81: ingressDenies, 82: bothAllow},
			map[int]int{80: p.port, 81: p.port + 1, 82: p.port + 2})
		c.joinProxy(t, server, program, p)
		c.apply(t, fmt.Sprintf(deniedNodePort, p.node, p.port+2))
	}
	for driver, mode := range ruleDrivers {
		c.useRules(t, mode)
		for _, p := range proxies {
			t.Run(driver+" beside "+strings.TrimSpace(p.mode+" "+map[bool]string{true: "legacy"}[p.legacy]), func(t *testing.T) { c.liveBesideProxy(t, p) })
		}
	}
	t.Run("auto", func(t *testing.T) {
		for _, p := range proxies {
			c.beginProxy(t, p)
			defer c.endProxy(t, p)
			c.servicesWork(t, p, "for Auto")
		}
		c.apply(t, "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {nftablesMode: Auto}\n")
		for _, p := range proxies {
			v := victim{p.node, lab.ProcessFelix}
			c.kill(t, v)
			c.start(t, v)
			c.awaitReady(t, p.node)
			eventually(t, patience, func() string {
				rules := c.sh(t, p.node, rulesOfOurs)
				for _, driver := range []string{byNFTables, byIPTables, byLegacy} {
					if strings.Contains(rules, driver) != (driver == p.auto) {
						return fmt.Sprintf("beside kube-proxy by %s there should be %q only:\n%s", p.mode, p.auto, rules)
					}
				}
				return ""
			})
			c.servicesWork(t, p, "by Auto")
		}
	})
}

// service makes a service with a pod behind it, by the pod's port of each of the service's.
func (c *cluster) service(t *testing.T, server *k8s.Server, name string, at netip.Addr, pod string, targets, nodePorts map[int]int) {
	t.Helper()
	ctx := within(t, patience)
	var ports, ends []object
	for port, target := range targets {
		one := object{"name": fmt.Sprint("p", port), "port": port}
		if nodePorts != nil {
			one["nodePort"] = nodePorts[port]
		}
		ports = append(ports, one)
		ends = append(ends, object{"name": fmt.Sprint("p", port), "port": target})
	}
	kind := map[bool]string{false: "NodePort", true: "ClusterIP"}[nodePorts == nil]
	require.NoError(t, server.Create(ctx, "/api/v1/namespaces/default/services", object{
		"metadata": object{"name": name}, "spec": object{"type": kind, "clusterIP": at.String(), "ports": ports},
	}))
	require.NoError(t, server.Create(ctx, "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", object{
		"metadata": object{"name": name, "labels": object{"kubernetes.io/service-name": name}}, "addressType": "IPv4",
		"endpoints": []object{{"addresses": []string{c.address(t, pod).String()}}}, "ports": ends,
	}))
}

// joinProxy makes a node known to Kubernetes, and Kubernetes to the node.
func (c *cluster) joinProxy(t *testing.T, server *k8s.Server, program string, p *proxied) {
	t.Helper()
	ctx := within(t, patience)
	require.NoError(t, server.Create(ctx, "/api/v1/nodes", object{"metadata": object{"name": p.node}}))
	require.NoError(t, server.Patch(ctx, "/api/v1/nodes/"+p.node+"/status", object{
		"status": object{"addresses": []object{{"type": "InternalIP", "address": c.node(t, p.node).Addresses[0].String()}}},
	}))
	file := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(file, k8s.Kubeconfig(k8s.Admin, c.reachAPI(t, server, p.node)), 0o600))
	if p.legacy {
		dir := t.TempDir()
		for _, program := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
			family, verb, _ := strings.Cut(program, "-")
			require.NoError(t, os.Symlink("/usr/sbin/"+strings.TrimSuffix(family+"-legacy-"+verb, "-"), filepath.Join(dir, program)))
		}
		p.args = []string{"env", "PATH=" + dir + ":/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	p.args = append(p.args, program, "--kubeconfig="+file, "--hostname-override="+p.node, "--proxy-mode="+p.mode, "--cluster-cidr=192.168.0.0/16",
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s")
}

// liveBesideProxy tries both orders, and a restart.
func (c *cluster) liveBesideProxy(t *testing.T, p *proxied) {
	v := victim{p.node, lab.ProcessFelix}
	c.kill(t, v)
	c.sh(t, p.node, removeOurs)
	c.beginProxy(t, p)
	defer func() {
		c.endProxy(t, p)
		if t.Failed() {
			text := p.runs.log.Bytes()
			t.Logf("kube-proxy on %s:\n%s", p.node, text[max(0, len(text)-logTail):])
		}
	}()
	c.hold(t, "without us", attempt{p.pod, allowedService, true, "a service"}, attempt{"master", c.nodePort(t, p, 0), true, "a node port"},
		attempt{"master", c.nodePort(t, p, 2), true, "a node port that nobody denies"})
	theirs := c.rulesOfOthers(t, p.node)
	hold := func(when string) {
		t.Helper()
		c.servicesWork(t, p, when)
		eventually(t, patience, func() string { return difference(theirs, c.sh(t, p.node, rulesOfOthers)) })
	}
	c.start(t, v)
	c.awaitReady(t, p.node)
	hold("kube-proxy was first")

	forbidden := c.tryForbidden(t, [][2]string{{plainPod, p.pod}, {p.pod, plainPod}})
	p.runs.end(t, "kube-proxy", syscall.SIGTERM)
	c.beginProxy(t, p)
	hold("kube-proxy was restarted")
	c.endProxy(t, p)
	c.beginProxy(t, p)
	hold("we were first")
	assert.Positive(t, forbidden.packets.Load())
	assert.Empty(t, forbidden.leaks(), "what policy never allows has passed")
}

// beginProxy starts kube-proxy, and waits until it has programmed.
func (c *cluster) beginProxy(t *testing.T, p *proxied) {
	t.Helper()
	p.runs = c.daemon(p.node, p.args...)
	ready := netip.MustParseAddrPort("127.0.0.1:10256")
	c.hold(t, "at the start", attempt{p.node, ready, true, "kube-proxy's health"})
}

// endProxy ends kube-proxy and removes its rules.
func (c *cluster) endProxy(t *testing.T, p *proxied) {
	t.Helper()
	p.runs.end(t, "kube-proxy", syscall.SIGTERM)
	_, said := c.try(t, p.node, append(slices.Clone(p.args), "--cleanup")...)
	assert.NotContains(t, c.sh(t, p.node, rulesOfOthers), "KUBE-SVC", said)
}

func (c *cluster) nodePort(t *testing.T, p *proxied, n uint16) netip.AddrPort {
	return netip.AddrPortFrom(c.node(t, p.node).Addresses[0], uint16(p.port)+n)
}

// servicesWork requires that services lead to where policy lets them, and nowhere else.
func (c *cluster) servicesWork(t *testing.T, p *proxied, when string) {
	t.Helper()
	c.hold(t, when,
		attempt{p.pod, allowedService, true, "a service that policy allows"},
		attempt{p.pod, deniedService, false, "a service whose endpoint egress policy denies"},
		attempt{"master", c.nodePort(t, p, 0), true, "a node port that policy allows"},
		attempt{"master", c.nodePort(t, p, 1), false, "a node port of a pod whose ingress policy denies it"},
		attempt{"master", c.nodePort(t, p, 2), false, "a node port that policy denies before translation"},
		attempt{plainPod, netip.AddrPortFrom(c.address(t, p.pod), bothAllow), true, "allowed"},
		attempt{plainPod, netip.AddrPortFrom(c.address(t, p.pod), ingressDenies), false, "denied by ingress policy"},
		attempt{p.pod, netip.AddrPortFrom(c.address(t, plainPod), egressDenies), false, "denied by egress policy"},
	)
}
