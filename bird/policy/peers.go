package policy

import (
	"cmp"
	"slices"
	"strings"
)

// Active lists the peers that get a session, one for each address, by address. One that waits for something has none, and
// keeps the address nevertheless: else another would come up for as long as it waits. Engines hold one peer for each remote
// address whatever the port, so of several one wins: explicit beats mesh, global beats node, the lowest name wins.
func (c *Config) Active() []Peer {
	active, _ := c.resolve()
	return slices.DeleteFunc(active, func(p Peer) bool { return p.WaitingFor != "" })
}

// Shadowed maps the names of peers without a session to the peer that has their address: "Global_10_0_0_1 of BGPPeer(a)".
func (c *Config) Shadowed() map[string]string {
	_, shadowed := c.resolve()
	return shadowed
}

func (c *Config) resolve() (active []Peer, shadowed map[string]string) {
	order := slices.Clone(c.Peers)
	slices.SortFunc(order, func(a, b Peer) int {
		return cmp.Or(a.Address.Compare(b.Address), cmp.Compare(a.Type, b.Type),
			strings.Compare(a.Source, b.Source), strings.Compare(a.Name, b.Name))
	})
	shadowed = map[string]string{}
	for _, p := range order {
		if n := len(active); n > 0 && active[n-1].Address == p.Address {
			shadowed[p.Name] = active[n-1].Name + " of " + active[n-1].Source
			continue
		}
		active = append(active, p)
	}
	return active, shadowed
}

// Change is what a new configuration asks of a session.
type Change uint8

// The changes, from harmless to harsh.
const (
	Unchanged Change = iota
	Adjusted         // timers and names: applied without the peer noticing
	Restarted        // the connection must be made anew
)

// Compare tells what becomes of a session when its peer changes from a to b, and why it must restart. Filters,
// next-hop mode and a reflector's role on the mesh count as nothing here: they are policy, which Compile covers. Nor does
// BFD, which is negotiated apart. Which end dials matters only while there is no connection.
func Compare(a, b *Peer) (Change, string) {
	type parameter struct {
		what    string
		changed bool
	}
	for _, p := range []parameter{
		{"port", a.Port != b.Port},
		{"remote AS", a.ASNumber != b.ASNumber},
		{"local AS", a.LocalASNumber != b.LocalASNumber},
		{"source address", a.SourceAddress != b.SourceAddress},
		{"password", a.Password != b.Password},
		{"restart time", a.RestartTime != b.RestartTime},
		{"reflector client", a.ReflectorClient != b.ReflectorClient && (a.Type != PeerMesh || b.Type != PeerMesh)},
		{"tolerated own AS", a.AllowedOwnAS != b.AllowedOwnAS},
		{"long-lived stale time", a.LongLivedStaleTime != b.LongLivedStaleTime},
		{"TTL security", a.TTLSecurity != b.TTLSecurity},
	} {
		if p.changed {
			return Restarted, p.what
		}
	}
	if a.Passive != b.Passive || a.KeepaliveTime != b.KeepaliveTime || a.HoldTime != b.HoldTime ||
		a.Name != b.Name || a.Type != b.Type || a.Source != b.Source {
		return Adjusted, ""
	}
	return Unchanged, ""
}
