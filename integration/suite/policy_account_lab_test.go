//go:build lab

package suite

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/felix/dataplane/rules/rulestest"
	"github.com/muslin-net/muslin/integration/lab"
)

// TestPolicyIsAccountable: operators see which policies apply to an endpoint and what each rule did or logged, what policy would do to
// a connection, and why a rule is there; on any node, by the same commands.
func TestPolicyIsAccountable(t *testing.T) {
	for driver, mode := range ruleDrivers {
		t.Run(driver, func(t *testing.T) { policyIsAccountable(t, driver, mode) })
	}
}

func policyIsAccountable(t *testing.T, driver, mode string) {
	c := up(t, "accounts-"+driver, lab.ModeVXLAN, onEtcd)
	c.useRules(t, mode)
	c.apply(t, `
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: default}
spec:
  order: 10
  selector: projectcalico.org/namespace == 'default'
  types: [Ingress]
  ingress:
  - {action: Deny, protocol: TCP, destination: {ports: [9999]}}
  - {action: Allow, protocol: TCP, destination: {ports: [7200]}}
  - {action: Allow, protocol: ICMP}
---
apiVersion: projectcalico.org/v3
kind: StagedNetworkPolicy
metadata: {name: try, namespace: default}
spec:
  order: 5
  selector: projectcalico.org/namespace == 'default'
  types: [Ingress]
  ingress:
  - {action: Deny, protocol: TCP, destination: {ports: [7200]}}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: loud, namespace: default}
spec:
  order: 1
  selector: projectcalico.org/namespace == 'default'
  types: [Ingress]
  ingress:
  - {action: Log, protocol: TCP, destination: {ports: [9997]}}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {nftablesMode: `+mode+`, logPrefix: "%t %k %p"}
`)
	type rule struct {
		Policy string
		Rule   *int
		Tier   string
		Action string
		Match  string
		Staged bool

		Packets, Bytes uint64
	}
	type endpoint struct {
		Endpoint        string
		Ingress, Egress []rule
	}
	shown := func() endpoint {
		_, said := c.try(t, "master", "calicoctl", "policy", "show", "default/pod-2", "-o", "json")
		var all []endpoint
		if json.Unmarshal([]byte(said), &all) != nil || len(all) != 1 {
			return endpoint{Endpoint: said}
		}
		return all[0]
	}
	find := func(e endpoint, policy string, number int) rule {
		for _, r := range e.Ingress {
			if r.Policy == policy && (r.Rule == nil && number < 0 || r.Rule != nil && *r.Rule == number) {
				return r
			}
		}
		return rule{}
	}
	eventually(t, patience, func() string {
		if e := shown(); find(e, "np/default/web", 2).Action != "Allow" || !find(e, "snp/default/try", 0).Staged {
			return fmt.Sprintf("the policy is not shown: %+v", e)
		}
		return ""
	})
	before := shown()
	assert.Equal(t, "k8s/default/pod-2/eth0", before.Endpoint)
	assert.Equal(t, "tcp to ports 7200", find(before, "np/default/web", 1).Match)
	assert.Equal(t, "default", find(before, "np/default/web", 1).Tier)

	client, server := c.tcp(t, "pod-1", "pod-2", netip.AddrPortFrom(c.address(t, "pod-2"), 7200), 7200)
	require.NoError(t, client.Close())
	require.NoError(t, server.Close())
	var after endpoint
	eventually(t, patience, func() string {
		for _, port := range []string{"9999", "9998"} {
			_, _ = c.try(t, "pod-1", "sh", "-c", "timeout 2 bash -c 'echo > /dev/tcp/"+c.address(t, "pod-2").String()+"/"+port+"'")
		}
		after = shown()
		if find(after, "np/default/web", 0).Packets == 0 || find(after, "", -1).Packets == 0 {
			return "no packet was denied"
		}
		return ""
	})
	allowed, denied, end := find(after, "np/default/web", 1), find(after, "np/default/web", 0), find(after, "", -1)
	first := find(before, "np/default/web", 1).Packets + 1
	assert.GreaterOrEqual(t, allowed.Packets, first, "one packet asks for a connection")
	assert.LessOrEqual(t, allowed.Packets, first+5, "or more, if the answer is late")
	assert.GreaterOrEqual(t, allowed.Bytes, uint64(40))
	assert.Positive(t, denied.Packets)
	assert.Equal(t, "Deny", denied.Action)
	assert.Positive(t, end.Packets, "the end of the tier")
	assert.Equal(t, allowed.Packets, find(after, "snp/default/try", 0).Packets, "what a staged policy would have denied")
	assert.Equal(t, "default", end.Tier)
	t.Run("a line of the kernel's log", func(t *testing.T) {
		log := rulestest.ListenToKernel(t)
		_, _ = c.try(t, "pod-1", "sh", "-c", "timeout 5 bash -c 'echo > /dev/tcp/"+c.address(t, "pod-2").String()+"/9997'")
		log.Await("^default np default/loud: IN=.* DST=" + regexp.QuoteMeta(c.address(t, "pod-2").String()) + " .*PROTO=TCP .*DPT=9997 ")
	})
	_, said := c.try(t, "master", "calicoctl", "policy", "show", c.address(t, "pod-2").String())
	t.Log(said)
	assert.Contains(t, said, "(end of tier)")
	code, said := c.try(t, "master", "calicoctl", "policy", "show", "default/nobody")
	assert.Equal(t, 1, code)
	assert.Contains(t, said, "there is no endpoint")

	eval := func(port string) (int, string) {
		return c.try(t, "master", "calicoctl", "policy", "eval", "--from", "default/pod-1", "--to", "default/pod-2", "--port", port)
	}
	code, said = eval("tcp/7200")
	t.Log(said)
	assert.Equal(t, 0, code)
	assert.Regexp(t, `k8s/default/pod-2/eth0 +ingress +allowed +np/default/web +1`, said)
	assert.Regexp(t, `k8s/default/pod-1/eth0 +egress +allowed +pro/`, said)
	code, said = eval("9999")
	assert.Equal(t, 1, code)
	assert.Regexp(t, `ingress +denied +np/default/web +0`, said)
	code, said = eval("udp/53")
	assert.Equal(t, 1, code)
	assert.Regexp(t, `ingress +denied +end of tier default`, said)
	code, said = eval("icmp/8")
	assert.Equal(t, 0, code)
	assert.Regexp(t, `k8s/default/pod-2/eth0 +ingress +allowed +np/default/web +2`, said)

	metrics := c.metrics(t, "worker-2", 9099)
	assert.Contains(t, metrics, fmt.Sprintf(`felix_policy_rule_packets_total{action="staged deny",direction="ingress",policy="snp/default/try",rule="0",tier="default"} %d`, allowed.Packets))
	assert.Contains(t, metrics, fmt.Sprintf(`felix_policy_rule_packets_total{action="allow",direction="ingress",policy="np/default/web",rule="1",tier="default"} %d`, allowed.Packets))
	assert.Contains(t, metrics, `calico_denied_packets{policy="default|np/default/web|0|deny"}`)
	assert.Contains(t, metrics, "felix_cut_connections_total 0")
	if t.Failed() {
		t.Log(strings.TrimSpace(metrics))
	}
	t.Run("a set beyond its limit", func(t *testing.T) { c.largeSetFailsClosed(t, driver == "iptables") })
	t.Run("what the kernel refuses", func(t *testing.T) { c.refusalIsTold(t, refusables[driver]) })
}

// hostsAreAccountable: worker-1 and worker-2 are under policy that allows TCP port 7200 to them, and 7201 was tried.
func (c *cluster) hostsAreAccountable(t *testing.T) {
	t.Helper()
	_, said := c.try(t, "master", "calicoctl", "policy", "show", "worker-2")
	t.Log(said)
	assert.Regexp(t, `^host/worker-2 \(.+, `+c.node(t, "worker-2").Addresses[0].String(), said)
	assert.Contains(t, said, "Always open in:  tcp/22, udp/68, tcp/179")
	assert.Regexp(t, `(?m)^normal +default +gnp/hosts +1 +Allow +tcp to ports 7200 `, said)
	assert.Regexp(t, `(?m)^normal +default +\(end of tier\) +- +Deny +- +[1-9]`, said)
	_, said = c.try(t, "master", "calicoctl", "policy", "show", "host/worker-1")
	assert.Regexp(t, `^host/worker-1 \(\*`, said, "of all interfaces")
	for port, want := range map[string]struct {
		code int
		text string
	}{
		"tcp/7200": {0, `host/worker-2 +ingress +normal +allowed +gnp/hosts +1`},
		"tcp/7201": {1, `host/worker-2 +ingress +normal +denied +end of tier default +-`},
		"tcp/22":   {0, `host/worker-2 +ingress +normal +allowed +failsafe port 22 +-`},
	} {
		code, said := c.try(t, "master", "calicoctl", "policy", "eval", "--from", "worker-1", "--to", "worker-2", "--port", port)
		assert.Equal(t, want.code, code, said)
		assert.Regexp(t, want.text, said)
		assert.Regexp(t, `host/worker-1 +egress +normal +allowed +gnp/hosts +0`, said)
	}
}
