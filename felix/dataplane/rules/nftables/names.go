package nftables

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"github.com/muslin-net/muslin/felix/dataplane/internal/nft"
	"github.com/muslin-net/muslin/felix/dataplane/rules/model"
	"github.com/muslin-net/muslin/felix/desired"
)

// tableName is the name of our tables.
const tableName = "calico"

// Chains and sets that exist once.
const (
	rawPrerouting     = "raw-PREROUTING"
	rawOutput         = "raw-OUTPUT"
	manglePrerouting  = "mangle-PREROUTING"
	manglePostrouting = "mangle-POSTROUTING"
	filterInput       = "filter-INPUT"
	filterForward     = "filter-FORWARD"
	filterOutput      = "filter-OUTPUT"
	natPrerouting     = "nat-PREROUTING"
	natOutput         = "nat-OUTPUT"
	natPostrouting    = "nat-POSTROUTING"

	fromDispatch = "filter-cali-from-wl-dispatch"
	toDispatch   = "filter-cali-to-wl-dispatch"
	toHost       = "filter-cali-wl-to-host"
	natOutgoing  = "nat-cali-nat-outgoing"
	floatingIn   = "nat-cali-fip-dnat"
	floatingBack = "nat-cali-fip-snat"
	ledOn        = "filter-cali-led-on"
	fromSource   = "filter-cali-from-wl-source" // also the verdict map that it asks

	// Verdict maps and sets by interface name.
	fromMap    = "cali-from-wl-dispatch"
	toMap      = "cali-to-wl-dispatch"
	fromClosed = "cali-from-wl-closed"
	toClosed   = "cali-to-wl-closed"
	rpfSkipMap = "cali-rpf-skip"

	// What workloads may send under, where it is looked up before the routes.
	rawSources = "raw-cali-from-wl-sources"
	ownSources = "cali-wl-sources"
)

// layerPrefix begins the names of the chains of a layer.
func layerPrefix(layer desired.Layers) string {
	return map[desired.Layers]string{desired.Filter: "filter-", desired.Mangle: "mangle-", desired.Raw: "raw-"}[layer]
}

// kernelChain is the kernel's name of a policy, profile or list chain in the filter layer.
func kernelChain(name string) string { return layerChain(desired.Filter, name) }

// layerChain is the kernel's name of a policy, profile or list chain in a layer. One that is too long becomes its beginning
// ("filter-cali-pi-"), "_", and a hash of the rest (spec §4.5).
func layerChain(layer desired.Layers, name string) string {
	const limit = 255
	if len(layerPrefix(layer)+name) <= limit {
		return layerPrefix(layer) + name
	}
	head, rest := model.CutChain(name)
	sum := sha256.Sum256([]byte(rest))
	return layerPrefix(layer) + head + "_" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// rpfSkipChain is the chain that accepts a workload's additional sources.
func rpfSkipChain(iface string) string { return "raw-cali-rpf-skip-" + iface }

// kernelSet is the kernel's name of a set: Calico's, without the colons that nftables does not take (spec §4.6, §4.8).
func kernelSet(f nft.Family, id string) string {
	return strings.ReplaceAll(model.SetName(f == nft.IP6, id), ":", "-")
}

// contentSet is the name of a set that belongs to a rule: it follows from the content, so that equal lists share a set and
// a restart finds it.
func contentSet(f nft.Family, kind string, content []string) string {
	h := sha256.New()
	for _, c := range content {
		h.Write([]byte(c))
		h.Write([]byte{0})
	}
	return "cali-" + f.String() + "-" + kind + "-" + digest(h.Sum(nil), 16)
}

// digest shortens a hash to that many characters of 6 bits.
func digest(sum []byte, length int) string { return base64.RawURLEncoding.EncodeToString(sum)[:length] }

// ifKey is an interface name as a key.
func ifKey(name string) string {
	const size = 16
	return name + strings.Repeat("\x00", max(size-len(name), 0))
}
