//go:build lab

package rulestest

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
)

// rulesOfOthers prints the firewall's rules that are not ours, without counters and in no order of their making.
const rulesOfOthers = `for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do
	$p-save 2>/dev/null | sed "/cali/d; /^[#*C]/d; /^:[A-Z]* ACCEPT/d; s/ \\[[0-9:]*\\]$//; s/^/$p /" | sort
done`

// RunServices runs what needs IPVS in the kernel, beside the real kube-proxy, whoever was first: what goes to services is judged by where
// it is led, and what kube-proxy refuses is refused. Its rules are what they are without us.
func (k Kind) RunServices(t *testing.T, by desired.Rules, program string) {
	w := k.NewWorld(t)
	w.listenOn(w.Node, ":22")
	w.listenOn(w.A, ":80")
	w.listenOn(w.B, ":80", ":81")
	w.listenOn(w.Outside, ":80", ":81")
	proxy := w.ipvsProxyFor(program,
		service{"allowed", "10.96.0.1", AddrB, 8000, 80, 30080}, service{"denied", "10.96.0.2", AddrB, 8000, 81, 30081},
		service{"outside", "10.96.0.3", OutsideAddr, 8000, 80, 0}, service{"outside-denied", "10.96.0.4", OutsideAddr, 8000, 81, 0},
		service{"six", "fd96::1", SixB, 8000, 80, 0})
	proxy.begin()
	theirs := w.Node.Run(t, rulesOfOthers)
	w.Outside.Run(t, "ip route add 10.96.0.0/16 via 192.168.9.1")
	web := view.Policy{ID: "np/s/web", Ingress: []view.Rule{AllowTo(tcp, 80)}}
	client := view.Policy{ID: "np/s/client", Egress: []view.Rule{AllowTo(tcp, 80)}, Ingress: []view.Rule{Anything}}
	list := func(id, policy string) view.PolicyList {
		return view.PolicyList{ID: id, Tiers: []view.TierPolicies{{Name: "default", DefaultAction: view.Deny, Ingress: []string{policy}, Egress: []string{policy}}}}
	}
	a, b := Under("client"), Under("web")
	a.Addresses, b.Addresses = Addrs(AddrA, SixA), Addrs(AddrB, SixB)
	c := Firewall(map[string]desired.Workload{"cali1": a, "cali2": b}, []view.PolicyList{list("client", client.ID), list("web", web.ID)}, client, web)
	c.Settings.IPVS, c.Settings.Rules = true, by
	c.Sets.Put(desired.SetServices, desired.Set{Type: view.SetNet, Members: Members("10.96.0.1/32", "10.96.0.2/32", "10.96.0.3/32", "10.96.0.4/32", "fd96::1/128")})
	w.Driver.Whole()
	w.Apply(c)
	assert.Equal(t, theirs, w.Node.Run(t, rulesOfOthers), "kube-proxy was first")

	w.Passes(w.A, "10.96.0.1:8000", true, "both ends' policies allow it")
	w.Passes(w.A, "[fd96::1]:8000", true, "both ends' policies allow it")
	w.Passes(w.A, "10.96.0.2:8000", false, "denied to the port behind it")
	w.Passes(w.A, "10.96.0.3:8000", true, "egress policy allows it, out of the cluster")
	w.Passes(w.A, "10.96.0.4:8000", false, "egress policy denies it, out of the cluster")
	w.Passes(w.A, NodeAddr+":22", false, "what is the node's own is judged as such")
	w.Passes(w.A, "10.96.0.1:22", false, "kube-proxy refuses what is no port of the service: it is the node's own")
	w.Passes(w.Outside, "10.96.0.1:22", false, "kube-proxy refuses what is no port of the service: it is the node's own")
	w.Passes(w.A, NodeAddr+":30080", false, "and so is a node port")
	w.Passes(w.Outside, "10.96.0.1:8000", true, "ingress policy allows it")
	w.Passes(w.Outside, "10.96.0.2:8000", false, "ingress policy denies it")
	w.Passes(w.Outside, NodeAddr+":30080", true, "ingress policy allows it, by a node port")
	w.Passes(w.Outside, NodeAddr+":30081", false, "ingress policy denies it, by a node port")
	w.Passes(w.Node, "10.96.0.2:8000", true, "the host reaches its own workloads")

	established, err := Dial(w.A, "10.96.0.1:8000", Patience)
	if assert.NoError(t, err) {
		defer established.Close()
		assert.True(t, Alive(established, Patience))
	}
	proxy.remove()
	proxy.begin()
	assert.Equal(t, theirs, w.Node.Run(t, rulesOfOthers), "we were first")
	w.Passes(w.A, "10.96.0.1:8000", true, "both ends' policies allow it")
	w.Passes(w.A, "10.96.0.2:8000", false, "denied to the port behind it")
	w.Passes(w.Outside, NodeAddr+":30080", true, "ingress policy allows it, by a node port")
	w.Passes(w.Outside, NodeAddr+":30081", false, "ingress policy denies it, by a node port")

	closed := desired.FirewallDelta{}
	closed.Workloads.Put("cali2", desired.Workload{Addresses: b.Addresses})
	w.Apply(closed)
	w.Passes(w.A, "10.96.0.1:8000", false, "closed")
	w.Passes(w.Outside, NodeAddr+":30080", false, "closed")
	if err == nil {
		assert.False(t, Alive(established, Brief), "closed, and no matter that it is established")
	}

	off := *c.Settings
	off.IPVS = false
	c.Settings = &off
	c.Workloads = desired.Delta[string, desired.Workload]{}
	c.Workloads.Put("cali2", b)
	w.Apply(c)
	w.Passes(w.A, "10.96.0.1:8000", false, "nobody said that there is IPVS")
}
