package iptables

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// Tables and the kernel's chains that we hook.
const (
	tableRaw    = "raw"
	tableMangle = "mangle"
	tableFilter = "filter"
	tableNAT    = "nat"
)

// Chains that exist once (spec §4.5).
const (
	chainPrerouting  = "cali-PREROUTING"
	chainOutput      = "cali-OUTPUT"
	chainInput       = "cali-INPUT"
	chainForward     = "cali-FORWARD"
	chainPostrouting = "cali-POSTROUTING"

	chainFrom       = "cali-from-wl-dispatch"
	chainTo         = "cali-to-wl-dispatch"
	chainFromClosed = "cali-from-wl-closed"
	chainToClosed   = "cali-to-wl-closed"
	chainToHost     = "cali-wl-to-host"
	chainNAT        = "cali-nat-outgoing"
	chainFloating   = "cali-fip-dnat"
	chainBack       = "cali-fip-snat"
	chainSources    = "cali-wl-sources"
	chainRPFSkip    = "cali-rpf-skip"
	chainLedOn      = "cali-led-on"
	chainFromSource = "cali-from-source"

	// What a rule goes to that says Allow or Pass: the mark is set, and the chain of the rule is left.
	chainAllow = "cali-allow"
	chainPass  = "cali-pass"

	// Hosts' chains: the dispatch to them, and where a packet goes that is no matter of the pass.
	chainFromHost    = "cali-from-host-endpoint"
	chainToHostBy    = "cali-to-host-endpoint"
	chainFromHostFwd = "cali-from-hep-forward"
	chainToHostFwd   = "cali-to-hep-forward"
	chainFailsafe    = "cali-failsafe"
)

// tableOfLayer are the tables of the model's layers.
var tableOfLayer = map[desired.Layers]string{desired.Filter: tableFilter, desired.Mangle: tableMangle, desired.Raw: tableRaw}

// prefixChains begins the names of all chains of ours.
const prefixChains = "cali-"

// kernelChain is the kernel's name of a chain of the model. One over the limit becomes its beginning ("cali-pi-"), "_" and
// a hash of the rest, cut to fit (spec §4.5).
func kernelChain(name string) string {
	return fitted(model.CutChain(name))
}

// fitted is prefix and suffix as a chain's name: with the hash too if a character would need quotes.
func fitted(prefix, suffix string) string {
	const limit = 28 // XT_EXTENSION_MAXNAMELEN without the zero
	name := prefix + suffix
	plain := !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"'\\`!", r) })
	if plain && (len(name) < limit || len(name) == limit && !strings.HasPrefix(suffix, "_")) {
		return name
	}
	sum := sha256.Sum256([]byte(suffix))
	return (prefix + "_" + base64.RawURLEncoding.EncodeToString(sum[:]))[:limit]
}

// contentSet is the id of a set of prefixes that belongs to a rule: it follows from the content, so that equal lists share
// a set and a restart finds it.
func contentSet(content []string) string {
	sum := sha256.Sum256([]byte(strings.Join(content, "\x00")))
	return "nets:" + base64.RawURLEncoding.EncodeToString(sum[:])[:16]
}
