// Package rulestest is what all rule drivers must do, most of it as tests with packets: the same verdicts, whichever driver it is.
package rulestest

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/api/view"
	"github.com/muslin-net/muslin/felix/desired"
)

// KeptChain has a driver that writes nothing know a chain that has kept its name by what it was told as. kernelChain is the
// name of a list's chain in the kernel.
func KeptChain(t *testing.T, d interface {
	Update(c desired.FirewallDelta)
	ToldAs(kernel string) string
}, kernelChain func(name string) string,
) {
	t.Helper()
	list := func(id string) (c desired.FirewallDelta) {
		for _, chain := range desired.ListChains(view.PolicyList{ID: id}) {
			c.Chains.Put(chain.Name, chain)
		}
		c.Workloads.Put("cali1", desired.Workload{Ingress: desired.ListChain(id, desired.Ingress), Egress: desired.ListChain(id, desired.Egress)})
		return c
	}
	const before, after = "e4c1f0b2a98d4c37e4c1f0b2a98d4c37", "0b2a98d4c37e4c1f0b2a98d4c37e4c1f"
	d.Update(list(before))
	kernel := kernelChain(desired.ListChain(before, desired.Ingress))
	assert.Equal(t, desired.ListChain(before, desired.Ingress), d.ToldAs(kernel))
	move := list(after)
	move.Chains.Remove(desired.ListChain(before, desired.Ingress))
	move.Chains.Remove(desired.ListChain(before, desired.Egress))
	d.Update(move)
	assert.Equal(t, desired.ListChain(after, desired.Ingress), d.ToldAs(kernel))
	assert.Empty(t, d.ToldAs(kernelChain(desired.ListChain(after, desired.Ingress))))
}
