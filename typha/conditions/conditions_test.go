package conditions

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/muslin-net/muslin/api"
)

func aPool(name, cidr string, change ...func(*api.IPPool)) *api.IPPool {
	p := &api.IPPool{}
	p.Name, p.Spec.CIDR = name, cidr
	for _, c := range change {
		c(p)
	}
	return p
}

func aNode(name string, features ...string) *api.Node {
	n := &api.Node{}
	n.Name = name
	n.Spec.BGP = &api.NodeBGPSpec{IPv4Address: "10.0.0.1/24", IPv6Address: "fd00::1/64"}
	n.Status.Kernel = &api.NodeKernel{Features: map[string]string{}}
	for _, f := range features {
		n.Status.Kernel.Features[f] = "yes"
	}
	return n
}

func ipip(p *api.IPPool)  { p.Spec.IPIPMode = api.IPIPAlways }
func vxlan(p *api.IPPool) { p.Spec.VXLANMode = api.VXLANCrossSubnet }

func text(conditions []metav1.Condition) string {
	var lines []string
	for _, c := range conditions {
		lines = append(lines, strings.TrimSpace(fmt.Sprint(c.Type, " ", c.Status, " ", c.Reason, " ", c.Message)))
	}
	return strings.Join(lines, "\n")
}

func TestConditions(t *testing.T) {
	silent := aNode("silent")
	silent.Status.Kernel = nil
	v4only := aNode("v4only")
	v4only.Spec.BGP.IPv6Address = ""
	elsewhere := aNode("elsewhere")
	elsewhere.Spec.BGP = nil
	full := aNode("full", "ipip", "vxlan")
	for name, c := range map[string]struct {
		pool  *api.IPPool
		nodes []*api.Node
		want  string
	}{
		"direct needs nothing": {aPool("p", "10.0.0.0/16"), []*api.Node{aNode("a")}, "Allocatable True OK"},
		"all have it":          {aPool("p", "10.0.0.0/16", ipip), []*api.Node{full, silent, elsewhere}, "Allocatable True OK"},
		"one lacks it": {
			aPool("p", "10.0.0.0/16", ipip),
			[]*api.Node{full, aNode("b", "vxlan")},
			"Allocatable True OK\nDataplaneSupported False KernelLacksIPIP node b: kernel has no ipip; pool p wants ipipMode Always; load module ipip, or set vxlanMode",
		},
		"three lack it": {
			aPool("p", "10.0.0.0/16", vxlan),
			[]*api.Node{aNode("c", "ipip"), aNode("b"), aNode("a"), full},
			"Allocatable True OK\nDataplaneSupported False KernelLacksVXLAN nodes a, b and c: kernel has no vxlan; pool p wants vxlanMode CrossSubnet; load module vxlan, or set ipipMode",
		},
		"many lack it, one without IPv6": {
			aPool("p", "fd00::/64", vxlan),
			[]*api.Node{aNode("c"), aNode("b"), aNode("a"), aNode("d"), aNode("e"), v4only},
			"Allocatable True OK\nDataplaneSupported False KernelLacksVXLAN nodes a, b, c and 2 more: kernel has no vxlan; pool p wants vxlanMode CrossSubnet; load module vxlan, or set vxlanMode: Never",
		},
		"disabled pools are routed, too": {
			aPool("p", "10.0.0.0/16", ipip, func(p *api.IPPool) { p.Spec.Disabled = true }),
			[]*api.Node{aNode("a")},
			"Allocatable False PoolDisabled spec.disabled is true\nDataplaneSupported False KernelLacksIPIP node a: kernel has no ipip; pool p wants ipipMode Always; load module ipip, or set vxlanMode",
		},
		"on its way out": {
			aPool("p", "10.0.0.0/16", func(p *api.IPPool) { p.DeletionTimestamp = new(metav1.NewTime(time.Unix(1, 0))) }), nil,
			"Allocatable False Terminating the pool is being deleted",
		},
	} {
		require.Equal(t, c.want, text(OfPool(c.pool, []*api.IPPool{c.pool}, c.nodes)), name)
		slices.Reverse(c.nodes)
		require.Equal(t, c.want, text(OfPool(c.pool, []*api.IPPool{c.pool}, c.nodes)), "%s, in another order", name)
	}
}

func TestConditionsOfANode(t *testing.T) {
	pools := []*api.IPPool{
		aPool("d", "10.3.0.0/16", ipip), aPool("c", "10.2.0.0/16", ipip), aPool("b", "10.1.0.0/16", vxlan), aPool("a", "10.0.0.0/16"),
	}
	require.Empty(t, OfNode(aNode("n", "ipip", "vxlan"), pools))
	const noIPIP = "node n: kernel has no ipip; pool c wants ipipMode Always; load module ipip, or set vxlanMode; " +
		"node n: kernel has no ipip; pool d wants ipipMode Always; load module ipip, or set vxlanMode"
	require.Equal(t, "DataplaneSupported False KernelLacksIPIP "+noIPIP, text(OfNode(aNode("n", "vxlan"), pools)))
	pools = append(pools, aPool("e", "10.4.0.0/16", vxlan))
	require.Equal(t, "DataplaneSupported False KernelLacksIPIP "+noIPIP+
		"; node n: kernel has no vxlan; pool b wants vxlanMode CrossSubnet; load module vxlan, or set ipipMode; 1 pools more",
		text(OfNode(aNode("n"), pools)))
}

func TestOverlap(t *testing.T) {
	at := func(s int64) func(*api.IPPool) {
		return func(p *api.IPPool) { p.CreationTimestamp = metav1.NewTime(time.Unix(s, 0)) }
	}
	a, b, c := aPool("a", "10.0.0.0/24", at(9)), aPool("b", "10.0.0.0/16", at(5)), aPool("c", "10.0.0.0/8", at(9))
	all := []*api.IPPool{a, b, c}
	require.Equal(t, "Allocatable False CIDROverlap cidr 10.0.0.0/24 overlaps the older pool b, 10.0.0.0/16; delete one of the two", text(OfPool(a, all, nil)))
	require.Equal(t, "Allocatable True OK", text(OfPool(b, all, nil)))
	require.Contains(t, text(OfPool(c, all, nil)), "overlaps the older pool a", "by name where they are of one age")
	b.DeletionTimestamp = &a.CreationTimestamp
	require.Equal(t, "Allocatable True OK", text(OfPool(a, all, nil)), "a pool on its way out is in nobody's way")
}

func TestOfTier(t *testing.T) {
	fault := func(name, tier, wrong string) Fault {
		return Fault{Policy: api.Key{Kind: "GlobalNetworkPolicy", Name: name}, Tier: tier, Wrong: errors.New(wrong)}
	}
	faults := []Fault{fault("b", "one", "no selector"), fault("c", "two", strings.Repeat("x", 600)), fault("a", "one", "too many ports")}
	shown := func(tier string) string {
		given := Apply(nil, OfTier(tier, faults), metav1.Time{})
		require.Len(t, given, 1)
		require.Equal(t, "PoliciesValid=False InvalidPolicies", fmt.Sprintf("%s=%s %s", given[0].Type, given[0].Status, given[0].Reason))
		return given[0].Message
	}
	require.Empty(t, OfTier("three", faults))
	require.Contains(t, shown("one"), "GlobalNetworkPolicy(a): too many ports; GlobalNetworkPolicy(b): no selector")
	require.Contains(t, shown("two"), "xxx …")
	require.Less(t, len(shown("two")), 600)
	faults = append(faults, fault("d", "one", "d"), fault("e", "one", "e"), fault("f", "one", "f"))
	require.Contains(t, shown("one"), "GlobalNetworkPolicy(d): d; 2 policies more")
	require.Empty(t, Apply(OfTier("one", faults), nil, metav1.Time{}))
}

func TestApplyAndReport(t *testing.T) {
	first, later := metav1.NewTime(time.Unix(1, 0)), metav1.NewTime(time.Unix(2, 0))
	c := func(kind, status, message string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: metav1.ConditionStatus(status), Reason: "R", Message: message}
	}
	when := func(conditions []metav1.Condition) string {
		var out []string
		for _, c := range conditions {
			out = append(out, fmt.Sprintf("%s=%s@%d %s", c.Type, c.Status, c.LastTransitionTime.Unix(), c.Message))
		}
		return strings.Join(out, ", ")
	}
	has := Report(nil, []metav1.Condition{c("Ready", "False", "x"), c("Alive", "True", ""), c("Allocatable", "True", "not yours"), c("Ready", "True", "y")}, first)
	require.Equal(t, "Alive=True@1 , Ready=True@1 y", when(has))
	has = Apply(has, []metav1.Condition{c("DataplaneSupported", "False", "a")}, first)
	require.Equal(t, "Alive=True@1 , DataplaneSupported=False@1 a, Ready=True@1 y", when(has))
	has = Apply(has, []metav1.Condition{c("DataplaneSupported", "False", "b")}, later)
	has = Report(has, []metav1.Condition{c("Ready", "False", "z")}, later)
	require.Equal(t, "DataplaneSupported=False@1 b, Ready=False@2 z", when(has), "a new message is no transition")
	has = Peers(has, []metav1.Condition{c("BGPPeersReady", "False", "p"), c("Ready", "True", "not yours")}, later)
	require.Equal(t, "BGPPeersReady=False@2 p, DataplaneSupported=False@1 b, Ready=False@2 z", when(has))
	has = Report(has, []metav1.Condition{c("BGPPeersReady", "True", "not yours")}, later)
	require.Equal(t, "BGPPeersReady=False@2 p, DataplaneSupported=False@1 b", when(has))
	require.Empty(t, Peers(Report(Apply(has, nil, later), nil, later), nil, later))
}
