package desired

import "time"

// Rules says by what means the firewall is programmed, and how. The zero value leaves the choice to what is found on the node.
type Rules struct {
	NFTables Preference // nftables rather than iptables (NFTablesMode)
	Backend  Backend    // which iptables (IptablesBackend)
	// AtEnd puts our jumps behind others' rules in the kernel's chains of iptables (ChainInsertMode Append).
	AtEnd bool
	// LockProbe is how often an iptables that waits for its lock looks at it; 0: its default.
	LockProbe time.Duration
	// SetLimit is how many members a set of iptables may have (MaxIpsetSize); 0: the default.
	SetLimit int
}

// DefaultSetLimit is how many members a set of iptables may have unless Rules says otherwise.
const DefaultSetLimit = 1 << 20

// Preference says whether something is to be used.
type Preference uint8

// The preferences.
const (
	Auto  Preference = iota // as kube-proxy does
	Use                     // always
	Avoid                   // never
)

// Backend is which of the programs of the name iptables is used.
type Backend uint8

// The backends.
const (
	AutoBackend   Backend = iota // that which the host uses
	LegacyBackend                // xtables
	NFTBackend                   // nftables
)
