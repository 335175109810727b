package model

import "strings"

// MaxSetName is the longest name of a set, in bytes: the kernel's limit for ip_set (IPSET_MAXNAMELEN without the zero), which
// Calico keeps for nftables too.
const MaxSetName = 31

// Kernel names of sets begin with the family (spec §4.6).
const (
	setPrefix4 = "cali40"
	setPrefix6 = "cali60"
)

// SetName is the kernel's name of a set of a family.
func SetName(v6 bool, id string) string {
	name := setPrefix4 + id
	if v6 {
		name = setPrefix6 + id
	}
	return name[:min(len(name), MaxSetName)]
}

// SetID is the id in a name of SetName, as far as it fits there; ok tells whether the name is one.
func SetID(name string) (id string, ok bool) {
	if id, ok = strings.CutPrefix(name, setPrefix4); ok {
		return id, true
	}
	return strings.CutPrefix(name, setPrefix6)
}

// CutChain parts the name of a chain where a kernel's limit makes a hash of the rest: "cali-pi-" and "np/shop/web" (spec §4.5).
func CutChain(name string) (head, rest string) {
	at := 0
	for dashes := 0; at < len(name) && dashes < 2; at++ {
		if name[at] == '-' {
			dashes++
		}
	}
	return name[:at], name[at:]
}
