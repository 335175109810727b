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

// refusalIsTold: while the kernel refuses what felix writes into one table, as that has another owner, the node says so in its
// condition, the metrics to be alarmed at move, and what goes elsewhere follows policy. Afterwards all is as it was.
func (c *cluster) refusalIsTold(t *testing.T) {
	const node, failing, failures = "worker-2", `felix_int_dataplane_failing_seconds{driver="rules"}`, `felix_int_dataplane_failures{driver="rules"}`
	alarm := func(name string) (value float64) {
		t.Helper()
		_, rest, there := strings.Cut(c.metrics(t, node, 9099), "\n"+name+" ")
		require.True(t, there, "no metric %s", name)
		_, err := fmt.Sscan(rest, &value)
		require.NoError(t, err)
		return value
	}
	c.awaitProgrammed(t, node, "True")
	ours, before := c.sh(t, node, rulesOfOurs), alarm(failures)
	assert.Zero(t, alarm(failing))

	// It stays the owner's as long as the owner's socket is open. What is deleted and made in one transaction was never away.
	owner := c.daemon(node, "sh", "-c", "(echo 'delete table ip6 calico; add table ip6 calico { flags owner; }'; exec sleep infinity) | exec nft -i")
	c.awaitProgrammed(t, node, "False", api.ReasonProgrammingFails, "ip6 filter-FORWARD: operation not permitted")
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
		if !strings.Contains(c.sh(t, node, "nft list table ip calico"), "gnp/refused") {
			return "the policy is not in the table that is ours"
		}
		return ""
	})
	c.hold(t, "while the other family is refused", attempt{"pod-1", web, false, "denied"})
	assert.NotContains(t, c.sh(t, node, "nft list ruleset ip6"), "filter-FORWARD", "nothing is half there")
	c.run(t, "master", "calicoctl", "delete", "globalnetworkpolicy", "refused")

	owner.end(t, "the owner", syscall.SIGKILL)
	c.awaitProgrammed(t, node, "True")
	eventually(t, patience, func() string { return difference(ours, c.sh(t, node, rulesOfOurs)) })
	assert.Zero(t, alarm(failing))
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
