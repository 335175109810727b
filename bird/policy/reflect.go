package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// On the sessions of the mesh a node may become a route reflector, and cease to be one, without any of them being made
// anew: that would cost every node its routes for seconds. So the engine takes each peer of the mesh for a client all the
// time, which lets any route out to it, and the program says which routes do go out: none that was learned over iBGP, but
// on a reflector. It passes on what nodes of the mesh say of themselves. A peer of the mesh that is not its client is a
// reflector too; what such a fellow passes on of others
//   - goes no further: two reflectors that lose a route at once would each go on with the other's copy of it, for ever,
//     since the engine does not look into cluster lists when routes come in;
//   - counts less than the word of the node itself: the engine, which compares neither originators nor the length of cluster
//     lists, could prefer the fellow's copy, and the fellow this one's, in turns. It is kept for when the node's session goes.

// Tags of routes that were learned over iBGP and go to a part of the iBGP sessions. Who reads them never changes, so that
// a route that loses one is taken back.
const (
	tagClients = 5 // tagGeneral: to the mesh, since a reflector passes it on
	tagAside   = 6 // tagGeneral: to sessions beside the mesh, as the engine allows for their roles
)

// Switches tells whether the roles of a reflector and its client come and go on the session while it is up.
func (p *Peer) Switches(c *Config) bool { return p.Type == PeerMesh && p.Internal(c) }

// Reflectors lists the other reflectors of the mesh that this one has sessions with, sorted.
func (c *Config) Reflectors() (out []netip.Addr) {
	if !c.Reflects() {
		return nil
	}
	for _, p := range c.Active() {
		if p.Switches(c) && !p.ReflectorClient {
			out = append(out, p.Address)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// passes tells whether a route that was learned over one iBGP session goes out over another (RFC 4456 section 6).
func (c *Config) passes(from, to *Peer, nextHop netip.Addr) bool {
	switch {
	case !c.Reflects():
		return false
	case from.Switches(c) || to.Switches(c):
		return from.Switches(c) && to.Switches(c) && (from.ReflectorClient || nextHop == from.Address)
	}
	return from.ReflectorClient || to.ReflectorClient
}

// roles sorts the iBGP sessions.
type roles struct {
	mesh    []Peer // all of the mesh
	clients []Peer // of these, the reflector's clients
	fellows []Peer // of these, other reflectors; none if this node is no reflector
	aside   []Peer // the others
}

func (k *compiler) roles(peers []Peer) roles {
	var r roles
	for _, p := range peers {
		switch {
		case !p.Internal(k.c):
			continue
		case !p.Switches(k.c):
			r.aside = append(r.aside, p)
			continue
		case !k.c.Reflects():
		case p.ReflectorClient:
			r.clients = append(r.clients, p)
		default:
			r.fellows = append(r.fellows, p)
		}
		r.mesh = append(r.mesh, p)
	}
	return r
}

// copyMED is the discriminator of a fellow reflector's copies. The word of the node itself has none, which counts as 0.
const copyMED = 1

// demoteCopies emits the import statements by which a reflector prefers what nodes say to what its fellows say of them, and
// to what is left of former ones: if a copy became the best path, the reflector would take the route back from whom it has
// the copy.
func (k *compiler) demoteCopies(r roles, reflected []netip.Addr) {
	if !k.c.Reflects() {
		return
	}
	for _, fellow := range r.mesh {
		if _, former := slices.BinarySearchFunc(reflected, fellow.Address, netip.Addr.Compare); fellow.ReflectorClient && !former {
			continue
		}
		s := Statement{Name: fmt.Sprintf("copies of %s", fellow.Address), Neighbor: k.fellow(fellow), MED: copyMED}
		for _, p := range r.mesh {
			if p.Address != fellow.Address && p.Address.Is6() == fellow.Address.Is6() {
				s.NextHops = append(s.NextHops, p.Address)
			}
		}
		if len(s.NextHops) > 0 {
			k.imports = append(k.imports, s)
		}
	}
}

func (k *compiler) fellow(p Peer) Match {
	return k.neighbors(fmt.Sprintf("fellow %s", p.Address), []Peer{p})
}

// splitHorizon emits the import statements that narrow down to which iBGP sessions a route goes that was learned over one.
func (k *compiler) splitHorizon(r roles, exports []class) {
	if len(r.mesh) == 0 {
		return
	}
	internal := k.tagged(generalTag(true))
	narrow := func(name string, from []Peer, value uint32) {
		if len(from) > 0 {
			k.imports = append(k.imports, Statement{
				Name: "learned from " + name, Neighbor: k.neighbors(name, from), LargeCommunity: internal,
				AddCommunities: []Community{tag(tagGeneral, value)},
			})
		}
	}
	narrow("clients", r.clients, tagClients)
	for _, p := range r.fellows {
		k.imports = append(k.imports, Statement{
			Name: fmt.Sprintf("%s of itself", p.Address), Neighbor: k.fellow(p), NextHops: []netip.Addr{p.Address},
			LargeCommunity: internal, AddCommunities: []Community{tag(tagGeneral, tagClients)},
		})
	}
	narrow("iBGP beside the mesh", r.aside, tagAside)
	if len(r.aside) > 0 {
		k.imports = append(k.imports, Statement{
			Name: "not into the mesh", Neighbor: k.neighbors("iBGP beside the mesh", r.aside), LargeCommunity: internal,
			RemoveLargeCommunities: "^" + generalTag(true).String() + "$",
		})
	}
	ids := []string{fmt.Sprintf("%d:%d", tagGeneral, tagInternal)}
	for _, cl := range exports {
		if cl.internal {
			ids = append(ids, fmt.Sprintf("%d:[0-9]+", cl.id))
		}
	}
	k.imports = append(k.imports, Statement{
		Name: "learned from the mesh", Neighbor: k.neighbors("mesh", r.mesh), LargeCommunity: Match{Set: "tags"},
		RemoveLargeCommunities: fmt.Sprintf("^%d:(%s)$", uint32(TagAdmin), strings.Join(ids, "|")),
	})
}

// readable is the condition that the default decision lets a route out to a kind of session.
func (k *compiler) readable(internal, mesh bool) Match {
	if !internal {
		return k.tagged(generalTag(false))
	}
	name, more := "beside the mesh", tagAside
	if mesh {
		name, more = "into the mesh", tagClients
	}
	return k.set(Set{
		Kind: LargeCommunitySet, Name: name, Patterns: []string{fmt.Sprintf("^%d:%d:[%d%d]$", uint32(TagAdmin), tagGeneral, tagInternal, more)},
	})
}
