//go:build lab

package suite

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/muslin-net/muslin/api"
	"github.com/muslin-net/muslin/integration/lab"
)

// TestFailClosed: what is not allowed, and what is not known, does not pass.
func TestFailClosed(t *testing.T) {
	c := up(t, "suite-closed", lab.ModeDirect, onEtcd) // which rewrite reaches
	t.Run("unknown profile", c.unknownProfile)
	t.Run("spoofed source", c.spoofedSource)
	t.Run("NAT-outgoing", c.natOutgoing)
	t.Run("scoped view", c.scopedView)
	t.Run("a policy that nobody validated", c.unvalidatedPolicy)
}

// unvalidatedPolicy: a policy that comes from where nobody validates, and makes no sense, denies everything to whom it selects and
// nobody else, and its tier says so, until it is corrected.
func (c *cluster) unvalidatedPolicy(t *testing.T) {
	const port, path = 7220, "projectcalico.org/globalnetworkpolicies/slip"
	c.add(t, "beside", "worker-2")
	defer c.del(t, "beside")
	c.greet(t, "pod-2", port)
	c.greet(t, "beside", port)
	c.label(t, "pod-2", "under", "slip")
	c.apply(t, `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: slip}
spec:
  selector: under == 'slip'
  types: [Ingress]
  ingress:
  - action: Allow
    protocol: TCP
    source: {selector: has(projectcalico.org/namespace), notNets: [198.51.100.0/24]}
    destination: {ports: [7220]}
`)
	under, beside := netip.AddrPortFrom(c.address(t, "pod-2"), port), netip.AddrPortFrom(c.address(t, "beside"), port)
	// said waits until the tier names a field of the policy, or with "" none, and whom it selects is closed or open.
	said := func(field, when string) {
		t.Helper()
		want := field == ""
		eventually(t, patience, func() string {
			var tier api.Tier
			text := c.run(t, "master", "calicoctl", "get", "tier", "default", "-o", "json")
			require.NoError(t, json.Unmarshal([]byte(text), &tier))
			valid := meta.FindStatusCondition(tier.Status.Conditions, api.ConditionPoliciesValid)
			switch {
			case want && valid != nil:
				return "the tier still says " + valid.Message
			case !want && (valid == nil || valid.Status != "False" || !strings.Contains(valid.Message, "GlobalNetworkPolicy(slip): "+field)):
				return fmt.Sprintf("the tier says %+v", valid)
			}
			return ""
		})
		eventually(t, patience, func() string {
			conn := c.tryDial(t.Context(), "pod-1", under)
			if conn != nil {
				_ = conn.Close()
			}
			if (conn != nil) != want {
				return fmt.Sprintf("%s: whom the policy selects can be reached: %t", when, conn != nil)
			}
			return ""
		})
		c.hold(t, when, attempt{"pod-1", under, want, "the policy selects it"}, attempt{"pod-1", beside, true, "no policy selects it"})
	}
	said("", "as it was applied")
	for _, slip := range []struct{ name, right, wrong, field string }{
		{"an action that is none", `"action":"Allow"`, `"action":"Perhaps"`, "spec.ingress[0].action"},
		{"a selector of a rule that does not parse", `"selector":"has(projectcalico.org/namespace)"`, `"selector":"has(projectcalico.org/namespace"`, "spec.ingress[0].source.selector"},
		{"both families in one rule", `"notNets":["198.51.100.0/24"]`, `"notNets":["198.51.100.0/24","2001:db8::/32"]`, "spec.ingress[0].source.notNets[1]"},
		{"51 ports", `"ports":[7220]`, `"ports":[7220` + strings.Repeat(",7221", 50) + `]`, "spec.ingress[0].destination.ports"},
	} {
		c.rewrite(t, path, slip.right, slip.wrong)
		said(slip.field, slip.name)
		c.rewrite(t, path, slip.wrong, slip.right)
		said("", slip.name+", corrected")
	}
	c.run(t, "master", "calicoctl", "delete", "globalnetworkpolicy", "slip")
}

// rewrite changes a resource in etcd, as a writer does who asks nobody whether it makes sense.
func (c *cluster) rewrite(t *testing.T, path, from, to string) {
	t.Helper()
	client := c.etcdClient(t)
	path = "/calico/resources/v3/" + path
	got, err := client.Get(within(t, patience), path)
	require.NoError(t, err)
	require.Len(t, got.Kvs, 1, path)
	was := string(got.Kvs[0].Value)
	require.Contains(t, was, from)
	_, err = client.Put(within(t, patience), path, strings.Replace(was, from, to, 1))
	require.NoError(t, err)
}

// unknownProfile: a pod whose profile does not exist is closed both ways until the profile appears.
func (c *cluster) unknownProfile(t *testing.T) {
	// A profile of a namespace is Kubernetes' to make. Here nobody does, so the network's name leads to none.
	path := filepath.Join(c.StateDir(), "nodes", "worker-1", "etc-cni", "net.d", "10-calico.conflist")
	ordinary, err := os.ReadFile(path)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.WriteFile(path, ordinary, 0o644)) })
	require.NoError(t, os.WriteFile(path, bytes.Replace(ordinary, []byte(`"k8s-pod-network"`), []byte(`"kns.nowhere"`), 1), 0o644))

	shut := c.add(t, "shut", "worker-1")
	defer c.del(t, "shut")
	address := shut.Addresses[0]
	inside, outside := c.capture(t, "shut", "eth0"), c.capture(t, "worker-1", "ens5")
	for _, kind := range []lab.ProbeKind{lab.ProbeTCP, lab.ProbeICMP} {
		results, err := c.Probes(within(t, patience), []lab.ProbeRequest{
			{From: "pod-2", To: "shut", Kind: kind},
			{From: "shut", To: "pod-2", Kind: kind},
			{From: "pod-1", To: "shut", Kind: kind},
			{From: "shut", To: "pod-1", Kind: kind},
			{From: "shut", To: "worker-1", Kind: kind},
			{From: "worker-2", To: "shut", Kind: kind},
		})
		require.NoError(t, err)
		for _, r := range results {
			assert.False(t, r.OK, "%s from %s to %s got through", kind, r.From, r.To)
		}
	}
	assert.Empty(t, inside.packets(t, func(p lab.Packet) bool { return p.Inner.Dst == address && p.Inner.Proto != "arp" }), "packets to the pod")
	outside.awaitPackets(t, func(p lab.Packet) bool { return p.Inner.Dst == address && p.Inner.Proto != "arp" }, "packets to the pod at its node")
	assert.Empty(t, outside.packets(t, func(p lab.Packet) bool { return p.Inner.Src == address && p.Inner.Proto != "arp" }), "packets of the pod on the wire")

	c.apply(t, `
apiVersion: projectcalico.org/v3
kind: Profile
metadata: {name: kns.nowhere}
spec:
  ingress: [{action: Allow}]
  egress: [{action: Allow}]
`)
	eventually(t, patience, func() string {
		r, err := c.Probe(within(t, patience), lab.ProbeRequest{From: "pod-2", To: "shut"})
		if err != nil || !r.OK {
			return "the pod stays closed: " + r.Error
		}
		return ""
	})
	c.probe(t, "shut", "pod-2")

	c.run(t, "master", "calicoctl", "delete", "profile", "kns.nowhere")
	eventually(t, 2*patience, func() string {
		r, err := c.Probe(within(t, patience), lab.ProbeRequest{From: "pod-2", To: "shut"})
		if err != nil || r.OK {
			return "the pod stays open without its profile"
		}
		return ""
	})
}

// spoofedSource: a packet of a pod with an address that is not the pod's goes nowhere.
func (c *cluster) spoofedSource(t *testing.T) {
	neighbour := c.add(t, "neighbour", "worker-1")
	defer c.del(t, "neighbour")
	for name, source := range map[string]netip.Addr{
		"of nobody":                 netip.MustParseAddr("192.168.250.1"),
		"of a pod on the same node": neighbour.Addresses[0],
		"of a pod on another node":  c.address(t, "pod-3"),
		"of the node":               netip.MustParseAddr("10.30.0.206"),
		"of the world":              netip.MustParseAddr("198.51.100.9"),
	} {
		t.Run(name, func(t *testing.T) {
			c.sh(t, "pod-1", "ip addr add "+source.String()+"/32 dev lo")
			defer c.sh(t, "pod-1", "ip addr del "+source.String()+"/32 dev lo")
			node, wire := c.capture(t, "worker-1", c.pod(t, "pod-1").HostInterface), c.capture(t, "worker-1", "ens5")
			local := c.capture(t, "neighbour", "eth0")
			for _, to := range []netip.Addr{c.address(t, "pod-2"), netip.MustParseAddr("10.30.0.1"), neighbour.Addresses[0]} {
				if to != source {
					_, _ = c.Run(within(t, patience), "pod-1", "ping", "-c", "3", "-i", "0.05", "-W", "0.2", "-I", source.String(), to.String())
				}
			}
			isPing := func(p lab.Packet) bool { return p.Inner.Src == source && p.Inner.Proto == "icmp" && !p.Outgoing }
			node.awaitPackets(t, isPing, "packets that left the pod")
			leaked := wire.packets(t, func(p lab.Packet) bool { return p.Inner.Proto == "icmp" && p.Outgoing })
			assert.Empty(t, leaked, "packets on the wire")
			assert.Empty(t, local.packets(t, isPing), "packets to a pod of the same node")
		})
	}
}

// natOutgoing: what leaves the pools has the node's address, what stays inside the pod's own.
func (c *cluster) natOutgoing(t *testing.T) {
	for _, to := range []struct{ name, where, address, sees string }{
		{"outside the pools", "router", "10.30.0.1", "10.30.0.206"},
		{"another node", "master", "10.30.0.10", "10.30.0.206"},
		{"a pod", "pod-2", c.address(t, "pod-2").String(), c.address(t, "pod-1").String()},
		{"a pod, from the other side", "pod-1", c.address(t, "pod-1").String(), c.address(t, "pod-2").String()},
	} {
		t.Run(to.name, func(t *testing.T) {
			ctx := within(t, patience)
			ln, err := c.Listen(ctx, to.where, netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
			require.NoError(t, err)
			defer ln.Close()
			from := "pod-1"
			if to.where == "pod-1" {
				from = "pod-2"
			}
			port := netip.MustParseAddrPort(ln.Addr().String()).Port()
			conn, err := c.Dial(ctx, from, netip.AddrPortFrom(netip.MustParseAddr(to.address), port))
			require.NoError(t, err)
			defer conn.Close()
			require.NoError(t, ln.SetDeadline(time.Now().Add(patience)))
			got, err := ln.AcceptTCP()
			require.NoError(t, err)
			defer got.Close()
			assert.Equal(t, to.sees, netip.MustParseAddrPort(got.RemoteAddr().String()).Addr().Unmap().String(), "the source that is seen there")
		})
	}
}

// scopedView: a node is not told of another node's endpoints.
func (c *cluster) scopedView(t *testing.T) {
	for _, n := range []struct{ node, own string }{{"worker-1", "pod-1"}, {"worker-2", "pod-2"}, {"master", ""}} {
		t.Run(n.node, func(t *testing.T) {
			view := c.awaitSaved(t, n.node, "worker-3") // every node knows all nodes
			if n.own != "" {
				view = c.awaitSaved(t, n.node, n.own)
			}
			for _, p := range []string{"pod-1", "pod-2", "pod-3"} {
				if p != n.own {
					assert.NotContains(t, view, p)
					assert.NotContains(t, view, c.pod(t, p).HostInterface)
				}
			}
		})
	}
}

// capture is a capture that ends with the test.
type capture struct {
	*lab.Capture
	seen []lab.Packet
}

func (c *cluster) capture(t *testing.T, where, iface string) *capture {
	t.Helper()
	got, err := c.Capture(within(t, patience), where, iface)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, got.Close()) })
	return &capture{Capture: got}
}

// awaitPackets waits until there are some that are wanted.
func (c *capture) awaitPackets(t *testing.T, wanted func(lab.Packet) bool, what string) {
	t.Helper()
	eventually(t, patience, func() string {
		if len(c.packets(t, wanted)) == 0 {
			return "there are no " + what
		}
		return ""
	})
}

// packets are those seen so far that are wanted, as text.
func (c *capture) packets(t *testing.T, wanted func(lab.Packet) bool) (text []string) {
	t.Helper()
	more, err := c.Drain()
	require.NoError(t, err)
	c.seen = append(c.seen, more...)
	for _, p := range c.seen {
		if wanted(p) {
			text = append(text, p.Inner.String())
		}
	}
	return text
}
