//go:build lab

package suite

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/muslin-net/muslin/api"
)

// refusable is a table of a rule driver's that can have another owner: then the kernel refuses what felix writes into it.
type refusable struct {
	spec  string // of FelixConfiguration, which has felix use the table
	table string // its family and name
	says  string // part of the condition
	ours  string // prints what felix has in it
	other string // prints what felix has in the table of the other family
}

var refusables = map[string]refusable{
	"nftables": {"nftablesMode: Enabled", "ip6 calico", "ip6 filter-FORWARD: operation not permitted", "nft list ruleset ip6 | grep filter-FORWARD || true", "nft list table ip calico"},
	"iptables": {"nftablesMode: Disabled, iptablesBackend: NFT", "ip6 filter", "Operation not permitted", "ip6tables-nft-save -t filter | grep cali || true", "iptables-nft-save -t filter"},
}

// refusalIsTold: while the kernel refuses what felix writes into one table, as that has another owner, the node says so in its
// condition, the metrics to be alarmed at move, and what goes elsewhere follows policy. Afterwards all is as it was.
func (c *cluster) refusalIsTold(t *testing.T, r refusable) {
	const node, failing, failures = "worker-2", `felix_int_dataplane_failing_seconds{driver="rules"}`, `felix_int_dataplane_failures{driver="rules"}`
	alarm := func(name string) (value float64) {
		t.Helper()
		_, rest, there := strings.Cut(c.metrics(t, node, 9099), "\n"+name+" ")
		require.True(t, there, "no metric %s", name)
		_, err := fmt.Sscan(rest, &value)
		require.NoError(t, err)
		return value
	}
	c.apply(t, "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: default}\nspec: {"+r.spec+"}\n")
	eventually(t, patience, func() string {
		if c.sh(t, node, r.ours) == "" || !strings.Contains(c.sh(t, node, r.other), "cali-FORWARD") && !strings.Contains(c.sh(t, node, r.other), "filter-FORWARD") {
			return "felix does not use the tables"
		}
		return ""
	})
	c.awaitProgrammed(t, node, "True")
	ours, before := c.sh(t, node, rulesOfOurs), alarm(failures)
	assert.Zero(t, alarm(failing))

	// It stays the owner's as long as the owner's socket is open. What is deleted and made in one transaction was never away.
	owner := c.daemon(node, "sh", "-c", fmt.Sprintf("(echo 'delete table %s; add table %[1]s { flags owner; }'; exec sleep infinity) | exec nft -i", r.table))
	c.awaitProgrammed(t, node, "False", api.ReasonProgrammingFails, r.says)
	eventually(t, patience, func() string {
		if alarm(failing) == 0 || alarm(failures) <= before {
			return "the alarm has not moved"
		}
		return ""
	})
	web := netip.AddrPortFrom(c.address(t, "pod-2"), 7200)
	c.greet(t, "pod-2", web.Port())
	const deny = `
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: refused}
spec: {order: 1, selector: all(), types: [Ingress], ingress: [{action: Deny, protocol: TCP, destination: {ports: [7200]}}]}
`
	c.hold(t, "before the policy", attempt{"pod-1", web, true, "allowed"})
	c.apply(t, deny)
	eventually(t, patience, func() string {
		if !strings.Contains(c.sh(t, node, r.other), "gnp/refused") {
			return "the policy is not in the table that is ours"
		}
		return ""
	})
	c.hold(t, "while the other family is refused", attempt{"pod-1", web, false, "denied"})
	assert.Empty(t, c.sh(t, node, r.ours), "nothing is half there")
	c.run(t, "master", "calicoctl", "delete", "globalnetworkpolicy", "refused")

	owner.end(t, "the owner", syscall.SIGKILL)
	c.awaitProgrammed(t, node, "True")
	eventually(t, patience, func() string { return difference(ours, c.sh(t, node, rulesOfOurs)) })
	assert.Zero(t, alarm(failing))
}

// largeSetFailsClosed: where a set has more members than nodes with iptables program, which the limit was not when it was written,
// whoever is under a policy that names it is closed, and nobody else; the node says so. nftables has no limit.
func (c *cluster) largeSetFailsClosed(t *testing.T, limited bool) {
	const node, port, members, limit = "worker-2", 7210, 30, 20 // the cluster's own sets have fewer
	nets := make([]string, members+1)
	for i := range nets {
		nets[i] = fmt.Sprintf("198.51.100.%d", i)
	}
	c.add(t, "pod-9", node)
	defer c.del(t, "pod-9")
	c.greet(t, "pod-2", port)
	c.greet(t, "pod-9", port)
	c.label(t, "pod-2", "under", "large")
	under, beside := netip.AddrPortFrom(c.address(t, "pod-2"), port), netip.AddrPortFrom(c.address(t, "pod-9"), port)
	c.apply(t, fmt.Sprintf(`
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: large, labels: {size: large}}
spec: {nets: [%s]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: large}
spec:
  order: 1
  selector: under == 'large'
  types: [Ingress]
  ingress: [{action: Deny, protocol: TCP, source: {selector: size == 'large'}}, {action: Allow}]
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: open}
spec: {order: 2, selector: all(), types: [Ingress], ingress: [{action: Allow, protocol: TCP, destination: {ports: [%d]}}]}
`, strings.Join(nets[:members], ", "), port))
	both := func(when string, want bool) {
		c.hold(t, when, attempt{"pod-1", under, want, "a policy names the set"}, attempt{"pod-1", beside, true, "no policy names the set"})
	}
	both("as large as it may be", true)
	c.apply(t, fmt.Sprintf("apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {name: node.%s}\nspec: {maxIpsetSize: %d}\n", node, limit))
	code, said := c.try(t, "master", "calicoctl", "patch", "globalnetworkset", "large", "-p", fmt.Sprintf("{spec: {nets: [%s]}}", strings.Join(nets, ", ")))
	if limited {
		assert.Equal(t, 1, code, said)
		assert.Contains(t, said, fmt.Sprintf("spec.nets: %d: is the number of networks of IPv4, but maxIpsetSize of FelixConfiguration(node.%s) is %d", len(nets), node, limit))
		c.awaitProgrammed(t, node, "False", api.ReasonSetTooLarge, fmt.Sprintf("%d members, and no set may have more than %d", members, limit))
	} else {
		assert.Zero(t, code, said)
		c.awaitProgrammed(t, node, "True")
	}
	both("larger than it may be", !limited)

	// The same, of a set that is written so large by who does not ask.
	all, some := strings.Join(nets[:members], `","`), strings.Join(nets[:limit-10], `","`)
	c.rewrite(t, "projectcalico.org/globalnetworksets/large", all, some)
	c.awaitProgrammed(t, node, "True")
	both("no longer larger", true)
	c.rewrite(t, "projectcalico.org/globalnetworksets/large", some, all)
	if limited {
		c.awaitProgrammed(t, node, "False", api.ReasonSetTooLarge)
	}
	both("written larger than it may be", !limited)
	c.run(t, "master", "calicoctl", "delete", "felixconfiguration", "node."+node)
	c.awaitProgrammed(t, node, "True")
	both("the limit is gone", true)
	c.run(t, "master", "calicoctl", "delete", "globalnetworkpolicy", "large", "open")
	c.run(t, "master", "calicoctl", "delete", "globalnetworkset", "large")
}

// awaitProgrammed waits until a node says of its kernel what it should, in these words.
func (c *cluster) awaitProgrammed(t *testing.T, node, status string, words ...string) {
	t.Helper()
	eventually(t, patience, func() string {
		var got api.Node
		text := c.run(t, "master", "calicoctl", "get", "node", node, "-o", "json")
		require.NoError(t, json.Unmarshal([]byte(text), &got))
		said := meta.FindStatusCondition(got.Status.Conditions, api.ConditionDataplaneProgrammed)
		if said == nil && status == "True" {
			return "" // it was never otherwise
		}
		if said == nil || string(said.Status) != status {
			return fmt.Sprintf("%s is said to be %+v, not %s", node, said, status)
		}
		for _, w := range words {
			if !strings.Contains(said.Reason+": "+said.Message, w) {
				return fmt.Sprintf("%s is said to be %+v, not %q", node, said, w)
			}
		}
		t.Logf("%s: %s %s %s: %s", node, said.Type, said.Status, said.Reason, said.Message)
		return ""
	})
}
