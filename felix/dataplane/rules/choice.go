package rules

import (
	"time"

	"github.com/muslin-net/muslin/felix/dataplane/rules/iptables"
	"github.com/muslin-net/muslin/felix/desired"
)

// Kind is a kind of driver.
type Kind string

// The kinds.
const (
	NFTables       Kind = "nftables"
	IPTablesLegacy Kind = "iptables (legacy)"
	IPTablesNFT    Kind = "iptables (nft)"
)

// variant is which iptables a kind is; none for nftables.
func (k Kind) variant() iptables.Variant {
	return map[Kind]iptables.Variant{IPTablesLegacy: iptables.Legacy, IPTablesNFT: iptables.NFT}[k]
}

// choice is a kind of driver with what it must be made anew for when it changes.
type choice struct {
	Kind
	atEnd     bool
	lockProbe time.Duration
	setLimit  int
}

// Reading is what was found on the node.
type Reading struct {
	Proxy Kind // by which means kube-proxy programs its rules; none if there is no kube-proxy
	Host  Kind // which iptables the host uses; none unless that was asked for
}

// asksHost tells whether it matters which iptables the host uses. To find that out costs running programs.
func asksHost(s desired.Rules, proxy Kind) bool {
	return s.NFTables == desired.Avoid && s.Backend == desired.AutoBackend && (proxy == "" || proxy == NFTables)
}

// choose is the driver that configuration and a reading lead to.
func choose(s desired.Rules, r Reading) choice {
	nftables := s.NFTables == desired.Use || s.NFTables == desired.Auto && (r.Proxy == NFTables || r.Proxy == "")
	if nftables {
		return choice{Kind: NFTables}
	}
	c := choice{Kind: r.Host, atEnd: s.AtEnd, lockProbe: s.LockProbe, setLimit: s.SetLimit}
	switch {
	case s.Backend == desired.LegacyBackend:
		c.Kind = IPTablesLegacy
	case s.Backend == desired.NFTBackend:
		c.Kind = IPTablesNFT
	case r.Proxy != "" && r.Proxy != NFTables:
		c.Kind = r.Proxy
	}
	return c
}

// readings turn what is found again and again into what counts.
type readings struct {
	counts Reading
	once   *Reading // found once, and different
}

// add takes a reading and tells whether what counts has changed: it was found twice in a row.
func (r *readings) add(found Reading) bool {
	switch {
	case found == r.counts:
		r.once = nil
		return false
	case r.once != nil && *r.once == found:
		r.counts, r.once = found, nil
		return true
	}
	r.once = &found
	return false
}
