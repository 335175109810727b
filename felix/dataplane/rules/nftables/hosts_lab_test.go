//go:build lab

package nftables_test

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/dataplane/internal/labtest"
	"github.com/muslin-net/muslin/felix/dataplane/rules/rulestest"
	"github.com/muslin-net/muslin/felix/desired"
)

const tcp, udp = 6, 17

func TestHostEndpointsOutliveRestarts(t *testing.T) {
	ns := labtest.Enter(t)
	devices(t, ns)
	all := func() desired.FirewallDelta {
		c := rich()
		open := view.Policy{Ingress: []view.Rule{rulestest.Anything}, Egress: []view.Rule{rulestest.Anything}}
		rulestest.Protect(&c, "*", rulestest.Endpoint{desired.PreDNAT: {Ingress: []view.Rule{rulestest.DenyTo(tcp, 30080)}}, desired.Forward: {Ingress: []view.Rule{rulestest.Anything}}, desired.Normal: open})
		rulestest.Protect(&c, "eth0", rulestest.Endpoint{
			desired.Untracked: {Ingress: []view.Rule{rulestest.AllowTo(udp, 53)}, Egress: []view.Rule{rulestest.AllowFrom(udp, 53)}},
			desired.Normal:    {Ingress: []view.Rule{rulestest.AllowTo(tcp, 80)}, Egress: []view.Rule{rulestest.Anything}},
		})
		staged := view.Policy{Staged: true, Ingress: []view.Rule{rulestest.DenyTo(tcp, 80)}, Egress: []view.Rule{rulestest.DenyTo(tcp, 81)}}
		rulestest.Protect(&c, "eth1", rulestest.Endpoint{desired.Untracked: staged, desired.PreDNAT: staged, desired.Forward: staged, desired.Normal: open})
		return c
	}
	apply(t, open(t), all())
	const golden = "testdata/hosts.txt"
	got := inOrder(ns.Run(t, "nft -s list ruleset"))
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), got, "go test -tags lab -run HostEndpoints -update rewrites it")

	again := open(t)
	again.Whole()
	apply(t, again, all())
	assert.Zero(t, again.Writes(), "adopted")
	c := desired.FirewallDelta{}
	c.Hosts.Remove("*")
	c.Hosts.Remove("eth0")
	c.Hosts.Remove("eth1")
	again.Update(c)
	require.NoError(t, again.Apply(context.Background()))
	list := ns.Run(t, "nft list ruleset")
	for _, rest := range []string{"cali-fh-", "cali-th-", "filter-OUTPUT", "mangle-PREROUTING", "mangle-POSTROUTING", "-hep-raw", "-hep-filter", "-hep-mangle"} {
		assert.NotContains(t, list, rest)
	}
}
