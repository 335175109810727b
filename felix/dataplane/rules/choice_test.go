package rules

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/muslin-net/muslin/felix/desired"
)

func TestChoice(t *testing.T) {
	for _, c := range []struct {
		name string
		asks desired.Rules
		have Reading
		want Kind
	}{
		{"no kube-proxy", desired.Rules{}, Reading{Host: IPTablesLegacy}, NFTables},
		{"kube-proxy in nftables", desired.Rules{}, Reading{Proxy: NFTables, Host: IPTablesLegacy}, NFTables},
		{"kube-proxy in iptables", desired.Rules{}, Reading{Proxy: IPTablesNFT, Host: IPTablesLegacy}, IPTablesNFT},
		{"kube-proxy in legacy iptables", desired.Rules{}, Reading{Proxy: IPTablesLegacy, Host: IPTablesNFT}, IPTablesLegacy},
		{"always nftables", desired.Rules{NFTables: desired.Use, Backend: desired.LegacyBackend}, Reading{Proxy: IPTablesNFT, Host: IPTablesNFT}, NFTables},
		{"never nftables, no kube-proxy", desired.Rules{NFTables: desired.Avoid}, Reading{Host: IPTablesNFT}, IPTablesNFT},
		{"never nftables, and kube-proxy in it", desired.Rules{NFTables: desired.Avoid}, Reading{Proxy: NFTables, Host: IPTablesLegacy}, IPTablesLegacy},
		{"a backend beside kube-proxy's", desired.Rules{NFTables: desired.Avoid, Backend: desired.LegacyBackend}, Reading{Proxy: IPTablesNFT, Host: IPTablesNFT}, IPTablesLegacy},
		{"a backend if it is iptables", desired.Rules{Backend: desired.NFTBackend}, Reading{Proxy: IPTablesLegacy}, IPTablesNFT},
		{"a backend, and it is not", desired.Rules{Backend: desired.LegacyBackend}, Reading{Proxy: NFTables}, NFTables},
	} {
		t.Run(c.name, func(t *testing.T) { assert.Equal(t, c.want, choose(c.asks, c.have).Kind) })
	}
}

// What a driver of nftables has no use for does not make it anew.
func TestSettingsOfAnotherDriverChangeNothing(t *testing.T) {
	asks := desired.Rules{NFTables: desired.Use, AtEnd: true, LockProbe: 1, SetLimit: 7}
	assert.Equal(t, choose(desired.Rules{NFTables: desired.Use}, Reading{}), choose(asks, Reading{Host: IPTablesLegacy}))
	asks.NFTables = desired.Avoid
	assert.NotEqual(t, choose(desired.Rules{NFTables: desired.Avoid}, Reading{}), choose(asks, Reading{}))
}

func TestAReadingCountsWhenItWasReadTwice(t *testing.T) {
	none, old, proxy := Reading{}, Reading{Proxy: IPTablesLegacy}, Reading{Proxy: NFTables}
	r := readings{counts: none}
	for i, c := range []struct {
		found  Reading
		news   bool
		counts Reading
	}{
		{none, false, none}, {proxy, false, none}, {none, false, none}, // it restarted
		{proxy, false, none}, {old, false, none}, {proxy, false, none}, {proxy, true, proxy}, {proxy, false, proxy},
	} {
		assert.Equal(t, c.news, r.add(c.found), i)
		assert.Equal(t, c.counts, r.counts, i)
	}
}
