package nftables

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/rules/rulestest"
)

// A change that does not fit into one transaction is committed in parts, in this order: a chain that packets come to is edited when
// those that it leads to from then on have their rules.
func TestChainsInUseAreEditedLast(t *testing.T) {
	f := newFamily(nft.IP4)
	f.exists = true
	to := func(name string) chain {
		return chain{rules: []rule{newRule("to "+name, nft.Expr{}.Verdict(nft.Verdict{Code: nft.Jump, Chain: name}))}}
	}
	f.chains.SetActual("filter-a", chain{})
	f.chains.SetDesired("filter-a", to("filter-z"))
	f.chains.SetDesired("filter-z", to("filter-y"))
	f.chains.SetDesired("filter-y", chain{rules: refusals()})
	var got []string
	for _, u := range f.plan(true, nil) {
		got = append(got, u.Key)
	}
	assert.Equal(t, []string{"filter-y", "filter-z", "filter-y", "filter-z", "filter-a"}, got)
}

func TestAKeptChainIsKnownByItsList(t *testing.T) {
	rulestest.KeptChain(t, unconnected(), kernelChain)
}
